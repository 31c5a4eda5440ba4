"""The folder of a capacity: page, numbers, the scenario at the rate found, and the store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from engine.atomic import check_replaceable, replacing
from sim.planning.binding import MORE, Binding
from sim.planning.capacity import Capacity
from sim.planning.capacity_page import page
from traces.errors import ConfigError
from traces.settings import to_yaml
from traces.version import installed_version

STORE: Final = "store"
NUMBERS: Final = "capacity.json"
SCENARIO: Final = "scenario.yaml"
PAGE: Final = "report.html"
FILES: Final = frozenset({STORE, NUMBERS, SCENARIO, PAGE})


def check_folder(folder: Path) -> None:
    """Check, before anything runs, that a capacity may be written there; raises ConfigError."""
    # an interrupted one leaves its store and nothing else, or nothing if its store is elsewhere
    mark = STORE if (folder / STORE).is_dir() else NUMBERS
    check_replaceable(folder, FILES, frozenset({mark}), "capacity")


def write_folder(found: Capacity, folder: Path) -> None:
    """Write everything but the store, each file whole or not at all; earlier ones are replaced.

    Raises:
        ConfigError: the folder holds something else, or cannot be written.
    """
    check_folder(folder)
    text = json.dumps(as_json(found), indent=2, allow_nan=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in (
            (NUMBERS, f"{text}\n"),
            (SCENARIO, to_yaml(found.at_capacity)),
            (PAGE, page(found)),
        ):
            with replacing(folder / name) as file:
                file.write(content.encode())
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written: {error.strerror or error}") from None


def as_json(found: Capacity) -> dict[str, Any]:
    """What capacity.json holds."""
    return {
        "kvcast": installed_version(),
        "name": found.name,
        "scenario": found.scenario.model_dump(mode="json"),
        "objectives": [one.as_json() for one in found.objectives],
        "rate_per_s": found.rate_per_s,
        "interval_per_s": [found.low_per_s, found.high_per_s],
        "confidence": found.confidence,
        "share_of_hours": found.share if found.confidence is not None else None,
        "precision": found.precision,
        "decided": found.decided,
        "own_rate_per_s": found.own_rate_per_s,
        "rate_changed_by": found.by,
        "drawn": list(found.drawn),
        "replicas": found.replicas,
        "gpus": found.gpus,
        "requests_per_s_per_gpu": found.requests_per_s_per_gpu,
        "output_tokens_per_s_per_gpu": found.output_tokens_per_s_per_gpu,
        "prompt_tokens_per_s_per_gpu": found.prompt_tokens_per_s_per_gpu,
        "binding": None if found.binding is None else _binding(found.binding),
        "replications": found.replications,
        "simulations": found.replays,
        "ended_early": found.stopped,
        "decisions": [
            {
                "rate_per_s": one.rate_per_s,
                "simulated": one.simulated,
                "meet": one.met,
                "miss": one.missed,
                "verdict": one.verdict,
            }
            for one in found.decisions
        ],
        "trials": [
            {
                "rate_per_s": one.rate_per_s,
                "replication": one.replication,
                "met": one.met,
                "missed": list(one.missed),
                "ended_at_s": one.stopped_s,
                "diverged": one.diverged,
                "figures": {
                    objective.name: objective.value(one.figures) for objective in found.objectives
                },
            }
            for one in found.trials
        ],
        "curve": [
            {
                "rate_per_s": one.rate_per_s,
                "figures": {
                    objective.name: objective.value(one.figures) for objective in found.objectives
                },
            }
            for one in found.curve
        ],
        "warnings": list(found.warnings),
    }


def _binding(what: Binding) -> dict[str, Any]:
    return {
        "resource": what.resource,
        "in_words": what.in_words,
        "objective": what.objective.name,
        "figure": what.value,
        "with_more": {
            "factor": MORE,
            "figures": {one.resource: one.value for one in what.experiments},
        },
        "evidence": what.evidence,
    }
