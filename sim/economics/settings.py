"""Settings of the bill: prices, power, grid."""

from __future__ import annotations

import datetime
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from sim.economics.grids import grid_names
from traces.settings import Settings, known_name


def _a_date(value: Any) -> Any:
    """A date as YAML has it, or as text of that form."""
    if isinstance(value, datetime.datetime):
        return value.date()
    if isinstance(value, str):
        try:
            return datetime.date.fromisoformat(value)
        except ValueError:
            raise ValueError("must be a date like 2026-01-31") from None
    if isinstance(value, datetime.date):
        return value
    raise ValueError("must be a date like 2026-01-31")


Date = Annotated[datetime.date, BeforeValidator(_a_date)]

Contract = Literal["on-demand", "reserved-1y", "reserved-3y"]

CONTRACTS: Final[tuple[Contract, ...]] = ("on-demand", "reserved-1y", "reserved-3y")


class PowerSettings(Settings):
    """What a GPU draws, and what stands around it: see sim.economics.power."""

    idle_w: float | None = Field(default=None, ge=0)
    """Of a GPU between steps, W; none: the profile's, else the data file's."""
    peak_w: float | None = Field(default=None, gt=0)
    """Of a GPU in a step, W; none: the profile's, else the data sheet's board power."""
    host_w_per_gpu: float = Field(default=0.0, ge=0)
    """Of the server around a GPU (CPUs, memory, fans, network), busy or not, W."""
    pue: float = Field(default=1.0, ge=1)
    """Power of the whole site over that of its servers (power usage effectiveness)."""

    @model_validator(mode="after")
    def _rises(self) -> PowerSettings:
        if self.idle_w is not None and self.peak_w is not None and self.idle_w > self.peak_w:
            raise ValueError("idle_w must be at most peak_w")
        return self


class EconomicsSettings(Settings):
    """What the fleet is paid by: see docs/economics.md."""

    prices: str | None = None
    """A price file; none: the one that comes with kvcast (`kvcast prices`)."""
    contract: Contract = "on-demand"
    """Which of a GPU's prices: on-demand, reserved-1y or reserved-3y."""
    usd_per_gpu_hour: float | None = Field(default=None, ge=0)
    """Price of one GPU for an hour, whatever a price file says; none: the file's."""
    as_of: Date | None = None
    """A price more than a year older than this is pointed out; none: none is."""
    input_share: float | None = Field(default=None, ge=0, le=1)
    """Share of the cost that input tokens bear; none: prefill's share of the step time."""
    grid: str | float = "world"
    """Carbon intensity of the electricity: a grid's name, or g CO2e per kWh."""
    power: PowerSettings = PowerSettings()

    @field_validator("grid")
    @classmethod
    def _known_grid(cls, grid: str | float) -> str | float:
        if isinstance(grid, str):
            return known_name("grid", grid, grid_names())
        if grid < 0:
            raise ValueError("must be at least 0 g CO2e per kWh")
        return grid
