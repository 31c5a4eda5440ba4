"""Costs a profile can state that were not fitted by us: from a data sheet, or linear."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field

from calibration.costs import PICOSECONDS, CostModel, LinearCost
from calibration.hardware import Gpu
from calibration.kernels import Efficiencies, HostCosts
from calibration.roofline import roofline_cost
from traces.errors import ConfigError

if TYPE_CHECKING:
    from calibration.profiles import Profile


class RooflineSettings(BaseModel):
    """Cost from the data sheet: calibration.roofline."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["roofline"] = "roofline"
    efficiencies: Efficiencies = Efficiencies()
    host: HostCosts = HostCosts()

    def build(self, profile: Profile, *, async_scheduling: bool) -> CostModel:
        """The cost model of a replica of `profile`; a stated overlap rules `async_scheduling`.

        Raises:
            ConfigError: the profile's device has no data sheet.
        """
        device = profile.device
        if not isinstance(device, Gpu):
            raise ConfigError(
                f"profile {profile.name}: cost: roofline needs a GPU with a data sheet;"
                f" {device.name} is a stated device"
            )
        host = self.host
        if host.overlap_scheduling is None:
            host = host.model_copy(update={"overlap_scheduling": async_scheduling})
        return roofline_cost(
            profile.shape,
            device,
            profile.tp,
            profile.weight_dtype,
            profile.kv_dtype,
            self.efficiencies,
            host,
        )


class LinearSettings(BaseModel):
    """Cost linear in what a step computes and reads: calibration.costs.LinearCost, in seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["linear"]
    step_s: float = Field(ge=0)
    prefill_token_s: float = Field(ge=0)
    decode_s: float = Field(ge=0)
    context_token_s: float = Field(ge=0)

    def build(self, profile: Profile, *, async_scheduling: bool) -> CostModel:
        """The cost model; neither the profile nor the scheduling matters."""
        return LinearCost(
            step_ps=round(self.step_s * PICOSECONDS),
            prefill_token_ps=round(self.prefill_token_s * PICOSECONDS),
            decode_ps=round(self.decode_s * PICOSECONDS),
            context_token_ps=round(self.context_token_s * PICOSECONDS),
        )
