"""A bill in words and figures: dollars, kilowatt-hours, grams."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from engine import units

Summary = Mapping[str, Any]

CENTS: Final = 100


def usd(value: float | None) -> str:
    """Dollars with three significant digits, whole cents from one dollar on: $1,234, $7.91."""
    if value is None:
        return units.ABSENT
    if 1 <= value < CENTS:
        return f"${value:,.2f}"
    return f"${units.significant(value)}"


def kilowatt_hours(value: float | None) -> str:
    """Energy: 98.3 Wh, 12.4 kWh, 3.10 MWh."""
    if value is None:
        return units.ABSENT
    for size, unit in ((1000.0, "MWh"), (1.0, "kWh")):
        if value >= 0.9995 * size:
            return f"{units.significant(value / size)} {unit}"
    return f"{units.significant(value * 1000)} Wh"


def kilograms(value: float | None) -> str:
    """Mass of CO2 equivalents: 480 g, 12.1 kg, 1.02 t."""
    if value is None:
        return units.ABSENT
    for size, unit in ((1000.0, "t"), (1.0, "kg")):
        if value >= 0.9995 * size:
            return f"{units.significant(value / size)} {unit}"
    return f"{units.significant(value * 1000)} g"


def cost_line(summary: Summary) -> str:
    """A run's bill in one line: what is known of dollars an hour, per million tokens, energy."""
    bill = summary.get("economics")
    if bill is None:
        return ""
    parts: list[str] = []
    if bill["usd_per_hour"] is not None:
        parts.append(f"{usd(bill['usd_per_hour'])}/h")
        if bill["usd_per_million_output_tokens"] is not None:
            parts.append(f"{usd(bill['usd_per_million_output_tokens'])} per 1M output tokens")
    if bill["energy_kwh"] is not None:
        parts.append(kilowatt_hours(bill["energy_kwh"]) + counted(bill))
    return ", ".join(parts)


def missing_lines(summary: Summary) -> list[str]:
    """Why parts of the bill are not known, a line each."""
    bill = summary.get("economics")
    return [] if bill is None else list(bill["missing"])


def counted(bill: Summary) -> str:
    """What the energy leaves out, in brackets; empty where server and site are stated."""
    given = bill["given"]
    return "" if given["host_w_per_gpu"] or given["pue"] > 1 else " (GPUs alone)"
