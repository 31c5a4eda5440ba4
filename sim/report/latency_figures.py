"""How long requests wait: distributions, and percentiles over the run."""

import numpy as np
import plotly.graph_objects as go
import polars as pl

from engine import units
from sim.report import theme
from sim.report.bins import Floats, bins_over, quantiles
from sim.report.contract import RunResult, end_s

NAMES = {
    "ttft_s": "Time to first token",
    "tpot_s": "Time per output token",
    "e2e_s": "End-to-end latency",
    "queue_s": "Queueing delay",
}
LEVELS = (0.5, 0.95, 0.99)
REQUESTS_A_BIN = 60
"""Fewer than this and a bin's P99 is its maximum."""


def arrivals_end_s(result: RunResult) -> float:
    """Where axes of arrival time end: with the others, unless most of those would stay empty."""
    assert result.request_rows is not None
    end = end_s(result)
    last: float = result.request_rows.select(pl.max("arrival_s")).collect().item()
    return end if last > 0.8 * end else max(last, 1e-9)


def slo(result: RunResult, column: str) -> float | None:
    """The objective for a latency, seconds, if the run has one."""
    goodput = result.summary.get("goodput")
    return goodput["slo"].get(column) if goodput else None


def sketch(values: Floats) -> tuple[Floats, Floats]:
    """Some 400 points of a distribution, denser in the tail: latencies and their quantiles."""
    levels = np.unique(np.concatenate([np.linspace(0, 1, 321), 1 - np.logspace(-1.2, -4, 80)]))
    return np.quantile(values, levels), levels


def cdf(result: RunResult, column: str) -> go.Figure | None:
    """Cumulative distribution of a latency, on a logarithmic axis; None if nothing has it."""
    assert result.request_rows is not None
    known = result.request_rows.select(pl.col(column).drop_nulls()).collect()
    values = known[column].to_numpy().astype(float, copy=False)
    if not len(values):
        return None
    limit_s = slo(result, column)
    marks_s = np.quantile(values, LEVELS)
    finding = (
        f"Half are within {units.seconds(marks_s[0])}, 99 % within {units.seconds(marks_s[-1])}."
    )
    if limit_s is not None:
        met = float(np.mean(values <= limit_s))
        finding = f"{units.share(met)} are within the objective of {units.limit(limit_s)}."
    elif (instant := float(np.mean(values <= 0))) > 0:
        finding = f"{units.share(instant)} did not wait at all."
    picture = theme.figure(
        NAMES[column],
        "Height: share of requests at least this fast; further left is better.",
        finding,
        height=270,
    )
    at_s, levels = sketch(values)
    positive = at_s[at_s > 0]
    high_s = max(float(at_s[-1]), limit_s or 0.0, 1e-5) * 1.15
    low_s = max(float(positive[0]) / 1.15 if len(positive) else 0.0, high_s * 1e-5, 1e-6)
    low_s = min(low_s, high_s / 3, (limit_s or high_s) / 1.3)
    axis = (low_s, high_s)
    picture.add_scatter(
        x=np.maximum(at_s, low_s),
        y=100 * levels,
        mode="lines",
        line={"color": theme.ACCENT, "width": 2.5},
        fill="tozeroy",
        fillcolor="rgba(11,92,173,0.07)",
        text=[
            f"{units.share(level)} within {units.seconds(at)}"
            for level, at in zip(levels.tolist(), at_s.tolist(), strict=True)
        ],
        hovertemplate="%{text}<extra></extra>",
        showlegend=False,
    )
    picture.add_scatter(
        x=np.maximum(marks_s, low_s),
        y=[100 * level for level in LEVELS],
        mode="markers+text",
        marker={"color": theme.INK, "size": 7},
        text=[
            f"P{100 * level:.0f} {units.seconds(at)}"
            for level, at in zip(LEVELS, marks_s.tolist(), strict=True)
        ],
        # the curve leaves free what is above it to the left and below it to the right
        textposition=[
            _beside(at, level, axis, limit_s) for level, at in zip(LEVELS, marks_s, strict=True)
        ],
        textfont={"size": 11},
        cliponaxis=False,
        hoverinfo="skip",
        showlegend=False,
    )
    if limit_s is not None:
        theme.slo_line(
            picture, limit_s, "x", far=np.log(limit_s / low_s) > 0.6 * np.log(high_s / low_s)
        )
    picture.update_xaxes(theme.log_seconds(*axis))
    picture.update_yaxes(
        range=[0, 112],
        tickvals=[0, 25, 50, 75, 100],
        ticktext=["0 %", "25 %", "50 %", "75 %", "100 %"],
    )
    picture.update_layout(margin={"l": 52, "r": 20, "t": 20, "b": 36})
    return picture


