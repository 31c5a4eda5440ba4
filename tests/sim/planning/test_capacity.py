"""Capacities that are known in closed form are found, as sure as they say."""

import json
from math import factorial, log
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest

from sim.planning import capacity_tables, rates
from sim.planning.binding import binding
from sim.planning.capacity import Capacity, capacity
from sim.planning.objectives import parse_objectives
from sim.replay import replay
from sim.scenario import Scenario, load_scenario, scenario_of
from sim.sweep.cells import Cell
from sim.sweep.store import Store
from tests.commands import Run
from traces.errors import ConfigError
from traces.synthetic import SyntheticSpec, synthetic_trace
from traces.writer import write_trace

TOKENS = 1000
"""Of a service of one second on average, where prompts are the work."""


def profile_in(folder: Path, **cost: float) -> str:
    stated = {"step_s": 0.0, "prefill_token_s": 0.0, "decode_s": 0.0, "context_token_s": 0.0} | cost
    file = folder / "p.yaml"
    file.write_text(
        "name: p\nmeasured: false\nprovenance: a test\nmodel: llama-3.1-8b\ngpu: h200\n"
        f"cost: {json.dumps({'kind': 'linear'} | stated)}\n"
    )
    return str(file)


def queue(folder: Path, trace: Path, servers: int, **cost: float) -> dict[str, Any]:
    """A scenario that is a queue of the textbooks: see tests/sim/test_queueing.py."""
    return {
        "trace": {"path": str(trace)},
        "profile": profile_in(folder, **cost),
        "memory": {"num_blocks": 10**7},
        "scheduler": {
            "max_num_seqs": servers,
            "max_num_batched_tokens": 10**7,
            "async_scheduling": False,
        },
        "cache": {"prefix_caching": False},
    }


def poisson(folder: Path, requests: int, pairs: list[tuple[int, int]], rate: float = 0.1) -> Path:
    """A trace with its spec beside it, so that replications make it anew."""
    spec = {"requests": requests, "arrivals": {"rate": rate}, "token_pairs": pairs, "seed": 1}
    (folder / "t.yaml").write_text(json.dumps(spec))
    write_trace(synthetic_trace(SyntheticSpec.model_validate(spec)), folder / "t.csv")
    return folder / "t.csv"


def even(folder: Path, requests: int, gap_s: float, tokens: int = TOKENS) -> Path:
    """A request every `gap_s`."""
    rows = [f"{gap_s * i!r},{tokens},1" for i in range(requests)]
    file = folder / "even.csv"
    file.write_text("arrival_s,prompt_tokens,output_tokens\n" + "\n".join(rows) + "\n")
    return file


def exponential(mean: int, parts: int = 2000) -> list[tuple[int, int]]:
    """Prompt lengths, evenly likely, of an exponential distribution: the mean of each part."""
    ends = np.log(parts / np.arange(parts, 0, -1))
    upper = np.append(ends[1:], np.inf)
    weighted = (ends + 1) * np.exp(-ends) - np.where(
        np.isinf(upper), 0, (np.where(np.isinf(upper), 0, upper) + 1) * np.exp(-upper)
    )
    lengths = np.maximum(np.rint(weighted * parts * mean), 1).astype(int)
    return [(int(length), 1) for length in lengths]


def found(scenario: Any, *objectives: str, **settings: Any) -> Capacity:
    return capacity(scenario, objectives, explained=False, **settings)


# ---- closed forms


@pytest.mark.parametrize("servers", [1, 3])
def test_deterministic_service(tmp_path: Path, servers: int) -> None:
    """D/D/c: c of them a second, whatever the limit. No luck, so no interval of confidence.

    With steps of a second for up to c requests; a queue that grows by a thousandth a request is
    a second long at the end.
    """
    trace = even(tmp_path, 1000, 3.0, tokens=1)
    scenario = queue(tmp_path, trace, servers, step_s=1.0)
    one = found(scenario, "max queue <= 2s", traffic="same")
    assert one.confidence is None
    assert one.replications == 1
    assert servers == pytest.approx(one.rate_per_s, rel=0.01)
    assert one.high_per_s is not None
    assert one.rate_per_s <= servers * (1 + 2 / 1000) <= one.high_per_s * (1 + 1e-9)


def test_deterministic_arrivals_resampled(tmp_path: Path) -> None:
    """Blocks of even arrivals are even arrivals: the interval holds the rate, and is narrow."""
    trace = even(tmp_path, 1000, 3.0, tokens=1)
    one = found(queue(tmp_path, trace, 1, step_s=1.0), "p99 ttft <= 5s")
    assert one.confidence == 0.95
    assert one.decided
    assert one.rate_per_s == pytest.approx(1.0, rel=0.02)


