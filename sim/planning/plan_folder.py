"""The folder of a plan: page, numbers, candidates, and the winner as a scenario."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from math import isfinite
from pathlib import Path
from typing import Any, Final

from engine.atomic import check_replaceable, replacing
from sim.planning.evaluating import Evaluation, Redrawn
from sim.planning.explaining import statuses
from sim.planning.pareto import TPOT, TTFT, Front, gpu_seconds_a_token
from sim.planning.plan import Choice, Plan
from sim.planning.plan_page import page
from traces.errors import ConfigError
from traces.settings import to_yaml
from traces.version import installed_version

VERSION: Final = 1
"""Of the layout of plan.json."""
NUMBERS: Final = "plan.json"
PAGE: Final = "report.html"
WINNER: Final = "winner.yaml"
CANDIDATES: Final = "candidates.parquet"
STORE: Final = "store"
FILES: Final = frozenset({NUMBERS, PAGE, WINNER, CANDIDATES, STORE})


def check_folder(folder: Path) -> None:
    """Check, before anything runs, that a plan may be written there; raises ConfigError."""
    # an interrupted one leaves its store and nothing else; one with a store elsewhere has none
    mark = STORE if (folder / STORE).exists() else NUMBERS
    check_replaceable(folder, FILES, frozenset({mark}), "plan")


def write_folder(plan: Plan, folder: Path) -> None:
    """Write everything but the store, each file whole or not at all; earlier ones are replaced.

    Raises:
        ConfigError: the folder holds something else, or cannot be written.
    """
    check_folder(folder)
    text = json.dumps(as_json(plan), indent=1, allow_nan=False)
    files = {
        NUMBERS: f"{text}\n".encode(),
        WINNER: to_yaml(plan.scenario).encode(),
        PAGE: page(plan).encode(),
    }
    frame = plan.candidates
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            with replacing(folder / name) as file:
                file.write(content)
        with replacing(folder / CANDIDATES) as file:
            frame.write_parquet(file)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written: {error.strerror or error}") from None


def as_json(plan: Plan) -> dict[str, Any]:
    """What plan.json holds; docs/planning.md says what each field is."""
    winner_usd = plan.winner.candidate.usd_per_hour
    return {
        "kvcast": installed_version(),
        "version": VERSION,
        "name": plan.name,
        "plan": plan.settings.model_dump(mode="json"),
        "objectives": [one.as_json() for one in plan.objectives],
        "rate_per_s": plan.rate_per_s,
        "space": {
            "dimensions": {name: list(values) for name, values in plan.axes.items()},
            "candidates": plan.stated,
            "configurations": plan.configurations,
            "configurations_tried": plan.tried,
            "dropped": [asdict(one) for one in plan.dropped],
        },
        "method": plan.method,
        "replays": dict(plan.replays),
        "confident": plan.confident,
        "redrawn_traffic": plan.traffic.in_words or None,
        "winner": _choice(plan, plan.winner),
        "cheapest_on_the_trace": _choice(plan, plan.nominal),
        "runner_up": None if plan.runner_up is None else _choice(plan, plan.runner_up),
        "margins": plan.margins.to_dicts(),
        "excluded": dict(statuses(plan.known, plan.judge, winner_usd)),
        "cheaper": [
            {
                **_evaluation(plan, one.evaluation),
                "misses": [asdict(miss) for miss in one.misses],
                "redrawn": _redrawn(plan, one.redrawn),
            }
            for one in plan.cheaper
        ],
        "candidates": [_evaluation(plan, one) for one in plan.judge.evaluated.values()],
        "fronts": {name: _front(front) for name, front in plan.fronts.items()},
        "sensitivities": None
        if plan.tornado is None
        else {
            "replicas": plan.tornado.replicas,
            "usd_per_hour": plan.tornado.usd_per_hour,
            "margin": plan.tornado.margin,
            "swings": [_finite(asdict(one)) for one in plan.tornado.swings],
        },
        "headroom": None
        if plan.headroom is None
        else {
            **asdict(plan.headroom),
            "rate_per_s": plan.headroom.factor * plan.rate_per_s,
        },
        "growth": None
        if plan.growth is None
        else {
            "percent_a_month": plan.growth.percent_a_month,
            "breaks_in_month": plan.growth.breaks.month if plan.growth.breaks else None,
            "months": [_finite(asdict(one)) for one in plan.growth.months],
        },
        "warnings": list(plan.warnings),
    }


def _choice(plan: Plan, choice: Choice) -> dict[str, Any]:
    return {
        **_evaluation(plan, choice.evaluation),
        "redrawn": _redrawn(plan, choice.redrawn),
        "scenario": choice.candidate.scenario.model_dump(mode="json"),
    }


def _evaluation(plan: Plan, found: Evaluation) -> dict[str, Any]:
    candidate = found.candidate
    return _finite(
        {
            "candidate": candidate.label,
            "place": candidate.configuration.place,
            "settings": candidate.settings,
            "profile": candidate.configuration.scenario.profile,
            "gpu": candidate.configuration.gpu,
            "replicas": candidate.replicas,
            "gpus": candidate.gpus,
            "usd_per_hour": candidate.usd_per_hour,
            "met": found.met,
            "margin": found.margin,
            "margins": {
                one.name: None if found.stopped else one.margin(found.figures)
                for one in plan.objectives
            },
            "missed": [one.name for one in found.missed(plan.objectives)],
            "stopped": found.stopped,
            "error": found.error or None,
            "figures": found.figures,
        }
    )


def _redrawn(plan: Plan, redrawn: Redrawn | None) -> dict[str, Any] | None:
    if redrawn is None:
        return None
    level = plan.settings.confidence.level
    interval = redrawn.interval(level)
    return {
        "met": redrawn.met,
        "of": len(redrawn.results),
        "redraws": redrawn.redraws,
        "reached": redrawn.reached,
        "level": level,
        "interval": None if interval is None else list(interval),
        "results": {str(number): met for number, met in redrawn.results.items()},
    }


def _front(front: Front) -> dict[str, Any]:
    return _finite(
        {
            "points": [
                {
                    "candidate": one.candidate.label,
                    "place": one.candidate.configuration.place,
                    "replicas": one.candidate.replicas,
                    "settings": one.candidate.settings,
                    "usd_per_hour": one.candidate.usd_per_hour,
                    "gpus": one.candidate.gpus,
                    "p99_ttft_s": one.figures.get(TTFT),
                    "tokens_per_s_per_gpu": 1 / gpu_seconds_a_token(one.candidate, one.figures),
                    "tokens_per_s_per_user": 1 / one.figures[TPOT] if TPOT in one.figures else None,
                }
                for one in front.points
            ],
            "gap": front.gap,
            "replays": front.replays,
            "contradicted": front.contradicted,
        }
    )


def _finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same with None for what is infinite: JSON knows no infinity."""
    return {
        name: _finite(value)
        if isinstance(value, Mapping)
        else None
        if isinstance(value, float) and not isfinite(value)
        else value
        for name, value in values.items()
    }
