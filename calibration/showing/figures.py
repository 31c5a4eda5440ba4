"""Pictures of a fit: measured beside predicted, what is left over, places on the roofline."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, floor, log10
from typing import Any, Final

import numpy as np
import plotly.graph_objects as go
import polars as pl
from numpy.typing import NDArray

from calibration.arithmetic import Arithmetic
from calibration.fitted import FittedSettings
from calibration.fitting.prediction import FEATURES, kind_of_step, predicted_s
from calibration.profiles import Profile
from engine import units
from engine.shapes import linear_bytes

KINDS: Final = {"prefill": "#0b5cad", "mixed": "#a8518a", "decode": "#3aa6a0"}
"""Colour of each kind of step."""

INK: Final = "#1b2432"
GRID: Final = "#e8ebf0"
ODD: Final = "#b3261e"

MOST_POINTS: Final = 20_000
"""Steps drawn; of more, every n-th."""

HEIGHT: Final = 440


@dataclass(frozen=True)
class Picture:
    """A figure and what to say of it."""

    title: str
    finding: str
    """What these steps show."""
    caption: str
    """How to read it."""
    figure: go.Figure


def pictures(profile: Profile, steps: pl.DataFrame) -> dict[str, Picture]:
    """All pictures by name; the roofline is left out where nothing is known to draw it by.

    Args:
        profile: any that has a cost.
        steps: the step frame it was fitted to, or another of the same model and device.
    """
    cost = profile.cost_model(
        async_scheduling=profile.fit is not None and profile.fit.async_scheduling
    )
    drawn = steps.gather_every(-(-steps.height // MOST_POINTS) or 1)
    drawn = drawn.with_columns(kind=kind_of_step(), predicted_s=predicted_s(cost, drawn))
    drawn = drawn.with_columns(residual=pl.col("time_s") / pl.col("predicted_s") - 1)
    found = {"predictions": _predictions(drawn), "residuals": _residuals(drawn)}
    if (arithmetic := profile.arithmetic or _measured_ceilings(profile)) is not None:
        found["roofline"] = _roofline(drawn, arithmetic, profile.arithmetic is not None)
    return found


def _predictions(steps: pl.DataFrame) -> Picture:
    low, high = (
        float(np.quantile(steps.select("time_s", "predicted_s").to_numpy(), share))
        for share in (0.0, 1.0)
    )
    figure = _figure("predicted", "measured", {"type": "log"})
    figure.add_scatter(
        x=[low, high],
        y=[low, high],
        mode="lines",
        line={"color": INK, "width": 1},
        name="equal",
        hoverinfo="skip",
    )
    _points(figure, steps, "predicted_s", "time_s")
    for update in (figure.update_xaxes, figure.update_yaxes):
        update(**_seconds(low, high))
    off = steps.filter(~pl.col("outlier"))["residual"].abs().to_numpy()
    return Picture(
        "Measured and predicted",
        f"Half of the {len(off):,} steps drawn are within {units.share(float(np.median(off)))} of"
        f" the prediction, 95 % within {units.share(float(np.quantile(off, 0.95)))}.",
        "Each point is a step; on the line it took what is predicted. Open points were held out of"
        " the fit, crosses are marked as outliers and were left out of it.",
        figure,
    )


def _residuals(steps: pl.DataFrame) -> Picture:
    figure = _figure("tokens of the step", "measured / predicted - 1", {"type": "log"})
    figure.add_hline(0.0, line={"color": INK, "width": 1})
    tokens = pl.col("decodes") + pl.col("prefill_tokens")
    context = pl.col("decode_context_tokens") + pl.col("prefill_context_tokens")
    steps = steps.with_columns(tokens=tokens, context=context)
    by_tokens = _points(figure, steps, "tokens", "residual")
    by_context = _points(figure, steps, "context", "residual", visible=False)
    of_tokens = [True] * by_tokens + [False] * by_context
    figure.update_layout(
        updatemenus=[
            {
                "type": "buttons",
                "direction": "right",
                "x": 1,
                "xanchor": "right",
                "y": 1.14,
                "buttons": [
                    _button("by tokens", of_tokens, "tokens of the step"),
                    _button("by context", [not one for one in of_tokens], "tokens attended to"),
                ],
            }
        ]
    )
    reach = max(0.02, float(np.quantile(steps["residual"].abs().to_numpy(), 0.99))) * 1.2
    figure.update_yaxes(tickformat=".0%", range=[-reach, reach])
    mean = float(steps.filter(~pl.col("outlier"))["residual"].to_numpy().mean())
    return Picture(
        "What the prediction leaves over",
        f"On average steps take {abs(100 * mean):.2f} % {'more' if mean > 0 else 'less'} than"
        " predicted.",
        "A band around zero without a trend is noise; a slope or an arch along the axis is what the"
        " cost does not know. One in a hundred steps may lie outside the frame.",
        figure,
    )


def _roofline(steps: pl.DataFrame, arithmetic: Arithmetic, from_data: bool) -> Picture:
    column = {name: steps[name].to_numpy() for name in FEATURES}
    flops, moved = arithmetic.work(
        column["decodes"],
        column["decode_context_tokens"],
        column["prefill_tokens"],
        column["prefill_context_tokens"],
        column["prefill_pairs"],
        column["decodes"] + column["prefills"],
    )
    seconds = steps.select(pl.coalesce("device_s", "time_s")).to_series().to_numpy()
    steps = steps.with_columns(intensity=pl.Series(flops / moved), speed=pl.Series(flops / seconds))
    peak, bandwidth = arithmetic.peak_flops_per_s, arithmetic.memory_bytes_per_s
    ridge = peak / bandwidth
    low = min(float(np.min(flops / moved)), ridge / 10)
    high = max(float(np.max(flops / moved)), ridge * 3)
    figure = _figure("FLOP a byte", "FLOP/s", {"type": "log"})
    figure.add_scatter(
        x=[low, ridge, high],
        y=[low * bandwidth, peak, peak],
        mode="lines",
        line={"color": INK, "width": 2},
        name=f"{units.amount(bandwidth, 'B/s')}, {units.amount(peak, 'FLOP/s')}",
        hoverinfo="skip",
    )
    _points(figure, steps, "intensity", "speed")
    figure.update_xaxes(**_decades(low, high))
    figure.update_yaxes(
        **_decades(float(np.min(flops / seconds)), max(peak, float(np.max(flops / seconds))))
    )
    nearest = np.maximum(flops / peak, moved / bandwidth) / seconds
    roof = (
        "The roof is the device's."
        if from_data
        else ("The device states no ceilings: the roof is the most that the coefficients reach.")
    )
    return Picture(
        "Steps on the roofline",
        f"The median step reaches {units.share(float(np.median(nearest)))} of the nearer ceiling.",
        "Right: more arithmetic for each byte; up: faster. Under the slanted roof steps are bound"
        f" by memory, under the flat one by arithmetic; the gap to it is overhead. {roof}",
        figure,
    )


def _measured_ceilings(profile: Profile) -> Arithmetic | None:
    """The most that fitted coefficients reach, for a device that states nothing."""
    cost, shape, tp = profile.cost, profile.shape, profile.tp
    if not isinstance(cost, FittedSettings):
        return None

    def most(**amounts: float) -> float:
        rates = [
            amount / cost.coefficient(term).value
            for term, amount in amounts.items()
            if cost.coefficient(term).value
        ]
        return max(rates, default=0.0)

    kv_bytes = shape.kv_bytes_per_token(profile.kv_dtype, tp)
    weights = linear_bytes(shape.common_weights(tp), profile.weight_dtype)
    bytes_per_s = most(weights_s=weights, context_s=kv_bytes, prefill_context_s=kv_bytes)
    flops_per_s = most(
        token_s=shape.gemm_flops_per_token(tp), pair_s=shape.attention_flops_per_pair(tp)
    )
    if not bytes_per_s or not flops_per_s:
        return None
    return Arithmetic(shape, tp, profile.weight_dtype, profile.kv_dtype, flops_per_s, bytes_per_s)


def _points(figure: go.Figure, steps: pl.DataFrame, x: str, y: str, *, visible: bool = True) -> int:
    """A trace for each kind of step and for outliers; held-out steps have open markers.

    Returns:
        How many traces there are to draw.
    """
    odd = pl.col("outlier")
    groups = [
        (
            f"{kind}, held out" if held_out else kind,
            colour,
            "circle-open" if held_out else "circle",
            steps.filter(~odd & (pl.col("kind") == kind) & (pl.col("held_out") == held_out)),
        )
        for kind, colour in KINDS.items()
        for held_out in (False, True)
    ]
    groups.append(("outlier", ODD, "x-thin-open", steps.filter(odd)))
    groups = [group for group in groups if group[-1].height]
    for name, colour, symbol, mine in groups:
        figure.add_scatter(
            x=_digits(mine[x]),
            y=_digits(mine[y]),
            mode="markers",
            name=name,
            visible=visible,
            marker={"color": colour, "size": 6, "opacity": 0.65, "symbol": symbol},
            text=[_tooltip(row) for row in mine.iter_rows(named=True)],
            hovertemplate="%{text}<extra></extra>",
        )
    return len(groups)


def _tooltip(step: dict[str, Any]) -> str:
    parts: list[str] = []
    if step["decodes"]:
        each = step["decode_context_tokens"] / step["decodes"]
        parts.append(f"{step['decodes']} decodes of {each:,.0f} tokens")
    if step["prefills"]:
        parts.append(
            f"{step['prefill_tokens']:,} tokens in {step['prefills']} chunks,"
            f" {step['prefill_context_tokens'] - step['prefill_tokens']:,} before them"
        )
    taken, foretold = units.seconds(step["time_s"]), units.seconds(step["predicted_s"])
    return "<br>".join([*parts, f"{taken}, predicted {foretold} ({100 * step['residual']:+.1f} %)"])


def _digits(values: pl.Series) -> NDArray[np.float64]:
    """Five significant digits: the page is a third smaller."""
    return values.cast(pl.Float64).round_sig_figs(5).to_numpy()


def _button(label: str, visible: list[bool], axis: str) -> dict[str, Any]:
    return {
        "label": label,
        "method": "update",
        "args": [{"visible": visible}, {"xaxis.title.text": axis}],
    }


def _seconds(low: float, high: float) -> dict[str, Any]:
    """A logarithmic axis with 1, 2 and 5 of each decade marked, in the unit that suits."""
    marks = [
        step * 10.0**decade
        for decade in range(floor(log10(low)), ceil(log10(high)) + 1)
        for step in (1, 2, 5)
    ]
    return _decades(low, high) | {
        "dtick": None,
        "tickvals": marks,
        "ticktext": [units.limit(mark) for mark in marks],
    }


def _decades(low: float, high: float) -> dict[str, Any]:
    return {"type": "log", "range": [log10(low) - 0.1, log10(high) + 0.1], "dtick": 1}


def _figure(x: str, y: str, xaxis: dict[str, Any]) -> go.Figure:
    axis: dict[str, Any] = {"gridcolor": GRID, "zeroline": False, "automargin": True}
    return go.Figure(
        layout={
            "xaxis": axis | xaxis | {"title": {"text": x}, "exponentformat": "SI"},
            "yaxis": axis | {"title": {"text": y}, "exponentformat": "SI"},
            "plot_bgcolor": "white",
            "paper_bgcolor": "white",
            "font": {"family": "system-ui, sans-serif", "size": 12, "color": INK},
            "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
            "margin": {"l": 56, "r": 16, "t": 64, "b": 44},
            "height": HEIGHT,
        }
    )
