"""Operator tables become a profile that replays like any other."""

from pathlib import Path

import pytest

from calibration.from_tables import profile_from_tables
from calibration.operators import operator_cost
from calibration.profiles import load_profile
from tests.calibration.imports.test_llmservingsim import write_bundle
from tests.calibration.test_roofline import batch_of
from traces.errors import ConfigError


def test_the_profile_that_is_written_is_the_one_that_is_loaded(tmp_path: Path):
    folder = write_bundle(tmp_path / "bundle")
    made = profile_from_tables(folder, tmp_path / "a100.yaml", {}, settings={"graph_sizes": (64,)})
    loaded = load_profile(tmp_path / "a100.yaml")
    assert loaded == made
    assert (loaded.gpu, loaded.model, loaded.kv_dtype) == ("a100-80", "llama-3.1-8b", "fp8")
    assert loaded.measured
    assert "LLMServingSim" in loaded.provenance
    assert loaded.beyond(tokens=4096).endswith("2048 tokens in a step; asked for 4096 (2.00 times)")
    step = batch_of(3, 300, [])
    cost = loaded.cost_model(async_scheduling=True)
    assert cost.progression(step) == made.cost_model(async_scheduling=True).progression(step)
    assert cost.progression(step)[0] > 0


def test_a_written_profile_can_be_moved_with_its_tables(tmp_path: Path):
    profile_from_tables(write_bundle(tmp_path / "bundle"), tmp_path / "p.yaml", {})
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for file in ("p.yaml", "p.operators.parquet"):
        (tmp_path / file).rename(elsewhere / file)
    profile = load_profile(elsewhere / "p.yaml")
    assert profile.cost_model().progression(batch_of(1, 10, []))[0] > 0
    (elsewhere / "p.operators.parquet").unlink()
    with pytest.raises(ConfigError, match="there is no such file; it belongs to the profile"):
        profile.cost_model()


def test_a_gpu_without_a_data_sheet_needs_its_memory_stated(tmp_path: Path):
    folder = write_bundle(tmp_path / "bundle")
    meta = folder / "meta.yaml"
    meta.write_text(meta.read_text().replace("NVIDIA A100-SXM4-80GB", "Unheard Of 9000"))
    with pytest.raises(ConfigError, match=r"gpu 'Unheard Of 9000' is unknown.*or state its memory"):
        profile_from_tables(folder, tmp_path / "p.yaml", {})
    profile_from_tables(folder, tmp_path / "p.yaml", {}, memory_bytes=80 * 10**9)
    assert load_profile(tmp_path / "p.yaml").device.name == "Unheard Of 9000"


def test_h200_tables_are_read_for_any_model(shared: Path, tmp_path: Path):
    folder = shared / "op-tables" / "h200-sxm-vllm-0.24"
    times: list[int] = []
    for kv_dtype in ("bf16", "fp8"):
        asked = {"model_name": "llama-3.1-8b", "kv_dtype": kv_dtype}
        profile = profile_from_tables(folder, tmp_path / f"{kv_dtype}.yaml", asked)
        assert profile.kv_dtype == kv_dtype
        times.append(profile.cost_model().progression(batch_of(64, 64 * 8193, []))[0])
    assert times[1] < 0.8 * times[0]
    with pytest.raises(ConfigError, match="model: is missing; AIConfigurator's tables"):
        profile_from_tables(folder, tmp_path / "p.yaml", {})


def test_what_cannot_be_read_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match="no operator tables of a known format; known: LLMServ"):
        profile_from_tables(tmp_path, tmp_path / "p.yaml", {})
    with pytest.raises(ConfigError, match="is no folder"):
        profile_from_tables(tmp_path / "none", tmp_path / "p.yaml", {})
    folder = write_bundle(tmp_path / "bundle")
    with pytest.raises(ConfigError, match="kv_dtype: int8: LLMServingSim's tables say it"):
        profile_from_tables(folder, tmp_path / "p.yaml", {"kv_dtype": "int8"})
    assert not list(tmp_path.glob("p.*"))


def test_tables_cost_what_their_operators_do(shared: Path, tmp_path: Path):
    """The file keeps every bit of what was read."""
    from calibration.imports.llmservingsim import read

    folder = shared / "op-tables" / "rtx4090-llama-3.1-8b"
    profile = profile_from_tables(folder, tmp_path / "p.yaml", {}, settings={"graph_sizes": ()})
    cost = profile.cost_model(async_scheduling=True)
    direct = operator_cost(read(folder).tables, (), 0.0, 1e-3, 8e-6)
    for step in (batch_of(31, 40_000, []), batch_of(9, 9000, [(500, 100), (700, 0)])):
        assert cost.progression(step) == direct.progression(step)
