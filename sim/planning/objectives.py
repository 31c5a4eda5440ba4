"""Objectives: what a run must keep to be good enough, such as a P99 TTFT of at most a second.

Every request that is counted (arrived after the warm-up) enters an objective, those that were not
served too: a request that was rejected, was given up or never ended is later than any limit, so
that nothing is met by turning requests away. Where all are served, the figure that is judged is
the summary's own; else it is the same quantile of all counted requests, those not served taken as
infinitely late (sim.planning.judged has it; a mean or a greatest value is then missed). For gaps
between tokens (ITL), a request that is not served counts as all its gaps.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from math import inf
from typing import Any, Final

from engine import units
from engine.slo import UNITS_S
from sim.scenario import Scenario
from traces.errors import ConfigError

LATENCIES: Final = ("ttft", "tpot", "itl", "e2e", "queue")
STATISTICS: Final = ("mean", "p50", "p90", "p95", "p99", "max")
SHARES: Final[dict[str, str]] = {
    "goodput": "goodput.share",
    "served": "served.share",
    "backlog": "backlog.share",
}
"""Shares of the counted requests: at least so many are within their limits (`slo`), or served; at
most so many still wait for their first step when the last one arrives."""

QUANTILES: Final = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}

COUNTED: Final = "counted."
"""Begins the names of figures over all counted requests, those not served being infinitely late."""

_LIMITS: Final = {**UNITS_S, "%": 0.01, "": 1.0}
_EXAMPLES: Final = '"p99 ttft <= 1s", "goodput >= 99%" or "interactive: p95 tpot <= 50ms"'


@dataclass(frozen=True, slots=True)
class Objective:
    """A limit that a figure of a run has to keep."""

    name: str
    """As it is shown, and as parse_objective reads it: `p99 ttft <= 1s`."""
    metric: str
    """One of LATENCIES or SHARES."""
    statistic: str
    """Of a latency, one of STATISTICS; else empty."""
    limit: float
    """Seconds, or a share."""
    slo_class: str | None = None
    """Whose requests; None: all."""

    @property
    def at_most(self) -> bool:
        """Whether the figure may not be above the limit, rather than not below it."""
        return self.metric not in ("goodput", "served")

    @property
    def is_latency(self) -> bool:
        """Whether the figure is a duration, rather than a share."""
        return self.metric in LATENCIES

    @property
    def figure(self) -> str:
        """The figure's name in a summary."""
        if self.is_latency:
            return f"{self.prefix}latency.{self.metric}_s.{self.statistic}"
        return f"{self.prefix}{SHARES[self.metric]}"

    @property
    def prefix(self) -> str:
        """Begins the names of the figures of its requests."""
        return "" if self.slo_class is None else class_prefix(self.slo_class)

    @property
    def what(self) -> str:
        """The figure in words, without the limit: `interactive: p99 ttft`."""
        words = f"{self.statistic} {self.metric}".strip()
        return words if self.slo_class is None else f"{self.slo_class}: {words}"

    def value(self, figures: Mapping[str, float]) -> float | None:
        """The figure that is judged; None where a run has none, or it is infinite.

        A plain summary's figures do as well where every request was served.
        """
        if not self.is_latency:
            return figures.get(self.figure)
        served = figures.get(f"{self.prefix}{SHARES['served']}")
        if served is None:
            lost = any(figures.get(f"requests.{end}") for end in _LOST)
            return None if lost else figures.get(self.figure)
        return figures.get(self.figure if served == 1 else f"{COUNTED}{self.figure}")

    def met(self, figures: Mapping[str, float]) -> bool:
        """Whether a run with these figures keeps the limit; without the figure it does not."""
        value = self.value(figures)
        if value is None:
            return False
        return value <= self.limit if self.at_most else value >= self.limit

    def margin(self, figures: Mapping[str, float]) -> float:
        """Share of the limit that is left, negative where it is missed; -inf without the figure.

        Of a share that is to be reached: of what may be missing from 100 %.
        """
        value = self.value(figures)
        if value is None:
            return -inf
        if self.at_most:
            return 1 - value / self.limit
        allowed = 1 - self.limit
        return 1 - (1 - value) / allowed if allowed > 0 else value - self.limit

    def shown(self, value: float | None) -> str:
        """A value of its figure, for a reader."""
        if value is None:
            return "none"
        return units.seconds(value) if self.is_latency else f"{100 * value:.2f} %"

    def as_json(self) -> dict[str, Any]:
        """What a file holds of it."""
        return {
            "objective": self.name,
            "figure": self.figure,
            "limit": self.limit,
            "at_most": self.at_most,
            "class": self.slo_class,
        }


_LOST: Final = ("rejected", "timed_out", "unfinished")


def class_prefix(slo_class: str) -> str:
    """Begins the names of an SLO class's figures."""
    return f"class.{slo_class}."


def met(objectives: Iterable[Objective], figures: Mapping[str, float]) -> bool:
    """Whether a run with these figures keeps every objective."""
    return all(objective.met(figures) for objective in objectives)


def least_margin(objectives: Iterable[Objective], figures: Mapping[str, float]) -> float:
    """The margin of the objective that is closest to its limit, or furthest beyond it."""
    return min(objective.margin(figures) for objective in objectives)


