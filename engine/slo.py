"""Limits that a good request keeps."""

import re
from typing import Annotated, Final

from pydantic import Field

from engine.metrics import PICOSECONDS
from traces.errors import ConfigError
from traces.settings import Settings


class SloLimits(Settings):
    """Limits that a good request keeps; none: no limit."""

    ttft_s: float | None = Field(default=None, gt=0)
    tpot_s: float | None = Field(default=None, gt=0)
    e2e_s: float | None = Field(default=None, gt=0)

    def limits_ps(self) -> dict[str, int]:
        """The limits that are set, in picoseconds, as ServiceMetrics takes them."""
        limits = {"ttft": self.ttft_s, "tpot": self.tpot_s, "e2e": self.e2e_s}
        return {name: round(s * PICOSECONDS) for name, s in limits.items() if s is not None}


class SloSettings(SloLimits):
    """Limits of all requests, and of those of some SLO classes."""

    classes: dict[Annotated[str, Field(min_length=1)], SloLimits] = Field(
        default_factory=dict[str, SloLimits]
    )
    """A class's own limits; what it does not state is as for all requests."""

    def classes_ps(self) -> dict[str, dict[str, int]]:
        """All limits of each class that states some, in picoseconds."""
        common = self.limits_ps()
        return {name: common | limits.limits_ps() for name, limits in self.classes.items()}

    def limits_of(self, slo_class: str) -> dict[str, int]:
        """The limits of a class's requests, in picoseconds; an empty name is that of no class."""
        return self.classes_ps().get(slo_class, self.limits_ps())


UNITS_S: Final = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "min": 60.0}


def parse_slo(text: str) -> dict[str, float]:
    """`ttft=1s,tpot=50ms` as `slo` settings; raises ConfigError."""
    limits: dict[str, float] = {}
    for part in text.split(","):
        match = re.fullmatch(r"(ttft|tpot|e2e)=(\d+(?:\.\d*)?)(s|ms|us|min)", part.strip())
        if match is None:
            raise ConfigError(
                f"--slo {text}: '{part}' is no limit; expected ttft, tpot or e2e with a unit,"
                " like ttft=1s,tpot=50ms"
            )
        if f"{match[1]}_s" in limits:
            raise ConfigError(f"--slo {text}: {match[1]} is limited twice; expected once")
        limits[f"{match[1]}_s"] = float(match[2]) * UNITS_S[match[3]]
    return limits
