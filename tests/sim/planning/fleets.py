"""Plans for tests: small spaces on a small trace, and what brute force says of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sim.planning.candidates import Candidate, Space
from sim.planning.judged import Judged
from sim.planning.objectives import least_margin, met, parse_objectives
from sim.planning.search import order_of
from sim.planning.space import PlanSettings, base_values, plan_settings_of
from sim.sweep.cells import Cell
from traces.settings import merged

TRACE = {"path": "sample:chat", "operations": [{"limit": {"count": 120}}]}
BARE = {
    "confidence": {"redraws": 0},
    "fronts": {"replays": 0},
    "growth": {"months": 0},
    "sensitivities": False,
}
"""Nothing but the winner."""


def hurried(factor: float, count: int = 120) -> dict[str, Any]:
    """The beginning of the sample, with its arrivals compressed."""
    return {
        "path": "sample:chat",
        "operations": [{"limit": {"count": count}}, {"compress_time": {"factor": factor}}],
    }


def plan_of(**changes: Any) -> PlanSettings:
    """A small plan; `changes` are settings on top."""
    values: Mapping[str, Any] = {
        "scenario": {"trace": hurried(20)},
        "space": {"gpu": ["l4", "l40s"], "model": "llama-3.1-8b", "replicas": [1, 2, 3, 4]},
        "objectives": ["p99 ttft <= 2s", "p99 tpot <= 100ms"],
        **BARE,
    }
    space = changes.pop("space", None)
    values = merged(values, changes)
    return plan_settings_of({**values, "space": space or values["space"]})


def brute_force(settings: PlanSettings) -> tuple[Candidate | None, int]:
    """The best candidate by replaying every one to its end, and how many those are."""
    objectives = parse_objectives(settings.objectives)
    simulate: Callable[[Cell], dict[str, float]] = Judged(objectives, stop_early=False)
    ranked: list[tuple[Any, Candidate]] = []
    count = 0
    for configuration in Space(settings, base_values(settings)).every():
        for candidate in configuration.candidates:
            figures = simulate(Cell(candidate.scenario))
            count += 1
            if met(objectives, figures):
                margin = least_margin(objectives, figures)
                ranked.append((order_of(candidate, margin), candidate))
    return (min(ranked, key=lambda one: one[0])[1] if ranked else None), count
