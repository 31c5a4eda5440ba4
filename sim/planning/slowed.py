"""A judged simulation whose every step takes a factor longer: what an error of the profile does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import PrivateAttr

from calibration.costs import CostModel
from calibration.profiles import Profile
from calibration.slower import SLOWER
from sim.planning.judged import Judged


class SlowedProfile(Profile):
    """A profile with all its step times multiplied."""

    _factor: float = PrivateAttr(default=1.0)

    @classmethod
    def of(cls, profile: Profile, factor: float) -> SlowedProfile:
        """`profile` with every step `factor` times as long."""
        made = cls.model_validate(profile.model_dump(by_alias=True)).within(profile.folder)
        made._factor = factor
        return made

    def cost_model(self, *, async_scheduling: bool = True) -> CostModel:
        """See Profile.cost_model."""
        cost = super().cost_model(async_scheduling=async_scheduling)
        return SLOWER[type(cost)](cost, self._factor)


@dataclass
class Slowed(Judged):
    """Judged figures with every step `factor` times as long as the profile says."""

    factor: float = 1.0

    @property
    def content(self) -> dict[str, Any]:
        """What it does beyond a plain simulation."""
        return {**super().content, "step_times": self.factor}

    def __getstate__(self) -> dict[str, Any]:
        """What another process needs."""
        return {**super().__getstate__(), "factor": self.factor}

    def _profile(self, name: str) -> Profile:
        if name not in self._profiles:
            self._profiles[name] = SlowedProfile.of(super()._profile(name), self.factor)
        return self._profiles[name]
