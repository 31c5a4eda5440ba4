"""What limits the steps: arithmetic or memory."""

from math import ceil, floor, log10
from typing import Any

import numpy as np
import plotly.graph_objects as go
import polars as pl

from engine import units
from sim.report import theme
from sim.report.contract import Roofline, RunResult
from sim.report.rows import blocks, sums

CELLS_A_DECADE = 16
"""Points closer than this on both axes are drawn as one."""
WORK_OF = (
    "decodes",
    "decode_context_tokens",
    "prefill_sequences",
    "prefill_tokens",
    "prefill_context_tokens",
    "prefill_pairs",
)
"""What the work of a step follows from."""


def step_work(segments: pl.DataFrame, roofline: Roofline) -> pl.DataFrame:
    """FLOP, bytes, seconds and kind (prefill, mixed, decode) of each segment, all steps together.

    Work is linear in contexts and attention pairs, which grow evenly, so a segment is its middle
    step times the number of its steps. Growth of the pairs, the sum of squared chunks, is taken
    with chunks of equal size: exact for one prefill.
    """
    steps = segments["steps"].to_numpy().astype(float)
    column = {name: segments[name].to_numpy().astype(float) for name in WORK_OF}
    before_middle = (steps - 1) / 2
    chunk = column["prefill_tokens"] / np.maximum(column["prefill_sequences"], 1)
    flops, moved = roofline.work(
        column["decodes"],
        column["decode_context_tokens"] + before_middle * column["decodes"],
        column["prefill_tokens"],
        column["prefill_context_tokens"] + before_middle * column["prefill_tokens"],
        column["prefill_pairs"] + before_middle * chunk * column["prefill_tokens"],
        column["decodes"] + column["prefill_sequences"],
    )
    kind = (
        pl.when(pl.col("prefill_tokens") == 0)
        .then(pl.lit("decode"))
        .when(pl.col("decodes") == 0)
        .then(pl.lit("prefill"))
        .otherwise(pl.lit("mixed"))
    )
    return segments.select(
        kind=kind, steps="steps", seconds=pl.col("end_s") - pl.col("start_s")
    ).with_columns(
        flops=pl.Series(np.asarray(flops) * steps), bytes=pl.Series(np.asarray(moved) * steps)
    )


def roofline(result: RunResult) -> go.Figure | None:
    """Steps by arithmetic intensity and achieved speed, under the device's roof."""
    assert result.segment_rows is not None
    assert result.roofline is not None
    peak, bandwidth = result.roofline.peak_flops_per_s, result.roofline.memory_bytes_per_s
    intensity, speed = pl.col("flops") / pl.col("bytes"), pl.col("flops") / pl.col("seconds")
    read = blocks(result.segment_rows, "start_s", "end_s", "steps", *WORK_OF)
    work = (
        step_work(block, result.roofline)
        .filter((pl.col("flops") > 0) & (pl.col("bytes") > 0) & (pl.col("seconds") > 0))
        .with_columns(
            column=(intensity.log10() * CELLS_A_DECADE).round().cast(pl.Int64),
            row=(speed.log10() * CELLS_A_DECADE).round().cast(pl.Int64),
            memory_s=pl.when(intensity < peak / bandwidth).then("seconds").otherwise(0.0),
        )
        for block in read
    )
    points = (
        sums(work, "kind", "column", "row")
        .sort("seconds", "column", "row", descending=True)
        .with_columns(intensity=intensity, speed=speed)
    )
    if not points.height:
        return None
    by_kind = {
        kind: points.filter(kind=kind)["seconds"].to_numpy().sum()
        for kind in theme.STEPS
        if kind in points["kind"]
    }
    total_s, memory_s = sum(by_kind.values()), points["memory_s"].to_numpy().sum()
    picture = theme.figure(
        "Steps on the roofline",
        "Right: more arithmetic per byte read; up: faster; on the slanted roof a step is bound by "
        "memory, under the flat one by arithmetic, and the distance to the roof is overhead. "
        "A circle's area is time spent.",
        f"{units.share(memory_s / total_s)} of step time is left of the ridge, bound by memory; "
        + ", ".join(f"{units.share(seconds / total_s)} {kind}" for kind, seconds in by_kind.items())
        + ".",
        height=420,
    )
    _roof(picture, points, peak, bandwidth)
    picture.update_layout(legend={"itemsizing": "constant"})
    largest = float(points["seconds"].max())  # pyright: ignore[reportArgumentType] a column of floats
    for kind, colour in theme.STEPS.items():
        mine = points.filter(kind=kind)
        if mine.height:
            picture.add_scatter(
                x=mine["intensity"].to_numpy(),
                y=mine["speed"].to_numpy(),
                name=kind,
                mode="markers",
                marker={
                    "color": colour,
                    "opacity": 0.65,
                    "size": mine["seconds"].to_numpy(),
                    "sizemode": "area",
                    "sizeref": 2 * largest / 26**2,
                    "sizemin": 2,
                    "line": {"width": 0.5, "color": "white"},
                },
                text=[_tooltip(kind, row, total_s) for row in mine.iter_rows(named=True)],
                hovertemplate="%{text}<extra></extra>",
            )
    return picture


def _roof(picture: go.Figure, points: pl.DataFrame, peak: float, bandwidth: float) -> None:
    ridge = peak / bandwidth
    low, high = points.select(low=pl.min("intensity"), high=pl.max("intensity")).row(0)
    low, high = min(low, ridge / 10) / 1.6, max(high, ridge * 3) * 1.6
    picture.add_scatter(
        x=[low, ridge, high],
        y=[low * bandwidth, peak, peak],
        mode="lines",
        name=f"roof: {units.amount(bandwidth, 'B/s')}, {units.amount(peak, 'FLOP/s')}",
        line={"color": theme.INK, "width": 2},
        hoverinfo="skip",
    )
    slowest, fastest = points.select(low=pl.min("speed"), high=pl.max("speed")).row(0)
    bottom, top = min(slowest, low * bandwidth) / 1.6, max(fastest, peak) * 1.6
    powers = [10.0**power for power in range(ceil(log10(bottom)), floor(log10(top)) + 1)]
    picture.update_xaxes(
        type="log",
        dtick=1,
        title={"text": "arithmetic intensity (FLOP/byte)"},
        range=[log10(low), log10(high)],
    )
    picture.update_yaxes(
        type="log",
        title={"text": "achieved FLOP/s"},
        range=[log10(bottom), log10(top)],
        tickvals=powers,
        ticktext=[units.power_of_ten(power) for power in powers],
    )


def _tooltip(kind: str, row: dict[str, Any], total_s: float) -> str:
    return (
        f"<b>{kind}</b>: {units.count(row['steps'])} steps, "
        f"{units.share(row['seconds'] / total_s)} of step time<br>"
        f"{units.significant(row['intensity'])} FLOP/byte at {units.amount(row['speed'], 'FLOP/s')}"
        f"<br>mean step {units.seconds(row['seconds'] / row['steps'])}, "
        f"{units.amount(row['bytes'] / row['seconds'], 'B/s')}"
    )
