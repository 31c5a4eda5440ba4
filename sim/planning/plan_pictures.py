"""The pictures of a plan: fronts, margins, sensitivities, growth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import log10
from typing import Any, Final

import plotly.graph_objects as go

from engine import units
from sim.planning import plan_words as words
from sim.planning.evaluating import Evaluation
from sim.planning.pareto import OUTPUT, TPOT, TTFT
from sim.planning.plan import Plan
from sim.report import theme

GOOD: Final = "#1a7f5a"
GREY: Final = "#c3c9d3"
ROW_PX: Final = 34
MOST_MARGIN: Final = 1.0
LEAST_MARGIN: Final = -1.0
"""Margins are drawn between these: far beyond its limit is far beyond."""
LABEL_CHARACTERS: Final = 38

Of = Callable[[Evaluation], float | None]
"""A figure of a candidate."""


def pictures(plan: Plan) -> dict[str, go.Figure]:
    """Every picture by name; those that a plan has nothing for are left out."""
    drawn = {
        "margins": margins(plan),
        "front_cost_ttft": front_cost_ttft(plan),
        "front_gpu_user": front_gpu_user(plan),
        "tornado": tornado(plan),
        "growth": growth(plan),
    }
    return {name: picture for name, picture in drawn.items() if picture is not None}


def margins(plan: Plan) -> go.Figure:
    """How much of each limit is left, of the winner and of the runner-up."""
    figures = plan.winner.evaluation.figures
    left = [one.margin(figures) for one in plan.objectives]
    tight = min(range(len(left)), key=left.__getitem__)
    picture = theme.figure(
        "How far each objective is from binding",
        "Share of the limit that is left on the trace as it is: 0 binds. Hollow: the runner-up.",
        f"{plan.objectives[tight].name} is the tightest: {units.share(max(0.0, left[tight]))}"
        " left.",
        height=110 + ROW_PX * len(left),
    )
    names = [_broken(one.name) for one in plan.objectives]
    picture.add_bar(
        x=left,
        y=names,
        orientation="h",
        marker={
            "color": [theme.ACCENT if at != tight else theme.SERIES[1] for at in range(len(left))]
        },
        text=[f"{one.shown(one.value(figures))}" for one in plan.objectives],
        textposition="inside",
        insidetextanchor="start",
        hovertemplate="%{y}: %{x:.1%} left<extra></extra>",
        showlegend=False,
    )
    if plan.runner_up is not None:
        other = plan.runner_up.evaluation.figures
        picture.add_scatter(
            x=[max(LEAST_MARGIN, one.margin(other)) for one in plan.objectives],
            y=names,
            mode="markers",
            marker={"color": "white", "size": 10, "line": {"color": theme.INK, "width": 2}},
            text=[f"runner-up: {one.shown(one.value(other))}" for one in plan.objectives],
            hovertemplate="%{text}<extra></extra>",
            showlegend=False,
        )
    picture.update_xaxes(tickformat=".0%", range=[0, 1.02], rangemode="tozero")
    picture.update_yaxes(categoryorder="array", categoryarray=names[::-1], showgrid=False, ticks="")
    picture.update_layout(margin={"t": 16, "b": 36, "l": 20}, bargap=0.4)
    return picture


def front_cost_ttft(plan: Plan) -> go.Figure:
    """Dollars an hour against P99 TTFT."""
    front = plan.fronts["cost_ttft"]
    picture = theme.figure(
        "What more money buys: cost against P99 TTFT",
        "Line: the Pareto front of candidates that meet every objective; small dots: others that"
        f" do; crosses: replayed to the end, and miss one. {words.front(plan, front)}",
        _front_finding(plan),
        height=420,
    )
    _cloud(picture, plan, _usd, _ttft)
    _line(
        picture,
        plan,
        front.points,
        [one.candidate.usd_per_hour for one in front.points],
        [one.figures[TTFT] for one in front.points],
        step="hv",
    )
    every = [one.figures[TTFT] for one in _shown(plan) if TTFT in one.figures]
    limit = [one.limit for one in plan.objectives if one.figure == TTFT]
    low, high = min([*every, *limit]), max([*every, *limit])
    axis = theme.linear_seconds(high * 1.05)
    if low > 0 and log10(high / low) > 1:
        axis = theme.log_seconds(low / 1.2, high * 1.2)
    for one in limit:
        theme.slo_line(picture, one, "y")
    picture.update_yaxes(axis | {"title": {"text": "P99 TTFT"}})
    picture.update_xaxes(_dollars([one.candidate.usd_per_hour for one in _shown(plan)]))
    picture.update_layout(margin={"t": 40, "b": 52}, hovermode="closest")
    return picture


def front_gpu_user(plan: Plan) -> go.Figure:
    """Output tokens a second and GPU against tokens a second and user."""
    front = plan.fronts["gpu_user"]
    picture = theme.figure(
        "What throughput costs the user: tokens/s/GPU against tokens/s/user",
        "Output tokens a second and GPU, idle time included, over 1 / median TPOT. Line: the Pareto"
        f" front of candidates that meet every objective. {words.front(plan, front)}",
        _user_finding(plan),
        height=420,
    )

    def user(one: Evaluation) -> float | None:
        tpot = one.figures.get(TPOT)
        return 1 / tpot if tpot else None

    def per_gpu(one: Evaluation) -> float | None:
        output = one.figures.get(OUTPUT)
        return None if output is None else output / one.candidate.gpus

    _cloud(picture, plan, user, per_gpu)
    points = [one for one in front.points if user(one) is not None]
    _line(picture, plan, points, [user(one) for one in points], [per_gpu(one) for one in points])
    picture.update_xaxes(title={"text": "tokens/s/user"}, rangemode="tozero")
    picture.update_yaxes(title={"text": "tokens/s/GPU"}, rangemode="tozero")
    picture.update_layout(margin={"t": 40, "b": 52}, hovermode="closest")
    return picture


def tornado(plan: Plan) -> go.Figure | None:
    """What each assumption does to the cost and to the least margin."""
    found = plan.tornado
    if found is None:
        return None
    from plotly.subplots import make_subplots

    factors = list(dict.fromkeys(one.factor for one in found.swings))
    costs = [abs((one.usd_per_hour or 0.0) - found.usd_per_hour) for one in found.swings]
    heaviest = max(
        found.swings, key=lambda one: abs((one.usd_per_hour or 1e9) - found.usd_per_hour)
    )
    finding = "No assumption changes the number of replicas within these ranges."
    if any(round(one, 2) for one in costs):
        finding = f"{heaviest.label}: {words.swing(heaviest, found.usd_per_hour)}."
    frame = theme.figure(
        "What the answer depends on",
        f"Each assumption varied alone. Left: the cheapest fleet of the winner's configuration on"
        f" the trace as it is ({words.usd(found.usd_per_hour)} with all as stated). Right: the"
        " winner's least margin; below 0 an objective is missed (drawn down to -100 %).",
        finding,
        height=150 + 44 * len(factors),
    )
    picture: go.Figure = make_subplots(
        cols=2, shared_yaxes=True, horizontal_spacing=0.04, subplot_titles=("$/h", "least margin")
    )
    picture.update_annotations(font={"size": 12, "color": theme.MUTED})
    picture.update_layout(frame.layout)
    labels = factors
    for lower in (True, False):
        swings = [
            next(
                (one for one in found.swings if one.factor == f and (one.change < 0) == lower), None
            )
            for f in factors
        ]
        colour = theme.SERIES[2] if lower else theme.SERIES[1]
        name = "lower (off)" if lower else "higher"
        none = [one is not None and one.usd_per_hour is None for one in swings]
        picture.add_bar(
            y=labels,
            x=[
                0.0
                if one is None or one.usd_per_hour is None
                else one.usd_per_hour - found.usd_per_hour
                for one in swings
            ],
            base=found.usd_per_hour,
            orientation="h",
            name=name,
            legendgroup=name,
            marker={"color": colour},
            text=[
                "none does" if no else _change(one, found.usd_per_hour)
                for one, no in zip(swings, none, strict=True)
            ],
            textposition="auto",
            hovertext=[
                "" if one is None else f"{one.label}: {words.swing(one, found.usd_per_hour)}"
                for one in swings
            ],
            hovertemplate="%{hovertext}<extra></extra>",
            row=1,
            col=1,
        )
        ends = [None if one is None else _drawn(one.margin) for one in swings]
        base = _drawn(found.margin) or 0.0
        picture.add_bar(
            y=labels,
            x=[None if end is None else end - base for end in ends],
            base=base,
            orientation="h",
            name=name,
            legendgroup=name,
            showlegend=False,
            marker={"color": colour},
            hovertext=[
                ""
                if one is None or one.margin is None
                else f"{one.label}: margin {100 * one.margin:.0f} % {one.binding}"
                for one in swings
            ],
            hovertemplate="%{hovertext}<extra></extra>",
            row=1,
            col=2,
        )
    plain: Any = {"color": theme.INK, "width": 1}
    limit: Any = {"color": theme.ALARM, "width": 1.5, "dash": "dash"}
    left: Any = {"row": 1, "col": 1}
    right: Any = {"row": 1, "col": 2}
    picture.add_vline(found.usd_per_hour, line=plain, **left)
    picture.add_vline(_drawn(found.margin), line=plain, **right)
    picture.add_vline(0, line=limit, **right)
    picture.update_yaxes(
        categoryorder="array", categoryarray=labels[::-1], showgrid=False, ticks=""
    )
    known = [one.usd_per_hour for one in found.swings if one.usd_per_hour is not None]
    low, high = min([*known, found.usd_per_hour]), max([*known, found.usd_per_hour])
    room = 0.12 * (high - low) or 0.1 * high or 1.0
    picture.update_xaxes(tickprefix="$", range=[low - room, high + room], row=1, col=1)
    picture.update_xaxes(tickformat=".0%", row=1, col=2)
    picture.update_layout(barmode="overlay", bargap=0.35, margin={"t": 64, "b": 36, "l": 20},
                          legend={"y": 1.12})  # fmt: skip
    return picture


def growth(plan: Plan) -> go.Figure | None:
    """Replicas and price month by month."""
    grown = plan.growth
    if grown is None:
        return None
    months = [one.month for one in grown.months]
    picture = theme.figure(
        "Growth: what each month takes",
        f"Replicas of the winner's configuration as traffic grows {grown.percent_a_month:g} % a"
        " month, and what they cost; never fewer than are bought. Objectives are checked on the"
        " trace as it is, at that rate.",
        words.growth(plan),
        height=340,
    )
    picture.add_bar(
        x=months,
        y=[one.usd_per_hour for one in grown.months],
        marker={"color": [theme.ACCENT if one.met else theme.SERIES[1] for one in grown.months]},
        text=[units.count(one.replicas) for one in grown.months],
        textposition="outside",
        hovertext=[
            f"month {one.month}: traffic x {one.rate:.2f}, {units.count(one.replicas)} replicas,"
            f" {words.usd(one.usd_per_hour)}"
            + (f", exceeds {', '.join(one.beyond)}" if one.beyond else "")
            for one in grown.months
        ],
        hovertemplate="%{hovertext}<extra></extra>",
        showlegend=False,
    )
    broken = grown.breaks
    if broken is not None:
        picture.add_vline(
            broken.month - 0.5,
            line={"color": theme.ALARM, "width": 1.5, "dash": "dash"},
            label={
                "text": f"misses {', '.join(broken.missed)}",
                "font": {"color": theme.ALARM, "size": 11},
                "textposition": "end",
                "textangle": 0,
                "xanchor": "right",
            },
        )
    highest = max((one.usd_per_hour or 0.0 for one in grown.months), default=0.0)
    dtick = 1 if len(months) <= 25 else 6
    picture.update_xaxes(title={"text": "month (0: today); on the bars: replicas"}, dtick=dtick)
    picture.update_yaxes(tickprefix="$", ticksuffix="/h", range=[0, 1.15 * highest or 1.0])
    picture.update_layout(margin={"t": 24, "b": 52})
    return picture


def _usd(one: Evaluation) -> float:
    return one.candidate.usd_per_hour


def _ttft(one: Evaluation) -> float | None:
    return one.figures.get(TTFT)


def _shown(plan: Plan) -> list[Evaluation]:
    """The candidates that were replayed to the end."""
    every = {one.candidate.identity: one for one in plan.judge.evaluated.values()}
    every |= {one.evaluation.candidate.identity: one.evaluation for one in plan.cheaper}
    return [one for one in every.values() if not one.stopped and not one.error]


def _cloud(picture: go.Figure, plan: Plan, x: Of, y: Of) -> None:
    """Every candidate that was replayed to the end."""
    for met, name, symbol in (
        (True, "meets every objective", "circle"),
        (False, "misses", "x-thin"),
    ):
        found = [
            one
            for one in _shown(plan)
            if one.met == met and x(one) is not None and y(one) is not None
        ]
        if not found:
            continue
        picture.add_scatter(
            x=[x(one) for one in found],
            y=[y(one) for one in found],
            mode="markers",
            name=name,
            marker={
                "symbol": symbol,
                "size": 6,
                "color": "#8db9e3" if met else GREY,
                "line": {"width": 0 if met else 1.5, "color": GREY},
            },
            text=[_hover(one) for one in found],
            hovertemplate="%{text}<extra></extra>",
        )


def _line(
    picture: go.Figure,
    plan: Plan,
    points: Sequence[Evaluation],
    xs: Sequence[Any],
    ys: Sequence[Any],
    step: str = "linear",
) -> None:
    """A front, the winner marked."""
    picture.add_scatter(
        x=xs,
        y=ys,
        mode="lines+markers",
        name="Pareto front",
        line={"color": theme.ACCENT, "width": 2.5, "shape": step},
        marker={"size": 8},
        text=[_hover(one) for one in points],
        hovertemplate="%{text}<extra></extra>",
    )
    winner = plan.winner.evaluation
    tpot = winner.figures.get(TPOT)
    at = (
        (winner.candidate.usd_per_hour, winner.figures.get(TTFT))
        if step == "hv"
        else (
            1 / tpot if tpot else None,
            winner.figures.get(OUTPUT, 0.0) / winner.candidate.gpus,
        )
    )
    picture.add_scatter(
        x=[at[0]],
        y=[at[1]],
        mode="markers",
        name="winner",
        marker={
            "symbol": "star",
            "size": 16,
            "color": GOOD,
            "line": {"color": "white", "width": 1},
        },
        text=[_hover(winner)],
        hovertemplate="%{text}<extra></extra>",
    )


def _hover(one: Evaluation) -> str:
    figures = one.figures
    tpot = figures.get(TPOT)
    return (
        f"<b>{one.candidate.label}</b><br>{words.usd(one.candidate.usd_per_hour)},"
        f" {one.candidate.gpus} GPUs<br>P99 TTFT {units.seconds(figures.get(TTFT))},"
        f" median TPOT {units.seconds(tpot)}<br>"
        f"{units.amount(figures.get(OUTPUT, 0.0) / one.candidate.gpus)} tok/s/GPU"
    )


def _front_finding(plan: Plan) -> str:
    points = plan.fronts["cost_ttft"].points
    if len(points) < 2:
        return ""
    first, last = points[0], points[-1]
    price = last.candidate.usd_per_hour / first.candidate.usd_per_hour
    faster = first.figures[TTFT] / last.figures[TTFT]
    return (
        f"{units.seconds(first.figures[TTFT])} for {words.usd(first.candidate.usd_per_hour)}, down"
        f" to {units.seconds(last.figures[TTFT])} for {words.usd(last.candidate.usd_per_hour)}:"
        f" {faster:.1f} times as fast for {price:.1f} times the money."
    )


def _user_finding(plan: Plan) -> str:
    points = plan.fronts["gpu_user"].points
    if len(points) < 2:
        return ""
    first, last = points[0], points[-1]
    return (
        f"From {units.amount(first.figures[OUTPUT] / first.candidate.gpus)} tok/s/GPU at"
        f" {units.amount(1 / first.figures[TPOT])} tok/s/user to"
        f" {units.amount(last.figures[OUTPUT] / last.candidate.gpus)} at"
        f" {units.amount(1 / last.figures[TPOT])}."
    )


def _change(one: Any, usd: float) -> str:
    if one is None or one.usd_per_hour is None:
        return ""
    change = one.usd_per_hour - usd
    if not round(change, 2):
        return ""
    return f"{'+' if change > 0 else '−'}${abs(change):,.2f}"  # noqa: RUF001 a minus


def _drawn(margin: float | None) -> float | None:
    return None if margin is None else min(MOST_MARGIN, max(LEAST_MARGIN, margin))


def _dollars(found: Sequence[float]) -> dict[str, Any]:
    low, high = min(found), max(found)
    axis: dict[str, Any] = {"tickprefix": "$", "title": {"text": "price of the fleet, $/h"}}
    if low > 0 and high > 15 * low:
        decades = [s * 10.0**e for e in range(-2, 6) for s in (1, 2, 5)]
        marks = [one for one in decades if low / 1.3 <= one <= high * 1.3]
        return axis | {
            "type": "log",
            "range": [log10(low / 1.2), log10(high * 1.2)],
            "tickvals": marks,
            "ticktext": [f"{one:g}" for one in marks],
        }
    return axis | {"rangemode": "tozero"}


def _broken(label: str) -> str:
    words_: list[str] = [""]
    for word in label.split(" "):
        if len(words_[-1]) + len(word) > LABEL_CHARACTERS:
            words_.append("")
        words_[-1] = f"{words_[-1]} {word}".strip()
    return "<br>".join(words_)
