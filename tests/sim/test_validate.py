"""A simulation beside a real run: what is the same has no error, what is not is said."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.profiles import load_profile
from sim.folder import replay_to_folder
from sim.scenario import Scenario, scenario_of
from sim.validate import FILES, check_folder, shifted, validate, write_folder
from sim.validation.figures import (
    arrived_below,
    bootstrap,
    compared,
    figures,
    statistics,
)
from sim.validation.page import page
from sim.validation.real import Real, check_profile, read_real
from sim.validation.served import Served, paired
from sim.validation.thresholds import NAMES, Verdict, parse_thresholds, verdicts
from sim.validation.validation import BELOW, NEAR, Jitter, Validation
from tests.commands import Run, below, refused
from tests.engine.toy import toy_model
from traces.errors import ConfigError
from traces.request import Request

HEAD = "arrival_s,prompt_tokens,output_tokens\n"
TRACE = HEAD + "".join(f"{0.01 * i:.2f},{100 + 37 * i % 900},{5 + i % 60}\n" for i in range(80))
COST = {"step_s": 5e-3, "prefill_token_s": 4e-5, "decode_s": 2e-4, "context_token_s": 1e-8}
TIGHT = {"scheduler": {"max_num_seqs": 12}}


def profile(folder: Path, factor: float = 1.0, **changes: Any) -> str:
    """A profile file whose steps take `factor` times as long."""
    cost = {"kind": "linear"} | {name: factor * value for name, value in COST.items()}
    values = {
        "name": "made-up",
        "measured": True,
        "provenance": "made up",
        "model": "llama-3.1-8b",
        "gpu": "h200",
        "cost": cost,
    }
    path = folder / f"profile-{factor}.yaml"
    path.write_text(json.dumps(values | changes))
    return str(path)


def scenario(folder: Path, factor: float = 1.0, **changes: Any) -> Scenario:
    (folder / "t.csv").write_text(TRACE)
    values = {"trace": {"path": str(folder / "t.csv")}, "profile": profile(folder, factor)}
    return scenario_of(values | TIGHT | changes)


def simulated_run(folder: Path, **changes: Any) -> Real:
    """A "real" run that was a simulation."""
    replay_to_folder(scenario(folder, **changes), folder / "real", report=False)
    return read_real(folder / "real")


def validated(folder: Path, factor: float = 1.0, **options: Any) -> Validation:
    return validate(scenario(folder, factor), simulated_run(folder), **options)


# ---- the comparison


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_run_that_was_simulated_is_foretold_without_error(tmp_path: Path, asynchronous: bool):
    changes = {"scheduler": TIGHT["scheduler"] | {"async_scheduling": asynchronous}}
    real = simulated_run(tmp_path, **changes)
    found = validate(scenario(tmp_path, **changes), real)
    assert found.origin == "queued"
    assert {name.partition(".")[0] for name in found.figures} == {
        "ttft",
        "tpot",
        "e2e",
        "queue",
        "throughput",
    }
    for one in found.figures.values():
        assert one.error == pytest.approx(0, abs=1e-9)
    for by_request in found.by_request.values():
        assert by_request["correlation"] == pytest.approx(1)
        assert by_request["p90_absolute_error"] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("factor", [0.5, 1.25])
def test_steps_that_take_longer_are_an_error_of_that_size(tmp_path: Path, factor: float):
    found = validated(tmp_path, factor)
    for statistic in ("mean", "p50"):
        error = found.figures[f"tpot.{statistic}"].error
        assert error == pytest.approx(factor - 1, abs=0.1)
    rate = found.figures["throughput.output_tokens_per_s"].error
    assert rate is not None
    assert (rate < 0) == (factor > 1)


def test_the_same_seed_gives_the_same_numbers_and_page(tmp_path: Path):
    one, other = (validated(tmp_path, 1.1, jitter=Jitter(0.003, 5)) for _ in range(2))
    assert one.as_json() == other.as_json()
    assert page(one) == page(other)


def test_arrivals_that_do_not_move_move_nothing(tmp_path: Path):
    found = validated(tmp_path, 1.1, jitter=Jitter(0.0, 3))
    for one in found.figures.values():
        assert one.jitter is not None
        assert one.jitter == (pytest.approx(one.error), pytest.approx(one.error))
    moved = validated(tmp_path, 1.1, jitter=Jitter(0.05, 5))
    assert any((one.jitter_share or 0.0) > 1e-4 for one in moved.figures.values())


def test_replications_are_told_as_they_are_done(tmp_path: Path):
    told: list[int] = []
    validated(tmp_path, jitter=Jitter(0.001, 3), progress=told.append)
    assert told == [1, 2, 3]


@given(
    st.lists(st.floats(0, 10), min_size=1, max_size=30),
    st.floats(0, 5),
    st.integers(0, 2**32),
)
def test_shifted_requests_are_the_same_requests_in_order(arrivals, sigma_s, seed):
    requests = [Request(i, at, 1 + i, 1) for i, at in enumerate(sorted(arrivals))]
    moved = shifted(requests, sigma_s, np.random.default_rng(seed))
    assert [one.arrival_s for one in moved] == sorted(one.arrival_s for one in moved)
    assert all(one.arrival_s >= 0 for one in moved)
    by_number = sorted(one._replace(arrival_s=0.0) for one in moved)
    assert by_number == [one._replace(arrival_s=0.0) for one in requests]


# ---- figures


def served(count: int = 50, seed: int = 0, **changes: Any) -> Served:
    random = np.random.default_rng(seed)
    arrival_s = np.sort(random.uniform(0, 10, count))
    queued_s = arrival_s + random.uniform(0, 0.1, count)
    admitted_s = queued_s + random.choice([0.0, 2e-5, 0.5], count)
    first_token_s = admitted_s + random.uniform(0.1, 1, count)
    columns = {
        "request_id": np.arange(count),
        "arrival_s": arrival_s,
        "queued_s": queued_s,
        "admitted_s": admitted_s,
        "first_token_s": first_token_s,
        "finish_s": first_token_s + random.uniform(0.1, 5, count),
        "tokens": random.integers(1, 5, count),
    }
    return Served(**(columns | changes))


def test_latencies_are_those_of_their_definitions():
    one = served()
    queued, arrival = one.latencies("queued"), one.latencies("arrival")
    for i in range(len(one)):
        assert queued["ttft"][i] == one.first_token_s[i] - one.queued_s[i]
        assert arrival["ttft"][i] == one.first_token_s[i] - one.arrival_s[i]
        assert queued["queue"][i] == arrival["queue"][i] == one.admitted_s[i] - one.queued_s[i]
        if one.tokens[i] == 1:
            assert np.isnan(queued["tpot"][i])
        else:
            spent = one.finish_s[i] - one.first_token_s[i]
            assert queued["tpot"][i] == spent / (one.tokens[i] - 1)
    unknown = served(queued_s=np.full(50, np.nan))
    assert set(unknown.latencies("arrival")) == {"ttft", "tpot", "e2e"}
    assert not unknown.knows("queued_s")


def test_percentiles_are_numpys():
    values = np.array([3.0, np.nan, 1.0, 2.0, 10.0])
    known = [1.0, 2.0, 3.0, 10.0]
    assert statistics(values) == {
        "mean": 4.0,
        "p50": 2.5,
        **{f"p{level}": float(np.percentile(known, level)) for level in (90, 95, 99)},
    }
    assert statistics(np.array([np.nan])) == {}


def test_a_bootstrap_says_how_much_depends_on_who_came():
    real = served(400)
    slower = served(400, finish_s=real.finish_s + 0.5)
    found = bootstrap(slower, real, "queued", np.random.default_rng(1))
    errors = compared(figures(slower, "queued"), figures(real, "queued"))
    assert set(found) == {name for name in errors if "throughput" not in name}
    for name, (low, high) in found.items():
        error = errors[name].error
        assert error is not None
        assert low - 1e-12 <= error <= high + 1e-12, name
    low, high = found["e2e.mean"]
    assert 0 < low < high < 1
    assert found["ttft.mean"] == (0.0, 0.0)


def test_near_saturation_is_who_was_not_admitted_at_once():
    one = served()
    at_once = arrived_below(one)
    assert at_once is not None
    assert at_once.tolist() == (one.admitted_s - one.queued_s < 0.1).tolist()
    assert arrived_below(served(admitted_s=np.full(50, np.nan))) is None


def test_requests_are_compared_by_load(tmp_path: Path):
    found = validated(tmp_path)
    assert found.below is not None
    assert set(found.by_load) == {BELOW, NEAR}
    waits = found.real_served.latencies("queued")["queue"]
    near = found.by_load[NEAR]["queue.mean"]
    assert near.real == pytest.approx(waits[~found.below].mean())


def test_only_what_both_answered_is_compared():
    ours, theirs = served(), served()
    a, b = paired(ours.taken(np.arange(10, 50)), theirs.taken(np.arange(30)[::-1]))
    assert a.request_id.tolist() == b.request_id.tolist() == list(range(10, 30))
    with pytest.raises(ConfigError, match="no request was answered by both"):
        paired(ours.taken(np.arange(10)), theirs.taken(np.arange(10, 20)))
    with pytest.raises(ConfigError, match="request 0: the engine answered with"):
        paired(served(tokens=theirs.tokens + 1), theirs)


# ---- thresholds


def test_thresholds_are_read_and_judged(tmp_path: Path):
    assert parse_thresholds("ttft.mean=3%, tpot.p99=0.5%") == {"ttft.mean": 0.03, "tpot.p99": 0.005}
    found = validated(tmp_path, 1.2, thresholds={"tpot.mean": 0.01, "ttft.mean": 0.9})
    assert [one.met for one in found.verdicts] == [False, True]
    assert not found.passed
    text = str(found.verdicts[0])
    assert text.startswith("tpot.mean: +")
    assert "allowed 1 %: missed by" in text
    assert not Verdict("queue.p50", 1.0, None).met


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("ttft.men=3%", "unknown figure 'ttft.men'; did you mean ttft.mean?"),
        ("ttft=3%", "unknown figure 'ttft'"),
        ("ttft.mean=3", "'ttft.mean=3' is no threshold; expected a figure and a share"),
        ("ttft.mean=-3%", "is no threshold"),
        ("", "'' is no threshold"),
        ("ttft.mean=3%,ttft.mean=4%", "ttft.mean is limited twice"),
    ],
)
def test_a_bad_threshold(text: str, says: str):
    with pytest.raises(ConfigError, match=r"^--threshold ") as error:
        parse_thresholds(text)
    assert says in str(error.value)


def test_a_figure_that_the_run_does_not_tell_has_no_threshold():
    assert "itl.p99" in NAMES
    with pytest.raises(ConfigError, match=r"--threshold itl\.p99: the real run does not tell it"):
        verdicts({"itl.p99": 0.1}, {})


# ---- what belongs together


@pytest.mark.parametrize(
    ("about", "says"),
    [
        ({"model": "llama-3.1-70b"}, "is of model llama-3.1-8b; asked for llama-3.1-70b"),
        ({"dtype": "float16"}, "is of weight_dtype bf16; asked for fp16"),
        ({"kv_cache_dtype": "fp8"}, "is of kv_dtype bf16; asked for fp8"),
        ({"tensor_parallel_size": 2}, "is of tp 1; log is of tp 2"),
        ({"device": "NVIDIA L4"}, "is of gpu h200; log is of NVIDIA L4"),
    ],
)
def test_a_profile_of_something_else_is_refused(tmp_path: Path, about: dict[str, Any], says: str):
    chosen = load_profile(profile(tmp_path))
    fits = {"model": "meta-llama/Llama-3.1-8B", "dtype": "bfloat16", "kv_cache_dtype": "auto"}
    run = Real("log", served(), 50, [], {}, fits)
    check_profile(chosen, run)
    check_profile(chosen, Real("log", served(), 50, [], {}, {"model": "nobody/knows-it"}))
    with pytest.raises(ConfigError) as error:
        check_profile(chosen, Real("log", served(), 50, [], {}, fits | about))
    assert says in str(error.value)


def test_a_trace_may_tell_more_than_the_log_but_of_the_same_requests(tmp_path: Path):
    run = simulated_run(tmp_path)
    sent = [one._replace(tenant="a", arrival_s=0.0) for one in run.requests]
    told = read_real(tmp_path / "real", sent)
    assert told.requests == [one._replace(tenant="a") for one in run.requests]
    with pytest.raises(ConfigError, match="has 80 requests, the trace 79"):
        read_real(tmp_path / "real", sent[:-1])
    sent[3] = sent[3]._replace(prompt_tokens=9999)
    with pytest.raises(ConfigError, match=r"request 3 has \d+ prompt_tokens, the trace's 9,999"):
        read_real(tmp_path / "real", sent)


# ---- the folder


def test_a_folder_holds_page_numbers_and_both_sides(tmp_path: Path):
    found = validated(tmp_path, 1.1, jitter=Jitter(0.003, 2))
    write_folder(found, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES - {"engine"}
    numbers = json.loads((tmp_path / "out" / "validation.json").read_text())
    assert numbers == json.loads(json.dumps(found.as_json()))
    assert numbers["jitter"] == {"sigma_s": 0.003, "replications": 2}
    assert numbers["figures"]["ttft.p90"]["error"] == found.figures["ttft.p90"].error
    rows = pl.read_parquet(tmp_path / "out" / "requests.parquet")
    assert rows.height == numbers["requests"]["answered_by_both"] == 80
    mean = rows["simulated_e2e_s"].mean()
    assert mean == pytest.approx(found.figures["e2e.mean"].simulated)
    text = (tmp_path / "out" / "validation.html").read_text()
    assert "<script src=" not in text
    assert "<link" not in text
    for name in ("errors", "ttft_cdf", "queue_scatter"):
        assert f'id="plot-{name}"' in text
    assert "The real run has no record of its queue" in text
    write_folder(found, tmp_path / "out")  # it may be written again


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"holds notes\.txt, which is not from an earlier run"):
        check_folder(tmp_path)


# ---- the command


def test_the_exit_code_guards_a_pipeline(kvcast: Run, tmp_path: Path):
    Path("t.csv").write_text(TRACE)
    profile(tmp_path)
    profile(tmp_path, 1.2)
    limit = ["--set", "scheduler.max_num_seqs=12"]
    code, _, _ = kvcast(
        "replay", "--trace", "t.csv", "--profile", "profile-1.0.yaml", *limit, "--out", "real"
    )
    assert code == 0
    asked = ["validate", "--real", "real", "--replications", "2", "--threshold", "tpot.mean=5%"]
    code, out, err = kvcast(*asked, "--profile", "profile-1.0.yaml", "--out", "a/b")
    assert (code, err) == (0, "")
    assert "met  tpot.mean: +0.00 %, allowed 5 %" in out
    assert max(map(len, out.splitlines())) <= 100
    assert {path.name for path in Path("a/b").iterdir()} == FILES - {"engine"}
    code, out, err = kvcast(*asked, "--profile", "profile-1.2.yaml")
    assert (code, err) == (1, "")
    assert "MISSED  tpot.mean: +" in out


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "--real: is missing; expected --real LOG, --engine YAML or --model PATH"),
        (["--real", "no.csv"], "no.csv"),
        (["--real", "t.csv", "--model", "m"], "--real: goes without --model"),
        (["--real", "t.csv", "--jitter", "3"], "--jitter 3: is no duration"),
        (["--real", "t.csv", "--replications", "1"], "--replications 1: shows no spread"),
        (["--real", "t.csv", "--threshold", "x=1%"], "--threshold x=1%: unknown figure 'x'"),
        (["--real", "t.csv"], "t.csv"),
        (["--model", "nowhere"], "model: nowhere: no such file or folder"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    kvcast: Run, tmp_path: Path, options: list[str], says: str
):
    Path("t.csv").write_text(TRACE)
    assert refused(kvcast("validate", *options, "--out", "new")).startswith(says)
    assert below(tmp_path) == {"t.csv"}


def test_the_engine_is_run_and_repeated(kvcast: Run, tmp_path: Path):
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    rows = [f"{0.002 * i},{10 + i},{3 + i % 9}\n" for i in range(20)]
    Path("t.csv").write_text(HEAD + "".join(rows))
    model = toy_model(tmp_path / "toy")
    profile(tmp_path, model=model, weight_dtype="fp32", kv_dtype="fp32")
    Path("engine.yaml").write_text(
        f"{{model: {model}, weights: dummy, device: cpu, num_blocks: 90,"
        " scheduler: {max_num_seqs: 4, max_num_batched_tokens: 60}, cache: {block_tokens: 4}}"
    )
    asked = ["--trace", "t.csv", "--profile", "profile-1.0.yaml", "--replications", "0"]
    code, out, err = kvcast("validate", "--engine", "engine.yaml", *asked, "--out", "out")
    assert (code, err) == (0, "")
    assert "Inter-token latency" in out
    numbers = json.loads(Path("out/validation.json").read_text())
    assert numbers["decisions"]["difference"] == ""
    assert numbers["decisions"]["largest_error_s"] < 1e-6
    assert {path.name for path in Path("out").iterdir()} == FILES
    code, again, _ = kvcast("validate", "--real", "out/engine", *asked[2:])
    assert code == 0
    assert again.splitlines()[-8:] == out.splitlines()[-9:-1]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".kvcast")]


# ---- a recorded run of vLLM


def test_a_real_run_of_vllm_is_compared_from_its_log(shared: Path):
    log = shared / "ground-truth" / "rtx4090-llama-3.1-8b-vllm" / "per_request.csv"
    if not log.is_file():
        pytest.skip(f"no log at {log}")
    run = read_real(log)
    found = validate(scenario_of({"profile": "rtx-4090-llama-3.1-8b", **run.settings}), run)
    assert found.origin == "queued"
    assert len(found.real_served) == 300
    assert found.real_served.tokens.sum() == pytest.approx(652.51 * 300)
    for one in found.figures.values():
        assert abs(one.error or 0.0) < 0.3
    assert found.by_request["e2e"]["correlation"] > 0.99
    assert 'id="plot-kv_occupancy"' in page(found)
