"""Errors that a validation must keep within, so that it can guard a pipeline."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Final

from sim.validation.figures import RATES, STATISTICS, Comparison
from sim.validation.served import LATENCIES
from traces.errors import ConfigError

NAMES: Final = (
    *(f"{latency}.{statistic}" for latency in (*LATENCIES, "itl") for statistic in STATISTICS),
    *RATES,
)
"""Figures that can have a threshold."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A threshold and what became of it."""

    name: str
    limit: float
    """Greatest absolute error, as a share."""
    error: float | None
    """None: the real figure is 0, the simulated one is not."""

    @property
    def met(self) -> bool:
        """Whether the error is within the limit."""
        return self.error is not None and abs(self.error) <= self.limit

    def __str__(self) -> str:
        if self.error is None:
            return f"{self.name}: missed: the real figure is 0, the simulated one is not"
        said = f"{self.name}: {100 * self.error:+.2f} %, allowed {100 * self.limit:g} %"
        if self.met:
            return said
        return f"{said}: missed by {100 * (abs(self.error) - self.limit):.2f} points"


def parse_thresholds(text: str) -> dict[str, float]:
    """`ttft.mean=3%,tpot.p99=5%` as shares by the name of a figure; raises ConfigError."""
    limits: dict[str, float] = {}
    for part in text.split(","):
        match = re.fullmatch(r"([\w.]+)=(\d+(?:\.\d*)?)\s*%", part.strip())
        if match is None:
            raise ConfigError(
                f"--threshold {text}: '{part.strip()}' is no threshold; expected a figure and a"
                " share, like ttft.mean=3%,tpot.p99=5%"
            )
        name = match[1]
        if name not in NAMES:
            near = get_close_matches(name, NAMES, 1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise ConfigError(
                f"--threshold {text}: unknown figure '{name}'; {hint}known: {', '.join(NAMES)}"
            )
        if name in limits:
            raise ConfigError(f"--threshold {text}: {name} is limited twice; expected once")
        limits[name] = float(match[2]) / 100
    return limits


def verdicts(limits: Mapping[str, float], figures: Mapping[str, Comparison]) -> list[Verdict]:
    """What became of each threshold.

    Raises:
        ConfigError: the run has no such figure.
    """
    for name in limits:
        if name not in figures:
            raise ConfigError(
                f"--threshold {name}: the real run does not tell it; it tells {', '.join(figures)}"
            )
    return [Verdict(name, limit, figures[name].error) for name, limit in limits.items()]
