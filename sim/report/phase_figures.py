"""Where a request's time goes: waiting, reading the prompt, writing the answer."""

from itertools import pairwise

import numpy as np
import plotly.graph_objects as go
import polars as pl

from engine import units
from sim.report import theme
from sim.report.bins import bins_over
from sim.report.contract import RunResult
from sim.report.latency_figures import REQUESTS_A_BIN, arrivals_end_s
from sim.report.rows import blocks, height, sums

GROUPS = (0.0, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)


PARTS = {
    "queue": pl.col("queue_s"),
    "prefill": pl.col("ttft_s") - pl.col("queue_s"),
    "decode": pl.col("e2e_s") - pl.col("ttft_s"),
}
"""The phases of end-to-end time; null unless the request got to its end.

Decode runs from the first token to the last, with the recomputing after a preemption in it.
"""


def phases_over_time(result: RunResult) -> go.Figure | None:
    """Mean seconds in each phase by time of arrival."""
    assert result.request_rows is not None
    ended = height(result.request_rows.select(**PARTS).drop_nulls())
    if not ended:
        return None
    end = arrivals_end_s(result)
    size, _ = theme.clock(end)
    bins = bins_over(end, at_most=min(240, max(12, ended // REQUESTS_A_BIN)))
    one = pl.lit(1, pl.Int64)
    read = blocks(result.request_rows, bin=bins.index("arrival_s"), ended=one, **PARTS)
    totals = sums((block.drop_nulls() for block in read), "bin")
    means = totals.with_columns(pl.col(list(PARTS)) / pl.col("ended"))
    centers = bins.centers_s[means["bin"].to_numpy()] / size
    total = {phase: totals[phase].to_numpy().sum() / ended for phase in PARTS}
    whole = sum(total.values()) or 1.0
    picture = theme.figure(
        "Time by phase, over the run",
        f"Mean of the requests that arrived in each {units.limit(bins.width_s)}: the top edge is "
        "their mean end-to-end latency, each colour the part spent in that phase.",
        f"The mean request takes {units.seconds(whole)}: "
        + ", ".join(f"{units.share(total[phase] / whole)} {phase}" for phase in theme.PHASES)
        + ".",
    )
    for phase, colour in theme.PHASES.items():
        picture.add_scatter(
            x=centers,
            y=means[phase].to_numpy(),
            name=phase,
            mode="lines",
            stackgroup="phases",
            line={"width": 0.5, "color": colour},
            fillcolor=colour,
            text=[units.seconds(value) for value in means[phase]],
            hovertemplate=phase + " %{text}<extra></extra>",
        )
    top = means.select(pl.sum_horizontal(list(theme.PHASES)).max()).item()
    picture.update_yaxes(theme.linear_seconds(top * 1.08))
    picture.update_xaxes(theme.time_axis(end, "time of arrival"))
    picture.update_layout(hovermode="x unified", legend={"traceorder": "normal"})
    return picture


def phases_by_percentile(result: RunResult) -> go.Figure | None:
    """Mean seconds in each phase, for groups of requests from the fastest to the slowest."""
    assert result.request_rows is not None
    frame = result.request_rows.select("e2e_s", **PARTS).drop_nulls().collect()
    if not frame.height:
        return None
    order = np.argsort(frame["e2e_s"].to_numpy(), kind="stable")
    seconds = {phase: frame[phase].to_numpy() for phase in PARTS}
    rows: list[dict[str, float | str]] = []
    for low, high in pairwise(GROUPS):
        first, last = round(low * frame.height), round(high * frame.height)
        if last > first:
            means = {phase: seconds[phase][order[first:last]].mean() for phase in PARTS}
            rows.append({"group": _name(low, high), **means})
    tail = rows[-1]
    whole = sum(float(tail[phase]) for phase in theme.PHASES) or 1.0
    most = max(theme.PHASES, key=lambda phase: float(tail[phase]))
    picture = theme.figure(
        "Time by phase, from fast requests to slow ones",
        "Requests sorted by end-to-end latency; each bar is the mean of its group, so the colour "
        "that grows to the right is what makes slow requests slow.",
        f"The slowest group spends {units.share(float(tail[most]) / whole)} of "
        f"{units.seconds(whole)} in {most}.",
    )
    for phase, colour in theme.PHASES.items():
        picture.add_bar(
            x=[row["group"] for row in rows],
            y=[row[phase] for row in rows],
            name=phase,
            marker={"color": colour, "line": {"width": 0}},
            text=[units.seconds(float(row[phase])) for row in rows],
            textposition="none",
            hovertemplate=phase + " %{text}<extra></extra>",
        )
    top = max(sum(float(row[phase]) for phase in theme.PHASES) for row in rows)
    picture.update_yaxes(theme.linear_seconds(top * 1.08))
    picture.update_xaxes(
        title={"text": "percentile of end-to-end latency"},
        type="category",
        showgrid=False,
        tickangle=0,
    )
    picture.update_layout(
        barmode="stack", bargap=0.12, hovermode="x unified", legend={"traceorder": "normal"}
    )
    return picture


def _name(low: float, high: float) -> str:
    low, high = round(100 * low), round(100 * high)
    return f"{low}+" if high == 100 else f"{low}–{high}"  # noqa: RUF001 a range has an en dash
