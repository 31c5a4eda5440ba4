"""The pictures of a validation: the real run in dark, the simulated one in blue, side by side."""

from __future__ import annotations

from typing import Any, Final, Literal

import numpy as np
import plotly.graph_objects as go

from engine import units
from sim.report import theme
from sim.report.latency_figures import sketch
from sim.validation.figures import Comparison
from sim.validation.real import Timeline
from sim.validation.served import LATENCIES, Floats
from sim.validation.tables import said
from sim.validation.validation import BELOW, NEAR, Validation

REAL: Final = {"color": theme.INK, "width": 2.5}
SIMULATED: Final = {"color": theme.ACCENT, "width": 2, "dash": "dash"}
LOADS: Final = {True: (BELOW, "#3aa6a0"), False: (NEAR, "#e3a008")}
LEAST_S: Final = 1e-5
"""What is shorter stands at the left end of a logarithmic axis."""
MOMENTS: Final = 400


def cdf(validation: Validation, latency: str) -> go.Figure | None:
    """Both distributions of a latency; None if it is not known."""
    sides = _sides(validation, latency)
    if sides is None:
        return None
    simulated, real = (values[~np.isnan(values)] for values in sides)
    if not len(real):
        return None
    apart, at_s = _widest_gap(simulated, real)
    picture = theme.figure(
        LATENCIES[latency],
        "Height: share of requests at least this fast. Where the lines part, the simulation is off:"
        " to the left of the real one it is too fast.",
        f"The lines are at most {units.share(apart)} of the requests apart, at"
        f" {units.seconds(at_s)}.",
        height=270,
    )
    low_s = max(LEAST_S, float(min(simulated.min(), real.min())) / 1.15)
    high_s = max(float(max(simulated.max(), real.max())) * 1.15, low_s * 3)
    for name, values, line in (("real", real, REAL), ("simulated", simulated, SIMULATED)):
        values_s, levels = sketch(values)
        picture.add_scatter(
            x=np.maximum(values_s, low_s),
            y=100 * levels,
            name=name,
            mode="lines",
            line=line,
            text=[
                f"{name}: {units.share(level)} within {units.seconds(at)}"
                for level, at in zip(levels.tolist(), values_s.tolist(), strict=True)
            ],
            hovertemplate="%{text}<extra></extra>",
        )
    picture.update_xaxes(theme.log_seconds(low_s, high_s))
    picture.update_yaxes(
        range=[0, 104],
        tickvals=[0, 25, 50, 75, 100],
        ticktext=["0 %", "25 %", "50 %", "75 %", "100 %"],
    )
    picture.update_layout(margin={"l": 52, "r": 20, "t": 36, "b": 36})
    return picture


def scatter(validation: Validation, latency: str) -> go.Figure | None:
    """A latency request by request, simulated over real; None if it is not known."""
    sides = _sides(validation, latency)
    if sides is None:
        return None
    simulated, real = sides
    known = ~np.isnan(simulated) & ~np.isnan(real)
    if not known.any():
        return None
    found = validation.by_request.get(latency, {})
    correlation = found.get("correlation")
    picture = theme.figure(
        f"{LATENCIES[latency]}, request by request",
        "Each dot is a request; on the line, both took the same time. Below it the simulation is"
        " too fast.",
        f"Half of the requests are within {units.share(found.get('median_absolute_error'))}"
        + ("." if correlation is None else f", correlation {correlation:.3f}."),
        height=340,
    )
    simulated, real = np.maximum(simulated, LEAST_S), np.maximum(real, LEAST_S)
    low_s = float(min(simulated[known].min(), real[known].min())) / 1.2
    high_s = float(max(simulated[known].max(), real[known].max())) * 1.2
    picture.add_scatter(
        x=[low_s, high_s],
        y=[low_s, high_s],
        mode="lines",
        line={"color": theme.MUTED, "width": 1},
        hoverinfo="skip",
        showlegend=False,
    )
    below = validation.below
    for load, (name, colour) in LOADS.items():
        if below is None and load:
            continue
        which = known if below is None else known & (below == load)
        if not which.any():
            continue
        numbers = validation.real_served.request_id[which]
        picture.add_scattergl(
            x=real[which],
            y=simulated[which],
            name=name,
            showlegend=below is not None,
            mode="markers",
            marker={"color": theme.ACCENT if below is None else colour, "size": 5, "opacity": 0.6},
            text=[
                f"request {number}: real {units.seconds(there)}, simulated {units.seconds(here)}"
                for number, there, here in zip(
                    numbers.tolist(), real[which].tolist(), simulated[which].tolist(), strict=True
                )
            ],
            hovertemplate="%{text}<extra></extra>",
        )
    axis = theme.log_seconds(low_s, high_s)
    picture.update_xaxes(axis | {"title": {"text": "real"}})
    picture.update_yaxes(axis | {"title": {"text": "simulated"}})
    return picture


