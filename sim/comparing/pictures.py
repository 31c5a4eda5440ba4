"""The pictures of a comparison: what each setting gives, and how sure its lead is."""

from __future__ import annotations

from collections.abc import Sequence
from math import log10
from typing import Any, Final

import plotly.graph_objects as go

from sim.comparing import metrics as named
from sim.comparing.comparison import Comparison
from sim.comparing.grid import shown
from sim.comparing.judging import Row
from sim.comparing.pairing import SAME, centre, interval_of_mean
from sim.comparing.tables import direction, interval, said_of_flip
from sim.report import theme

BETTER: Final = "#1a7f5a"
COLOURS: Final = {
    "better": BETTER,
    "worse": theme.ALARM,
    "higher": theme.ACCENT,
    "lower": theme.ACCENT,
    SAME: "#8a94a3",
    "": "#8a94a3",
}
"""Of a difference, by its verdict."""
SYMBOLS: Final = {"better": "circle", "worse": "diamond"}

LINES: Final = (
    "#0b5cad",
    "#e3a008",
    "#3aa6a0",
    "#a8518a",
    "#c0392b",
    "#5b6677",
    "#6b8e23",
    "#7a5195",
    "#b5651d",
    "#2f4b7c",
)
DASHES: Final = ("solid", "dash", "dot", "dashdot")
ROW_PX: Final = 30
LABEL_CHARACTERS: Final = 34
BAND: Final = 0.14
"""Opacity of an interval."""


def pictures(comparison: Comparison) -> dict[str, go.Figure]:
    """Every picture by name: a curve a figure, or differences and values of each figure."""
    drawn: dict[str, go.Figure | None] = {}
    for metric in comparison.metrics:
        name = metric.replace(".", "_")
        if comparison.curve is not None:
            drawn[f"curve_{name}"] = curve(comparison, metric)
        else:
            drawn[f"differences_{name}"] = differences(comparison, metric)
            drawn[f"values_{name}"] = values(comparison, metric)
    return {name: picture for name, picture in drawn.items() if picture is not None}


def differences(comparison: Comparison, metric: str) -> go.Figure | None:
    """Every setting's difference to the baseline with its interval; None without any."""
    found = [row for row in comparison.rows if row.metric == metric]
    if not found:
        return None
    # of shares in points, and of what is nothing in the baseline, as it is
    relative = all(row.difference.share is not None for row in found) and not _is_share(metric)
    picture = theme.figure(
        f"{named.heading(metric)} against {comparison.baseline}",
        f"Dot: mean over pairs of runs; bar: {_level(comparison)} interval. Hollow: not"
        " distinguishable, given how many comparisons are made."
        if comparison.spread
        else "Dot: difference of one run to one run of the baseline.",
        _lead(comparison, metric, found),
        height=80 + ROW_PX * len(found),
    )
    labels = [_broken(row.entry.variant.label) for row in found]
    for row, label in zip(found, labels, strict=True):
        one = row.difference
        size = abs(one.baseline) if relative else 1.0
        colour = COLOURS[row.verdict]
        if one.low is not None and one.high is not None:
            picture.add_scatter(
                x=[_scaled(one.low, size, metric), _scaled(one.high, size, metric)],
                y=[label, label],
                mode="lines",
                line={"color": colour, "width": 3},
                opacity=0.55,
                hoverinfo="skip",
                showlegend=False,
            )
        picture.add_scatter(
            x=[_scaled(one.difference, size, metric)],
            y=[label],
            mode="markers",
            marker={
                "color": "white" if row.verdict in (SAME, "") else colour,
                "size": 10,
                "symbol": SYMBOLS.get(row.verdict, "circle"),
                "line": {"color": colour, "width": 2},
            },
            text=[_hover(row)],
            hovertemplate="%{text}<extra></extra>",
            showlegend=False,
        )
    picture.add_vline(0, line={"color": theme.INK, "width": 1})
    unit = " %" if relative else " pt" if _is_share(metric) else ""
    ends = [
        _scaled(end, abs(row.difference.baseline) if relative else 1.0, metric)
        for row in found
        for end in (row.difference.low, row.difference.high, row.difference.difference)
        if end is not None
    ]
    low, high = min(0.0, *ends), max(0.0, *ends)
    room = 0.06 * (high - low) or 1.0
    picture.update_xaxes(ticksuffix=unit, range=[low - room, high + room])
    way = named.good(metric)
    if way:
        picture.add_annotation(
            text="← better" if way == "lower" else "better →",
            x=0 if way == "lower" else 1,
            xanchor="left" if way == "lower" else "right",
            xref="paper",
            y=1,
            yanchor="bottom",
            yref="paper",
            showarrow=False,
            font={"color": theme.MUTED, "size": 12},
        )
    picture.update_yaxes(
        categoryorder="array", categoryarray=labels[::-1], showgrid=False, ticks=""
    )
    picture.update_layout(margin={"t": 24, "b": 36, "l": 20})
    return picture


