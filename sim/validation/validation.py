"""A simulation beside the real run that it foretells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from sim.scenario import Scenario
from sim.validation.figures import Comparison
from sim.validation.real import Real, Timeline
from sim.validation.served import Origin, Served
from sim.validation.thresholds import Verdict

BELOW: Final = "below saturation"
NEAR: Final = "near saturation"


@dataclass(frozen=True, slots=True)
class Jitter:
    """Arrivals that are a little off."""

    sigma_s: float
    """Standard deviation of the normal deviate that each arrival is shifted by."""
    replications: int
    """Simulations with arrivals shifted anew; 0: none, else at least 2."""


@dataclass(frozen=True, slots=True)
class Validation:
    """A simulation beside the real run."""

    scenario: Scenario
    real: Real
    summary: Mapping[str, Any]
    """Of the simulation."""
    origin: Origin
    jitter: Jitter
    simulated_served: Served
    real_served: Served
    """The requests that both sides answered."""
    figures: dict[str, Comparison]
    by_load: dict[str, dict[str, Comparison]]
    """For requests that came BELOW and NEAR saturation; empty where the run does not tell."""
    by_request: dict[str, dict[str, float]]
    below: NDArray[np.bool_] | None
    timeline: Timeline | None
    """Of the simulation, where one engine was simulated."""
    verdicts: list[Verdict]
    warnings: list[str]

    @property
    def passed(self) -> bool:
        """Every threshold was met."""
        return all(verdict.met for verdict in self.verdicts)

    def as_json(self) -> dict[str, Any]:
        """What validation.json holds."""
        return {
            "kvcast": self.summary["kvcast"],
            "profile": self.summary["profile"],
            "real": {"where": self.real.where, **self.real.about},
            "requests": {
                "sent": self.real.total,
                "answered_by_both": len(self.real_served),
                **({} if self.below is None else self._split()),
            },
            "counted_from": self.origin,
            "figures": {name: one.as_json() for name, one in self.figures.items()},
            "by_load": {
                load: {name: one.as_json() for name, one in found.items()}
                for load, found in self.by_load.items()
            },
            "by_request": self.by_request,
            "jitter": asdict(self.jitter),
            "decisions": None if self.real.decisions is None else asdict(self.real.decisions),
            "thresholds": [{**asdict(one), "met": one.met} for one in self.verdicts],
            "warnings": self.warnings,
        }

    def _split(self) -> dict[str, int]:
        assert self.below is not None
        below = int(self.below.sum())
        return {"below_saturation": below, "near_saturation": len(self.below) - below}
