"""The folder of a comparison: page, numbers, a scenario a cell, and the store of what was run."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from engine.atomic import check_replaceable, replacing, replacing_folder
from sim.comparing import metrics as named
from sim.comparing.comparison import Comparison
from sim.comparing.frames import shown_plainly
from sim.comparing.judging import Entry
from sim.comparing.page import page
from sim.comparing.tables import said_of_flip
from traces.errors import ConfigError
from traces.settings import to_yaml
from traces.version import installed_version

STORE: Final = "store"
PAGE: Final = "comparison.html"
NUMBERS: Final = "comparison.json"
CELLS: Final = "cells"
FILES: Final = frozenset(
    {STORE, CELLS, PAGE, NUMBERS, "cells.parquet", "cells.csv", "differences.csv"}
)


def check_folder(folder: Path) -> None:
    """Check, before anything runs, that a comparison may be written there; raises ConfigError."""
    # an interrupted one leaves its store and nothing else, or nothing if its store is elsewhere
    mark = STORE if (folder / STORE).is_dir() else NUMBERS
    check_replaceable(folder, FILES, frozenset({mark}), "comparison")


def write_folder(comparison: Comparison, folder: Path) -> None:
    """Write everything but the store, each file whole or not at all; earlier ones are replaced.

    Raises:
        ConfigError: the folder holds something else, or cannot be written.
    """
    check_folder(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write_scenarios(comparison, folder / CELLS)
        text = json.dumps(as_json(comparison), indent=2, allow_nan=False)
        for name, content in (
            (NUMBERS, f"{text}\n".encode()),
            ("cells.csv", comparison.cells.write_csv().encode()),
            ("differences.csv", comparison.differences.write_csv().encode()),
            (PAGE, page(comparison).encode()),
        ):
            with replacing(folder / name) as file:
                file.write(content)
        with replacing(folder / "cells.parquet") as file:
            comparison.cells.write_parquet(file)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written: {error.strerror or error}") from None


def as_json(comparison: Comparison) -> dict[str, Any]:
    """What comparison.json holds."""
    return {
        "kvcast": installed_version(),
        "name": comparison.name,
        "scenario": comparison.values,
        "vary": comparison.vary,
        "curve": {comparison.curve[0]: comparison.curve[1]} if comparison.curve else None,
        "baseline": comparison.baseline,
        "replications": comparison.replications,
        "drawn": comparison.drawn,
        "level": comparison.level,
        "correction": "Holm",
        "metrics": {metric: named.good(metric) or None for metric in comparison.metrics},
        "cells": [
            _cell(entry, path)
            for entry, path in zip(comparison.entries, _paths(comparison), strict=True)
        ],
        "differences": [
            {
                "cell": row.entry.variant.label,
                "at": row.entry.variant.at,
                "metric": row.metric,
                "mean": row.difference.mean,
                "baseline_mean": row.difference.baseline,
                "difference": row.difference.difference,
                "interval": [row.difference.low, row.difference.high]
                if comparison.spread
                else None,
                "p": row.difference.p,
                "p_adjusted": row.adjusted,
                "verdict": row.verdict or None,
            }
            for row in comparison.rows
        ],
        "rank_flips": [
            {
                "metric": flip.metric,
                "better_below": flip.better_below,
                "better_above": flip.better_above,
                "between": [flip.below, flip.above],
                "said": said_of_flip(comparison, flip),
            }
            for flip in comparison.flips
        ],
        "warnings": comparison.warnings,
    }


def _cell(entry: Entry, path: str) -> Mapping[str, Any]:
    return {
        "cell": entry.variant.label,
        "settings": entry.variant.settings,
        "at": entry.variant.at,
        "scenario": path if entry.variant.scenario is not None else None,
        "error": entry.error or None,
        "itself": entry.itself,
        "replications": entry.replications,
    }


def _write_scenarios(comparison: Comparison, folder: Path) -> None:
    """`kvcast replay` of one of these files gives the figures of the cell's replication 0."""
    with replacing_folder(folder) as part:
        for entry, path in zip(comparison.entries, _paths(comparison), strict=True):
            if entry.variant.scenario is not None:
                file = part / Path(path).relative_to(CELLS)
                file.write_text(to_yaml(entry.variant.scenario), encoding="utf-8")


def _paths(comparison: Comparison) -> list[str]:
    """Where the scenario of each entry lies: numbered, its values for the reader."""
    paths: list[str] = []
    for number, entry in enumerate(comparison.entries, 1):
        values = list(entry.variant.settings.values())
        if comparison.curve is not None:
            values.append(entry.variant.at)
        words = "-".join(re.sub(r"[^\w.]+", "-", shown_plainly(value)) for value in values)
        paths.append(f"{CELLS}/{number:03d}-{words.strip('-')[:80]}.yaml")
    return paths
