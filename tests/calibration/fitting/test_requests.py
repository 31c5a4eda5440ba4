"""A linear cost from request logs: recovered from simulated runs, and what a real one gives."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from calibration.costs import CostModel, LinearCost
from calibration.fitting.decode_timeline import chunk_contexts
from calibration.fitting.requests import MEASURE, TERMS, RequestFit, fit_requests
from calibration.imports.requests import ServedRun, read_run
from calibration.noise import Noise, NoisyCost
from engine.config import CacheSettings, SchedulerSettings
from engine.frames import requests_table
from tests.sim.served import Served
from traces.errors import ConfigError
from traces.request import Request

TRUE = {
    "step_s": 10e-3,
    "prefill_token_s": 40e-6,
    "decode_s": 200e-6,
    "context_token_s": 30e-9,
}
COST = LinearCost(*(round(value * 1e12) for value in TRUE.values()))
TRIANGLE = Noise(quantiles=tuple(np.linspace(-0.06, 0.06, 25)), autocorrelation=0.5)


def trace(
    rate_per_s: float,
    count: int = 300,
    prompts: tuple[int, int] = (50, 3000),
    outputs: tuple[int, int] = (20, 400),
    seed: int = 1,
) -> list[Request]:
    """Poisson arrivals with lengths uniform between bounds."""
    random = np.random.default_rng(seed)
    arrivals = np.cumsum(random.exponential(1 / rate_per_s, count))
    lengths = zip(random.integers(*prompts, count), random.integers(*outputs, count), strict=True)
    return [
        Request(i, float(arrivals[i]), int(prompt), int(output))
        for i, (prompt, output) in enumerate(lengths)
    ]


def served(
    requests: list[Request],
    cost: CostModel = COST,
    *,
    num_blocks: int = 20_000,
    asynchronous: bool = False,
) -> ServedRun:
    """What a simulated engine of a known cost logs."""
    scheduler = SchedulerSettings(
        max_num_seqs=256,
        max_num_batched_tokens=2048,
        max_model_len=10**6,
        async_scheduling=asynchronous,
    )
    it = Served(
        requests,
        cost,
        num_blocks=num_blocks,
        scheduler=scheduler,
        cache=CacheSettings(prefix_caching=False),
    )
    table: Any = pl.DataFrame(requests_table(it.rows, [""]))
    frame = table.filter(pl.col("outcome") == "finished").sort("arrival_s")
    columns = ("arrival_s", "queued_s", "scheduled_s", "first_token_s", "finish_s")
    return ServedRun(
        requests=frame.select(
            "request_id", *columns, "prompt_tokens", "output_tokens", "cached_tokens"
        ),
        prefix_hashes=None,
        hash_tokens=0,
        settings={"scheduler": {"max_num_batched_tokens": 2048}},
        timeline=None,
        about={},
    )


@cache
def quiet(asynchronous: bool = False) -> ServedRun:
    """About nine tenths of the time busy."""
    return served(trace(1.0), asynchronous=asynchronous)


def errors(fit: RequestFit) -> dict[str, float]:
    return {term: fit.coefficients[term].value / true - 1 for term, true in TRUE.items()}


def test_terms_are_those_of_a_linear_cost():
    assert tuple(TRUE) == TERMS == tuple(MEASURE)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_known_cost_is_recovered_below_saturation(asynchronous):
    fit = fit_requests(quiet(asynchronous))
    assert errors(fit) == pytest.approx(dict.fromkeys(TERMS, 0.0), abs=0.01)
    assert fit.held_out.median < 0.001
    assert fit.unsteady == 0


def test_a_known_cost_is_recovered_from_a_growing_queue():
    fit = fit_requests(served(trace(6.0)))
    assert errors(fit) == pytest.approx(dict.fromkeys(TERMS, 0.0), abs=0.05)
    assert fit.held_out.median < 0.002


def test_noisy_steps_leave_it_within_its_intervals():
    held: list[bool] = []
    for seed in range(6):
        noisy = NoisyCost(COST, TRIANGLE, np.random.default_rng(seed))
        fit = fit_requests(served(trace(1.5, seed=seed), noisy))
        assert 0.0005 < fit.held_out.median < 0.01
        for term, true in TRUE.items():
            one = fit.coefficients[term]
            assert one.low is not None
            assert one.high is not None
            held.append(one.low <= true <= one.high)
    assert sum(held) >= 0.8 * len(held)


def test_preempted_requests_are_noticed_and_left_out():
    run = served(trace(2.0), num_blocks=700)
    fit = fit_requests(run)
    assert fit.unsteady > 5
    assert fit.requests + fit.unsteady == len(run.requests)
    assert abs(errors(fit)["step_s"]) < 0.05
    assert fit.held_out.median < 0.02


def test_the_cost_that_was_fitted_serves_the_trace_alike():
    """From log to cost to simulation: the requests of another hour end when they would have."""
    fitted = fit_requests(quiet()).settings
    cost = LinearCost(*(round(getattr(fitted, term) * 1e12) for term in TERMS))
    other = trace(2.0, seed=7)
    real, simulated = served(other).requests, served(other, cost).requests
    for start, end in (("arrival_s", "first_token_s"), ("first_token_s", "finish_s")):
        spans = [(one[end] - one[start]).mean() for one in (real, simulated)]
        assert spans[1] == pytest.approx(spans[0], rel=0.01)


def stretched(run: ServedRun, change: Callable[[pl.Expr], pl.Expr]) -> ServedRun:
    moments = [name for name in run.requests.columns if name.endswith("_s")]
    return replace(
        run, requests=run.requests.with_columns(change(pl.col(name)) for name in moments)
    )


def test_twice_the_times_are_twice_the_cost():
    slow = fit_requests(stretched(quiet(), lambda moment: moment * 2))
    assert errors(slow) == pytest.approx(dict.fromkeys(TERMS, 1.0), abs=0.02)


def test_the_clock_may_begin_anywhere():
    later = fit_requests(stretched(quiet(), lambda moment: moment + 1000))
    assert errors(later) == pytest.approx(errors(fit_requests(quiet())), abs=1e-4)


def test_scheduling_times_need_not_be_known():
    frame = quiet().requests.with_columns(scheduled_s=pl.lit(None, pl.Float64))
    fit = fit_requests(replace(quiet(), requests=frame, settings={}))
    assert errors(fit) == pytest.approx(dict.fromkeys(TERMS, 0.0), abs=0.05)


def test_logs_add_up():
    slow, fast = served(trace(0.2, 40)), served(trace(3.0, 60, seed=2))
    both = fit_requests([slow, fast])
    assert both.requests == fit_requests(slow).requests + fit_requests(fast).requests
    assert errors(both) == pytest.approx(dict.fromkeys(TERMS, 0.0), abs=0.02)


def test_the_same_seed_gives_the_same_fit():
    assert fit_requests(quiet(), seed=5) == fit_requests(quiet(), seed=5)
    assert fit_requests(quiet(), seed=5).held_out != fit_requests(quiet(), seed=6).held_out


def test_correlations_are_correlations():
    matrix = np.array(fit_requests(quiet()).correlation)
    assert matrix.shape == (len(TERMS), len(TERMS))
    assert (matrix == matrix.T).all()
    assert (np.diag(matrix) == 1.0).all()
    assert np.abs(matrix).max() <= 1.0


def one_after_the_other() -> ServedRun:
    apart = [r._replace(arrival_s=30.0 * r.request_id) for r in trace(1.0, 60)]
    return served(apart)


def all_alike() -> ServedRun:
    return served(trace(1.0, prompts=(500, 501), outputs=(100, 101)))


def in_a_burst_of_short_answers() -> ServedRun:
    return served(trace(1.0, outputs=(1, 5)))


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (one_after_the_other, r"it would take: .*decode_s \(several request rates"),
        (one_after_the_other, r"prefill_token_s \(requests that arrive while others decode\)"),
        (all_alike, r"context_token_s \(prompts and answers of different lengths\)"),
        (in_a_burst_of_short_answers, r"0 requests decoded at least 6 tokens .* at least 20"),
    ],
)
def test_what_a_log_cannot_tell_is_named_with_what_would(run, said):
    with pytest.raises(ConfigError, match=said):
        fit_requests(run())


def test_several_replicas_are_refused():
    run = replace(quiet(), settings={"cluster": {"replicas": 2}})
    with pytest.raises(ConfigError, match=r"log is of 2 replicas, whose requests cannot be told"):
        fit_requests(run)


@pytest.mark.parametrize("budget", [1, 7, 100, 2048, float("inf")])
def test_contexts_of_chunks_against_a_loop(budget):
    for rest, cached in ((1, 0), (7, 3), (100, 50), (2049, 0), (50, 1000)):
        steps = int(min(budget, rest))
        expected = sum(cached + min(done + steps, rest) for done in range(0, rest, steps))
        found = chunk_contexts(np.array([float(rest)]), np.array([float(cached)]), budget)
        assert found.tolist() == [expected]


def test_a_recorded_run_short_of_memory(shared: Path):
    """vLLM on an RTX 4090 with its KV cache full for most of three minutes: a quarter of the
    requests paused. The worst log to fit to; 0.9 % (median) and 3.6 % (95 %) when measured."""
    fit = fit_requests(read_run(shared / "ground-truth" / "rtx4090-llama-3.1-8b-vllm"))
    assert fit.unsteady > 30
    assert fit.held_out.median < 0.02
    assert fit.held_out.p95 < 0.06
    assert abs(fit.held_out.mean) < 0.02
    # 16 GB of weights at 1,008 GB/s: 16 ms; 16 GFLOP a prompt token at 165 TFLOPS: 97 us
    assert 12e-3 < fit.coefficients["step_s"].value < 18e-3
    assert 50e-6 < fit.coefficients["prefill_token_s"].value < 150e-6
