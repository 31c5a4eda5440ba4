"""Why the winner wins: what is nearly as good, and what excludes all that is cheaper."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Final, Literal

from sim.planning.candidates import Candidate
from sim.planning.evaluating import Evaluation, Judge, Redrawn
from sim.planning.objectives import Objective
from sim.planning.search import Known
from traces.errors import ConfigError

NEAREST: Final = 6
"""Cheaper candidates that are looked at in full."""
ALIKE: Final = 2
"""Of them, of one GPU beside the winner's configuration."""
LOOKED_AT: Final = 8
"""Candidates that are looked at in full where none meets."""

Status = Literal["met", "missed", "too few replicas", "bound", "not replayed"]

STATUSES: Final[dict[Status, str]] = {
    "met": "replayed: meets every objective",
    "missed": "replayed: misses an objective",
    "too few replicas": "fewer replicas than a candidate of this configuration that misses",
    "bound": "fewer replicas than the work needs, or misses with any number",
    "not replayed": "not needed: nothing cheaper is in question",
}


@dataclass(frozen=True)
class Miss:
    """An objective that a candidate misses."""

    objective: str
    value: float | None
    """Of its figure, seconds or a share; None: it is infinite."""
    limit: float
    shown: str
    """`p99 ttft 1.92 s`, for a reader."""


@dataclass(frozen=True)
class Cheaper:
    """A candidate that is cheaper than the winner, and why it is not taken."""

    evaluation: Evaluation
    misses: Sequence[Miss]
    redrawn: Redrawn | None
    """Where it meets every objective on the trace as it is, but not surely enough."""


def misses(objectives: Sequence[Objective], found: Evaluation) -> list[Miss]:
    """What a candidate that was replayed to the end misses, by how much."""
    made: list[Miss] = []
    for one in objectives:
        if not one.met(found.figures):
            value = one.value(found.figures)
            made.append(Miss(one.name, value, one.limit, f"{one.what} {one.shown(value)}"))
    return made


def nearest_cheaper(
    known: Sequence[Known],
    winner: Candidate,
    judge: Judge,
    full: Judge,
    redrawn: Mapping[tuple[int, int], Redrawn],
) -> list[Cheaper]:
    """The winner with fewer replicas, and of other profiles the dearest that is still cheaper."""
    chosen: dict[str, Candidate] = {}
    for one in sorted(known, key=lambda one: one.configuration is not winner.configuration):
        at = one.below(winner.usd_per_hour)
        if at < 0:
            continue
        candidate = one.candidates[at]
        name = one.configuration.profile.name
        mine = chosen.get(name)
        if mine is None or (
            candidate.usd_per_hour > mine.usd_per_hour
            and mine.configuration is not winner.configuration
        ):
            chosen[name] = candidate
    first = [one for one in chosen.values() if one.configuration is winner.configuration]
    others = sorted(
        (one for one in chosen.values() if one.configuration is not winner.configuration),
        key=lambda one: (-one.usd_per_hour, -_lasted(one, judge), one.configuration.place),
    )
    made: list[Cheaper] = []
    of_gpu: Counter[str] = Counter()
    spread: list[Candidate] = []
    for one in others:
        of_gpu[one.configuration.gpu] += 1
        if of_gpu[one.configuration.gpu] <= ALIKE:
            spread.append(one)
    for candidate in [*first, *spread][:NEAREST]:
        seen = judge.evaluated.get(candidate.identity)
        found = seen if seen is not None and seen.met else full.evaluate(candidate)
        made.append(
            Cheaper(found, misses(judge.objectives, found), redrawn.get(candidate.identity))
        )
    return made


def _lasted(candidate: Candidate, judge: Judge) -> float:
    """How many requests a replay of it saw until it was certain to miss; -1: none was made."""
    seen = judge.evaluated.get(candidate.identity)
    if seen is None or not seen.figures:
        return -1.0
    return seen.figures.get("arrived", inf)


def status_of(one: Known, index: int, judge: Judge) -> Status:
    """What became of a candidate."""
    found = judge.evaluated.get(one.candidates[index].identity)
    if found is not None:
        return "met" if found.met else "missed"
    if index < one.bound:
        return "bound"
    return "too few replicas" if index < one.low else "not replayed"


def statuses(known: Iterable[Known], judge: Judge, below_usd: float) -> Counter[Status]:
    """What became of the candidates that are cheaper than `below_usd`."""
    return Counter(
        status_of(one, index, judge)
        for one in known
        for index, candidate in enumerate(one.candidates)
        if candidate.usd_per_hour < below_usd
    )


def impossible(known: Sequence[Known], judge: Judge, full: Judge, stated: int) -> ConfigError:
    """Why nothing meets the objectives: which nothing meets, and the nearest miss.

    The candidates that last longest are looked at in full: of the configurations, each with all
    its replicas, those that were ended last.
    """
    tops = [one.candidates[-1] for one in known]
    if not tops:
        return ConfigError(f"space: no candidate is left of {stated:,}")
    tops.sort(key=lambda one: (-_lasted(one, judge), one.usd_per_hour, one.configuration.place))
    found = full.evaluate_all(tops[:LOOKED_AT])
    errors = [one.error for one in found if one.error]
    if len(errors) == len(found):
        return ConfigError(f"space: no candidate could be replayed: {errors[0]}")
    nearest = max(found, key=lambda one: one.margin)
    never = [
        objective
        for objective in judge.objectives
        if not any(objective.met(one.figures) for one in found)
    ]
    said = " and ".join(one.shown for one in misses(judge.objectives, nearest))
    where = f"nearest: {nearest.candidate.label} has {said}"
    if never:
        names = " and ".join(repr(one.name) for one in never)
        return ConfigError(f"objectives: none of {stated:,} candidates meets {names}; {where}")
    return ConfigError(
        f"objectives: each is met by some of {stated:,} candidates, all by none; {where}"
    )
