"""The pictures of a capacity: each objective's figure by rate, and what each replication said."""

from __future__ import annotations

from typing import Any, Final

import plotly.graph_objects as go

from engine import units
from sim.planning.capacity import Capacity, Trial
from sim.planning.objectives import Objective
from sim.report import theme

GOOD: Final = "#1a7f5a"
BAND: Final = "rgba(11, 92, 173, 0.10)"


def pictures(found: Capacity) -> dict[str, go.Figure]:
    """Every picture by name."""
    drawn = {
        f"objective_{index}": by_rate(found, objective)
        for index, objective in enumerate(found.objectives)
    }
    drawn["trials"] = trials(found)
    return drawn


def by_rate(found: Capacity, objective: Objective) -> go.Figure:
    """An objective's figure by rate, with its limit."""
    points = [(p.rate_per_s, objective.value(p.figures)) for p in found.curve]
    known = [(rate, value) for rate, value in points if value is not None]
    curve = list(known)
    picture = theme.figure(
        objective.name,
        "Line: the trace itself. Dots: replications that were simulated to their end; green ones"
        " met all objectives. Dashed: the limit. Band: the rate that was found, with its interval.",
        _finding(found, objective, known),
        height=340,
    )
    _mark_rate(picture, found)
    picture.add_scatter(
        x=[rate for rate, _ in curve],
        y=[_scaled(objective, value) for _, value in curve],
        mode="lines+markers",
        name="the trace itself",
        line={"color": theme.ACCENT, "width": 2},
        marker={"size": 6},
        text=[_hover(rate, objective, value) for rate, value in curve],
        hovertemplate="%{text}<extra></extra>",
    )
    whole = [trial for trial in found.trials if trial.stopped_s is None]
    for met, colour, name in ((True, GOOD, "met all"), (False, theme.ALARM, "missed one")):
        some = [
            (trial, value)
            for trial in whole
            if trial.met == met and (value := objective.value(trial.figures)) is not None
        ]
        if found.confidence is None or not some:
            continue
        picture.add_scatter(
            x=[trial.rate_per_s for trial, _ in some],
            y=[_scaled(objective, value) for _, value in some],
            mode="markers",
            name=f"replication that {name}",
            marker={"color": colour, "size": 6, "opacity": 0.55},
            text=[
                f"replication {trial.replication}, {_hover(trial.rate_per_s, objective, value)}"
                for trial, value in some
            ],
            hovertemplate="%{text}<extra></extra>",
        )
        known += [(trial.rate_per_s, value) for trial, value in some]
    limit = _scaled(objective, objective.limit)
    picture.add_hline(
        limit,
        line={"color": theme.ALARM, "width": 1.5, "dash": "dash"},
        label={
            "text": f"limit {objective.shown(objective.limit)}",
            "font": {"color": theme.ALARM, "size": 11},
            "textposition": "start",
        },
    )
    picture.update_xaxes(title={"text": "requests/s"}, range=_range(found))
    values = [_scaled(objective, value) for _, value in known] + [limit]
    picture.update_yaxes(_y_axis(objective, values))
    return picture


def trials(found: Capacity) -> go.Figure:
    """Every simulation of the search: replication by rate."""
    few = found.confidence is None
    picture = theme.figure(
        "The search" if few else "Replications by rate",
        "Each mark is a simulation: a replication at a rate. Crosses: it missed an objective;"
        " hollow ones were ended early, since that was certain. Band: the rate that was found.",
        f"{len(found.trials):,} simulations, {found.stopped:,} ended early.",
        height=320,
    )
    _mark_rate(picture, found)
    kinds: tuple[tuple[str, bool, bool, dict[str, Any]], ...] = (
        ("met", True, False, {"symbol": "circle", "color": GOOD, "size": 8}),
        ("missed", False, False, {"symbol": "x", "color": theme.ALARM, "size": 8}),
        (
            "missed, ended early",
            False,
            True,
            {"symbol": "x-open", "color": theme.ALARM, "size": 7},
        ),
    )
    for name, met, early, marker in kinds:
        some = [
            trial
            for trial in found.trials
            if trial.met == met and (trial.stopped_s is not None) == early
        ]
        if not some:
            continue
        picture.add_scatter(
            x=[trial.rate_per_s for trial in some],
            y=[trial.replication for trial in some],
            mode="markers",
            name=name,
            marker=marker,
            text=[_said(trial) for trial in some],
            hovertemplate="%{text}<extra></extra>",
        )
    rates = [trial.rate_per_s for trial in found.trials]
    axis = theme.log_axis(0.9 * min(rates), 1.1 * max(rates), "{:g}".format)
    picture.update_xaxes(title={"text": "requests/s"}, **axis)
    picture.update_yaxes(title={"text": "replication"}, dtick=1 if few else None)
    return picture


def _mark_rate(picture: go.Figure, found: Capacity) -> None:
    """The rate, and the interval as a band."""
    if found.high_per_s is not None and found.low_per_s:
        picture.add_vrect(
            found.low_per_s, found.high_per_s, fillcolor=BAND, line_width=0, layer="below"
        )
    picture.add_vline(found.rate_per_s, line={"color": theme.INK, "width": 1.5})


def _finding(found: Capacity, objective: Objective, known: list[tuple[float, float]]) -> str:
    if not known:
        return ""
    rate, value = min(known, key=lambda one: abs(one[0] / found.rate_per_s - 1))
    at = units.amount(rate, "requests/s")
    return f"{objective.what} of the trace at {at}: {objective.shown(value)}."


def _scaled(objective: Objective, value: float) -> float:
    return value if objective.is_latency else 100 * value


def _range(found: Capacity) -> list[float]:
    rates = [point.rate_per_s for point in found.curve]
    return [0, max(rates) * 1.03]


def _y_axis(objective: Objective, values: list[float]) -> dict[str, Any]:
    if not objective.is_latency:
        low = min(values)
        return {"title": {"text": "share (%)"}, "range": [max(0.0, low - 2), 101]}
    above = [value for value in values if value > 0]
    if max(above) > 20 * min(above):
        return theme.log_seconds(min(above) / 1.3, max(above) * 1.3)
    return theme.linear_seconds(max(above) * 1.1)


def _hover(rate: float, objective: Objective, value: float) -> str:
    return f"{units.significant(rate, 4)} requests/s<br>{objective.what} {objective.shown(value)}"


def _said(trial: Trial) -> str:
    words = f"replication {trial.replication}, {units.significant(trial.rate_per_s, 4)} requests/s"
    if trial.met:
        return f"{words}<br>met all"
    words += f"<br>missed {', '.join(trial.missed)}"
    if trial.stopped_s is None:
        return words
    how = "its queue grew without bound" if trial.diverged else "certain"
    return f"{words}<br>ended at {units.seconds(trial.stopped_s)} of simulated time: {how}"
