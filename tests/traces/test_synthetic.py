"""Synthetic traces follow their spec, keep sessions coherent, and repeat to the last bit."""

import tracemalloc
from collections import defaultdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from traces.arrivals import weibull_shape
from traces.describe import describe
from traces.errors import ConfigError, TraceError
from traces.fitting import fit_from_trace
from traces.reader import Trace, open_trace, sample_names, sample_trace
from traces.request import Request
from traces.rows import check_request
from traces.settings import checked, load_settings
from traces.synthetic import SyntheticSpec, generate, synthetic_trace
from traces.writer import write_trace

LENGTHS = {"prompt_tokens": 100, "output_tokens": 20}
SAMPLES = Path(str(sample_trace("chat").path)).parent


def spec(**values: Any) -> SyntheticSpec:
    return checked(SyntheticSpec, {"requests": 1000, **LENGTHS, **values}, "test")


def arrivals_s(**values: Any) -> np.ndarray:
    return np.array([request.arrival_s for request in synthetic_trace(spec(**values))])


@pytest.mark.parametrize(
    ("process", "cv", "expected_cv"),
    [
        ("poisson", None, 1.0),
        ("gamma", 2.5, 2.5),
        ("gamma", 0.4, 0.4),
        ("weibull", 1.8, 1.8),
        ("constant", None, 0.0),
    ],
)
def test_process_has_its_rate_and_burstiness(
    process: str, cv: float | None, expected_cv: float
) -> None:
    arrivals = {"process": process, "cv": cv, "rate": 5}
    found = describe(synthetic_trace(spec(requests=40_000, arrivals=arrivals)))
    of_the_mean = 4 * expected_cv / 40_000**0.5
    assert found.mean_rate_per_s == pytest.approx(5.0, rel=of_the_mean + 1e-6)
    assert found.interarrival_cv == pytest.approx(expected_cv, rel=0.06, abs=1e-6)


@pytest.mark.parametrize(
    ("rate", "expected"),
    [
        (
            {"curve": "piecewise", "steps": [{"from_s": 0, "per_s": 10},
             {"from_s": 1000, "per_s": 0}, {"from_s": 2000, "per_s": 40}]},
            [10_000, 0, 40_000],
        ),
        (
            {"curve": "diurnal", "mean_per_s": 10, "swing": 0.5, "peak_s": 500, "period_s": 3000},
            [10_000 + 5 * 3000 * 3**0.5 / (2 * np.pi) * s for s in (1, -0.5, -0.5)],
        ),
    ],
)  # fmt: skip
def test_rate_follows_its_curve(rate: dict[str, Any], expected: list[float]) -> None:
    times_s = arrivals_s(requests=None, duration_s=3000, arrivals={"rate": rate})
    counted, _ = np.histogram(times_s, [0, 1000, 2000, 3000])
    assert counted == pytest.approx(expected, abs=4 * max(expected) ** 0.5)
    assert times_s[-1] < 3000


def test_a_rate_that_falls_to_nothing_ends_the_trace() -> None:
    steps = [{"from_s": 5, "per_s": 100}, {"from_s": 15, "per_s": 0}]
    times_s = arrivals_s(arrivals={"rate": {"curve": "piecewise", "steps": steps}}, requests=10**6)
    assert times_s[0] >= 5 and times_s[-1] <= 15
    assert len(times_s) == pytest.approx(1000, abs=130)


@given(st.floats(0.05, 20))
def test_weibull_shape_gives_its_cv(cv: float) -> None:
    from math import expm1, lgamma

    shape = weibull_shape(cv)
    assert expm1(lgamma(1 + 2 / shape) - 2 * lgamma(1 + 1 / shape)) == pytest.approx(
        cv**2, rel=1e-6
    )


