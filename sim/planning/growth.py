"""How long a fleet lasts: the most traffic it holds, and what growth month by month breaks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from sim.planning.candidates import CENT, Candidate, Configuration, nodes
from sim.planning.evaluating import Change, Evaluation, Judge
from sim.planning.space import ConstraintSettings

RATE_TOLERANCE: Final = 0.01
"""Share of the rate to which head-room is found."""
MOST_RATE: Final = 64.0
"""Factor of the rate beyond which nobody looks."""
MOST_REPLICAS: Final = 4096


@dataclass(frozen=True)
class Headroom:
    """The most traffic that a fleet holds, as a factor of the trace's rate."""

    factor: float
    """All objectives are met there."""
    missed_at: float | None
    """The least factor at which one was seen to be missed; None: not even at `factor`."""
    missed: Sequence[str]
    """Which, at `missed_at`."""


@dataclass(frozen=True)
class Month:
    """The fleet some months on."""

    month: int
    rate: float
    """Factor of today's."""
    met: bool
    """The fleet as bought still meets every objective."""
    missed: Sequence[str]
    """Objectives that it misses, in the month in which it first does; then empty."""
    margin: float | None
    """The least, of the fleet as bought; None after the month in which it first misses."""
    replicas: int | None
    """That meet every objective, no fewer than the month before; None: none within reach does."""
    gpus: int | None
    usd_per_hour: float | None
    beyond: Sequence[str]
    """Constraints that so many replicas no longer keep."""


@dataclass(frozen=True)
class Growth:
    """Month by month, from 0 (today)."""

    percent_a_month: float
    months: Sequence[Month]

    @property
    def breaks(self) -> Month | None:
        """The first month in which the fleet as bought misses; None: it lasts."""
        return next((one for one in self.months if not one.met), None)


def headroom(judge: Judge, winner: Candidate) -> Headroom:
    """The most traffic that the winner holds: doubled until an objective is missed, then bisected.

    Assumed: what misses at some rate misses at higher ones.
    """
    low, high = 1.0, 2.0
    missed: Evaluation | None = None
    while high <= MOST_RATE:
        found = judge.altered(winner, Change(rate=high), [Change(rate=2 * high)])
        if not found.met:
            missed = found
            break
        low, high = high, 2 * high
    if missed is None:
        return Headroom(low, None, ())
    while high / low > 1 + RATE_TOLERANCE:
        middle = _round((low * high) ** 0.5)
        if not low < middle < high:
            break
        likely = [_round((middle * high) ** 0.5), _round((low * middle) ** 0.5)]
        found = judge.altered(winner, Change(rate=middle), [Change(rate=one) for one in likely])
        if found.met:
            low = middle
        else:
            high, missed = middle, found
    return Headroom(low, high, [one.name for one in missed.missed(judge.objectives)])


def growth(
    judge: Judge,
    full: Judge,
    winner: Candidate,
    percent_a_month: float,
    months: int,
    constraints: ConstraintSettings,
) -> Growth:
    """What growing traffic does to the winner, and how many replicas each month needs.

    Args:
        judge: ends runs that are certain to miss.
        full: runs to the end, to say which objectives are missed.
        winner: the fleet as bought.
        percent_a_month: by which the rate grows.
        months: horizon.
        constraints: what the fleet of some month may no longer keep.
    """
    made: list[Month] = []
    broken = False
    replicas: int | None = winner.replicas
    configuration = winner.configuration
    rates = [_round((1 + percent_a_month / 100) ** month) for month in range(months + 1)]
    for month, rate in enumerate(rates):
        change = Change(rate=rate)
        missed: list[str] = []
        margin: float | None = None
        if not broken:
            later = [Change(rate=one) for one in rates[month + 1 :]]
            found = judge.altered(winner, change, later)
            broken = not found.met
            margin = found.margin
            if broken:
                ended = full.altered(winner, change)
                missed = [one.name for one in ended.missed(full.objectives)]
                margin = ended.margin
        if broken and replicas is not None:

            def meets(count: int, change: Change = change) -> bool:
                return judge.altered(configuration.with_replicas(count), change).met

            replicas = fewest(meets, replicas, replicas, MOST_REPLICAS)
        made.append(
            Month(
                month,
                rate,
                not broken,
                missed,
                margin,
                replicas,
                None if replicas is None else replicas * configuration.profile.tp,
                None if replicas is None else configuration.with_replicas(replicas).usd_per_hour,
                [] if replicas is None else beyond(configuration, replicas, constraints),
            )
        )
    return Growth(percent_a_month, made)


def fewest(meets: Callable[[int], bool], start: int, least: int, most: int) -> int | None:
    """The fewest replicas from `least` to `most` that meet; None if none do.

    Looked for from `start` on in growing steps, then by bisection; assumed: more never hurt.
    """
    step = 1
    if meets(start):
        high = start
        low = least - 1
        while high > least:
            at = max(least, high - step)
            if not meets(at):
                low = at
                break
            high, step = at, 2 * step
    else:
        low, high = start, start
        while True:
            high = min(most, high + step)
            if meets(high):
                break
            if high == most:
                return None
            low, step = high, 2 * step
    while high - low > 1:
        middle = (low + high) // 2
        if meets(middle):
            high = middle
        else:
            low = middle
    return high


def beyond(
    configuration: Configuration, replicas: int, constraints: ConstraintSettings
) -> list[str]:
    """The constraints that so many replicas do not keep."""
    tp = configuration.profile.tp
    usd = round(replicas * configuration.usd_per_replica_hour, CENT)
    servers = nodes(replicas, tp, constraints.gpus_per_node)
    exceeded: list[str] = []
    if constraints.max_gpus is not None and replicas * tp > constraints.max_gpus:
        exceeded.append(f"max_gpus {constraints.max_gpus:,}")
    if constraints.max_usd_per_hour is not None and usd > constraints.max_usd_per_hour:
        exceeded.append(f"max_usd_per_hour {constraints.max_usd_per_hour:g}")
    if constraints.max_nodes is not None and servers > constraints.max_nodes:
        exceeded.append(f"max_nodes {constraints.max_nodes:,}")
    return exceeded


def _round(factor: float) -> float:
    """A factor as it is shown and written: six digits."""
    return float(f"{factor:.6g}")
