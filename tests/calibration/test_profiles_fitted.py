"""Fitted profiles: files and back, draws, ranges, devices without a data sheet, what is shown."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from calibration.cli import profile_app
from calibration.evidence import Experiment
from calibration.fitted import FittedCost, FittedSettings
from calibration.fitting.fit import Fit, fit_steps
from calibration.profile_files import load_steps, save_profile, steps_beside
from calibration.profiles import Profile, load_profile, shipped_profiles
from tests.calibration.steps import GPU, GRAPHS, design, timed
from traces.errors import ConfigError

EXPERIMENT = Experiment(
    date="2026-01-31",
    device="a device",
    command="kvcast calibrate",
    engine={"model": "toy", "scheduler": {"max_num_seqs": 256}},
    versions={"torch": "2.11"},
    points=140,
    repeats=4,
    taken_s=12.5,
    conditions={"clock_mhz": [1500, 1980]},
)
CPU = {"name": "two cores", "memory_bytes": 8 * 2**30}


@pytest.fixture(scope="module")
def fit() -> Fit:
    random = np.random.default_rng(1)
    truth = GPU | {"eager_s": 1e-3}
    steps = timed(truth, design(random, sizes=GRAPHS), 0.02, random, GRAPHS)
    slow = pl.when(pl.int_range(pl.len()) == 9).then(8.0).otherwise(1.0)
    return fit_steps(steps.with_columns(time_s=pl.col("time_s") * slow), graph_sizes=GRAPHS)


def profile_of(fit: Fit, **changes: object) -> Profile:
    stated: dict[str, object] = {
        "name": "toy",
        "measured": True,
        "provenance": "a test",
        "model": "llama-3.1-8b",
        "gpu": "h200",
        "cost": fit.cost,
        "validity": fit.validity,
        "noise": fit.noise,
        "fit": fit.report,
        "experiment": EXPERIMENT,
    }
    return Profile.model_validate(stated | changes)


def test_a_profile_and_its_steps_come_back_from_their_files(fit: Fit, tmp_path: Path):
    path = tmp_path / "toy-v0.1.yaml"
    profile = profile_of(fit)
    save_profile(profile, path, fit.steps)
    again = load_profile(path)
    assert again == profile.within(tmp_path)
    assert steps_beside(path).name == "toy-v0.1.steps.parquet"
    steps = load_steps(path)
    assert steps is not None and steps.equals(fit.steps)
    text = path.read_text("utf-8")
    save_profile(again, path)
    assert path.read_text("utf-8") == text
    assert sorted(one.name for one in tmp_path.iterdir()) == [steps_beside(path).name, path.name]
    assert max(len(line) for line in text.splitlines()) < 120
    assert "null" not in text and "note" not in text


def test_a_profile_without_steps_has_none_and_other_files_are_refused(fit: Fit, tmp_path: Path):
    path = save_profile(profile_of(fit), tmp_path / "toy.yaml")
    assert load_steps(path) is None
    assert load_steps(shipped_profiles()[0]) is None
    pl.DataFrame({"a": [1]}).write_parquet(steps_beside(path))
    with pytest.raises(ConfigError, match=r"toy\.steps\.parquet: column decodes is missing"):
        load_steps(path)
    steps_beside(path).write_text("no parquet", "utf-8")
    with pytest.raises(ConfigError, match=r"toy\.steps\.parquet: cannot be read"):
        load_steps(path)
    with pytest.raises(ConfigError, match="cannot be written: No such file"):
        save_profile(profile_of(fit), tmp_path / "nowhere" / "toy.yaml")


def test_a_fitted_profile_has_its_cost_model_and_the_devices_roofline(fit: Fit):
    cost = profile_of(fit).cost_model(async_scheduling=False)
    assert isinstance(cost, FittedCost) and not cost.overlap
    assert cost.roofline is not None
    flops, moved = cost.roofline.work(0, 0, 2048, 2048, 2048 * 2049 // 2, 1)
    assert 0 < flops / cost.roofline.peak_flops_per_s < 0.1
    assert moved > 15e9


def test_a_draw_is_another_profile_near_by(fit: Fit):
    profile = profile_of(fit)
    drawn = profile.drawn(np.random.default_rng(3))
    assert drawn == profile.drawn(np.random.default_rng(3))
    assert drawn.cost != profile.cost and drawn.noise == profile.noise
    draws = [profile.drawn(np.random.default_rng(seed)).cost for seed in range(300)]
    values = [one.token_s.value for one in draws if isinstance(one, FittedSettings)]
    one = fit.cost.token_s
    assert one.low is not None and one.high is not None
    held = np.mean([one.low <= value <= one.high for value in values])
    assert 0.91 < held < 0.99


def test_a_profile_without_intervals_has_nothing_to_draw_from(fit: Fit):
    plain = profile_of(fit, cost={"kind": "fitted", "step_s": 1e-3})
    for profile in (plain, load_profile("h200-llama-3.1-8b")):
        with pytest.raises(ConfigError, match="states no intervals to draw from"):
            profile.drawn(np.random.default_rng(0))


def test_beyond_says_once_what_and_how_far(fit: Fit):
    limits = {"max_tokens": 2048, "max_sequences": 64, "max_context_tokens": 8192}
    profile = profile_of(fit, validity=limits)
    assert profile.beyond(tokens=2048, sequences=64, context_tokens=8192) == ""
    assert profile.beyond(tokens=3000) == (
        "profile toy: no measurement beyond 2048 tokens in a step; asked for 3000 (1.46 times)"
    )
    assert profile.beyond(tokens=3000, sequences=65) == (
        "profile toy: no measurement beyond 2048 tokens in a step; asked for 3000 (1.46 times);"
        " nor beyond 64 sequences in a step; asked for 65 (1.02 times)"
    )


def test_a_profile_of_another_model_or_dtype_is_refused(fit: Fit):
    profile = profile_of(fit)
    profile.require()
    profile.require(model="meta-llama/Llama-3.1-8B", weight_dtype="bf16", kv_dtype="bf16")
    with pytest.raises(ConfigError, match=r"is of model llama-3\.1-8b; asked for qwen3-8b"):
        profile.require(model="qwen3-8b")
    with pytest.raises(ConfigError, match="is of kv_dtype bf16; asked for fp8"):
        profile.require(kv_dtype="fp8")
    with pytest.raises(ConfigError, match="is of weight_dtype bf16; asked for int8"):
        profile.require(weight_dtype="int8")


def test_a_device_may_be_stated(fit: Fit):
    cpu = {"gpu": None, "device": CPU, "model": "smollm2-135m"}
    dtypes = {"weight_dtype": "fp32", "kv_dtype": "fp32"}
    profile = profile_of(fit, **cpu, **dtypes)
    assert profile.device.name == "two cores"
    assert profile.arithmetic is None
    cost = profile.cost_model()
    assert isinstance(cost, FittedCost) and cost.roofline is None
    capacity, narrow = profile.capacity(), profile_of(fit, **cpu).capacity()
    assert capacity.weight_bytes == 2 * narrow.weight_bytes == 4 * profile.shape.parameters
    assert capacity.memory_bytes == 8 * 2**30
    ceilings = CPU | {"memory_bytes_per_s": 2e10, "flops_per_s": 1e11}
    known = profile_of(fit, **cpu | {"device": ceilings}, **dtypes).arithmetic
    on_gpu = profile_of(fit, model="smollm2-135m").arithmetic
    assert known is not None and on_gpu is not None
    assert known.memory_bytes_per_s == 2e10
    assert known.common_bytes == 4 * profile.shape.common_weights()
    assert known.elementwise_bytes == 2 * on_gpu.elementwise_bytes
    with pytest.raises(ConfigError, match="roofline needs a GPU with a data sheet; two cores is"):
        profile_of(fit, **cpu, cost={"kind": "roofline"}).cost_model()


@pytest.mark.parametrize("changes", [{"device": CPU}, {"gpu": None}])
def test_a_profile_has_one_device(fit: Fit, changes: dict[str, object]):
    with pytest.raises(ValueError, match="a known GPU, or a device section, not both"):
        profile_of(fit, **changes)


def shown(*arguments: str | Path) -> str:
    result = CliRunner(env={"COLUMNS": "200"}).invoke(profile_app, [*map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_show_has_coefficients_errors_and_what_the_device_reaches(fit: Fit, tmp_path: Path):
    path = save_profile(profile_of(fit), tmp_path / "toy.yaml")
    text = shown("show", path)
    for said in ("fitted coefficients", "weights_s", "95 % interval", "of peak", "held-out"):
        assert said in text
    assert "NOT MEASURED" not in text and "beyond what was measured" in text
    cpu = profile_of(fit, gpu=None, device=CPU, model="smollm2-135m")
    text = shown("show", save_profile(cpu, tmp_path / "cpu.yaml"))
    assert "unknown" in text and "two cores" in text and "of peak" not in text


@pytest.mark.parametrize("device", [{}, {"gpu": None, "device": CPU, "model": "smollm2-135m"}])
def test_the_page_has_every_picture_and_the_same_bytes(
    fit: Fit, tmp_path: Path, device: dict[str, object]
):
    path = save_profile(profile_of(fit, **device), tmp_path / "toy.yaml", fit.steps)
    pages = [tmp_path / "a.html", tmp_path / "b.html"]
    for page in pages:
        shown("show", path, "--out", page)
    first, second = (page.read_bytes() for page in pages)
    assert first == second
    text = first.decode()
    for name in ("predictions", "residuals", "roofline"):
        assert f'id="plot-{name}"' in text
    assert "held out" in text and '"outlier"' in text
    assert ("the most that the coefficients reach" in text) == bool(device)


def test_a_page_needs_steps(tmp_path: Path):
    arguments = ["show", "h200-llama-3.1-8b", "--out", str(tmp_path / "page.html")]
    failed = CliRunner().invoke(profile_app, arguments)
    assert isinstance(failed.exception, ConfigError)
    assert "no measured steps beside it" in str(failed.exception)
    assert not (tmp_path / "page.html").exists()


def test_compare_marks_coefficients_whose_intervals_are_apart(fit: Fit, tmp_path: Path):
    slower = fit.cost.model_dump(exclude_defaults=True)
    slower["token_s"] = {name: 2 * value for name, value in slower["token_s"].items()}
    one = save_profile(profile_of(fit), tmp_path / "one.yaml")
    other = save_profile(profile_of(fit, name="slow", cost=slower), tmp_path / "other.yaml")
    text = shown("compare", one, other)
    rows = {line.split("│")[1].strip(): line for line in text.splitlines() if line.count("│") > 3}
    assert "differs" in rows["token_s"] and "2.00" in rows["token_s"]
    assert "differs" not in rows["context_s"] and "1.00" in rows["decode 1 x 1k"]
    text = shown("compare", one, "h200-llama-3.1-8b")
    assert "the costs are fitted and roofline" in text and "NOT MEASURED" in text
