"""Where a request's time goes: waiting, reading the prompt, writing the answer."""

import numpy as np
import plotly.graph_objects as go
import polars as pl

from sim.report import theme, units
from sim.report.bins import bins_over
from sim.report.contract import RunResult
from sim.report.latency_figures import REQUESTS_A_BIN, end_s

GROUPS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)


def phases(requests: pl.DataFrame) -> pl.DataFrame:
    """Arrival, end-to-end time and its three parts, of the requests that got to their end.

    Decode runs from the first token to the last, with the recomputing after a preemption in it.
    """
    return requests.select(
        "arrival_s",
        "e2e_s",
        queue="queue_s",
        prefill=pl.col("ttft_s") - pl.col("queue_s"),
        decode=pl.col("e2e_s") - pl.col("ttft_s"),
    ).drop_nulls()


def phases_over_time(result: RunResult) -> go.Figure | None:
    """Mean seconds in each phase by time of arrival."""
    assert result.requests is not None
    frame = phases(result.requests)
    if not frame.height:
        return None
    end = end_s(result)
    size, _ = theme.clock(end)
    bins = bins_over(end, at_most=min(240, max(12, frame.height // REQUESTS_A_BIN)))
    means = pl.DataFrame({"bin": np.arange(bins.count)}).join(
        frame.group_by(bins.index("arrival_s").alias("bin")).agg(
            pl.col(list(theme.PHASES)).mean()
        ),
        on="bin",
        how="left",
    )
    total = frame.select(pl.col(list(theme.PHASES)).mean()).row(0, named=True)
    whole = sum(total.values()) or 1.0
    picture = theme.figure(
        "Where the time goes, over time",
        f"Mean of the requests that arrived in each {units.seconds(bins.width_s)}: the top edge is "
        "their mean end-to-end latency, each colour the part spent in that phase.",
        f"The mean request takes {units.seconds(whole)}: "
        + ", ".join(f"{units.share(total[phase] / whole)} {phase}" for phase in theme.PHASES)
        + ".",
    )
    for phase, colour in theme.PHASES.items():
        picture.add_scatter(
            x=bins.centers_s / size,
            y=means[phase].fill_null(0.0).to_numpy(),
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
    picture.update_xaxes(theme.time_axis(end))
    picture.update_layout(hovermode="x unified", legend={"traceorder": "normal"})
    return picture


def phases_by_percentile(result: RunResult) -> go.Figure | None:
    """Mean seconds in each phase, for groups of requests from the fastest to the slowest."""
    assert result.requests is not None
    frame = phases(result.requests).sort("e2e_s", maintain_order=True)
    if not frame.height:
        return None
    rows: list[dict[str, float | str]] = []
    for low, high in zip(GROUPS, GROUPS[1:], strict=False):
        first, last = round(low * frame.height), round(high * frame.height)
        if last > first:
            means = frame[first:last].select(pl.col(list(theme.PHASES)).mean()).row(0, named=True)
            rows.append({"group": _name(low, high), **means})
    tail = rows[-1]
    whole = sum(float(tail[phase]) for phase in theme.PHASES) or 1.0
    most = max(theme.PHASES, key=lambda phase: float(tail[phase]))
    picture = theme.figure(
        "Where the time goes, fast requests to slow ones",
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
        title={"text": "percentile of end-to-end latency"}, type="category", showgrid=False
    )
    picture.update_layout(
        barmode="stack", bargap=0.12, hovermode="x unified", legend={"traceorder": "normal"}
    )
    return picture


def _name(low: float, high: float) -> str:
    return f"P{100 * low:.0f}+" if high == 1 else f"P{100 * low:.0f}–{100 * high:.0f}"
