"""Runs as pictures: one line for the run shown now, one for each that is pinned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import plotly.graph_objects as go

from engine import units
from sim.report import theme
from sim.report.bins import Floats
from sim.report.latency_figures import NAMES, sketch

NOW: Final = "now"

COLOURS: Final = ("#e3a008", "#3aa6a0", "#a8518a", "#5b6677")
"""Of pinned runs, by their places."""

LATENCY_HEIGHT: Final = 250
TIME_HEIGHT: Final = 260

MARKED: Final = {0.5: "p50", 0.95: "p95", 0.99: "p99"}

LEVELS: Final = sketch(np.zeros(1))[1]
"""Of the values of a distribution in findings."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """A run in a picture."""

    label: str
    colour: str
    findings: Mapping[str, Any]
    now: bool


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture and what is said of it."""

    figure: go.Figure
    finding: str


def empty(height: int, said: str = "") -> go.Figure:
    """A picture of nothing: a frame, and why."""
    picture = theme.figure("", "", height=height)
    picture.update_xaxes(visible=False)
    picture.update_yaxes(visible=False)
    picture.update_layout(title=None, margin={"l": 0, "r": 0, "t": 0, "b": 0})
    if said:
        picture.add_annotation(
            text=said,
            showarrow=False,
            font={"size": 13, "color": theme.MUTED},
            x=0.5,
            y=0.5,
            xref="paper",
            yref="paper",
        )
    return picture


def latency(runs: Sequence[Drawn], column: str, limit_s: float | None) -> Picture:
    """Distributions of a latency; the limit is that of the run shown now."""
    known = {one.label: _values(one, column) for one in runs}
    drawn = [one for one in runs if known[one.label] is not None]
    if not drawn:
        return Picture(empty(LATENCY_HEIGHT, "No request got that far."), "")
    axis = _axis([known[one.label] for one in drawn], limit_s)
    picture = theme.figure("", "", height=LATENCY_HEIGHT)
    for one in reversed(drawn):  # the run shown now lies on top
        values = known[one.label]
        assert values is not None
        picture.add_scatter(
            x=np.maximum(values, axis[0]),
            y=100 * LEVELS,
            name=one.label,
            mode="lines",
            line={"color": one.colour, "width": 2.5 if one.now else 1.8},
            fill="tozeroy" if len(drawn) == 1 else None,
            fillcolor="rgba(11,92,173,0.07)",
            hovertemplate="%{y:.3~g} % within %{x:.3~s}s<extra>" + one.label + "</extra>",
            showlegend=False,
        )
    shown = next((one for one in drawn if one.now), None)
    if shown is not None:
        marks_s = [_statistic(shown, column, name) or 0.0 for name in MARKED.values()]
        _mark(picture, marks_s, axis, limit_s, texts=len(drawn) == 1)
    if limit_s is not None:
        far = np.log(limit_s / axis[0]) > 0.6 * np.log(axis[1] / axis[0])
        theme.slo_line(picture, limit_s, "x", far=bool(far))
    picture.update_xaxes(theme.log_seconds(*axis))
    picture.update_yaxes(
        range=[0, 112],
        tickvals=[0, 25, 50, 75, 100],
        ticktext=["0 %", "25 %", "50 %", "75 %", "100 %"],
    )
    picture.update_layout(title=None, margin={"l": 50, "r": 18, "t": 14, "b": 34})
    return Picture(picture, _latency_finding(runs, column, limit_s))


def queue(runs: Sequence[Drawn]) -> Picture:
    """Requests that wait, over time."""
    picture, size = _over_time(runs, "queue")
    most = 0.0
    for one in reversed(runs):
        found = one.findings["queue"]
        x = np.asarray(found["x_s"]) / size
        shown = "peak" if len(runs) == 1 else "mean"
        if len(runs) == 1:
            picture.add_scatter(
                x=x,
                y=found["peak"],
                name="peak",
                mode="lines",
                line={"color": "#9dbbdc", "width": 1, "shape": "hvh"},
                fill="tozeroy",
                fillcolor="rgba(11,92,173,0.10)",
                hovertemplate="peak %{y:,.4~r} requests<extra></extra>",
                showlegend=False,
            )
        _line(picture, one, x, found["mean"], "%{y:,.4~r} requests")
        most = max(most, max(found[shown], default=0.0))
    picture.update_yaxes(title={"text": "requests waiting"}, range=[0, max(1.0, most) * 1.08])
    return Picture(picture, "; ".join(_queue_finding(one, len(runs) > 1) for one in runs) + ".")


def kv(runs: Sequence[Drawn]) -> Picture:
    """Share of KV blocks in use, over time: the mean of replicas, and between which they lie."""
    picture, size = _over_time(runs, "kv")
    most = 0.0
    for one in reversed(runs):
        found = one.findings["kv"]
        x = np.asarray(found["x_s"]) / size
        if len(runs) == 1 and one.findings["summary"]["replicas"] > 1:
            for edge, fill in (("high", None), ("low", "tonexty")):
                picture.add_scatter(
                    x=x,
                    y=100 * np.asarray(found[edge]),
                    mode="lines",
                    line={"width": 0},
                    fill=fill,
                    fillcolor="rgba(11,92,173,0.12)",
                    hoverinfo="skip",
                    showlegend=False,
                )
        _line(picture, one, x, 100 * np.asarray(found["mean"]), "%{y:.3~r} %")
        most = max(most, 100 * max(found["high"], default=0.0))
    top = 100.0 if most > 40 else max(1.0, most) * 1.15
    picture.update_yaxes(title={"text": "% of KV blocks"}, range=[0, top * 1.02])
    return Picture(picture, "; ".join(_kv_finding(one, len(runs) > 1) for one in runs) + ".")