def values(comparison: Comparison, metric: str) -> go.Figure | None:
    """What each setting gives: every replication a dot, their mean and its interval."""
    known = [
        (entry, found)
        for entry in comparison.entries
        if (found := entry.values(metric)) is not None
    ]
    if not known:
        return None
    labels = [_broken(entry.variant.label) for entry, _ in known]
    picture = theme.figure(
        f"{named.heading(metric)} of each setting",
        f"Small dots: replications; large: their mean and its {_level(comparison)} interval. All"
        " settings draw the same luck: they may overlap where differences are sure."
        if comparison.spread
        else "One run of each setting.",
        f"{direction(metric)[:1].upper()}{direction(metric)[1:]}.",
        height=80 + ROW_PX * len(known),
    )
    write = named.writer(metric)
    if comparison.spread:
        picture.add_scatter(
            x=[value for _, found in known for value in found],
            y=[label for label, (_, found) in zip(labels, known, strict=True) for _ in found],
            mode="markers",
            marker={"color": "#8db9e3", "size": 5},
            text=[
                f"{label}, replication {number}: {write(value)}"
                for label, (_, found) in zip(labels, known, strict=True)
                for number, value in enumerate(found, 1)
            ],
            hovertemplate="%{text}<extra></extra>",
            showlegend=False,
        )
    means = [centre(found, comparison.scales[metric]) for _, found in known]
    ends = [
        interval_of_mean(found, comparison.level, comparison.scales[metric]) for _, found in known
    ]
    picture.add_scatter(
        x=means,
        y=labels,
        mode="markers",
        marker={"color": theme.ACCENT, "size": 9},
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [high - mean for mean, (_, high) in zip(means, ends, strict=True)],
            "arrayminus": [mean - low for mean, (low, _) in zip(means, ends, strict=True)],
            "color": theme.ACCENT,
            "thickness": 2,
            "width": 0,
        },
        text=[f"{label}: {write(mean)}" for label, mean in zip(labels, means, strict=True)],
        hovertemplate="%{text}<extra></extra>",
        showlegend=False,
    )
    picture.update_xaxes(_axis(metric, [value for _, found in known for value in found]))
    picture.update_yaxes(
        categoryorder="array", categoryarray=labels[::-1], showgrid=False, ticks=""
    )
    picture.update_layout(margin={"t": 24, "b": 36, "l": 20})
    return picture


def curve(comparison: Comparison, metric: str) -> go.Figure | None:
    """A figure of every setting along the curve, with interval bands; None without any."""
    assert comparison.curve is not None
    setting, along = comparison.curve
    flips = [flip for flip in comparison.flips if flip.metric == metric]
    picture = theme.figure(
        f"{named.heading(metric)} along {setting}",
        f"Line: mean over replications; band: its {_level(comparison)} interval."
        + " All settings draw the same luck: lines may be apart for sure where bands overlap."
        * (not comparison.alone)
        if comparison.spread
        else "One run at each point.",
        ". ".join(
            said_of_flip(comparison, flip).replace("rank flips: ", "The rank flips: ")
            for flip in flips[:3]
        )
        + (f"; and {len(flips) - 3} more flips." if len(flips) > 3 else "." if flips else "")
        or f"{direction(metric)[:1].upper()}{direction(metric)[1:]}.",
        height=400,
    )
    numeric = all(isinstance(at, (int, float)) and not isinstance(at, bool) for at in along)
    every: list[float] = []
    widest: list[float] = []
    for index, label in enumerate(comparison.labels):
        places: list[Any] = []
        means: list[float] = []
        ends: list[tuple[float, float]] = []
        for at in along:
            found = comparison.entry(label, at).values(metric)
            if found is not None:
                places.append(at if numeric else shown(at))
                means.append(centre(found, comparison.scales[metric]))
                ends.append(interval_of_mean(found, comparison.level, comparison.scales[metric]))
        if places:
            every += means
            widest += [end for pair in ends for end in pair]
            _line(picture, comparison, metric, label, index, places, means, ends)
    if not every:
        return None
    for flip in flips if numeric else ():
        picture.add_vrect(
            x0=flip.below, x1=flip.above, fillcolor="#a8518a", opacity=0.08, line_width=0
        )
    axis: dict[str, Any] = {"title": {"text": setting}}
    if numeric and min(along) > 0 and max(along) >= 8 * min(along):
        axis |= {"type": "log"}
    if numeric:
        axis |= {"tickvals": list(along), "ticktext": [shown(at) for at in along]}
    picture.update_xaxes(axis)
    # the means say how far the axis reaches, a wild band may leave it
    reach = [min(max(end, min(every) / 3), 3 * max(every)) for end in widest]
    picture.update_yaxes(_axis(metric, [*every, *reach]))
    picture.update_layout(
        hovermode="closest",
        showlegend=not comparison.alone,
        margin={"t": 40, "b": 52},
        legend={"itemsizing": "constant", "y": -0.22, "yanchor": "top"},
    )
    return picture


