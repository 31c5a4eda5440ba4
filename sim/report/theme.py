"""One look for every picture: palette, type, axes."""

from collections.abc import Callable
from math import ceil, floor, log10
from typing import Any

import plotly.graph_objects as go

from engine import units

INK = "#1b2432"
MUTED = "#5b6677"
GRID = "#e8ebf0"
ACCENT = "#0b5cad"
ALARM = "#b3261e"
FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'

# Apart in lightness as well as in hue, so that they survive print and colour blindness.
PHASES = {"queue": "#e3a008", "prefill": "#0b5cad", "decode": "#3aa6a0"}
STEPS = {"prefill": "#0b5cad", "mixed": "#a8518a", "decode": "#3aa6a0"}
PERCENTILES = {"P50": "#8db9e3", "P95": "#3f7fc1", "P99": "#0a3163"}
OUTCOMES = {
    "finished": "#7c96b8",
    "truncated": "#e3a008",
    "rejected": "#c0392b",
    "timed_out": "#7a2150",
    "unfinished": "#c3c9d3",
}
SERIES = ("#0b5cad", "#e3a008", "#3aa6a0", "#a8518a", "#c0392b", "#5b6677")
HEAT = ((0.0, "#f5f7fa"), (0.02, "#dbe8f5"), (0.4, "#7fb0dd"), (0.75, "#1d66b0"), (1.0, "#08264d"))


def figure(title: str, caption: str, finding: str = "", height: int = 320) -> go.Figure:
    """An empty picture in the house style.

    Arguments:
        title: what it shows.
        caption: one sentence on how to read it; with `finding` kept in the layout's `meta`, where
            the HTML report finds them.
        finding: one sentence on what this run shows, computed from its data.
        height: pixels.
    """
    axis: dict[str, Any] = {
        "gridcolor": GRID,
        "linecolor": "#c6ccd6",
        "zeroline": False,
        "ticks": "outside",
        "ticklen": 4,
        "tickcolor": "#c6ccd6",
        "title": {"standoff": 8, "font": {"size": 12, "color": MUTED}},
        "automargin": True,
        "fixedrange": False,
    }
    template = go.layout.Template(
        layout={
            "font": {"family": FONT, "size": 12, "color": INK},
            "title": {"font": {"size": 15}, "x": 0, "xref": "paper", "xanchor": "left"},
            "paper_bgcolor": "white",
            "plot_bgcolor": "white",
            "colorway": list(SERIES),
            "xaxis": axis,
            "yaxis": axis,
            "legend": {
                "orientation": "h",
                "x": 0,
                "xanchor": "left",
                "y": 1.02,
                "yanchor": "bottom",
                "font": {"size": 12},
            },
            "hoverlabel": {
                "bgcolor": "white",
                "bordercolor": "#c6ccd6",
                "font": {"color": INK, "family": FONT, "size": 12},
                "align": "left",
            },
            "margin": {"l": 56, "r": 16, "t": 56, "b": 44},
        }
    )
    return go.Figure(
        layout={
            "template": template,
            "title": {"text": title},
            "height": height,
            "meta": {"caption": caption, "finding": finding},
        }
    )


def log_seconds(low_s: float, high_s: float) -> dict[str, Any]:
    """A logarithmic axis of durations, labelled 1 ms, 10 ms, 1 s."""
    return log_axis(low_s, high_s, units.limit)


def log_axis(lowest: float, highest: float, shown: Callable[[float], str]) -> dict[str, Any]:
    """A logarithmic axis from above 0, labelled at powers of ten; finer if the range is short."""
    low, high = log10(lowest), log10(max(highest, lowest * 1.0001))
    decades = high - low
    steps = next(
        steps
        for least, steps in (
            (2.2, (1,)),
            (1.4, (1, 3)),
            (0.7, (1, 2, 5)),
            (0.0, (1, 1.5, 2, 3, 4, 5, 7)),
        )
        if decades > least
    )
    values = [
        step * 10.0**decade
        for decade in range(floor(low), ceil(high) + 1)
        for step in steps
        if low - 0.01 <= log10(step) + decade <= high + 0.01
    ]
    return {
        "type": "log",
        "range": [low, high],
        "tickvals": values,
        "ticktext": [shown(value) for value in values],
    }


def clock(end_s: float) -> tuple[float, str]:
    """Seconds in the unit that suits a time axis up to `end_s`, and its name."""
    if end_s <= 300:
        return 1.0, "s"
    return (60.0, "min") if end_s <= 4 * 3600 else (3600.0, "h")


def time_axis(end_s: float, what: str = "simulated time") -> dict[str, Any]:
    """A linear axis of time from 0 to `end_s`, in the unit of `clock`."""
    size, unit = clock(end_s)
    return {
        "title": {"text": f"{what} ({unit})"},
        "range": [0, end_s / size],
        "unifiedhovertitle": {"text": f"around %{{x:,.4~r}} {unit}"},
    }


def linear_seconds(high_s: float) -> dict[str, Any]:
    """An axis of durations from 0, labelled 200 ms, 1.5 s."""
    high_s = high_s or 1e-3
    size, unit = next(
        ((size, unit) for size, unit in ((1.0, "s"), (1e-3, "ms")) if high_s >= size), (1e-6, "µs")
    )
    least = high_s / size / 5
    decade = 10.0 ** floor(log10(least))
    step = next(m * decade for m in (1, 2, 5, 10) if m * decade >= least * 0.999999)
    marks = [step * i for i in range(floor(high_s / size / step) + 1)]
    return {
        "range": [0, high_s],
        "tickvals": [mark * size for mark in marks],
        "ticktext": [f"{round(mark, 9):,g} {unit}" for mark in marks],
    }


def slo_line(picture: go.Figure, limit_s: float, along: str, *, far: bool = False) -> None:
    """Mark a latency objective: a vertical line on an x axis of seconds, a horizontal one on y.

    Arguments:
        picture: what to draw on.
        limit_s: the objective.
        along: "x" or "y".
        far: the vertical line is far to the right, so that its label belongs on its left.
    """
    line = {"color": ALARM, "width": 1.5, "dash": "dash"}
    label: dict[str, Any] = {
        "text": f"SLO {units.limit(limit_s)}",
        "font": {"color": ALARM, "size": 11},
    }
    if along == "x":
        label |= {"textposition": "start", "textangle": 0, "xanchor": "right" if far else "left"}
        picture.add_vline(limit_s, line=line, label=label)
    else:
        picture.add_hline(limit_s, line=line, label=label | {"textposition": "end"})
