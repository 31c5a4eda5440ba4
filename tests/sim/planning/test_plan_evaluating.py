"""Verdicts on redrawn traffic, and what is asked for however far ahead one looks."""

from __future__ import annotations

from math import ceil
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from sim.planning.candidates import Candidate, Configuration
from sim.planning.evaluating import AS_IT_IS, Change, Judge, Redrawn, Replays
from sim.planning.objectives import parse_objectives
from sim.scenario import scenario_of
from sim.sweep.cells import Cell
from sim.sweep.outcomes import Failure, Outcome
from sim.sweep.sweep import Sweep
from sim.sweep.traffic import Traffic
from tests.sim.planning.test_plan_search import PROFILE, SCENARIO

OBJECTIVES = parse_objectives(["p99 ttft <= 1s"])
CONFIGURATION = Configuration(0, {}, "a", SCENARIO, PROFILE, SCENARIO.scheduler, 1, 1.0, (1, 2, 3))


class Asked:
    """Replays that read a table: which redraws each number of replicas misses."""

    def __init__(self, misses: dict[int, set[int]]) -> None:
        self.misses = misses
        self.asked: list[tuple[int, int]] = []

    def one(self, cell: Cell, likely: Any = tuple) -> Outcome:
        """What a replay would say."""
        replicas = cell.scenario.cluster.replicas
        self.asked.append((replicas, cell.replication))
        late = cell.replication in self.misses[replicas]
        return {"latency.ttft_s.p99": 2.0 if late else 0.5}


def judge_of(misses: dict[int, set[int]], redraws: int) -> tuple[Judge, Asked]:
    """A judge over a table."""
    asked = Asked(misses)
    return Judge(cast(Replays, asked), OBJECTIVES, Traffic("blocks", 20), redraws), asked


def candidate(replicas: int) -> Candidate:
    """Of the one configuration."""
    return CONFIGURATION.with_replicas(replicas)


@given(st.integers(1, 12), st.floats(0.05, 1), st.data())
def test_a_share_is_reached_just_when_so_many_redraws_meet(
    redraws: int, share: float, data: st.DataObject
) -> None:
    missed = data.draw(st.sets(st.integers(1, redraws)))
    judge, asked = judge_of({1: missed}, redraws)
    found = judge.redrawn(candidate(1), share)
    assert found.reached == (redraws - len(missed) >= ceil(share * redraws - 1e-9))
    assert len(asked.asked) == len(set(asked.asked)) == len(found.results)
    if found.reached:
        assert found.complete and found.met == redraws - len(missed)
    else:
        assert found.interval(0.95) is None or found.complete


def test_what_was_hard_for_others_comes_first() -> None:
    judge, asked = judge_of({1: {3, 7, 9}, 2: {3, 7}}, 10)
    assert not judge.redrawn(candidate(1), 0.9).reached
    first = len(asked.asked)
    found = judge.redrawn(candidate(2), 0.9)
    assert not found.reached
    assert {number for _, number in asked.asked[first:]} == set(found.results)
    assert set(found.results) == {3, 7}


@pytest.mark.parametrize(("met", "redraws"), [(0, 5), (3, 10), (19, 20), (20, 20)])
def test_the_interval_is_clopper_and_pearsons(met: int, redraws: int) -> None:
    """Its ends are the shares at which as much, or as little, has a probability of 2.5 %."""
    results = {number: number <= met for number in range(1, redraws + 1)}
    low, high = Redrawn(results, redraws, 0.9).interval(0.95) or (0.0, 0.0)
    assert low <= met / redraws <= high
    if met:
        assert float(binom.sf(met - 1, redraws, low)) == pytest.approx(0.025)
    if met < redraws:
        assert float(binom.cdf(met, redraws, high)) == pytest.approx(0.025)


class Slow:
    """A sweep that finishes cells in another order than they were submitted in."""

    def __init__(self) -> None:
        self.waiting: list[Cell] = []
        self.submitted = 0

    @property
    def pending(self) -> int:
        """Cells that are not done."""
        return len(self.waiting)

    def submit(self, cell: Cell) -> str:
        """Take a cell."""
        self.submitted += 1
        self.waiting.append(cell)
        return f"{cell.scenario.cluster.replicas}/{cell.replication}"

    def next(self) -> tuple[Cell, Outcome]:
        """The latest first."""
        cell = self.waiting.pop()
        if cell.scenario.cluster.replicas == 3:
            return cell, Failure("took longer than 1 s")
        return cell, {"latency.ttft_s.p99": 1.0 / cell.scenario.cluster.replicas}


@pytest.mark.parametrize("ahead", [1, 2, 8])
def test_looking_ahead_changes_neither_answers_nor_counts(ahead: int) -> None:
    sweep = Slow()
    replays = Replays(cast(Sweep, sweep), ahead)
    judge = Judge(replays, OBJECTIVES, Traffic(), 0)
    with replays.purpose("search"):
        assert judge.meets(candidate(2), [candidate(1), candidate(3)])
        assert not judge.meets(candidate(3), [candidate(1)])
    assert replays.counts == {"search": 2} and replays.total == 2
    assert list(judge.evaluated) == [(0, 2), (0, 3)]
    assert sweep.submitted == (2 if ahead == 1 else 3)
    with replays.purpose("fronts"):
        assert judge.evaluate(candidate(1)).met
        assert judge.evaluate(candidate(2)).met
    assert replays.counts == {"search": 2, "fronts": 1}
    assert sweep.submitted == 3
    failed = judge.evaluate(candidate(3))
    assert failed.error.startswith("took longer") and failed.margin == float("-inf")


def test_changes_are_changes_of_the_scenario() -> None:
    scenario = scenario_of({"trace": {"operations": [{"limit": {"count": 5}}]}})
    assert AS_IT_IS.of(scenario) is scenario
    changed = Change(rate=2.0, lengths=0.5, prefix_caching=False).of(scenario)
    kinds = [next(iter(one.model_dump())) for one in changed.trace.operations]
    assert kinds == ["limit", "compress_time", "scale_lengths"]
    assert not changed.cache.prefix_caching and scenario.cache.prefix_caching
    requests = list(changed.trace.open())
    plain = list(scenario.trace.open())
    assert [one.arrival_s for one in requests] == [one.arrival_s / 2 for one in plain]
    assert all(
        one.prompt_tokens == max(1, round(0.5 * was.prompt_tokens))
        for one, was in zip(requests, plain, strict=True)
    )
