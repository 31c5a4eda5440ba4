"""Fronts are what their definition says, and the walk finds them to its tolerance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.planning.candidates import Candidate, Configuration
from sim.planning.evaluating import Evaluation, Judge
from sim.planning.pareto import (
    TTFT,
    contradictions,
    cost_against_ttft,
    front_of,
    gpu_against_user,
    walk,
)
from sim.planning.search import Known, cheapest
from tests.sim.planning.test_plan_search import PROFILE, SCENARIO, Table

AXES = cost_against_ttft()


class Told:
    """A judge that reads a table: latency falls with the replicas to a floor."""

    def __init__(
        self, known: Sequence[Known], floors: Sequence[float], needs: Sequence[int]
    ) -> None:
        self.known = known
        self.floors = floors
        self.needs = needs
        self.evaluated: dict[tuple[int, int], Evaluation] = {}
        self.replays = self

    @property
    def total(self) -> int:
        """Replays asked for."""
        return len(self.evaluated)

    def what(self, candidate: Candidate) -> Evaluation:
        """What a replay would say."""
        place = candidate.configuration.place
        met = candidate.replicas >= self.needs[place]
        latency_s = self.floors[place] * (1 + 3 / candidate.replicas**2)
        return Evaluation(candidate, {TTFT: latency_s}, met, 0.5 if met else -1.0)

    def evaluate(self, candidate: Candidate, likely: Sequence[Candidate] = ()) -> Evaluation:
        """The same, remembered."""
        return self.evaluated.setdefault(candidate.identity, self.what(candidate))

    def meets(self, candidate: Candidate, likely: Sequence[Candidate] = ()) -> bool:
        """Whether it meets."""
        return self.evaluate(candidate).met


@st.composite
def judges(draw: st.DrawFn) -> Told:
    """Some configurations of several prices, needs and speeds."""
    count = draw(st.integers(1, 5))
    prices = [draw(st.sampled_from([1.0, 1.7, 2.0, 4.0])) for _ in range(count)]
    counts = [tuple(range(1, draw(st.integers(2, 14)))) for _ in range(count)]
    needs = [draw(st.integers(1, 14)) for _ in range(count)]
    floors = [draw(st.sampled_from([0.1, 0.11, 0.2, 0.5])) for _ in range(count)]
    return Told(Table(prices, counts, needs, needs).known, floors, needs)


def dominates(one: Evaluation, other: Evaluation) -> bool:
    """As good in both, better in one."""
    mine, its = (AXES.x(one), AXES.y(one)), (AXES.x(other), AXES.y(other))
    return mine != its and mine[0] <= its[0] and mine[1] <= its[1]


@given(judges())
def test_a_front_is_what_nothing_betters(judge: Told) -> None:
    every = [judge.what(c) for one in judge.known for c in one.candidates]
    front = front_of(every, AXES)
    good = [one for one in every if one.met]
    assert all(one.met for one in front)
    for one in good:
        better = any(dominates(other, one) for other in good)
        listed = any(AXES.x(f) == AXES.x(one) and AXES.y(f) == AXES.y(one) for f in front)
        assert listed != better


@settings(deadline=None)
@given(judges(), st.sampled_from([0.0, 0.02, 0.3]), st.sampled_from([0.0, 0.05]), st.booleans())
def test_the_walk_finds_the_front_to_its_tolerance(
    judge: Told, tolerance: float, bound: float, searched: bool
) -> None:
    if searched:
        cheapest(judge.known, judge.meets)
    found = walk(judge.known, cast(Judge, judge), AXES, tolerance, 10_000, lambda _: bound)
    assert found.gap == tolerance
    every = [judge.what(c) for one in judge.known for c in one.candidates]
    for best in front_of(every, AXES):
        beside = [one for one in found.points if AXES.x(one) <= AXES.x(best)]
        assert beside
        assert AXES.y(beside[-1]) <= (1 + tolerance) * AXES.y(best) * (1 + 1e-12)
    if tolerance == 0:
        assert [AXES.y(one) for one in found.points] == [
            AXES.y(one) for one in front_of(every, AXES)
        ]


@settings(deadline=None)
@given(judges(), st.integers(0, 6))
def test_a_walk_that_is_cut_short_says_how_much_is_missing(judge: Told, replays: int) -> None:
    floors = judge.floors
    found = walk(judge.known, cast(Judge, judge), AXES, 0.0, replays, lambda one: floors[one.place])
    assert found.replays <= replays
    every = [judge.what(c) for one in judge.known for c in one.candidates]
    for best in front_of(every, AXES):
        beside = [AXES.y(one) for one in found.points if AXES.x(one) <= AXES.x(best)]
        assert min(beside, default=float("inf")) <= (1 + found.gap) * AXES.y(best) * (1 + 1e-12)


def test_throughput_against_the_user() -> None:
    axes = gpu_against_user(100.0)
    configuration = Configuration(0, {}, "a", SCENARIO, PROFILE, SCENARIO.scheduler, 1, 1.0, (1, 2))
    figures: dict[str, Any] = {"throughput.output_tokens_per_s": 80.0, "latency.tpot_s.p50": 0.02}
    one = Evaluation(configuration.with_replicas(2), figures, True, 0.1)
    assert axes.x(one) == pytest.approx(2 / 80)
    assert axes.y(one) == 0.02
    assert axes.least_x(one.candidate) == pytest.approx(2 / 100)


def test_more_replicas_that_are_slower_are_counted() -> None:
    configuration = Configuration(0, {}, "a", SCENARIO, PROFILE, SCENARIO.scheduler, 1, 1.0, (1, 2))
    found = [
        Evaluation(configuration.with_replicas(count), {TTFT: latency_s}, True, 0.1)
        for count, latency_s in ((1, 1.0), (2, 1.2), (3, 1.201), (4, 0.5))
    ]
    assert contradictions(found, AXES) == 1
