"""What the fleet was asked for and how full it was."""

from math import ceil

import numpy as np
import plotly.graph_objects as go
import polars as pl

from engine import units
from sim.report import theme
from sim.report.bins import Floats, TimeBins, bins_over, level, replica_means
from sim.report.contract import RunResult, end_s
from sim.report.latency_figures import arrivals_end_s
from sim.report.rows import blocks, height, sums

MOST_LINES = 6
"""Replicas drawn as lines; more become rows of a heat map."""
MOST_ROWS = 1024


def outcomes(result: RunResult) -> go.Figure | None:
    """Arrivals a second, by what became of them."""
    assert result.request_rows is not None
    total = height(result.request_rows)
    if not total:
        return None
    end = arrivals_end_s(result)
    size, unit = theme.clock(end)
    bins = bins_over(end, at_most=min(120, max(12, total // 20)))
    arrivals = blocks(
        result.request_rows, "outcome", bin=bins.index("arrival_s"), len=pl.lit(1, pl.Int64)
    )
    counts = sums(arrivals, "bin", "outcome")
    rate = np.bincount(counts["bin"], counts["len"], minlength=bins.count) / bins.width_s
    peak = int(rate.argmax())
    picture = theme.figure(
        "Arrivals by outcome",
        f"Requests that arrived in each {units.limit(bins.width_s)}, as a rate, coloured by what "
        "became of them; anything but grey-blue is a request not fully served.",
        f"Arrivals peak at {units.amount(rate[peak], 'requests/s')} around "
        f"{bins.centers_s[peak] / size:.3g} {unit}.",
    )
    for outcome, colour in theme.OUTCOMES.items():
        mine = counts.filter(outcome=outcome)
        if not mine.height:
            continue
        heights = np.bincount(mine["bin"], weights=mine["len"], minlength=bins.count)
        picture.add_bar(
            x=(np.arange(bins.count) + 0.5) * bins.width_s / size,
            y=heights / bins.width_s,
            width=bins.width_s / size,
            name=outcome.replace("_", " "),
            marker={"color": colour, "line": {"width": 0}},
            customdata=heights,
            hovertemplate=outcome.replace("_", " ")
            + " %{y:,.4~r} requests/s (%{customdata:,})<extra></extra>",
        )
    picture.update_xaxes(theme.time_axis(end, "time of arrival"))
    picture.update_yaxes(title={"text": "requests/s"}, rangemode="tozero")
    picture.update_layout(
        barmode="stack",
        bargap=0,
        hovermode="x unified",
        showlegend=True,
        legend={"traceorder": "normal"},
    )
    return picture


def queue_depth(result: RunResult) -> go.Figure | None:
    """Requests that wait for their first scheduling, over time."""
    assert result.request_rows is not None
    end = end_s(result)
    waits = (
        result.request_rows.filter(pl.col("outcome") != "rejected")
        .select("arrival_s", left_s=pl.coalesce("scheduled_s", "finish_s", pl.lit(end)))
        .collect()
    )
    if not waits.height:
        return None
    size, unit = theme.clock(end)
    bins = bins_over(end)
    mean, peak = level(waits["arrival_s"].to_numpy(), waits["left_s"].to_numpy(), bins)
    worst = int(peak.argmax())
    average = float(np.average(mean, weights=bins.widths_s))
    picture = theme.figure(
        "Queue depth",
        "Requests of the whole fleet that have arrived and were never scheduled yet; a queue that "
        "does not drain is demand beyond capacity.",
        f"{units.count(peak[worst])} waited at the worst moment, around "
        f"{bins.centers_s[worst] / size:.3g} {unit}; {units.significant(average)} on average."
        if peak[worst] > 0
        else "No request ever waited.",
    )
    for name, values, style in (
        ("peak", peak, {"color": "#f0cd7d", "width": 1, "shape": "hvh"}),
        ("mean", mean, {"color": "#a86f00", "width": 2}),
    ):
        picture.add_scatter(
            x=bins.centers_s / size,
            y=values,
            name=f"{name} of {units.limit(bins.width_s)}",
            mode="lines",
            line=style,
            fill="tozeroy" if name == "peak" else None,
            fillcolor="rgba(227,160,8,0.18)",
            hovertemplate=name + " %{y:,.4~r} requests<extra></extra>",
        )
    picture.update_xaxes(theme.time_axis(end))
    picture.update_yaxes(
        title={"text": "requests waiting"}, range=[0, max(1.0, float(peak.max())) * 1.08]
    )
    picture.update_layout(hovermode="x unified")
    return picture


def batch_size(result: RunResult) -> go.Figure | None:
    """Sequences computed a step, per replica over time."""
    sequences = pl.col("decodes") + pl.col("prefill_sequences")
    return _per_replica(
        result,
        sequences,
        title="Batch size",
        caption="Sequences in a replica's steps, averaged over {width} with idle time as zero; "
        "rows or lines that differ show an uneven router.",
        unit="sequences",
        most=None,
    )


def kv_occupancy(result: RunResult) -> go.Figure | None:
    """Share of a replica's KV blocks that requests hold, over time."""
    blocks = result.summary["kv"]["blocks_per_replica"]
    if not blocks:
        return None
    return _per_replica(
        result,
        pl.col("kv_blocks_used") * (100 / blocks),
        title="KV cache occupancy",
        caption="Share of a replica's KV blocks held by running requests, averaged over "
        "{width}; near 100 % requests queue for memory or are preempted.",
        unit="%",
        most=100.0,
    )


def _per_replica(
    result: RunResult, value: pl.Expr, *, title: str, caption: str, unit: str, most: float | None
) -> go.Figure | None:
    assert result.segment_rows is not None
    if not height(result.segment_rows):
        return None
    end = end_s(result)
    bins = bins_over(end)
    fleet = range(result.summary["replicas"])
    replicas, means = replica_means(result.segment_rows, bins, {"value": value}, fleet)
    values = means["value"]
    by_replica = np.average(values, axis=1, weights=bins.widths_s)
    finding = f"Mean {units.significant(float(by_replica.mean()))} {unit}"
    if len(replicas) > 1:
        finding += (
            f"; from {units.significant(float(by_replica.min()))} on replica "
            f"{replicas[int(by_replica.argmin())]} to {units.significant(float(by_replica.max()))} "
            f"on replica {replicas[int(by_replica.argmax())]}"
        )
    caption = caption.replace("{width}", units.limit(bins.width_s))
    if len(replicas) > MOST_ROWS:
        caption += f" One replica in {ceil(len(replicas) / MOST_ROWS)} is drawn."
    lines = len(replicas) <= MOST_LINES
    rows = min(len(replicas), MOST_ROWS)
    pixels = 320 if lines else max(320, min(560, 110 + 7 * rows))
    picture = theme.figure(title, caption, finding + ".", height=pixels)
    if lines:
        _lines(picture, bins, end, replicas, values, unit)
        top = most or max(1.0, float(values.max()))
        picture.update_yaxes(title={"text": unit}, range=[0, top * 1.05])
    else:
        _heat(picture, bins, end, replicas, values, unit, most)
    picture.update_xaxes(theme.time_axis(end))
    return picture


def _lines(
    picture: go.Figure, bins: TimeBins, end: float, replicas: list[int], values: Floats, unit: str
) -> None:
    size, _ = theme.clock(end)
    for i, replica in enumerate(replicas):
        picture.add_scatter(
            x=bins.centers_s / size,
            y=values[i].astype(np.float32),
            name=f"replica {replica}",
            mode="lines",
            line={"color": theme.SERIES[i], "width": 1.6},
            fill="tozeroy" if len(replicas) == 1 else None,
            fillcolor="rgba(11,92,173,0.10)",
            hovertemplate=f"replica {replica}: %{{y:,.4~r}} {unit}<extra></extra>",
        )
    picture.update_layout(hovermode="x unified", showlegend=len(replicas) > 1)
    if len(replicas) == 1:
        picture.update_layout(margin={"t": 20})


def _heat(
    picture: go.Figure,
    bins: TimeBins,
    end: float,
    replicas: list[int],
    values: Floats,
    unit: str,
    most: float | None,
) -> None:
    size, clock = theme.clock(end)
    # a byte or two a cell keeps a thousand replicas within a megabyte
    cells = np.round(values).astype(np.uint8 if most else np.uint16)
    step = ceil(len(replicas) / MOST_ROWS)
    picture.add_heatmap(
        x=bins.centers_s / size,
        y=replicas[::step],
        z=cells[::step],
        zmin=0,
        zmax=most or max(1, int(cells.max())),
        colorscale=[list(stop) for stop in theme.HEAT],
        colorbar={"thickness": 10, "outlinewidth": 0, "title": {"text": unit, "side": "right"}},
        hovertemplate=f"replica %{{y}} at %{{x:,.4~r}} {clock}: %{{z}} {unit}<extra></extra>",
    )
    picture.update_layout(margin={"t": 24})
    picture.update_yaxes(title={"text": "replica"}, showgrid=False, autorange="reversed")
    picture.update_xaxes(showgrid=False)
