"""Bounds are bounds: what they exclude misses when it is replayed."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration.costs import LinearCost
from calibration.profiles import load_profile, shipped_profiles
from sim.planning.bounds import (
    chunk_ps,
    demand_of,
    least_prompt_s,
    least_token_s,
    step_sizes,
)
from sim.planning.candidates import Configuration, Space
from sim.planning.judged import Judged
from sim.planning.objectives import Objective, parse_objectives
from sim.planning.pareto import OUTPUT
from sim.planning.space import base_values
from sim.scenario import Scenario, scenario_of
from sim.sweep.cells import Cell
from tests.sim.planning.fleets import hurried, plan_of
from traces.request import Request

TTFT = parse_objectives(["p99 ttft <= 1s"])


def configurations(**changes: Any) -> tuple[list[Configuration], Scenario]:
    """Of a small plan, and its common scenario."""
    asked = plan_of(**changes)
    values = base_values(asked)
    return Space(asked, values).every(), scenario_of(values)


def spread(requests: list[tuple[float, int]]) -> list[Request]:
    """Requests of (arrival, prompt tokens)."""
    return [Request(at, arrival_s, tokens, 8) for at, (arrival_s, tokens) in enumerate(requests)]


def test_a_token_takes_what_the_best_step_gives_it() -> None:
    cost = LinearCost(step_ps=10**9, prefill_token_ps=10**6, decode_ps=10**6, context_token_ps=0)
    exact_s = (10**9 / 1000 + 10**6) / 1e12
    assert exact_s / 1.05 <= least_token_s(cost, 1000) <= exact_s
    # a prompt shorter than the budget fills no step alone
    assert least_prompt_s(cost, 1000, 100) == pytest.approx((10**9 + 100 * 10**6) / 1e12 / 1.05)
    # a longer one takes at least as many budgets as it has
    assert least_prompt_s(cost, 1000, 5000) == pytest.approx(5000 * exact_s / 1.05)


@pytest.mark.parametrize("name", shipped_profiles())
def test_a_step_is_not_shorter_for_computing_more(name: str) -> None:
    """What the bounds assume of every cost model that comes with kvcast."""
    cost = load_profile(name).cost_model()
    times = [chunk_ps(cost, size, pairs=size) for size in step_sizes(4096)]
    assert times == sorted(times)


def test_work_in_the_busiest_window_counts() -> None:
    """A quiet hour, and in it ten seconds with 20,000 tokens a second."""
    burst = [(1800.0 + at / 10, 2000) for at in range(100)]
    requests = spread([(0.0, 10), *burst, (3600.0, 10)])
    (objective,) = parse_objectives(["max ttft <= 1s"])
    (need,) = demand_of(requests, [objective], Scenario()).needs[False]
    assert 9_000 < need.tokens_per_s <= 200_000 / 11
    # a quantile lets the largest of them be late
    (late,) = demand_of(requests, parse_objectives(["p90 ttft <= 1s"]), Scenario()).needs[False]
    assert 0 < late.tokens_per_s < need.tokens_per_s


def test_just_as_many_may_be_late_as_the_objective_lets() -> None:
    requests = spread([(float(at), 100 if at % 10 else 5000) for at in range(101)])
    (need,) = demand_of(requests, parse_objectives(["p90 ttft <= 1s"]), Scenario()).needs[False]
    # 10 of 101 may be late; of the 11 large ones one may not
    assert need.tokens_per_s == pytest.approx((90 * 100 + 5000) / 101)
    assert need.longest_tokens == 5000


def test_what_may_be_cached_is_no_work_for_certain() -> None:
    request = Request(0, 0.0, 100, 8, hashes=(1, 2), hash_tokens=32, hashed_tokens=64)
    demand = demand_of([request, request._replace(arrival_s=1.0)], TTFT, Scenario())
    assert demand.needs[True][0].longest_tokens == 36
    assert demand.needs[False][0].longest_tokens == 100


def test_a_closed_loop_arrives_when_it_is_let() -> None:
    closed = scenario_of({"cluster": {"closed_loop": True}})
    assert demand_of(spread([(0, 9), (1, 9)]), TTFT, closed).needs == {False: [], True: []}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 100), st.integers(1, 5000)), min_size=2, max_size=60),
    st.sampled_from(["p50", "p90", "p99", "max"]),
    st.floats(0.1, 20),
)
def test_no_window_asks_for_more_than_there_is(
    made: list[tuple[float, int]], statistic: str, limit_s: float
) -> None:
    requests = spread(sorted(made))
    objective = Objective("", "ttft", statistic, limit_s)
    (need,) = demand_of(requests, [objective], Scenario()).needs[False]
    assert need.tokens_per_s <= sum(tokens for _, tokens in made) / limit_s
    assert need.longest_tokens <= max(tokens for _, tokens in made)


@pytest.mark.parametrize("caching", [False, True])
@pytest.mark.parametrize("limit", ["300ms", "3s", "20s"])
def test_what_a_bound_excludes_misses(caching: bool, limit: str) -> None:
    made, base = configurations(
        scenario={"trace": hurried(150, 100), "cache": {"prefix_caching": caching}},
        space={
            "gpu": ["l4", "l40s", "h100"],
            "model": ["llama-3.1-8b"],
            "scheduler.max_num_batched_tokens": [512, 4096],
            "replicas": {"from": 1, "to": 6},
        },
    )
    objectives = parse_objectives([f"p95 ttft <= {limit}"])
    demand = demand_of(list(base.trace.open()), objectives, base)
    judged = Judged(objectives, stop_early=False)
    excluded = 0
    for one in made:
        cost = one.profile.cost_model()
        fewest = demand.fewest(one, cost)
        most = one.candidates[-1]
        figures = judged(Cell(most.scenario))
        assert demand.least_ttft_s(one, cost) <= figures["latency.ttft_s.p99"]
        assert demand.least_tpot_s(cost) <= figures["latency.tpot_s.p50"]
        assert figures[OUTPUT] <= demand.most_output_tokens_per_s
        for candidate in one.candidates:
            if fewest is None or candidate.replicas < fewest:
                excluded += 1
                assert judged(Cell(candidate.scenario))["latency.ttft_s.p95"] > float(
                    objectives[0].limit
                )
    if not caching and limit != "20s":
        assert excluded  # else this shows nothing