@pytest.mark.slow
def test_mean_wait_in_m_d_1(tmp_path: Path) -> None:
    """Pollaczek and Khinchine: at half the load the mean wait is half a service."""
    trace = poisson(tmp_path, 8000, [(TOKENS, 1)])
    scenario = queue(tmp_path, trace, 1, prefill_token_s=1 / TOKENS)
    one = found(scenario, "mean queue <= 500ms", replications=20)
    assert one.rate_per_s == pytest.approx(0.5, rel=0.02)
    assert one.high_per_s is not None
    assert one.low_per_s <= 0.5 <= one.high_per_s


@pytest.mark.slow
def test_mean_time_in_m_m_1(tmp_path: Path) -> None:
    """1 / (mu - lambda): two services at half the load."""
    trace = poisson(tmp_path, 10_000, exponential(TOKENS))
    scenario = queue(tmp_path, trace, 1, prefill_token_s=1 / TOKENS)
    one = found(scenario, "mean e2e <= 2s", replications=20)
    assert one.rate_per_s == pytest.approx(0.5, rel=0.02)
    assert one.high_per_s is not None
    assert one.low_per_s <= 0.5 <= one.high_per_s


@pytest.mark.slow
def test_the_99th_percentile_in_m_m_1(tmp_path: Path) -> None:
    """Sojourns are exponential with rate mu - lambda: beyond ln(100) / (1 - 0.4) is one in 100."""
    trace = poisson(tmp_path, 10_000, exponential(TOKENS, 4000))
    scenario = queue(tmp_path, trace, 1, prefill_token_s=1 / TOKENS)
    one = found(scenario, f"p99 e2e <= {log(100) / 0.6:.6f}s", replications=20)
    assert one.rate_per_s == pytest.approx(0.4, rel=0.02)
    assert one.high_per_s is not None
    assert one.low_per_s <= 0.4 <= one.high_per_s


@pytest.mark.slow
def test_mean_wait_in_m_m_c(tmp_path: Path) -> None:
    """Erlang's C formula for 4 servers at a load of 0.7; answers are geometric, of 40 steps on
    average, and an arrival waits half a step for a boundary besides."""
    servers, load, mean = 4, 0.7, 40
    random = np.random.default_rng(0)
    outputs = random.geometric(1 / mean, 4000)
    service = float(outputs.mean()) / mean
    trace = poisson(tmp_path, 10_000, [(1, int(tokens)) for tokens in outputs])
    scenario = queue(tmp_path, trace, servers, step_s=1 / mean)
    offered = load * servers
    busy = offered**servers / factorial(servers) / (1 - load)
    idle = sum(offered**k / factorial(k) for k in range(servers))
    wait = service * busy / (idle + busy) / (servers * (1 - load)) + 0.5 / mean
    one = found(scenario, f"mean queue <= {wait:.6f}s", replications=20)
    assert one.rate_per_s * service / servers == pytest.approx(load, rel=0.02)


SPREAD = 0.1
"""All step times are known within so much: with 95 % probability."""


def drawn_service(folder: Path, seed: int, requests: int = 40) -> Scenario:
    """A request a second, services of 0.5 s times a lognormal factor that a replication draws."""
    values = queue(folder, even(folder, requests, 1.0, TOKENS), 1, prefill_token_s=0.5 / TOKENS)
    return scenario_of(values | {"seed": seed, "uncertainty": {"cost_share": SPREAD}})


def sustained(requests: int, wait_s: float, quantile: float = 0.5) -> float:
    """Rate below which the last of evenly spaced requests waits no longer than `wait_s`: each
    waits longer by a service less a gap than the one before."""
    sigma = np.log(1 + SPREAD) / NormalDist().inv_cdf(0.975)
    service_s = 0.5 * np.exp(sigma * NormalDist().inv_cdf(quantile))
    return 1 / (service_s - wait_s / (requests - 1))


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.5, 0.7])
def test_the_stated_confidence_holds_in_200_repetitions(tmp_path: Path, share: float) -> None:
    """D/D/1 with a service that each replication draws: the rate is known for every share of
    them. Of 200 intervals at 90 %, at least 180 less three standard deviations have it."""
    true = sustained(40, 0.2, share)
    repeated = [
        found(
            drawn_service(tmp_path, seed),
            "max queue <= 200ms",
            traffic="same",
            share=share,
            confidence=0.9,
            replications=14,
            precision=0.03,
        )
        for seed in range(200 if share == 0.5 else 25)
    ]
    within = [
        one.low_per_s <= true and (one.high_per_s is None or true <= one.high_per_s)
        for one in repeated
    ]
    count = len(repeated)
    assert sum(within) >= 0.9 * count - 3 * (0.09 * count) ** 0.5
    off = [one.rate_per_s / true - 1 for one in repeated]
    assert abs(float(np.mean(off))) < 0.01
    assert len({one.rate_per_s for one in repeated}) > 5  # they are different draws


