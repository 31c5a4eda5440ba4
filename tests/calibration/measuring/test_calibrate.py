import json
from pathlib import Path

import polars as pl
import pytest

from calibration.measuring.calibrate import calibrate
from calibration.measuring.campaign import STAGES
from calibration.measuring.conditions import Host
from calibration.measuring.partial import VISITS
from calibration.profiles import load_profile
from calibration.steps import STEP_FRAME
from engine.loading import LoadedModel
from engine.shapes import ModelShape
from tests.calibration.engines import (
    MACHINE,
    PS,
    TRUTH,
    HandClock,
    Lawful,
    lawful_settings,
)
from traces.errors import ConfigError

BUDGET_S = 40.0

CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 97,
    "max_position_embeddings": 4096,
}


class Laboratory:
    """A folder, and engines to calibrate one after the other."""

    def __init__(self, folder: Path) -> None:
        self.out = folder / "toy.yaml"
        self.part = folder / "toy.yaml.part"
        self.model = folder / "model"
        self.model.mkdir()
        (self.model / "config.json").write_text(json.dumps(CONFIG))
        self.executors: list[Lawful] = []

    def calibrate(
        self, budget_s=BUDGET_S, *, machine=MACHINE, settings=None, seed=0, fresh=None, **toy
    ):
        executor = Lawful(HandClock(), **toy)
        self.executors.append(executor)
        chosen = settings or lawful_settings()
        chosen = chosen.model_copy(update={"model": str(self.model)})
        shape = ModelShape.from_hf_config(self.model)
        return calibrate(
            chosen,
            self.out,
            budget_s,
            seed=seed,
            fresh=fresh,
            command="kvcast calibrate",
            load=lambda asked: LoadedModel(executor, asked, shape),
            host=lambda _: machine,
            clock=executor.clock,
        )

    @property
    def clock_s(self) -> float:
        return sum(executor.clock.now() for executor in self.executors) / PS

    def leaves(self) -> set[str]:
        return {path.name for path in self.out.parent.iterdir()} - {"model"}


@pytest.fixture
def laboratory(tmp_path):
    return Laboratory(tmp_path)


def assert_true(profile, within=0.05):
    cost = profile.cost
    for term, truth in TRUTH.coefficients():
        found = cost.coefficient(term)
        slack = 3 * found.standard_error + within * truth.value
        assert abs(found.value - truth.value) <= slack, (term, found, truth)


def test_the_truth_is_recovered(laboratory):
    done = laboratory.calibrate(noise=0.02)
    assert_true(done.profile)
    report = done.fit.report
    assert report.all.median < 0.03 and report.all.p95 < 0.08
    assert report.decode and report.prefill and report.mixed
    assert laboratory.clock_s == pytest.approx(BUDGET_S, rel=0.03)
    assert laboratory.executors[0].closed
    assert laboratory.leaves() == {"toy.yaml", "toy.steps.parquet"}


def test_the_profile_says_what_it_rests_on(laboratory):
    done = laboratory.calibrate(20.0, noise=0.01)
    read = load_profile(laboratory.out)
    assert read.model_dump(mode="json") == done.profile.model_dump(mode="json")
    assert read.measured and not read.warning and read.name == "toy"
    assert read.model == str(laboratory.model.resolve())
    assert read.noise is not None and read.fit == done.fit.report
    experiment = read.experiment
    assert experiment is not None
    assert experiment.device == "Toy 1000" and experiment.command == "kvcast calibrate"
    assert experiment.points == done.points and experiment.repeats and experiment.repeats > 1
    assert experiment.taken_s == pytest.approx(20.0, rel=0.05)
    assert experiment.engine["scheduler"]["max_num_seqs"] == 64
    assert "/" not in experiment.engine["model"]
    assert "blocks of 16 tokens" in read.note
    assert read.stated_device is not None and read.stated_device.name == "Toy 1000"