def _line(
    picture: go.Figure,
    comparison: Comparison,
    metric: str,
    label: str,
    index: int,
    places: Sequence[Any],
    means: Sequence[float],
    ends: Sequence[tuple[float, float]],
) -> None:
    colour = LINES[index % len(LINES)]
    write = named.writer(metric)
    if comparison.spread:
        picture.add_scatter(
            x=[*places, *reversed(places)],
            y=[*(high for _, high in ends), *(low for low, _ in reversed(ends))],
            fill="toself",
            fillcolor=_faint(colour),
            line={"width": 0},
            mode="lines",
            hoverinfo="skip",
            showlegend=False,
            legendgroup=label,
        )
    picture.add_scatter(
        x=places,
        y=means,
        name=label,
        legendgroup=label,
        mode="lines+markers",
        line={"color": colour, "width": 2.5, "dash": DASHES[index // len(LINES) % len(DASHES)]},
        marker={"size": 7},
        text=[
            f"{label} at {shown(at)}: {write(mean)}" for at, mean in zip(places, means, strict=True)
        ],
        hovertemplate="%{text}<extra></extra>",
    )


def _lead(comparison: Comparison, metric: str, rows: Sequence[Row]) -> str:
    """The most that any setting gains, and how many do."""
    if not comparison.spread:
        return ""
    better = [row for row in rows if row.verdict == "better"]
    worse = sum(row.verdict == "worse" for row in rows)
    tail = f"{worse} of {len(rows)} worse." if worse else ""
    if not better:
        return f"Nothing is distinguishably better than {comparison.baseline}. {tail}".strip()
    best = max(better, key=lambda row: abs(row.difference.difference))
    change = named.change(best.difference.difference, best.difference.share, metric)
    return (
        f"{len(better)} of {len(rows)} better, most of all {best.entry.variant.label}: {change}."
        f" {tail}"
    ).strip()


def _hover(row: Row) -> str:
    change = named.change(row.difference.difference, row.difference.share, row.metric)
    bounds = interval(row)
    said = f" ({bounds}), {row.verdict}" if bounds else ""
    return f"{row.entry.variant.label}: {change}{said}"


def _scaled(value: float, size: float, metric: str) -> float:
    return value if not _is_share(metric) and size == 1.0 else 100 * value / size


def _is_share(metric: str) -> bool:
    return named.change(1.0, None, metric).endswith(" pt")


def _axis(metric: str, found: Sequence[float]) -> dict[str, Any]:
    """An axis in the unit of a figure; durations over two decades stand on a logarithmic one."""
    write = named.writer(metric)
    if write is named.units.seconds:
        low, high = min(found), max(found)
        if low > 0 and log10(high / low) > 1.5:
            return theme.log_seconds(low / 1.15, high * 1.15)
        if low > 0.5 * high:
            return {"tickformat": "~s", "ticksuffix": "s"}
        return theme.linear_seconds(high * 1.05)
    if write is named.units.share:
        return {"tickformat": ".1~%"}
    return {"tickformat": "~s" if max(found) >= 10_000 else ",~r"}


def _broken(label: str) -> str:
    """A long label on several lines, between its values."""
    lines: list[str] = []
    for part in label.split(" · "):
        if lines and len(lines[-1]) + len(part) + 3 <= LABEL_CHARACTERS:
            lines[-1] += f" · {part}"
        else:
            lines.append(part)
    return "<br>".join(lines)


def _level(comparison: Comparison) -> str:
    return f"{100 * comparison.level:g} %"


def _faint(colour: str) -> str:
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red}, {green}, {blue}, {BAND})"
