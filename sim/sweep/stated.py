"""A cell in words: what its scenario states that is not the default."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sim.sweep.cells import Cell


def stated(cell: Cell) -> dict[str, Any]:
    """Dotted settings of a cell's scenario that differ from the default, with their values."""
    return _dotted(cell.scenario.model_dump(mode="json", exclude_defaults=True), "")


def in_words(cell: Cell) -> str:
    """`cluster.replicas=2, seed=7, replication 3`."""
    words = [f"{setting}={value}" for setting, value in stated(cell).items()]
    if cell.replication:
        words.append(f"replication {cell.replication}")
    return ", ".join(words) or "all settings at their defaults"


def _dotted(settings: Mapping[str, Any], above: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            found |= _dotted(value, f"{above}{name}.")
        else:
            found[f"{above}{name}"] = value
    return found