def _beside(at_s: float, level: float, axis: tuple[float, float], limit_s: float | None) -> str:
    """Where a percentile's label stands so that it stays in the frame and off the SLO line."""
    width = np.log(axis[1] / axis[0])
    place = np.log(max(at_s, axis[0]) / axis[0]) / width
    line = np.log(limit_s / axis[0]) / width if limit_s else np.inf
    if level == LEVELS[-1]:
        return "top left" if place > 0.3 else "top right"
    if place > 0.72 or 0 <= line - place < 0.25:
        return "middle left"
    return "middle right" if level == LEVELS[0] else "bottom right"


def over_time(result: RunResult, column: str) -> go.Figure | None:
    """Percentiles of a latency by time of arrival; None if no request has it."""
    assert result.request_rows is not None
    frame = result.request_rows.select("arrival_s", column).drop_nulls().collect()
    if not frame.height:
        return None
    end = arrivals_end_s(result)
    size, unit = theme.clock(end)
    bins = bins_over(end, at_most=min(240, max(12, frame.height // REQUESTS_A_BIN)))
    table = pl.DataFrame({"bin": np.arange(bins.count)}).join(
        quantiles(frame, bins, "arrival_s", column, LEVELS), on="bin", how="left"
    )
    worst = table.select(pl.col("q2").arg_max()).item()
    picture = theme.figure(
        f"{NAMES[column]} over time",
        f"Percentiles of the requests that arrived in each {units.limit(bins.width_s)}; "
        "when the lines part, some requests wait far longer than most.",
        f"P99 is worst, {units.seconds(table['q2'][worst])}, for arrivals around "
        f"{bins.centers_s[worst] / size:.3g} {unit}.",
    )
    for i, (name, colour) in reversed(list(enumerate(theme.PERCENTILES.items()))):
        values = table[f"q{i}"]
        picture.add_scatter(
            x=bins.centers_s / size,
            y=values.fill_null(np.nan).to_numpy(),
            name=name,
            mode="lines" if bins.count > 60 else "lines+markers",
            marker={"size": 5},
            line={"color": colour, "width": 2},
            text=[units.seconds(value) for value in values],
            customdata=table["count"].fill_null(0).to_numpy(),
            hovertemplate=name + " %{text} of %{customdata:,} requests<extra></extra>",
        )
    limit_s = slo(result, column)
    low_s = max(float(table["q0"].min() or 0.0), 1e-4)  # pyright: ignore[reportArgumentType] a column of floats
    high_s = max(float(table["q2"].max() or 0.0), limit_s or 0.0, 1e-4)  # pyright: ignore[reportArgumentType] a column of floats
    picture.update_yaxes(
        theme.log_seconds(min(low_s, limit_s or low_s) / 1.2, high_s * 1.3)
        if high_s > 20 * low_s
        else theme.linear_seconds(high_s * 1.08)
    )
    if limit_s is not None:
        theme.slo_line(picture, limit_s, "y")
    picture.update_xaxes(theme.time_axis(end, "time of arrival"))
    picture.update_layout(hovermode="x unified", legend={"traceorder": "reversed"})
    return picture