def parse_objective(text: str, option: str = "--objective") -> Objective:
    """`p99 ttft <= 1s`, `goodput >= 99%`, `interactive: p95 tpot <= 50ms`.

    Raises:
        ConfigError: naming `option`, the text, and what would be right.
    """
    where = f"{option} {text!r}"
    slo_class, colon, rest = text.strip().rpartition(":")
    match = re.fullmatch(
        r"(?:(?P<statistic>[a-z]+\d*(?:\.\d+)?)\s+)?(?P<metric>[a-z0-9]+)\s*(?P<sign>[<>]=?|=+)\s*"
        r"(?P<limit>\d+(?:\.\d*)?|\.\d+)\s*(?P<unit>[a-z]+|%|)",
        rest.strip().lower(),
    )
    if match is None:
        raise ConfigError(f"{where}: is no objective; expected one like {_EXAMPLES}")
    metric, statistic = match["metric"], match["statistic"] or ""
    if metric not in (*LATENCIES, *SHARES):
        near = get_close_matches(metric, (*LATENCIES, *SHARES), 1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join((*LATENCIES, *SHARES))}"
        raise ConfigError(f"{where}: unknown figure {metric!r}; {hint}")
    latency = metric in LATENCIES
    if latency and statistic not in STATISTICS:
        said = repr(statistic) if statistic else "no statistic"
        raise ConfigError(f"{where}: {metric} has {said}; expected one of {', '.join(STATISTICS)}")
    if not latency and statistic:
        raise ConfigError(f"{where}: {metric} has no {statistic!r}; expected {metric} alone")
    sign = "<=" if latency or metric == "backlog" else ">="
    if match["sign"].rstrip("=") != sign[0]:
        raise ConfigError(f"{where}: expected {metric} {sign} a limit")
    unit = match["unit"]
    if unit not in (UNITS_S if latency else ("%", "")):
        expected = "a unit of s, ms, us or min" if latency else "a share such as 99%"
        raise ConfigError(f"{where}: limit {match['limit']}{unit}; expected {expected}")
    limit = float(match["limit"]) * _LIMITS[unit]
    if not latency:
        limit = float(match["limit"]) / 100 if unit == "%" else limit
    if limit <= 0 or (not latency and limit > 1):
        expected = "a time above 0" if latency else "a share above 0 % and at most 100 %"
        raise ConfigError(f"{where}: limit {match['limit']}{unit}; expected {expected}")
    name = f"{statistic} {metric} {sign} {match['limit']}{unit}".strip()
    whose = slo_class.strip()
    if colon and not whose:
        raise ConfigError(f"{where}: names no class before the colon")
    return Objective(f"{whose}: {name}" if whose else name, metric, statistic, limit, whose or None)


def parse_objectives(texts: Iterable[str], option: str = "--objective") -> tuple[Objective, ...]:
    """Several objectives, none of them about the same figure.

    Raises:
        ConfigError: there is none, one cannot be read, or two contradict or repeat each other.
    """
    objectives: dict[str, Objective] = {}
    for text in texts:
        objective = parse_objective(text, option)
        other = objectives.get(objective.figure)
        if other is not None:
            raise ConfigError(
                f"{option} {objective.name!r}: {objective.what} is limited already, by"
                f" {other.name!r}; expected one limit"
            )
        objectives[objective.figure] = objective
    if not objectives:
        raise ConfigError(f"{option}: is missing; expected one like {_EXAMPLES}")
    return tuple(objectives.values())


def check_objectives(
    objectives: Sequence[Objective], scenario: Scenario, classes: Collection[str]
) -> None:
    """Refuse objectives that no run of a scenario can have a figure for, or can ever meet.

    Args:
        objectives: what is asked for.
        scenario: what is run.
        classes: SLO classes of its trace; an empty one stands for requests without a class.

    Raises:
        ConfigError: naming the objective.
    """
    known = sorted(one for one in classes if one)
    for objective in objectives:
        where = f"objective {objective.name!r}"
        slo_class = objective.slo_class
        if slo_class is not None and slo_class not in known:
            near = get_close_matches(slo_class, known, 1)
            there = f"has {', '.join(known)}" if known else "has no classes"
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(f"{where}: unknown class {slo_class!r}; the trace {there}{hint}")
        if slo_class is not None and objective.metric == "itl":
            raise ConfigError(f"{where}: gaps between tokens are not known by class; expected tpot")
        if slo_class is not None and objective.metric == "backlog":
            raise ConfigError(f"{where}: the backlog is that of all classes; expected no class")
        if objective.metric == "backlog" and scenario.cluster.closed_loop:
            raise ConfigError(
                f"{where}: in a closed loop clients wait for answers, and no backlog can grow;"
                " expected a latency"
            )
        if objective.metric == "goodput" and not _limits(scenario, slo_class):
            raise ConfigError(
                f"{where}: there is no limit that a good request keeps; expected some, like --slo"
                " ttft=1s,tpot=50ms"
            )


def _limits(scenario: Scenario, slo_class: str | None) -> bool:
    """Whether there is a limit that a good request keeps."""
    slo = scenario.slo
    if slo_class is not None:
        return bool(slo.limits_of(slo_class))
    return bool(slo.limits_ps()) or any(slo.classes_ps().values())
