"""Pareto fronts: what more money buys, and what throughput costs the user.

Two fronts, each over candidates that meet every objective: dollars an hour against P99 TTFT, and
output tokens a second and GPU against tokens a second and user (1 / median TPOT). Both of a front's
axes are taken so that less is better (`x`, `y`).

The walk is branch and bound again. It assumes, as the search does, that more replicas of a
configuration never make the latency worse: the latency of a stretch of candidates is then at least
that of the one after it, and `x` at least that of its first. A stretch is looked into where it
could better the front most, until nothing could by more than the tolerance, or until the replays
that are allowed are used up; what is then still possible is said (`Front.gap`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import inf
from typing import Final

from sim.planning.candidates import Candidate, Configuration
from sim.planning.evaluating import Evaluation, Judge
from sim.planning.search import Known
from sim.uncertainty import Figures

TTFT: Final = "latency.ttft_s.p99"
TPOT: Final = "latency.tpot_s.p50"
SLOWER: Final = 1.01
"""Times the latency with fewer replicas, above which more replicas are slower."""
OUTPUT: Final = "throughput.output_tokens_per_s"


@dataclass(frozen=True)
class Axes:
    """What a front is about."""

    name: str
    x: Callable[[Evaluation], float]
    """Less is better; it rises with the replicas of a configuration."""
    y: Callable[[Evaluation], float]
    """Less is better; it is assumed not to rise with the replicas of a configuration."""
    least_x: Callable[[Candidate], float]
    """At most `x` of a candidate, without a replay."""


def cost_against_ttft() -> Axes:
    """Dollars an hour against P99 TTFT."""
    return Axes(
        "cost_ttft",
        x=lambda one: one.candidate.usd_per_hour,
        y=lambda one: one.figures.get(TTFT, inf),
        least_x=lambda one: one.usd_per_hour,
    )


def gpu_against_user(most_output_tokens_per_s: float) -> Axes:
    """GPU-seconds an output token against seconds a token that a user waits (median TPOT).

    Their inverses are what is shown: tokens a second and GPU, and a second and user.

    Args:
        most_output_tokens_per_s: above any fleet's throughput.
    """
    return Axes(
        "gpu_user",
        x=lambda one: gpu_seconds_a_token(one.candidate, one.figures),
        y=lambda one: one.figures.get(TPOT, inf),
        least_x=lambda one: one.gpus / most_output_tokens_per_s,
    )


def gpu_seconds_a_token(candidate: Candidate, figures: Figures) -> float:
    """GPU time that an output token takes, idle time with it."""
    tokens_per_s = figures.get(OUTPUT, 0.0)
    return candidate.gpus / tokens_per_s if tokens_per_s else inf


@dataclass(frozen=True)
class Front:
    """Candidates that no other one betters in both."""

    name: str
    points: Sequence[Evaluation]
    """From the least `x` to the largest; `y` falls."""
    gap: float
    """No candidate betters the front by more than this share of its `y`, at its `x`; inf: the space
    was not walked, and nothing is known of what was not replayed."""
    replays: int
    """That the walk took beyond the search."""
    contradicted: int = 0
    """Pairs of candidates, next to each other among those of a configuration that were replayed, of
    which the one with more replicas is slower by more than 1 %: they contradict what the gap
    rests on."""


def front_of(
    evaluations: Iterable[Evaluation], axes: Axes, most_x: float = inf
) -> list[Evaluation]:
    """The candidates up to `most_x` that no other one is as good as in both axes and better in one.

    Of equals the first by place and replicas.
    """
    ordered = sorted(
        (one for one in evaluations if one.met and axes.y(one) < inf and axes.x(one) <= most_x),
        key=lambda one: (axes.x(one), axes.y(one), one.candidate.identity),
    )
    kept: list[Evaluation] = []
    for one in ordered:
        if not kept or axes.y(one) < axes.y(kept[-1]):
            kept.append(one)
    return kept


def contradictions(evaluations: Iterable[Evaluation], axes: Axes) -> int:
    """See Front.contradicted."""
    of: dict[int, list[Evaluation]] = {}
    for one in evaluations:
        if one.met:
            of.setdefault(one.candidate.configuration.place, []).append(one)
    count = 0
    for found in of.values():
        ys = [axes.y(one) for one in sorted(found, key=lambda one: one.candidate.replicas)]
        count += sum(more > SLOWER * less for less, more in pairwise(ys))
    return count


@dataclass
class _Stretch:
    """Candidates of a configuration from `first` to `last`, of which none is replayed."""

    known: Known
    first: int
    last: int
    least_y: float
    """Of the candidate after it, or a bound."""
    gap: float = field(default=inf, compare=False)

    @property
    def configuration(self) -> Configuration:
        return self.known.configuration


def walk(
    known: Iterable[Known],
    judge: Judge,
    axes: Axes,
    tolerance: float,
    replays: int,
    least_y: Callable[[Configuration], float],
    most_x: float = inf,
) -> Front:
    """The front of an exhaustive space.

    Args:
        known: what the search learnt of each configuration.
        judge: replays candidates.
        axes: what the front is about.
        tolerance: share of `y` by which it is not worth bettering.
        replays: how many may be asked for.
        least_y: a bound on a configuration's `y`, whatever its replicas; 0: none.
        most_x: the front ends there.
    """
    before = judge.replays.total
    front = front_of(judge.evaluated.values(), axes, most_x)
    open_ = [
        stretch
        for one in known
        if not one.hopeless
        for stretch in _stretches(one, judge, axes, least_y(one.configuration), most_x)
    ]

    def gap_of(stretch: _Stretch) -> float:
        x = axes.least_x(stretch.known.candidates[stretch.first])
        at = [one for one in front if axes.x(one) <= x]
        if not at:
            return inf
        return axes.y(at[-1]) / stretch.least_y - 1 if stretch.least_y > 0 else inf

    def by_gap(stretch: _Stretch) -> tuple[float, float, int, int]:
        return (-stretch.gap, axes.least_x(stretch.known.candidates[stretch.first]),
                stretch.configuration.place, stretch.first)  # fmt: skip

    while open_ and judge.replays.total - before < replays:
        for stretch in open_:
            stretch.gap = gap_of(stretch)
        open_ = sorted((one for one in open_ if one.gap > tolerance), key=by_gap)
        if not open_:
            break
        worst, *others = open_
        ahead = [one.known.candidates[_middle(one)] for one in others[:4]]
        at = _middle(worst)
        found = judge.evaluate(worst.known.candidates[at], ahead)
        open_ = others + _parts(worst, at, found, axes)
        front = front_of(judge.evaluated.values(), axes, most_x)
    left = [gap for one in open_ if (gap := gap_of(one)) > tolerance]
    return Front(axes.name, front, max(left, default=tolerance), judge.replays.total - before)


def _stretches(one: Known, judge: Judge, axes: Axes, bound: float, most_x: float) -> list[_Stretch]:
    """What the search left of a configuration up to `most_x`, cut at what it replayed."""
    found: list[_Stretch] = []
    first = one.low
    last = sum(axes.least_x(candidate) <= most_x for candidate in one.candidates) - 1
    after = bound
    for candidate in reversed(one.candidates[last + 1 :]):
        evaluation = judge.evaluated.get(candidate.identity)
        if evaluation is not None and evaluation.met:
            after = max(bound, axes.y(evaluation))
    for index in range(last, first - 1, -1):
        evaluation = judge.evaluated.get(one.candidates[index].identity)
        if evaluation is None:
            continue
        if index < last:
            found.append(_Stretch(one, index + 1, last, after))
        after = max(bound, axes.y(evaluation)) if evaluation.met else after
        last = index - 1
    if first <= last:
        found.append(_Stretch(one, first, last, after))
    return found


def _middle(stretch: _Stretch) -> int:
    """Which candidate of a stretch says most: its first if that is known to meet, else the middle.

    Prices rise evenly along a stretch and latencies fall the steeper the fewer replicas there are,
    so that the middle leans to the front.
    """
    return (2 * stretch.first + stretch.last) // 3


def _parts(stretch: _Stretch, at: int, found: Evaluation, axes: Axes) -> list[_Stretch]:
    """A stretch, cut at a candidate that has been replayed."""
    stretch.known.learn(at, found.met)
    behind = _Stretch(stretch.known, at + 1, stretch.last, stretch.least_y)
    parts = [behind] if behind.first <= behind.last else []
    if found.met and stretch.first < at:
        parts.append(
            _Stretch(stretch.known, stretch.first, at - 1, max(stretch.least_y, axes.y(found)))
        )
    return parts