def test_every_step_lies_beside_the_profile(laboratory):
    laboratory.calibrate(20.0, noise=0.01)
    steps = pl.read_parquet(laboratory.out.with_name("toy.steps.parquet"))
    assert set(STEP_FRAME) <= set(steps.columns)
    served = steps.filter(~pl.col("source").is_in(STAGES))
    assert served.height and served["held_out"].all()
    tests = steps.filter(pl.col("source") == "test")
    assert tests["held_out"].all()
    rest = steps.filter(pl.col("source").is_in(STAGES) & (pl.col("source") != "test"))
    assert not rest["held_out"].any()
    designed = tests.height + rest.height
    assert 0.1 < tests.height / designed < 0.35
    kinds = served.select(pl.col("decodes") > 0, pl.col("prefills") > 0).unique()
    assert kinds.height == 3  # decodes, prefills and both
    assert (steps["time_s"] > steps["device_s"]).all()


def test_the_same_seed_measures_the_same(laboratory):
    one = laboratory.calibrate(15.0)
    other = laboratory.calibrate(15.0)
    third = laboratory.calibrate(15.0, seed=1)
    assert one.fit.steps.equals(other.fit.steps)
    assert not one.fit.steps.equals(third.fit.steps)


@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_odd_steps_are_kept_marked_and_left_out(laboratory, noise):
    done = laboratory.calibrate(noise=noise, odd=lambda step: 5.0 if step % 23 == 0 else 1.0)
    assert_true(done.profile)
    assert done.fit.report.outliers > 10


@pytest.mark.parametrize("steps", [0, 1, 4, 30, 100, 400, 900])
def test_an_interrupted_calibration_goes_on(laboratory, steps):
    with pytest.raises(KeyboardInterrupt):
        laboratory.calibrate(noise=0.01, interrupt_after=steps)
    assert laboratory.leaves() == {"toy.yaml.part"}
    kept = laboratory.part / VISITS
    before = kept.read_text() if kept.exists() else ""
    with pytest.raises(KeyboardInterrupt):
        laboratory.calibrate(noise=0.01, interrupt_after=20)
    assert kept.read_text().startswith(before) if before else True
    done = laboratory.calibrate(noise=0.01)
    assert_true(done.profile)
    assert laboratory.clock_s == pytest.approx(BUDGET_S, rel=0.1)  # what was lost comes on top
    assert laboratory.leaves() == {"toy.yaml", "toy.steps.parquet"}


def test_serving_that_is_done_is_not_done_again(laboratory):
    whole = laboratory.calibrate(noise=0.01)
    launched = len(laboratory.executors[0].launched)
    with pytest.raises(KeyboardInterrupt):
        laboratory.calibrate(noise=0.01, interrupt_after=launched - 15)
    lines = (laboratory.part / VISITS).read_text().splitlines()
    stages = [json.loads(line)["stage"] for line in lines]
    assert len([stage for stage in stages if stage.startswith("serving")]) == 3
    done = laboratory.calibrate(noise=0.01)
    before, after = (
        one.fit.steps.filter(~pl.col("source").str.ends_with("64 at once")) for one in (whole, done)
    )
    assert before.equals(after)


def test_what_belongs_to_another_experiment_is_not_mixed_in(laboratory):
    with pytest.raises(KeyboardInterrupt):
        laboratory.calibrate(interrupt_after=50)
    moved = Host("Toy 2000", 2**34, "", 1, MACHINE.versions)
    for changes, said in (
        ({"settings": lawful_settings(max_num_seqs=32)}, "engine.scheduler.max_num_seqs: 64, now"),
        ({"machine": moved}, "device: Toy 1000, now it is Toy 2000"),
        ({"seed": 3}, "seed: 0, now it is 3"),
    ):
        with pytest.raises(ConfigError, match=said):
            laboratory.calibrate(**changes)
    done = laboratory.calibrate(20.0, settings=lawful_settings(max_num_seqs=32), fresh=True)
    assert done.fit.steps["decodes"].max() <= 32