# ---- what it says


def test_the_answer_does_not_depend_on_who_computes_it(tmp_path: Path) -> None:
    scenario = drawn_service(tmp_path, 3)
    asked = ("max queue <= 200ms", "p50 ttft <= 10s")
    here = capacity(scenario, asked, traffic="same", replications=10)
    store = Store(tmp_path / "store")
    there = capacity(scenario, asked, traffic="same", replications=10, jobs=2, store=store)
    again = capacity(scenario, asked, traffic="same", replications=10, store=store)
    plain = {name: getattr(here, name) for name in Capacity.__dataclass_fields__}
    for other in (there, again):
        for name, value in plain.items():
            if name != "computed":
                assert getattr(other, name) == value, name
    assert here.computed == there.computed == here.replays
    assert again.computed == 0


def test_an_overload_costs_little(tmp_path: Path) -> None:
    """What is beyond the capacity is ended early, and easy rates take one replication."""
    scenario = drawn_service(tmp_path, 1, 400).model_dump(mode="json")
    scenario["trace"]["operations"] = [{"compress_time": {"factor": 1.3}}]
    one = found(scenario, "p99 ttft <= 2s", traffic="same", replications=10)
    beyond = [trial for trial in one.trials if trial.rate_per_s > 1.1 * one.rate_per_s]
    assert beyond
    assert all(trial.stopped_s is not None and not trial.met for trial in beyond)
    far = [d for d in one.decisions if not 0.8 < d.rate_per_s / one.rate_per_s < 1.25]
    assert far
    assert max(decision.simulated for decision in far) == 1
    assert {d.verdict for d in far} == {"met", "missed"}
    assert one.high_per_s is not None
    for d in one.decisions:
        inside = one.low_per_s < d.rate_per_s < one.high_per_s
        assert d.verdict == ("undecided" if inside else ("met", "missed")[d.rate_per_s > 2])
    assert any(d.verdict == "undecided" for d in one.decisions)


def test_the_scenario_at_the_rate_meets_what_it_says(tmp_path: Path) -> None:
    """Without luck: a replay of it meets the objectives, and arrives at that rate."""
    scenario = queue(tmp_path, even(tmp_path, 200, 2.0), 1, prefill_token_s=1 / TOKENS)
    scenario |= {"warmup_s": 100.0, "end_s": 390.0}
    one = found(scenario, "max queue <= 1s", traffic="same")
    run = replay(one.at_capacity)
    assert run.requests is not None
    arrivals = run.requests["arrival_s"].sort().to_numpy()
    assert (len(arrivals) - 1) / arrivals[-1] == pytest.approx(one.rate_per_s, rel=1e-6)
    assert run.summary["latency"]["queue_s"]["max"] <= 1.0
    # the same requests count at any rate
    assert run.summary["requests"]["counted"] == 145
    assert one.requests_per_s_per_gpu == one.rate_per_s
    assert one.prompt_tokens_per_s_per_gpu == pytest.approx(one.rate_per_s * TOKENS)


def test_more_users_are_another_way_to_a_rate(tmp_path: Path) -> None:
    """Copies of even arrivals at chance times: less even, so less is sustained than by time."""
    scenario = queue(tmp_path, even(tmp_path, 300, 4.0), 1, prefill_token_s=1 / TOKENS)
    by_time = found(scenario, "p90 ttft <= 3s", traffic="same")
    by_users = found(scenario, "p90 ttft <= 3s", traffic="same", by="users")
    assert 0.25 < by_users.rate_per_s < by_time.rate_per_s
    operations = by_users.at_capacity.trace.operations
    assert operations[0].tile is not None