def _over_time(runs: Sequence[Drawn], name: str) -> tuple[go.Figure, float]:
    """A picture with an axis of time that holds all runs, and that axis's unit in s."""
    end_s = max(one.findings[name]["end_s"] for one in runs)
    picture = theme.figure("", "", height=TIME_HEIGHT)
    picture.update_xaxes(theme.time_axis(end_s))
    picture.update_layout(
        title=None, hovermode="x unified", margin={"l": 56, "r": 18, "t": 14, "b": 44}
    )
    return picture, theme.clock(end_s)[0]


def _line(picture: go.Figure, one: Drawn, x: Floats, y: Any, said: str) -> None:
    picture.add_scatter(
        x=x,
        y=y,
        name=one.label,
        mode="lines",
        line={"color": one.colour, "width": 2.2 if one.now else 1.6},
        hovertemplate=f"{one.label}: {said}<extra></extra>",
        showlegend=False,
    )


def _values(one: Drawn, column: str) -> Floats | None:
    values = one.findings["latencies"][column]
    return None if values is None else np.asarray(values)


def _axis(known: Sequence[Floats | None], limit_s: float | None) -> tuple[float, float]:
    """Ends of a logarithmic axis that holds all distributions and the limit."""
    values = [one for one in known if one is not None]
    high_s = max(*(float(one[-1]) for one in values), limit_s or 0.0, 1e-5) * 1.15
    positive = [float(one[one > 0][0]) for one in values if (one > 0).any()]
    low_s = max(min(positive) / 1.15 if positive else 0.0, high_s * 1e-5, 1e-6)
    return min(low_s, high_s / 3, (limit_s or high_s) / 1.3), high_s


def _mark(
    picture: go.Figure,
    at_s: Sequence[float],
    axis: tuple[float, float],
    limit_s: float | None,
    *,
    texts: bool,
) -> None:
    """Dots at the percentiles of MARKED, which are `at_s`, with their values."""
    width = np.log(axis[1] / axis[0])
    places = [np.log(max(at, axis[0]) / axis[0]) / width for at in at_s]
    line = np.log(limit_s / axis[0]) / width if limit_s else np.inf
    positions = [
        ("top left" if place > 0.3 else "top right")
        if level == 0.99
        else "middle left"
        if place > 0.66 or 0 <= line - place < 0.28
        else "middle right"
        if level == 0.5
        else "bottom right"
        for level, place in zip(MARKED, places, strict=True)
    ]
    picture.add_scatter(
        x=np.maximum(at_s, axis[0]),
        y=[100 * level for level in MARKED],
        mode="markers+text" if texts else "markers",
        marker={"color": theme.INK, "size": 6},
        text=[
            f"P{100 * level:.0f} {units.seconds(at)}"
            for level, at in zip(MARKED, at_s, strict=True)
        ],
        textposition=positions,
        textfont={"size": 11},
        cliponaxis=False,
        hoverinfo="skip",
        showlegend=False,
    )


def _latency_finding(runs: Sequence[Drawn], column: str, limit_s: float | None) -> str:
    if len(runs) > 1:
        said = [f"{one.label} {units.seconds(_statistic(one, column, 'p99'))}" for one in runs]
        return f"P99: {', '.join(said)}."
    (one,) = runs
    values = _values(one, column)
    if values is None:
        return ""
    if limit_s is not None:
        met = float(np.interp(limit_s, values, LEVELS, left=0.0, right=1.0))
        return f"{units.share(met)} are within the objective of {units.limit(limit_s)}."
    return (
        f"Half are within {units.seconds(_statistic(one, column, 'p50'))},"
        f" 99 % within {units.seconds(_statistic(one, column, 'p99'))}."
    )


def _statistic(one: Drawn, column: str, name: str) -> float | None:
    statistics = one.findings["summary"]["latency"].get(column)
    return None if statistics is None else statistics[name]


def _queue_finding(one: Drawn, several: bool) -> str:
    peak = max(one.findings["queue"]["peak"], default=0.0)
    if several:
        return f"{one.label}: at most {units.count(peak)}"
    return f"At most {units.count(peak)} wait at once" if peak else "No request ever waits"


def _kv_finding(one: Drawn, several: bool) -> str:
    found = one.findings["summary"]["kv"]
    mean, peak = units.share(found["mean_occupancy"]), units.share(found["peak_occupancy"])
    if several:
        return f"{one.label}: {mean}, peak {peak}"
    return (
        f"{mean} of {units.count(found['blocks_per_replica'])} blocks a replica are in use"
        f" on average, {peak} at most"
    )


TITLES: Final[Mapping[str, str]] = {
    **{column.removesuffix("_s"): name for column, name in NAMES.items()},
    "queue_depth": "Requests that wait",
    "kv_cache": "KV cache in use",
}
CAPTIONS: Final[Mapping[str, str]] = {
    "ttft": "From arrival to the first token. Height: share of requests at least this fast.",
    "tpot": "Between tokens of an answer, on average over the answer.",
    "e2e": "From arrival to the last token.",
    "queue": "From arrival to the first step that works on the request.",
    "queue_depth": "All replicas; a queue that does not drain is demand beyond capacity.",
    "kv_cache": "Held by running requests; near 100 % requests wait or are preempted.",
}


def pictures(runs: Sequence[Drawn], limits: Mapping[str, float | None]) -> dict[str, Picture]:
    """All pictures of runs by their names in TITLES; `limits`: objectives by latency, in s."""
    drawn = {
        name: latency(runs, f"{name}_s", limits.get(f"{name}_s"))
        for name in ("ttft", "tpot", "e2e", "queue")
    }
    return {**drawn, "queue_depth": queue(runs), "kv_cache": kv(runs)}