def test_a_budget_may_be_raised_for_what_was_interrupted(laboratory):
    with pytest.raises(
        ConfigError, match=r"budget: 500 ms is too short to tell what .* cost; about"
    ):
        laboratory.calibrate(0.5)
    done = laboratory.calibrate(20.0, fresh=False)
    assert_true(done.profile)


def test_resume_insists_on_something_to_go_on_from(laboratory):
    with pytest.raises(ConfigError, match="--resume: there is nothing to go on from"):
        laboratory.calibrate(fresh=False)


def test_a_failed_calibration_leaves_an_earlier_profile_alone(laboratory):
    laboratory.out.write_text("earlier")
    with pytest.raises(KeyboardInterrupt):
        laboratory.calibrate(interrupt_after=50)
    with pytest.raises(ConfigError):
        laboratory.calibrate(0.2, fresh=True)
    assert laboratory.out.read_text() == "earlier"


@pytest.mark.parametrize(
    ("out", "budget_s", "said"),
    [
        ("p.txt", 10.0, r"p\.txt: must be a \.yaml file"),
        ("nowhere/p.yaml", 10.0, "there is no folder"),
        ("p.yaml", 0.0, "--budget: must be a time above 0"),
        ("p.yaml", float("nan"), "--budget: must be a time above 0"),
    ],
)
def test_what_cannot_be_is_said_before_a_model_is_loaded(tmp_path, out, budget_s, said):
    def load(_):
        raise AssertionError

    with pytest.raises(ConfigError, match=said):
        calibrate(lawful_settings(), tmp_path / out, budget_s, load=load)
    assert list(tmp_path.iterdir()) == []


def test_an_engine_without_a_cache_cannot_be_calibrated(tmp_path):
    settings = lawful_settings().model_copy(update={"kv_reuse": False})
    with pytest.raises(ConfigError, match="kv_reuse: must be true to calibrate"):
        calibrate(settings, tmp_path / "p.yaml", 10.0)


@pytest.mark.parametrize(
    ("limits", "what"),
    [
        ({"max_num_seqs": 1}, "decodes"),
        ({"max_model_len": 40}, "decodes"),
        ({"max_num_batched_tokens": 8}, "prefills"),
    ],
)
def test_limits_that_allow_one_step_only_are_refused(laboratory, limits, what):
    with pytest.raises(ConfigError, match=f"no room to measure different {what}: max_num_seqs"):
        laboratory.calibrate(settings=lawful_settings(**limits))


def test_narrow_limits_will_do(laboratory):
    narrow = lawful_settings(max_num_seqs=4, max_num_batched_tokens=32, max_model_len=100)
    done = laboratory.calibrate(20.0, settings=narrow, num_blocks=33)
    assert done.fit.report.all.median < 0.05


def test_a_model_whose_shape_no_file_states_is_refused(laboratory):
    laboratory.model = laboratory.model / "config.json"  # stands for a .gguf
    with pytest.raises(ConfigError, match="give the folder of the Hugging Face model"):
        laboratory.calibrate(15.0)


def test_progress_is_told_up_to_the_budget(laboratory):
    told: list[tuple[float, str]] = []
    executor = Lawful(HandClock())
    shape = ModelShape.from_hf_config(laboratory.model)
    settings = lawful_settings().model_copy(update={"model": str(laboratory.model)})
    calibrate(
        settings,
        laboratory.out,
        15.0,
        load=lambda asked: LoadedModel(executor, asked, shape),
        host=lambda _: MACHINE,
        clock=executor.clock,
        tell=lambda spent_s, note: told.append((spent_s, note)),
    )
    spent = [spent_s for spent_s, _ in told]
    assert spent == sorted(spent) and 14 < spent[-1] < 16
    assert "points" in told[-1][1] and "steps" in told[-1][1]