@pytest.mark.parametrize(
    ("stated", "mean", "median"),
    [
        ({"distribution": "lognormal", "mean": 300, "cv": 0.8}, 300, 234),
        ({"distribution": "lognormal", "median": 200, "sigma": 0.5}, 226.6, 200),
        ({"distribution": "uniform", "min": 10, "max": 20}, 15, 15),
        ({"distribution": "empirical", "values": [10, 20, 60]}, 30, 20),
        (42, 42, 42),
    ],
)
def test_lengths_follow_their_distribution(stated: Any, mean: float, median: float) -> None:
    made = spec(requests=20_000, prompt_tokens=stated, arrivals={"rate": 1})
    found = describe(synthetic_trace(made)).prompt_tokens
    assert found.mean == pytest.approx(mean, rel=0.03)
    assert found.percentiles[50] == pytest.approx(median, rel=0.05)


def test_lengths_of_a_trace() -> None:
    values = {"distribution": "trace", "path": "sample:chat", "column": "output_tokens"}
    made = describe(
        synthetic_trace(spec(requests=5000, output_tokens=values, arrivals={"rate": 1}))
    )
    assert made.output_tokens.mean == pytest.approx(
        describe(sample_trace("chat")).output_tokens.mean, rel=0.06
    )


CONVERSATIONS = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**32),
        "requests": st.integers(1, 400),
        "hash_tokens": st.sampled_from([1, 16, 64, 500]),
        "system_prompts": st.sampled_from(
            [[], [{"tokens": 130, "weight": 2}, {"tokens": 64, "count": 3, "zipf": 1.2}]]
        ),
        "sessions": st.just(
            {
                "turns": {"distribution": "uniform", "min": 1, "max": 6},
                "think_s": {"distribution": "lognormal", "median": 3, "sigma": 1},
                "max_context_tokens": 700,
            }
        ),
    }
)