def over_time(
    validation: Validation, what: Literal["running", "waiting", "kv_occupancy"]
) -> go.Figure | None:
    """How full both engines were over time; None where one of them does not tell."""
    real, simulated = validation.real.timeline, validation.timeline
    if real is None or simulated is None:
        return None
    title, caption = {
        "running": ("Running requests", "Requests admitted and not done."),
        "waiting": ("Waiting requests", "Requests in the scheduler's queue."),
        "kv_occupancy": ("KV cache occupancy", "Share of the pool that requests hold."),
    }[what]
    end_s = float(max(validation.real_served.finish_s.max(), real.at_s[-1]))
    size, _ = theme.clock(end_s)
    moments = np.linspace(0.0, end_s, MOMENTS)
    share = 100.0 if what == "kv_occupancy" else 1.0
    there, here = (share * _at(side, what, moments) for side in (real, simulated))
    apart = float(np.abs(there - here).mean())
    picture = theme.figure(
        title,
        caption,
        f"On average {apart:.3g}{' percentage points' if what == 'kv_occupancy' else ''} apart.",
        height=260,
    )
    for name, values, line in (("real", there, REAL), ("simulated", here, SIMULATED)):
        picture.add_scatter(
            x=moments / size,
            y=values,
            name=name,
            mode="lines",
            line=line | {"width": 1.5},
            hovertemplate=f"{name} %{{y:,.3~r}}<extra></extra>",
        )
    picture.update_xaxes(theme.time_axis(end_s, "time"))
    picture.update_yaxes(rangemode="tozero", ticksuffix=" %" if what == "kv_occupancy" else "")
    picture.update_layout(hovermode="x unified", margin={"l": 52, "r": 20, "t": 36, "b": 44})
    return picture


def errors(validation: Validation) -> go.Figure:
    """Every error, with what of it may be chance."""
    found = {name: one for name, one in validation.figures.items() if one.error is not None}
    named = [_named(name) for name in found][::-1]
    rows = list(found.values())[::-1]
    worst = max(found, key=lambda name: abs(found[name].error or 0.0))
    picture = theme.figure(
        "Errors, and what of them may be chance",
        "Dot: simulated / real - 1. Thick bar: where the dot goes when arrivals move by the stated"
        " jitter; thin bar: when other requests of this kind come (95 % each). A bar across the"
        " zero line: chance is explanation enough.",
        f"The largest error is that of {_named(worst)}: {said(found[worst].error)}.",
        height=max(300, 60 + 19 * len(rows)),
    )
    for interval, width, colour, name in (
        ([one.jitter for one in rows], 8, "#8db9e3", "arrivals moved"),
        ([one.bootstrap for one in rows], 1.5, theme.INK, "other requests"),
    ):
        xs: list[float | None] = []
        ys: list[str | None] = []
        for row, ends in zip(named, interval, strict=True):
            if ends is not None:
                xs += [100 * ends[0], 100 * ends[1], None]
                ys += [row, row, None]
        if xs:
            picture.add_scatter(
                x=xs,
                y=ys,
                name=name,
                mode="lines",
                line={"color": colour, "width": width},
                hoverinfo="skip",
            )
    picture.add_scatter(
        x=[100 * (one.error or 0.0) for one in rows],
        y=named,
        name="error",
        mode="markers",
        marker={"color": theme.INK, "size": 7},
        text=[_hover(row, one) for row, one in zip(named, rows, strict=True)],
        hovertemplate="%{text}<extra></extra>",
    )
    picture.add_vline(0, line={"color": theme.MUTED, "width": 1})
    picture.update_xaxes(ticksuffix=" %", range=_range(rows))
    picture.update_yaxes(categoryorder="array", categoryarray=named, showgrid=False)
    return picture


def _named(name: str) -> str:
    figure, _, statistic = name.partition(".")
    if figure == "throughput":
        return {"requests_per_s": "Requests/s", "output_tokens_per_s": "Tokens/s"}[statistic]
    short = {"queue": "Queue wait"}.get(figure, figure.upper())
    return f"{short} {units.STATISTICS[statistic]}"


def _hover(name: str, one: Comparison) -> str:
    return f"{name}: {said(one.error)} ({one.simulated:.6g} simulated, {one.real:.6g} real)"


def _range(rows: list[Comparison]) -> list[float]:
    """An axis that shows every error and most intervals; a wild one may leave it."""
    shown = [abs(one.error or 0.0) for one in rows]
    reach = [max(map(abs, ends)) for one in rows for ends in (one.jitter, one.bootstrap) if ends]
    usual = max(4 * float(np.percentile(shown, 75)), 0.05)
    widest = max([*shown, min(max(reach, default=0.0), usual)])
    return [-110 * max(widest, 1e-3), 110 * max(widest, 1e-3)]


def _sides(validation: Validation, latency: str) -> tuple[Floats, Floats] | None:
    origin = validation.origin
    simulated = validation.simulated_served.latencies(origin).get(latency)
    real = validation.real_served.latencies(origin).get(latency)
    return None if simulated is None or real is None else (simulated, real)


def _widest_gap(one: Floats, other: Floats) -> tuple[float, float]:
    """The Kolmogorov-Smirnov distance of two samples, and where it is."""
    places = np.sort(np.concatenate([one, other]))
    shares = [
        np.searchsorted(np.sort(values), places, "right") / len(values) for values in (one, other)
    ]
    gap = np.abs(shares[0] - shares[1])
    widest = int(gap.argmax())
    return float(gap[widest]), float(places[widest])


def _at(side: Timeline, what: str, moments: Floats) -> Floats:
    """What was so at each moment; 0 before the first."""
    values: Any = getattr(side, what)
    at = np.searchsorted(side.at_s, moments, "right") - 1
    return np.where(at >= 0, values[np.maximum(at, 0)], 0.0)