@pytest.mark.parametrize("factor", [0.3, 1.0, 1.7, 2.0, 3.9])
def test_users_of_a_rate_come_as_often_as_they_should(factor: float) -> None:
    scenario = scenario_of({"trace": {"path": "sample:chat"}})
    grid = rates.Rates(scenario, 100, "users")
    step = round(np.log2(factor) * 100)
    count = len(list(grid.at(step).trace.open()))
    assert count == pytest.approx(2000 * grid.factor(step), rel=0.06)


def test_a_queue_that_no_objective_limits_is_limited(tmp_path: Path) -> None:
    """TPOT does not mind a queue; what is sustained is what is served as fast as it comes."""
    trace = even(tmp_path, 1000, 2.0)
    trace.write_text(trace.read_text().replace(f"{TOKENS},1", f"{TOKENS},2"))
    scenario = queue(tmp_path, trace, 1, prefill_token_s=1 / TOKENS)
    one = found(scenario, "p99 tpot <= 10s", traffic="same")
    assert [objective.name for objective in one.objectives][1] == "backlog <= 2%"
    assert any("no objective limits how long requests wait" in text for text in one.warnings)
    assert one.rate_per_s == pytest.approx(1 / 0.98, rel=0.01)
    assert any(trial.diverged for trial in one.trials)


# ---- what binds


def bound_by(tmp_path: Path, trace: Path, scenario: dict[str, Any], *objectives: str) -> str:
    one = capacity(scenario, objectives, traffic="same")
    assert one.binding is not None
    assert one.binding.experiments[0].margin >= one.binding.margin
    return one.binding.resource


def test_memory_binds(tmp_path: Path) -> None:
    """Answers of 64 blocks each, room for ten of them, and steps that take no longer for more."""
    rows = "\n".join(f"{0.5 * i},16,1008" for i in range(400))
    trace = tmp_path / "long.csv"
    trace.write_text(f"arrival_s,prompt_tokens,output_tokens\n{rows}\n")
    scenario = queue(tmp_path, trace, 1000, step_s=0.01) | {"memory": {"num_blocks": 641}}
    assert bound_by(tmp_path, trace, scenario, "p90 ttft <= 3s") == "kv"


def test_the_number_of_sequences_binds(tmp_path: Path) -> None:
    rows = "\n".join(f"{0.5 * i},16,1008" for i in range(400))
    trace = tmp_path / "long.csv"
    trace.write_text(f"arrival_s,prompt_tokens,output_tokens\n{rows}\n")
    scenario = queue(tmp_path, trace, 10, step_s=0.01)
    assert bound_by(tmp_path, trace, scenario, "p90 ttft <= 3s") == "sequences"


def test_the_tokens_of_a_step_bind(tmp_path: Path) -> None:
    scenario = queue(tmp_path, even(tmp_path, 400, 2.0), 1000, step_s=0.5)
    scenario["scheduler"]["max_num_batched_tokens"] = 500
    assert bound_by(tmp_path, Path(), scenario, "p90 ttft <= 10s") == "tokens"


def test_the_time_of_steps_binds(tmp_path: Path) -> None:
    scenario = queue(tmp_path, even(tmp_path, 400, 2.0), 1000, prefill_token_s=1 / TOKENS)
    assert bound_by(tmp_path, Path(), scenario, "p90 ttft <= 10s") == "steps"


def test_nothing_binds_where_nothing_is_missed(tmp_path: Path) -> None:
    scenario = scenario_of(queue(tmp_path, even(tmp_path, 40, 2.0), 1, prefill_token_s=1 / TOKENS))
    assert binding(Cell(scenario), parse_objectives(["p99 ttft <= 10s"])) is None


# ---- what cannot be


