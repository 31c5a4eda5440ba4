"""LLMServingSim's operator tables, real ones and made-up ones, become step costs."""

import shutil
from pathlib import Path

import polars as pl
import pytest

from calibration.imports.llmservingsim import read, recognised
from calibration.operators import operator_cost
from tests.calibration.test_roofline import batch_of
from traces.errors import ConfigError

LAYERS = ("layernorm", "qkv_proj", "rotary_emb", "o_proj", "gate_up_proj", "act_fn", "down_proj")
ONCE = ("embedding", "final_layernorm")


@pytest.fixture(scope="module")
def rtx4090(shared: Path) -> Path:
    return shared / "op-tables" / "rtx4090-llama-3.1-8b"


def write_bundle(
    folder: Path, model: str = "llama-3.1-8b", layers: tuple[str, ...] = LAYERS, tp: int = 1
) -> Path:
    """A bundle in which every call takes 1 us for each token or sequence."""
    tables = folder / f"tp{tp}" if tp > 1 else folder
    tables.mkdir(parents=True)
    (folder / "meta.yaml").write_text(
        f"model: {model}\ngpu: NVIDIA A100-SXM4-80GB\nvariant: bf16-kvfp8\ntp_degrees: [{tp}]\n"
    )
    dense = [(name, n, float(n)) for name in (*layers, *ONCE) for n in (1, 64, 2048)]
    rows = [(name, n, float(n)) for name in ("lm_head", "sampler") for n in (1, 256)]
    grid = [
        (c, h, n, k, float(c + n))
        for c in (0, 16, 2048)
        for h in (0, 2048)
        for n in (0, 1, 256)
        for k in (0, 16, 2048)
        if c + n and (c or not h) and bool(n) == bool(k)
    ]
    for name, columns, values in (
        ("dense", ("layer", "tokens", "time_us"), dense),
        ("per_sequence", ("layer", "sequences", "time_us"), rows),
        ("attention", ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode", "time_us"), grid),
        (
            "moe",
            ("tokens", "activated_experts", "time_us"),
            [(n, e, 10.0 * e) for n in (1, 64, 2048) for e in (1, 128)],
        ),
    ):
        pl.DataFrame(values, schema=columns, orient="row").write_csv(tables / f"{name}.csv")
    return folder


def test_a_step_is_the_sum_of_its_operators(rtx4090: Path):
    bundle = read(rtx4090)
    cost = operator_cost(bundle.tables)
    dense = pl.read_csv(rtx4090 / "dense.csv")
    rows = pl.read_csv(rtx4090 / "per_sequence.csv")
    attention = pl.read_csv(rtx4090 / "attention.csv")

    def summed(tokens: int, sequences: int, *grid: int) -> float:
        at = dict(dense.filter(tokens=tokens).select("layer", "time_us").iter_rows())
        calls = {name: 2 if name == "layernorm" else 1 for name in LAYERS}
        layer = sum(at[name] * count for name, count in calls.items())
        keys = dict(
            zip(("prefill_chunk", "kv_prefill", "n_decode", "kv_decode"), grid, strict=True)
        )
        one = attention.filter(**keys)["time_us"].item()
        head = rows.filter(sequences=sequences)["time_us"].sum()
        return 32 * (layer + one) + at["embedding"] + at["final_layernorm"] + head

    for (decodes, length, chunk, before), expected in (
        ((32, 1024, 0, 0), summed(32, 32, 0, 0, 32, 1024)),
        ((256, 4096, 0, 0), summed(256, 256, 0, 0, 256, 4096)),
        ((0, 0, 2048, 1024), summed(2048, 1, 2048, 1024, 0, 0)),
        ((16, 512, 512, 0), summed(528, 20, 512, 0, 16, 512)),
    ):
        chunks = [(chunk, before)] if chunk else []
        batch = batch_of(decodes, decodes * (length + 1), chunks)
        step_us = cost.progression(batch)[0] / 1e6
        tolerance = 0.002 if chunk and decodes else 1e-6  # 17 rows stand between 16 and 20
        assert step_us == pytest.approx(expected, rel=tolerance)


def test_the_bundle_says_what_it_is(rtx4090: Path):
    assert recognised(rtx4090)
    bundle = read(rtx4090)
    assert (bundle.model, bundle.tp) == ("llama-3.1-8b", 1)
    assert (bundle.weight_dtype, bundle.kv_dtype) == ("bf16", "bf16")
    assert (bundle.max_tokens, bundle.max_sequences) == (2048, 256)
    assert bundle.max_context_tokens == 16_384


def test_a_bundle_of_several_degrees(tmp_path: Path):
    folder = write_bundle(tmp_path / "bundle", tp=2)
    bundle = read(folder)
    assert bundle.tp == 2
    assert bundle.kv_dtype == "fp8"
    assert any("all-reduce" in note for note in bundle.notes)
    # 32 layers of 8 calls, two calls a step, two 16-bit all-reduces of 4096 a layer on top
    bare = (32 * 8 + 2) * 64e-6
    assert bare < bundle.tables.tokens(64) < bare + 32 * 2 * 100e-6
    with pytest.raises(ConfigError, match="no tables for tp 4; there are 2"):
        read(folder, tp=4)


def test_experts_are_those_that_tokens_choose(tmp_path: Path):
    experts = tuple(name for name in LAYERS if name not in ("gate_up_proj", "act_fn", "down_proj"))
    folder = write_bundle(tmp_path / "bundle", "qwen3-30b-a3b", (*experts, "qk_norm"))
    touched = 128 * (1 - (1 - 8 / 128) ** 64)
    calls = 48 * (2 + 1 + 1 + 1 + 2) + 2
    expected = 64e-6 * calls + 48 * 10e-6 * touched
    assert read(folder).tables.tokens(64) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("dense.csv", "o_proj,", "o_projection,", "'o_projection' is unknown; known: layernorm"),
        ("dense.csv", "o_proj,64,64.0", "o_proj,64,-64.0", "time_us is -64.0; expected a time > 0"),
        ("dense.csv", "o_proj,64,64.0", "o_proj,64,nan", "time_us is nan"),
        ("dense.csv", "o_proj,64,64.0", "o_proj,x,64.0", "tokens is 'x'; expected a whole number"),
        ("dense.csv", "o_proj,64,", "o_proj,1,", "'o_proj' has two rows for tokens = 1"),
        ("dense.csv", "layer,", "operator,", "column layer is missing; it has operator, tokens"),
        ("per_sequence.csv", "lm_head", "sampler", "'lm_head' is missing"),
        ("attention.csv", "0,0,1,16,", "0,0,1,2048,", "two rows for the same step"),
        ("meta.yaml", "model: llama-3.1-8b", "model: llama-9b", "'llama-9b' is unknown"),
        ("meta.yaml", "gpu: ", "device: ", "gpu is missing"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, file: str, old: str, new: str, message: str):
    folder = write_bundle(tmp_path / "bundle")
    text = (folder / file).read_text()
    assert old in text
    (folder / file).write_text(text.replace(old, new))
    with pytest.raises(ConfigError) as raised:
        read(folder)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_missing_layer_is_no_free_layer(tmp_path: Path):
    folder = write_bundle(tmp_path / "bundle", layers=tuple(n for n in LAYERS if n != "down_proj"))
    with pytest.raises(ConfigError, match="'down_proj' is missing; a step without it is too short"):
        read(folder)
    shutil.rmtree(folder)
    folder = write_bundle(tmp_path / "bundle")
    (folder / "attention.csv").unlink()
    assert not recognised(folder)
    with pytest.raises(ConfigError, match="there is no such file"):
        read(folder)


AXES = """
skew_fit:
  enabled: true
  bucket_axes:
    n_bins: [0, 8, 1000000]
    n_labels: [n<=8, n>8]
    skew_rate_bins: [-0.01, 0.5, 1.01]
    skew_rate_labels: [sr<=50%, sr>50%]
    kv_big_bins: [0, 1024, 1000000000]
    kv_big_labels: [kvB<=1k, kvB>1k]
    kp_bins: [-1, 0, 1000000000]
    kp_labels: [kp=0, kp>0]
  per_tp:
    1: {alpha_default: 0.05}
"""
SKEW = """pc,n_label,skew_rate_label,kv_big_label,kp_label,alpha,n_samples
0,n<=8,sr<=50%,kvB>1k,kp=0,0.3,4
"""


def test_the_fitted_skew_is_read_by_its_labels(tmp_path: Path):
    folder = write_bundle(tmp_path / "bundle")
    assert read(folder).tables.skew is None
    assert any("unequal lengths" in note for note in read(folder).notes)
    with (folder / "meta.yaml").open("a") as meta:
        meta.write(AXES)
    (folder / "skew_fit.csv").write_text(SKEW)
    skew = read(folder).tables.skew
    assert skew is not None
    assert skew.alpha(0, 0, 8, 100, 1000, 2000) == 0.3
    assert skew.alpha(0, 0, 9, 100, 1000, 2000) == 0.05
    assert skew.alpha(0, 0, 8, 100, 1900, 2000) == 0.05
    assert skew.alpha(0, 0, 8, 100, 1000, 1024) == 0.05
    (folder / "skew_fit.csv").write_text(SKEW.replace("n<=8", "n<=7"))
    with pytest.raises(ConfigError, match=r"n_label is 'n<=7'; meta\.yaml has n<=8, n>8"):
        read(folder)
