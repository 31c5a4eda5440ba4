"""A finished plan on the page: its Pareto fronts, what was tried, and where the run of now lies.

plan.json is as docs/planning.md has it. It may be anybody's: a worker reads it, and takes of it
what is drawn, checked and in moderate numbers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Annotated, Any, Final

import plotly.graph_objects as go
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from engine import units
from sim.economics.saying import usd
from sim.report import theme
from traces.errors import ConfigError

NUMBERS: Final = "plan.json"
VERSION: Final = 1
"""Of the layout of plan.json."""

MOST_DRAWN: Final = 4000
"""Candidates drawn beside the fronts; of more, the cheapest."""
LONGEST_LABEL: Final = 200

HEIGHT: Final = 340

Label = Annotated[str, Field(max_length=2000)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Tried(_Part):
    """A candidate that was simulated."""

    candidate: Label
    replicas: int
    gpus: int
    usd_per_hour: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    met: bool
    figures: Mapping[str, float | None]


class Winner(Tried):
    """The candidate that was chosen, and its complete settings."""

    scenario: Mapping[str, Any]


class Point(_Part):
    """A candidate of a front."""

    candidate: Label
    replicas: int
    usd_per_hour: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    p99_ttft_s: Positive | None
    tokens_per_s_per_gpu: Positive | None
    tokens_per_s_per_user: Positive | None


class Front(_Part):
    """Candidates that no other one betters in both."""

    points: tuple[Point, ...]


class Objective(_Part):
    """What a fleet must keep."""

    objective: Label
    figure: str
    limit: float


class PlanFile(_Part):
    """Of plan.json, what the page needs."""

    version: int
    name: Label
    objectives: tuple[Objective, ...]
    winner: Winner
    candidates: tuple[Tried, ...]
    fronts: Mapping[str, Front]


def located(path: Path) -> Path:
    """The plan.json that is named, or lies in the folder that is named.

    Raises:
        ConfigError: there is none.
    """
    found = path / NUMBERS if path.is_dir() else path
    if not found.is_file():
        raise ConfigError(f"--plan {path}: is no plan; expected a plan's folder or its {NUMBERS}")
    return found


def digest(path: Path) -> dict[str, Any]:
    """What is drawn of a plan, as JSON.

    Raises:
        ConfigError: the file is no plan.json, or of another version's.
    """
    try:
        found: Any = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise ConfigError(f"{path}: is no JSON; expected a plan's {NUMBERS}") from None
    if not isinstance(found, dict) or not {"version", "winner", "fronts"} <= found.keys():
        raise ConfigError(f"{path}: is no plan; expected the {NUMBERS} of a finished kvcast plan")
    if found["version"] != VERSION:
        raise ConfigError(
            f"{path}: version is {found['version']!r:.60}; this kvcast reads {VERSION}"
        )
    try:
        plan = PlanFile.model_validate(found)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise ConfigError(f"{path}: {place}: {first['msg'].lower()}") from None
    tried = [_tried(one) for one in plan.candidates]
    known = [one for one in tried if one["p99_ttft_s"] is not None]
    limits = [one for one in plan.objectives if one.figure == "latency.ttft_s.p99"]
    return {
        "name": _short(plan.name),
        "objectives": [_short(one.objective) for one in plan.objectives],
        "ttft_limit_s": limits[0].limit if limits else None,
        "winner": _tried(plan.winner),
        "scenario": dict(plan.winner.scenario),
        "tried": sorted(known, key=lambda one: one["usd_per_hour"])[:MOST_DRAWN],
        "simulated": len(tried),
        "fronts": {
            name: [point.model_dump() for point in front.points[:MOST_DRAWN]]
            for name, front in plan.fronts.items()
        },
    }


def _tried(one: Tried) -> dict[str, Any]:
    tpot_s = one.figures.get("latency.tpot_s.p50")
    tokens_per_s = one.figures.get("throughput.output_tokens_per_s")
    return {
        "candidate": _short(one.candidate),
        "usd_per_hour": one.usd_per_hour,
        "met": one.met,
        "gpus": one.gpus,
        "p99_ttft_s": one.figures.get("latency.ttft_s.p99") or None,
        "tokens_per_s_per_user": 1 / tpot_s if tpot_s else None,
        "tokens_per_s_per_gpu": tokens_per_s / one.gpus if tokens_per_s and one.gpus else None,
    }


def _short(text: str) -> str:
    return text if len(text) <= LONGEST_LABEL else text[: LONGEST_LABEL - 1] + "…"


# ---- pictures


def said(plan: Mapping[str, Any]) -> str:
    """A plan in two sentences."""
    winner = plan["winner"]
    verdict = "is the cheapest that meets" if winner["met"] else "comes nearest to"
    return (
        f"{plan['name']}: {winner['candidate']} {verdict} {', '.join(plan['objectives'])},"
        f" at {usd(winner['usd_per_hour'])} an hour;"
        f" {units.count(plan['simulated'])} candidates were simulated."
    )


def cost_picture(plan: Mapping[str, Any], now: Mapping[str, Any] | None) -> go.Figure:
    """Dollars an hour against P99 TTFT; `now`: the findings of the run shown, marked too."""
    here = None
    if now is not None:
        summary = now["summary"]
        latency = summary["latency"]["ttft_s"]
        here = summary["economics"]["usd_per_hour"], latency and latency["p99"]
    picture = _front_picture(plan, "cost_ttft", "usd_per_hour", "p99_ttft_s", here)
    seconds = [
        one["p99_ttft_s"]
        for one in (*plan["tried"], *plan["fronts"].get("cost_ttft", ()))
        if one["p99_ttft_s"]
    ]
    seconds += [value for value in (here and here[1], plan["ttft_limit_s"]) if value]
    picture.update_xaxes(title={"text": "price of the fleet (USD/h)"}, rangemode="tozero")
    if seconds:
        picture.update_yaxes(theme.log_seconds(min(seconds) / 1.3, max(seconds) * 1.3))
    picture.update_yaxes(title={"text": "P99 time to first token"})
    if plan["ttft_limit_s"]:
        theme.slo_line(picture, plan["ttft_limit_s"], "y")
    return picture


def user_picture(plan: Mapping[str, Any], now: Mapping[str, Any] | None) -> go.Figure:
    """Output tokens a second and GPU against tokens a second and user."""
    here = None
    if now is not None:
        summary = now["summary"]
        latency = summary["latency"]["tpot_s"]
        per_gpu = summary["throughput"]["output_tokens_per_s"] / summary["gpus"]
        here = latency and latency["p50"] and 1 / latency["p50"], per_gpu
    picture = _front_picture(
        plan, "gpu_user", "tokens_per_s_per_user", "tokens_per_s_per_gpu", here
    )
    picture.update_xaxes(title={"text": "tokens/s a user (1 / median TPOT)"}, rangemode="tozero")
    picture.update_yaxes(title={"text": "output tokens/s a GPU"}, rangemode="tozero")
    return picture


def _front_picture(
    plan: Mapping[str, Any], name: str, x: str, y: str, here: tuple[Any, Any] | None
) -> go.Figure:
    """Candidates as dots, the front as a line, the winner and the run of now as marks."""
    picture = theme.figure("", "", height=HEIGHT)
    for met, label, colour in (
        (False, "misses an objective", "#c3c9d3"),
        (True, "meets all", "#8db9e3"),
    ):
        _dots(picture, [one for one in plan["tried"] if one["met"] is met], x, y, label, colour)
    front = [one for one in plan["fronts"].get(name, ()) if one[x] and one[y]]
    front.sort(key=lambda one: one[x])
    picture.add_scatter(
        x=[one[x] for one in front],
        y=[one[y] for one in front],
        text=_texts(front),
        name="front",
        mode="lines+markers",
        line={"color": theme.ACCENT, "width": 2},
        marker={"size": 7},
        hovertemplate="%{text}<extra>front</extra>",
    )
    marks = [("winner", "star", "#e3a008", plan["winner"][x], plan["winner"][y])]
    if here is not None:
        marks.append(("run of now", "diamond", theme.ALARM, *here))
    for label, symbol, colour, at_x, at_y in marks:
        if at_x and at_y:
            picture.add_scatter(
                x=[at_x],
                y=[at_y],
                name=label,
                mode="markers",
                marker={
                    "symbol": symbol,
                    "size": 14,
                    "color": colour,
                    "line": {"color": "white", "width": 1.5},
                },
                hovertemplate=f"{label}<extra></extra>",
            )
    picture.update_layout(title=None, margin={"l": 60, "r": 18, "t": 54, "b": 46})
    return picture


def _dots(
    picture: go.Figure, tried: Sequence[Mapping[str, Any]], x: str, y: str, name: str, colour: str
) -> None:
    known = [one for one in tried if one[x] and one[y]]
    if known:
        picture.add_scatter(
            x=[one[x] for one in known],
            y=[one[y] for one in known],
            text=_texts(known),
            name=name,
            mode="markers",
            marker={"color": colour, "size": 6},
            hovertemplate="%{text}<extra>" + name + "</extra>",
        )


def _texts(points: Sequence[Mapping[str, Any]]) -> list[str]:
    return [
        f"{escape(_short(one['candidate']))}<br>{usd(one['usd_per_hour'])}/h,"
        f" P99 TTFT {units.seconds(one['p99_ttft_s'])}"
        for one in points
    ]
