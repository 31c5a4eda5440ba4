"""Intervals of a run's figures, as texts: `[1.10, 1.41] s`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from engine import units
from sim.economics.saying import kilowatt_hours, usd

Summary = Mapping[str, Any]

Say = Callable[[float], str]
"""How a figure is said: its number, then its unit."""


def _per_second(unit: str) -> Say:
    return lambda value: units.amount(value, f"{unit}/s")


FIGURES: Final[dict[str, tuple[str, Say]]] = {
    "throughput.requests_per_s": ("throughput", _per_second("req")),
    "goodput.requests_per_s": ("goodput", _per_second("req")),
    "goodput.share": ("within SLO", units.share),
    "throughput.prompt_tokens_per_s": ("prompt", _per_second("tok")),
    "throughput.output_tokens_per_s": ("output", _per_second("tok")),
    "gpu_hours": ("GPU-hours", units.significant),
    "kv.mean_occupancy": ("KV mean", units.share),
    "kv.peak_occupancy": ("KV peak", units.share),
    "cache.hit_rate": ("cache hits", units.share),
    "cache.evicted_blocks": ("evicted", units.count),
    "preemptions": ("preemptions", units.count),
    "utilization": ("utilisation", units.share),
    "steps": ("steps", units.count),
    "economics.usd_per_million_output_tokens": ("$/1M output", usd),
    "economics.energy_kwh": ("energy", kilowatt_hours),
}
"""Figures of the fleet: their names in a table, and how they are said."""


def bounds(summary: Summary, name: str, say: Say = units.seconds) -> str:
    """The interval of a figure by its dotted name; empty if the run has none for it."""
    found: Sequence[float] | None = summary.get("uncertainty", {}).get("intervals", {}).get(name)
    return "" if found is None else between(found[0], found[1], say)


def fleet_bounds(summary: Summary, name: str) -> str:
    """The interval of one of FIGURES."""
    return bounds(summary, name, FIGURES[name][1])


def between(low: float, high: float, say: Say) -> str:
    """Two values in brackets, a unit that they share behind them."""
    (least, least_unit), (greatest, unit) = _parts(say(low)), _parts(say(high))
    if low == 0:  # of any unit
        least_unit = unit
    if least_unit == unit:
        return f"[{least}, {greatest}] {unit}".rstrip()
    return f"[{least} {least_unit}, {greatest} {unit}]"


def heading(summary: Summary) -> str:
    """What the intervals are and what they cover; empty for a run without."""
    uncertainty = summary.get("uncertainty")
    if uncertainty is None:
        return ""
    return (
        f"{100 * uncertainty['level']:g} % intervals, {uncertainty['replications']} replications:"
        f" {', '.join(uncertainty['drawn'])}"
    )


def _parts(text: str) -> tuple[str, str]:
    number, _, unit = text.rpartition(" ")
    return (number, unit) if number else (unit, "")