@pytest.mark.parametrize(
    ("objectives", "says"),
    [
        (["p99 ttft <= 100ms"], "objective 'p99 ttft <= 100ms': cannot be met: even at 0.00"),
        (["p99 ttft <= 100ms"], "p99 ttft is 1.00 s"),
        (["p99 ttft <= 900ms", "max e2e <= 10ms"], "missed too: p99 ttft <= 900ms"),
        (["p99 ttft <= 1h"], "limit 1h; expected a unit of s, ms, us or min"),
        (["p90 ttft <= 999999min"], "are met at every rate, even by the trace's 50 requests"),
        (["p99 ttft <= 1s", "p99 ttft <= 2s"], "p99 ttft is limited already, by 'p99 ttft <= 1s'"),
        (["x: p99 ttft <= 1s"], "unknown class 'x'; the trace has no classes"),
        (["goodput >= 99%"], "there is no limit that a good request keeps"),
        ([], "--objective: is missing"),
    ],
)
def test_objectives_that_no_rate_answers(tmp_path: Path, objectives: list[str], says: str) -> None:
    scenario = queue(tmp_path, even(tmp_path, 50, 2.0), 1, prefill_token_s=1 / TOKENS)
    with pytest.raises(ConfigError) as caught:
        found(scenario, *objectives, traffic="same")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_trace_without_a_rate(tmp_path: Path) -> None:
    scenario = queue(tmp_path, even(tmp_path, 50, 0.0), 1, prefill_token_s=1 / TOKENS)
    with pytest.raises(ConfigError, match="all of its 50 requests arrive at once"):
        found(scenario, "p99 ttft <= 1s")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"share": 0.0}, "--share: must be above 0 and below 1, got 0"),
        ({"confidence": 1.0}, "--confidence: must be from 0.5 to below 1, got 1"),
        ({"precision": 0.9}, "--precision: must be from 0.001 to 0.5, got 0.9"),
        ({"replications": 0}, "--replications: must be at least 1, got 0"),
        ({"replications": 4}, "--replications 4: are too few to decide anything"),
        ({"by": "luck"}, "--by: must be one of time, users, got 'luck'"),
    ],
)
def test_settings_that_cannot_be(tmp_path: Path, settings: dict[str, Any], says: str) -> None:
    scenario = queue(tmp_path, even(tmp_path, 50, 2.0), 1, prefill_token_s=1 / TOKENS)
    with pytest.raises(ConfigError) as caught:
        found(scenario, "p99 ttft <= 5s", **settings)
    assert says in str(caught.value)


# ---- the command


@pytest.fixture
def asked(tmp_path: Path) -> list[str]:
    scenario = queue(tmp_path, even(tmp_path, 60, 2.0), 1, prefill_token_s=1 / TOKENS)
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps(scenario | {"uncertainty": {"cost_share": 0.02}}))
    return [
        "capacity",
        str(file),
        "--objective",
        "p90 ttft <= 3s",
        "--objective",
        "goodput >= 80%",
        "--slo",
        "ttft=4s",
        "--traffic",
        "same",
        "--replications",
        "8",
    ]


def test_the_command_writes_what_it_says(kvcast: Run, asked: list[str], tmp_path: Path) -> None:
    code, said, errors = kvcast(*asked, "--out", "out")
    assert (code, errors) == (0, "")
    assert "Sustains 1.0" in said
    assert "95 % interval" in said
    folder = tmp_path / "out"
    assert sorted(path.name for path in folder.iterdir()) == [
        "capacity.json",
        "report.html",
        "scenario.yaml",
        "store",
    ]
    numbers = json.loads((folder / "capacity.json").read_text())
    assert numbers["interval_per_s"][0] <= numbers["rate_per_s"] <= numbers["interval_per_s"][1]
    assert numbers["simulations"] == len(numbers["trials"]) + len(numbers["curve"])
    again = load_scenario(folder / "scenario.yaml")
    assert again.trace.operations[-1].compress_time is not None
    page = (folder / "report.html").read_text()
    assert page.count("plot-objective_") >= 2
    assert "What binds" in page
    before = (folder / "capacity.json").read_bytes()
    code, _, errors = kvcast(*asked, "--out", "out", "--jobs", "2")
    assert (code, errors) == (0, "")
    assert (folder / "capacity.json").read_bytes() == before
    assert (folder / "report.html").read_text() == page


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--objective", "p98 ttft <= 1s"], "ttft has 'p98'; expected one of mean, p50"),
        (["--share", "often"], "--share often: expected a share, such as 50% or 0.5"),
        (["--by", "magic"], "--by: must be one of time, users, got 'magic'"),
        (["--ray", "10.0.0.1"], "--ray"),
    ],
)
def test_the_command_says_what_is_wrong(
    kvcast: Run, asked: list[str], options: list[str], says: str
) -> None:
    code, said, errors = kvcast(*asked, *options)
    assert code == 2
    assert says in errors
    assert errors.count("\n") == 1
    assert said == ""


def test_words_name_the_interval_and_the_method(tmp_path: Path) -> None:
    one = capacity(drawn_service(tmp_path, 2), ["max queue <= 200ms"], traffic="same", share=0.4)
    assert "40 % of hours like this one" in capacity_tables.method(one)
    assert "all step times, assumed known within 10 %" in capacity_tables.method(one)
    assert capacity_tables.interval(one) in capacity_tables.answer(one)
    assert "the time of a step" in capacity_tables.bound(one)
