"""Simulates cells and judges them by objectives, no longer than it takes to know the verdict."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, Final

import numpy as np

from calibration.profiles import Profile, load_profile
from engine.metrics import (
    PICOSECONDS,
    REQUEST_COLUMNS,
    TIMED_OUT,
    TRUNCATED,
    UNFINISHED,
    Rows,
    ServiceMetrics,
)
from sim.planning.kept import KeptTraffic, Traced
from sim.planning.misses import Misses, Stopped
from sim.planning.objectives import (
    COUNTED,
    LATENCIES,
    QUANTILES,
    Objective,
    check_objectives,
    class_prefix,
)
from sim.replay import Run
from sim.scenario import Scenario
from sim.sweep.cells import Cell, drawn
from sim.uncertainty import Figures, figures

VERSION: Final = 1
"""Of what Judged's figures mean."""

_AT: Final = {name: i for i, name in enumerate(REQUEST_COLUMNS)}


@dataclass
class Judged:
    """Figures of cells, judged: a `work` for sim.sweep.

    A run that is served to its end has the figures of its summary, and besides

    - `missed.<i>` = 1 for each objective, by its index, that it misses;
    - `served.share`: of the counted requests, those that got all their output;
    - `backlog.share`: of the counted requests, those that wait for their first step when the last
      request of the trace arrives (not in a closed loop);
    - `counted.latency.<...>`, where not all counted requests were served: quantiles of all of them,
      those that were not served being infinitely late; one that is infinite is left out;
    - `offered.requests` of the trace and the mean rate at which they arrive,
      `offered.requests_per_s`;
    - `class.<name>.<...>`: the summary of an SLO class's requests, with its own limits, and the
      three above but for the backlog.

    A run that is stopped, since it is certain to miss an objective or diverges, has none of these
    but what was offered, `missed.<i>` of the objective it was stopped for, `stopped_s`, the
    simulated time at which it was, `arrived`, how many requests had come by then, and `diverged` =
    1 where it was not certain but the queue grew (see sim.planning.misses). What it would have said
    is not known.

    Traffic and profiles are kept from one cell to the next.
    """

    objectives: tuple[Objective, ...]
    stop_early: bool = True
    _traffic: KeptTraffic = field(default_factory=KeptTraffic, repr=False, compare=False)
    _profiles: dict[str, Profile] = field(
        default_factory=dict[str, Profile], repr=False, compare=False
    )

    @property
    def content(self) -> dict[str, Any]:
        """What it does beyond a plain simulation."""
        return {
            "judged": VERSION,
            "objectives": [one.as_json() for one in self.objectives],
            "stop_early": self.stop_early,
        }

    def __getstate__(self) -> dict[str, Any]:
        """What another process needs; what is kept is kept by each process for itself."""
        return {"objectives": self.objectives, "stop_early": self.stop_early}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Begin with nothing kept."""
        self.__init__(**state)

    def __call__(self, cell: Cell) -> Figures:
        """The figures of a cell.

        Raises:
            KvcastError: settings, a trace or objectives that cannot be used.
        """
        scenario = cell.scenario
        traced = self._traffic.of(cell)
        check_objectives(self.objectives, scenario, traced.classes)
        profile = self._profile(scenario.profile)
        drawn_scenario, draw = drawn(cell, profile)
        return self.judge(Run(drawn_scenario, traced.requests, profile=profile, draw=draw), traced)

    def judge(
        self, run: Run, traced: Traced, segments_to: Callable[[Any], None] | None = None
    ) -> Figures:
        """Serve a run of requests that are given, and judge it; segments go to `segments_to`."""
        watch = Misses(self.objectives, run.scenario, traced) if self.stop_early else None
        tally = _Tally(run.scenario, traced, watch, run)
        try:
            run.serve(requests_to=tally.take, segments_to=segments_to, watch=watch)
        except Stopped as stopped:
            return stopped.figures | _offered(traced)
        found = figures(run.summary()) | tally.figures(run.records.metrics) | _offered(traced)
        for index, objective in enumerate(self.objectives):
            if not objective.met(found):
                found[f"missed.{index}"] = 1.0
        return found

    def _profile(self, name: str) -> Profile:
        if name not in self._profiles:
            self._profiles[name] = load_profile(name)
        return self._profiles[name]


def missed(objectives: Sequence[Objective], found: Figures) -> list[Objective]:
    """The objectives that judged figures are known to miss; none: all are met."""
    return [one for index, one in enumerate(objectives) if f"missed.{index}" in found]


def _offered(traced: Traced) -> Figures:
    """The rate at which requests come, which is known before; none where all come at once."""
    rate = traced.rate_per_s
    if rate is None:
        return {}
    return {"offered.requests_per_s": rate, "offered.requests": len(traced.requests)}


class _Tally:
    """Counts, beside the summary, what objectives need: classes, and who was not served."""

    def __init__(self, scenario: Scenario, traced: Traced, watch: Misses | None, run: Run) -> None:
        self._watch: Misses | None = watch
        self._run: Run = run
        self._warmup_ps: int = round(scenario.warmup_s * PICOSECONDS)
        self._last_ps: int = int(traced.arrivals_ps[-1]) if len(traced.requests) else 0
        self._closed: bool = scenario.cluster.closed_loop
        self._waiting: int = 0
        self._all: _Lost = _Lost()
        self._classes: dict[str, tuple[ServiceMetrics, _Lost]] = {
            name: (ServiceMetrics(self._warmup_ps, scenario.slo.limits_of(name)), _Lost())
            for name in traced.classes
            if name
        }

    def take(self, rows: Rows) -> None:
        """Rows of requests that ended."""
        if self._watch is not None:
            self._watch.took(rows)
        if self._classes:
            numbers = {name: number for number, name in enumerate(self._run.names())}
            for name, (metrics, lost) in self._classes.items():
                mine = rows[rows[:, _AT["slo_class"]] == numbers.get(name, -1)]
                metrics.add(mine)
                lost.add(mine[mine[:, _AT["arrival"]] >= self._warmup_ps])
        rows = rows[rows[:, _AT["arrival"]] >= self._warmup_ps]
        self._all.add(rows)
        begun, outcome = rows[:, _AT["scheduled"]], rows[:, _AT["outcome"]]
        gave_up_later = (outcome == TIMED_OUT) & (rows[:, _AT["finish"]] > self._last_ps)
        never = (begun < 0) & (gave_up_later | (outcome == UNFINISHED))
        self._waiting += int(np.count_nonzero(never | (begun > self._last_ps)))

    def figures(self, metrics: ServiceMetrics) -> Figures:
        """What the summary does not have, of a run that came to its end."""
        found = self._all.figures(metrics)
        if not self._closed and metrics.counted:
            found["backlog.share"] = self._waiting / metrics.counted
        records = self._run.records
        end_s = self._run.scenario.end_s
        end_ps = max(records.last_end_ps, 0 if end_s is None else round(end_s * PICOSECONDS))
        for name, (of_class, lost) in self._classes.items():
            prefix = class_prefix(name)
            summary = of_class.summary(end_ps)
            if summary["goodput"]:
                del summary["goodput"]["slo"]
            found |= figures(summary, prefix)
            found |= lost.figures(of_class, prefix)
        return found


class _Lost:
    """Counted requests that were not served."""

    def __init__(self) -> None:
        self.requests: int = 0
        self.of_several_tokens: int = 0
        self.gaps: int = 0

    def add(self, rows: Rows) -> None:
        """Rows of counted requests."""
        lost = rows[rows[:, _AT["outcome"]] > TRUNCATED]
        if len(lost):
            further = lost[:, _AT["output_tokens"]] - 1
            self.requests += len(lost)
            self.of_several_tokens += int(np.count_nonzero(further))
            self.gaps += int(further.sum())

    def figures(self, metrics: ServiceMetrics, prefix: str = "") -> Figures:
        """The share that was served; quantiles of all, where some were not."""
        if not metrics.counted:
            return {}
        found: Figures = {f"{prefix}served.share": metrics.served / metrics.counted}
        if not self.requests:
            return found
        for name in LATENCIES:
            durations = metrics.latency[f"{name}_s"]
            endless = {
                "tpot": self.of_several_tokens,
                "itl": self.gaps,
                "queue": metrics.counted - durations.count,
            }.get(name, self.requests)
            if durations.count + endless == 0:
                continue
            values = {q: durations.quantile(share, endless) for q, share in QUANTILES.items()}
            summary = durations.summary()
            if endless == 0 and summary is not None:
                values = summary
            for statistic, value in values.items():
                if isfinite(value):
                    found[f"{COUNTED}{prefix}latency.{name}_s.{statistic}"] = value
        return found