@settings(deadline=None, max_examples=40)
@given(CONVERSATIONS)
def test_each_turn_extends_the_one_before(stated: dict[str, Any]) -> None:
    made = spec(**stated, arrivals={"process": "gamma", "cv": 2, "rate": 3})
    turns: dict[int, list[Request]] = defaultdict(list)
    last_s = 0.0
    for request in synthetic_trace(made):
        check_request(request, last_s)
        last_s = request.arrival_s
        turns[request.session_id].append(request)
    owner: dict[int, int] = {}
    for session, requests in turns.items():
        for turn, request in enumerate(requests):
            assert request.turn == turn
            assert request.hashed_tokens == request.prompt_tokens + request.output_tokens
            if turn:
                before = requests[turn - 1]
                assert request.hashes[: len(before.hashes)] == before.hashes
                assert request.prompt_tokens == before.hashed_tokens + 100
                assert request.hashed_tokens <= 700
                answered_s = before.arrival_s + 0.02 * before.output_tokens
                assert request.arrival_s == pytest.approx(answered_s + request.think_s)
        for hash_ in requests[-1].hashes[130 // made.hash_tokens :]:
            assert owner.setdefault(hash_, session) == session


def test_lone_requests_share_their_system_prompt_to_its_last_token() -> None:
    made = spec(system_prompts=[{"tokens": 130}], arrivals={"rate": 1})
    requests = list(synthetic_trace(made))
    assert {request.prompt_tokens for request in requests} == {230}
    assert {(request.hashes, request.hashed_tokens) for request in requests} == {((0, 1, 2), 130)}


def test_popular_prompts_follow_zipf() -> None:
    made = spec(
        requests=20_000,
        system_prompts=[{"tokens": 64, "count": 3, "zipf": 1.0}],
        arrivals={"rate": 1},
    )
    first = [request.hashes[0] for request in synthetic_trace(made)]
    counted = np.unique(first, return_counts=True)[1]
    assert counted / 20_000 == pytest.approx(np.array([6, 3, 2]) / 11, abs=0.02)


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    chat = load_settings(SyntheticSpec, SAMPLES / "chat.yaml")
    one, two, other = (tmp_path / f"{name}.parquet" for name in "abc")
    write_trace(synthetic_trace(chat), one)
    write_trace(generate(chat, np.random.default_rng(chat.seed)), two)
    write_trace(generate(chat, np.random.default_rng(chat.seed + 1)), other)
    assert one.read_bytes() == two.read_bytes() != other.read_bytes()


@pytest.mark.parametrize("name", sample_names())
def test_samples_are_what_their_specs_make(name: str) -> None:
    made = synthetic_trace(load_settings(SyntheticSpec, SAMPLES / f"{name}.yaml"))
    for was, now in zip(open_trace(f"sample:{name}"), made, strict=True):
        assert now[2:9] == was[2:9]
        # the last bit of a logarithm is the platform's own
        assert now.arrival_s == pytest.approx(was.arrival_s, rel=1e-9)
        assert now.think_s == pytest.approx(was.think_s, rel=1e-9)
    assert (SAMPLES / f"{name}.parquet").stat().st_size < 300_000


def test_a_long_trace_takes_no_more_memory() -> None:
    made = spec(
        requests=None, duration_s=1e9, arrivals={"rate": 50},
        sessions={"turns": 3, "think_s": 1}, hash_tokens=512,
    )  # fmt: skip
    requests = iter(synthetic_trace(made))
    tracemalloc.start()
    try:
        for _ in islice(requests, 20_000):
            pass
        early, _ = tracemalloc.get_traced_memory()
        for _ in islice(requests, 60_000):
            pass
        late, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert late < early + 500_000


@pytest.mark.parametrize("step_s", [None, 60.0])
def test_a_fit_has_the_rate_burstiness_and_lengths(step_s: float | None) -> None:
    rate = {"curve": "diurnal", "mean_per_s": 8, "swing": 0.5, "period_s": 2500}
    arrivals = {"process": "gamma", "cv": 2.0, "rate": rate if step_s else 8}
    lengths = {"distribution": "lognormal", "mean": 400, "cv": 1.0}
    trace = synthetic_trace(spec(requests=20_000, arrivals=arrivals, prompt_tokens=lengths))
    fitted = fit_from_trace(trace, rate_step_s=step_s)
    assert fitted.arrivals.cv == pytest.approx(2.0, rel=0.1)
    was, now = describe(trace), describe(synthetic_trace(fitted))
    assert now.requests == was.requests
    assert now.mean_rate_per_s == pytest.approx(was.mean_rate_per_s, rel=0.08)
    assert now.interarrival_cv == pytest.approx(was.interarrival_cv, rel=0.1)
    assert now.prompt_tokens.mean == pytest.approx(was.prompt_tokens.mean, rel=0.06)


def test_a_fit_needs_something_to_fit() -> None:
    trace = Trace("two", "made", lambda tally: iter([Request(0, 1.0, 1, 1), Request(1, 2.0, 1, 1)]))
    with pytest.raises(TraceError, match=r"two: cannot be fitted: 2 requests in 1 s"):
        fit_from_trace(trace)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "test: arrivals: is required"),
        ({"arrivals": {"rate": 1}, "requests": None}, "test: give duration_s, requests or both"),
        ({"arrivals": {"rate": 0}}, "test: arrivals.rate.constant.per_s: must be above 0"),
        ({"arrivals": {"rate": 1, "cv": 2}}, "test: arrivals: process poisson takes no cv; gamma"),
        ({"arrivals": {"rate": 1, "process": "gamma"}}, "test: arrivals: process gamma needs cv"),
        ({"arrivals": {"rate": 1}, "sed": 3}, "test: sed: unknown setting"),
        (
            {"arrivals": {"rate": 1}, "prompt_tokens": {"distribution": "lognormal", "mean": 3}},
            "test: prompt_tokens.lognormal: give mean and cv, or median and sigma",
        ),
        (
            {"arrivals": {"rate": 1}, "token_pairs": [[1, 2]]},
            "test: give prompt_tokens and output_tokens, or token_pairs",
        ),
    ],
)
def test_a_wrong_spec_is_one_line(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        spec(**values)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_spec_file_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    with pytest.raises(ConfigError, match=r"s\.yaml: cannot be read: No such file"):
        load_settings(SyntheticSpec, path)
    path.write_text("a: [")
    with pytest.raises(ConfigError, match=r"s\.yaml: is no YAML: "):
        load_settings(SyntheticSpec, path)
    path.write_text("[1]")
    with pytest.raises(ConfigError, match=r"s\.yaml: expected a mapping of settings, got \[1\]"):
        load_settings(SyntheticSpec, path)
