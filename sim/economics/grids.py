"""Carbon intensity of electricity grids: `grids.yaml`, each with year and source."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

import yaml
from pydantic import Field

from traces.settings import Settings, settings_of

GRIDS_FILE = "sim/economics/grids.yaml"


class Grid(Settings):
    """Greenhouse gases of a kilowatt-hour of one grid, over its power stations' lives."""

    g_co2e_per_kwh: float = Field(ge=0)
    year: int
    source: str = Field(min_length=1)


@cache
def grids() -> dict[str, Grid]:
    """Every grid of the data file by its name, in its order."""
    text = (files("sim") / "economics" / "grids.yaml").read_text(encoding="utf-8")
    return {
        name: settings_of(Grid, fields, f"{GRIDS_FILE}: {name}")
        for name, fields in yaml.safe_load(text).items()
    }


def grid_names() -> tuple[str, ...]:
    """Names that `economics.grid` may have."""
    return tuple(grids())


def carbon_intensity(grid: str | float) -> tuple[float, str]:
    """Grams of CO2 equivalents per kWh of a grid by name or as stated, and where that is from."""
    if isinstance(grid, str):
        known = grids()[grid]
        return known.g_co2e_per_kwh, known.source
    return grid, "stated"
