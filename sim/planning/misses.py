"""Sees, while a run is served, that it is certain to miss an objective.

How many requests count is known before, so that a quantile is missed for certain once more of them
are too late than it allows, whatever follows. A request is too late for certain when its figure is
known and beyond the limit, when it waits for longer than the limit already, or when it was not
served. Everything compared is a lower bound of what the finished run would say, so a run that is
stopped would have missed: nothing is guessed. One stop is a guess, and is called divergence: see
`Misses._diverges`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import floor
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from engine.metrics import (
    PICOSECONDS,
    REQUEST_COLUMNS,
    TRUNCATED,
    Histogram,
    Rows,
    rank_of,
)
from sim.planning.kept import Traced
from sim.planning.objectives import QUANTILES, Objective
from sim.replay import Run
from sim.scenario import Scenario

LOOKS: Final = 64
"""How often a run is looked at, evenly over its arrivals."""
LEAST_BETWEEN: Final = 16
"""Arrivals between two looks of a short trace."""

DIVERGING: Final = 5
"""Times the backlog that may be left in the end; see `Misses._diverges`."""
SEEN: Final = 0.25
"""Share of the arrivals before which no run is called diverging."""

_AT: Final = {name: i for i, name in enumerate(REQUEST_COLUMNS)}

Flags = NDArray[np.bool_]
Numbers = NDArray[np.int64]


class Stopped(Exception):  # noqa: N818 nothing is wrong
    """The run is certain to miss an objective, or taken to diverge."""

    def __init__(self, at_ps: int, arrived: int, missed: int, *, diverged: bool) -> None:
        """At a time, after so many arrivals, because of the objective of this index."""
        super().__init__(missed)
        self.figures: dict[str, float] = {
            "stopped_s": at_ps / PICOSECONDS,
            "arrived": arrived,
            f"missed.{missed}": 1.0,
        }
        if diverged:
            self.figures["diverged"] = 1.0


class Misses:
    """Watches one run (sim.replay.Watch); raises Stopped.

    In a closed loop arrivals follow from answers: what waits is not looked at there.
    """

    def __init__(self, objectives: Sequence[Objective], scenario: Scenario, traced: Traced) -> None:
        """Watches for `objectives` in a run of `scenario` that serves `traced`."""
        count = len(traced.requests)
        self._count: int = count
        self._closed: bool = scenario.cluster.closed_loop
        self._arrivals: Numbers = traced.arrivals_ps
        counted = np.ones(count, dtype=bool)
        if not self._closed:
            counted = traced.arrivals_ps >= round(scenario.warmup_s * PICOSECONDS)
            if scenario.end_s is not None:
                counted &= traced.arrivals_ps <= round(scenario.end_s * PICOSECONDS)
        self._idle: bool = self._closed and scenario.warmup_s > 0
        """Nothing is known of a closed loop's warm-up before the run."""
        self._known: _Known = _Known(count)
        self._checks: list[tuple[int, Any]] = []
        for index, objective in enumerate(objectives):
            check = _check_of(objective, scenario, traced, counted)
            if check is not None:
                self._checks.append((index, check))
        self._queue_too: bool = any(one.metric == "queue" for one in objectives)
        self._seen: int = 0
        """Rows of ended requests in the buffer that were looked at."""
        self._before: int = 0
        """Requests waiting at the look before."""
        self._run: Any = None

    @property
    def arrivals_between(self) -> int:
        """How many requests arrive between two looks."""
        return max(LEAST_BETWEEN, self._count // LOOKS)

    def begins(self, run: Run) -> None:
        """Look at this run from now on, before anything arrives."""
        self._run = run
        for replica in run.cluster.replicas:
            replica.on_first_token = self._answering(replica.on_first_token)

    def _answering(self, told: Any) -> Any:
        """Notes who has a first token, and tells whoever else is told."""
        ttft, queue = self._known.ttft, self._known.queue

        def answered(replica: Any, seq: Any) -> None:
            ttft[seq.request.request_id] = seq.first_token - seq.arrival

        def answered_and_queued(replica: Any, seq: Any) -> None:
            number = seq.request.request_id
            ttft[number] = seq.first_token - seq.arrival
            queue[number] = seq.first_scheduled - seq.arrival

        mine = answered_and_queued if self._queue_too else answered
        return mine if told is None else partial(_both, told, mine)

    def took(self, rows: Rows) -> None:
        """Rows of ended requests that leave the buffer."""
        self._known.end(rows[self._seen :])
        self._seen = 0

    def arrived(self, count: int) -> None:
        """Look, now that so many requests have arrived; raises Stopped."""
        if self._idle:
            return
        run = self._run
        rows = run.records.request_rows.rows_from(self._seen)
        self._seen += len(rows)
        self._known.end(rows)
        now: int = run.cluster.now_ps
        so_far = self._count
        ages: Numbers | None = None
        if not self._closed:
            so_far = count
            ages = now - self._arrivals[:count]
        look = _Look(self._known, so_far, ages, run.records.metrics.latency["itl_s"])
        for index, check in self._checks:
            if check.missed(look):
                raise Stopped(now, count, index, diverged=False)
            if isinstance(check, _Backlog) and self._diverges(count, check.most):
                raise Stopped(now, count, index, diverged=True)

    def _diverges(self, count: int, most: int) -> bool:
        """Whether the queue is taken to grow without bound.

        It is once a quarter of the requests have arrived, if it is DIVERGING times as long as it
        may be in the end, a tenth of all that have arrived wait, and more than at the look before.
        """
        waiting = sum(replica.scheduler.waiting for replica in self._run.cluster.replicas)
        before, self._before = self._before, waiting
        return (
            count >= SEEN * self._count
            and waiting > DIVERGING * (most + 1)
            and 10 * waiting > count
            and waiting > before
        )


class _Known:
    """What is known of each request; -1: not yet."""

    def __init__(self, count: int) -> None:
        self.ttft: Numbers = np.full(count, -1, dtype=np.int64)
        self.queue: Numbers = np.full(count, -1, dtype=np.int64)
        self.tpot: Numbers = np.full(count, -1, dtype=np.int64)
        self.e2e: Numbers = np.full(count, -1, dtype=np.int64)
        self.lost: Flags = np.zeros(count, dtype=bool)
        """Ended, and not served."""
        self.never_begun: Flags = np.zeros(count, dtype=bool)
        """Ended, and never scheduled."""
        self.any_lost: bool = False

    def end(self, rows: Rows) -> None:
        """Take the rows of requests that have ended."""
        if not len(rows):
            return
        lost = rows[:, _AT["outcome"]] > TRUNCATED
        if lost.any():
            self.any_lost = True
            gone = rows[lost]
            self.lost[gone[:, 0]] = True
            self.never_begun[gone[gone[:, _AT["scheduled"]] < 0][:, 0]] = True
            rows = rows[~lost]
        number, finish = rows[:, 0], rows[:, _AT["finish"]]
        further = rows[:, _AT["generated_tokens"]] - 1
        spent = finish - rows[:, _AT["first_token"]]
        self.e2e[number] = finish - rows[:, _AT["arrival"]]
        self.tpot[number] = np.where(further > 0, spent // np.maximum(further, 1), -1)


@dataclass
class _Look:
    """What is known at one moment of the requests that have arrived."""

    known: _Known
    count: int
    """Requests that have arrived; in a closed loop, all."""
    ages: Numbers | None
    """Time since their arrival; None: not known."""
    gaps: Histogram
    """Between tokens."""

    def __post_init__(self) -> None:
        self._least: dict[str, Numbers] = {}

    def least(self, metric: str) -> Numbers:
        """What the latency of each request is at least."""
        if metric not in self._least:
            known: Numbers = getattr(self.known, metric)[: self.count]
            if metric in ("ttft", "e2e") and self.ages is not None:
                known = np.where(known < 0, self.ages, known)
            self._least[metric] = known
        return self._least[metric]

    def lost(self, metric: str) -> Flags:
        """Which requests are infinitely late."""
        flags = self.known.never_begun if metric == "queue" else self.known.lost
        return flags[: self.count]


@dataclass(frozen=True)
class _Late:
    """A quantile, or the greatest, of a latency: too many requests are too late."""

    metric: str
    whose: Flags
    beyond_ps: int
    """From here on a request is too late for certain."""
    allowed: int

    def missed(self, look: _Look) -> bool:
        late = look.least(self.metric) >= self.beyond_ps
        if look.known.any_lost:
            late |= look.lost(self.metric)
        if int(np.count_nonzero(late)) <= self.allowed:
            return False
        return int(np.count_nonzero(late & self.whose[: look.count])) > self.allowed


@dataclass(frozen=True)
class _Mean:
    """A mean of a latency: the sum so far is beyond what all together may take."""

    metric: str
    whose: Flags
    most_ps: float

    def missed(self, look: _Look) -> bool:
        whose = self.whose[: look.count]
        if look.known.any_lost and bool((look.lost(self.metric) & whose).any()):
            return True
        least = look.least(self.metric)
        return float(least[whose & (least > 0)].sum(dtype=np.float64)) > self.most_ps


@dataclass(frozen=True)
class _Bad:
    """Goodput: too many requests are beyond one of their limits."""

    limits: dict[str, Numbers]
    """Of each request, by latency."""
    whose: Flags
    count: int
    share: float

    def missed(self, look: _Look) -> bool:
        bad = look.known.lost[: look.count].copy()
        for metric, limits in self.limits.items():
            bad |= look.least(metric) > limits[: look.count]
        bad &= self.whose[: look.count]
        return (self.count - int(np.count_nonzero(bad))) / self.count < self.share


@dataclass(frozen=True)
class _Gaps:
    """ITL: too many gaps between tokens, of all that there can be, are too long."""

    first_bucket: int
    """From this bucket of the histogram on gaps are too long."""
    allowed: int

    def missed(self, look: _Look) -> bool:
        return int(look.gaps.counts[self.first_bucket :].sum()) > self.allowed


@dataclass(frozen=True)
class _Backlog:
    """Requests that wait when the last one arrives: nothing is certain before."""

    most: int

    def missed(self, look: _Look) -> bool:
        return False


def _check_of(objective: Objective, scenario: Scenario, traced: Traced, counted: Flags) -> Any:
    """What sees that an objective is missed; None where nothing can be known before the end."""
    whose = counted & traced.of_class(objective.slo_class)
    metric, statistic = objective.metric, objective.statistic
    if metric == "backlog":
        return _Backlog(floor(objective.limit * int(np.count_nonzero(whose))))
    if metric == "itl":
        return _gaps(objective, traced)
    if metric == "tpot":
        whose &= traced.output_tokens > 1
    count = int(np.count_nonzero(whose))
    if count == 0:
        return None
    if metric in ("goodput", "served"):
        limits = _limits(scenario, traced) if metric == "goodput" else {}
        return _Bad(limits, whose, count, objective.limit)
    if statistic == "mean":
        # the sums here are of floats: a little room, lest a rounding decide
        return _Mean(metric, whose, objective.limit * PICOSECONDS * count * (1 + 1e-9))
    if statistic == "max":
        beyond = floor(objective.limit * PICOSECONDS) + 1
        while beyond / PICOSECONDS <= objective.limit:
            beyond += 1
        return _Late(metric, whose, beyond, 0)
    allowed = count - rank_of(QUANTILES[statistic], count)
    return _Late(metric, whose, surely_beyond_ps(objective.limit), allowed)


def surely_beyond_ps(limit_s: float) -> int:
    """From where on a duration makes a quantile exceed a limit.

    A quantile is known to a bucket of the histogram, and the bucket's middle stands for it: a
    duration is beyond the limit for certain from the first bucket on whose middle is.
    """
    return _from_bucket(_bucket_beyond(limit_s), limit_s)


def _bucket_beyond(limit_s: float) -> int:
    """The first bucket whose middle, in seconds, is beyond a limit; at least 1."""
    bucket = 1
    limit_ps = limit_s * PICOSECONDS
    if limit_ps > 1:
        bucket = max(1, floor(np.log(limit_ps) / np.log(Histogram.GAMMA)) - 1)
    while Histogram.GAMMA ** (bucket - 0.5) / PICOSECONDS <= limit_s:
        bucket += 1
    return bucket


def _from_bucket(bucket: int, limit_s: float) -> int:
    """A duration that is in this bucket or above, and beyond the limit itself."""
    # a rounded logarithm may put a duration one bucket lower: 1e-9 keeps off that
    start = floor(Histogram.GAMMA ** (bucket - 1) * (1 + 1e-9)) + 1
    return max(start, floor(limit_s * PICOSECONDS * (1 + 1e-12)) + 1)


def _gaps(objective: Objective, traced: Traced) -> _Gaps | None:
    if objective.statistic not in QUANTILES:
        return None
    most = int((traced.output_tokens - 1).sum())
    if most == 0:
        return None
    # the middle of the bucket with the limit in it may be what is compared, or the greatest gap
    first = _bucket_beyond(objective.limit) + 1
    return _Gaps(first, most - rank_of(QUANTILES[objective.statistic], most))


def _limits(scenario: Scenario, traced: Traced) -> dict[str, Numbers]:
    """The limits of each request, in picoseconds."""
    of_class = [scenario.slo.limits_of(name) for name in traced.classes]
    names = {name for limits in of_class for name in limits}
    never = np.iinfo(np.int64).max
    return {
        name: np.array([limits.get(name, never) for limits in of_class], dtype=np.int64)[
            traced.class_of
        ]
        for name in sorted(names)
    }


def _both(one: Any, other: Any, replica: Any, seq: Any) -> None:
    one(replica, seq)
    other(replica, seq)


def bounded(objectives: Sequence[Objective], scenario: Scenario) -> bool:
    """Whether some objective bounds how long requests wait, so that a growing queue misses it."""
    waits = {"ttft", "e2e", "queue", "backlog"}
    for one in objectives:
        if one.metric in waits and one.statistic != "p50":
            return True
        if one.metric == "goodput":
            limits = scenario.slo.limits_ps()
            if one.slo_class is not None:
                limits = scenario.slo.limits_of(one.slo_class)
            if {"ttft", "e2e"} & set(limits):
                return True
    return False
