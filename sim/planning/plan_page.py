"""A plan as one HTML file that opens anywhere, without a network."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Final

import plotly.graph_objects as go
import yaml

from engine import units
from sim.planning import plan_words as words
from sim.planning.evaluating import Evaluation
from sim.planning.pareto import OUTPUT, TPOT, TTFT
from sim.planning.plan import Plan
from sim.planning.plan_pictures import pictures
from sim.report.fragments import table
from sim.report.page import page_of
from sim.report.panels import panel
from traces.settings import to_yaml
from traces.version import installed_version

STYLE: Final = """
.why { margin: 0; padding-left: 1.1em; }
.why li { margin: 4px 0; }
td:first-child { white-space: normal; min-width: 14em; }
.wrap td, .wrap th { white-space: normal; }
.wrap td:last-child, .wrap th:last-child { text-align: left; }
.panel + .panel { margin-top: 12px; }
.grid .panel + .panel { margin-top: 0; }
"""


def page(plan: Plan) -> str:
    """The page as text; the same plan gives the same bytes."""
    drawn = pictures(plan)
    sections = {
        "winner": ("The winner", _cards(plan) + _why(plan) + _panels(drawn, "margins")),
        "cheaper": ("Why nothing cheaper", _cheaper(plan)),
        "fronts": ("Fronts", _fronts(plan, drawn)),
    }
    if plan.tornado is not None:
        sections["sensitivities"] = ("Sensitivities", _panels(drawn, "tornado") + _swings(plan))
    if plan.growth is not None or plan.headroom is not None:
        room = f'<div class="panel"><p class="finding">{escape(words.headroom(plan))}</p></div>'
        sections["growth"] = (
            "Head-room and growth",
            (room if plan.headroom is not None else "") + _panels(drawn, "growth"),
        )
    sections["method"] = ("How it was found", _method(plan))
    sections["plan"] = ("Plan and scenario", _stated(plan))
    return page_of(
        brand="plan",
        name=plan.name,
        title=f"{plan.name}, planned",
        answer=escape(words.answer(plan)),
        setting=escape(words.design(plan)),
        banners=_banners(plan),
        sections=sections,
        drawn=drawn,
        version=installed_version(),
        style=STYLE,
    )


def summary_html(plan: Plan) -> str:
    """The winner, its margins and why it wins: what a notebook shows."""
    return (
        f"<p><b>{escape(words.answer(plan))}</b></p>{_margins(plan)}"
        f'<ul class="why">{"".join(f"<li>{escape(text)}</li>" for text in words.why(plan))}</ul>'
        f"<p>{escape(words.headroom(plan))} {escape(words.growth(plan))}</p>"
    )


def _panels(drawn: Mapping[str, go.Figure], *names: str) -> str:
    return "".join(panel(name, drawn[name], wide=True) for name in names if name in drawn)


def _banners(plan: Plan) -> str:
    made: list[str] = []
    if not plan.confident:
        made.append(
            '<div class="banner alarm" role="alert"><b>Not sure enough</b>No candidate meets every'
            f" objective on {100 * plan.settings.confidence.share:g} % of redrawn traffic. Shown is"
            " the cheapest on the trace as it is.</div>"
        )
    if plan.method == "optuna":
        made.append(
            '<div class="banner warning" role="note">Not exhaustive: Optuna tried'
            f" {plan.tried:,} of {plan.configurations:,} configurations.</div>"
        )
    made += [
        f'<div class="banner warning" role="note">{escape(text)}</div>' for text in plan.warnings
    ]
    return "\n".join(made)


def _cards(plan: Plan) -> str:
    winner = plan.winner
    one, figures = winner.candidate, winner.evaluation.figures
    held = winner.redrawn
    interval = held.interval(plan.settings.confidence.level) if held is not None else None
    millions = figures.get("economics.usd_per_million_tokens")
    room = plan.headroom
    made = [
        _card("Fleet", f"{one.gpus} <small>x {escape(one.configuration.gpu)}</small>",
              f"{one.replicas} replicas of tp {one.configuration.profile.tp}"),
        _card("Price", f"${one.usd_per_hour:,.2f} <small>/h</small>",
              words.usd_a_month(one.usd_per_hour)),
        _card("Per 1M tokens", units.ABSENT if millions is None else f"${millions:,.2f}",
              "input and output, on this trace"),
        _card("Least margin", words.choice_margin(winner), "of the tightest objective's limit"),
        _card(
            "Redrawn traffic",
            units.ABSENT if held is None else f"{held.met} <small>of {len(held.results)}</small>",
            "not asked for" if held is None else "met every objective"
            + ("" if interval is None else f"; {100 * interval[0]:.0f} to"
               f" {100 * interval[1]:.0f} % ({100 * plan.settings.confidence.level:g} % interval)"),
        ),
        _card(
            "Head-room",
            units.ABSENT if room is None else f"+{100 * (room.factor - 1):.0f} <small>%</small>",
            "" if room is None else "more traffic until an objective is missed",
        ),
    ]  # fmt: skip
    return f'<div class="cards">{"".join(made)}</div>'


def _card(label: str, value: str, note: str) -> str:
    return (
        f'<div class="card"><div class="label">{escape(label)}</div>'
        f'<div class="value">{value}</div><div class="note">{escape(note)}</div></div>'
    )


def _why(plan: Plan) -> str:
    items = "".join(f"<li>{escape(text)}</li>" for text in words.why(plan))
    return f'<div class="panel"><ul class="why">{items}</ul></div>'


def _margins(plan: Plan) -> str:
    figures = plan.winner.evaluation.figures
    return table(
        ["Objective", "Winner", "Left of the limit"],
        [
            [one.name, one.shown(one.value(figures)), units.share(max(0.0, one.margin(figures)))]
            for one in plan.objectives
        ],
    )


def _cheaper(plan: Plan) -> str:
    if not plan.cheaper:
        return '<p class="absent">No candidate of the space is cheaper.</p>'
    rows = [
        [
            one.evaluation.candidate.label,
            words.usd(one.evaluation.candidate.usd_per_hour),
            words.cheaper(one),
        ]
        for one in plan.cheaper
    ]
    head = ["Nearest cheaper candidate", "Price", "Misses"]
    return f'<div class="wrap">{table(head, rows)}</div>'


def _fronts(plan: Plan, drawn: Mapping[str, go.Figure]) -> str:
    parts = [_panels(drawn, "front_cost_ttft", "front_gpu_user")]
    for title, name in (
        ("Cost against P99 TTFT", "cost_ttft"),
        ("Tokens/s/GPU against tokens/s/user", "gpu_user"),
    ):
        rows = [_front_row(one) for one in plan.fronts[name].points]
        head = [title, "Price", "P99 TTFT", "tok/s/GPU", "tok/s/user"]
        parts.append(
            f"<details><summary>{title}: the points</summary>{table(head, rows)}</details>"
        )
    return "".join(parts)


def _front_row(one: Evaluation) -> list[str]:
    tpot = one.figures.get(TPOT)
    return [
        one.candidate.label,
        words.usd(one.candidate.usd_per_hour),
        units.seconds(one.figures.get(TTFT)),
        units.amount(one.figures.get(OUTPUT, 0.0) / one.candidate.gpus),
        units.amount(1 / tpot if tpot else None),
    ]


def _swings(plan: Plan) -> str:
    assert plan.tornado is not None
    rows: list[list[str]] = []
    for one in plan.tornado.swings:
        margin = units.ABSENT
        if one.margin is not None:
            margin = "far beyond" if one.margin < -9.99 else f"{100 * one.margin:.0f} %"
        rows.append([one.label, words.swing(one, plan.tornado.usd_per_hour), margin, one.binding])
    head = ["If", "the winner's configuration needs", "the winner's least margin is", "of"]
    return f'<details open class="wrap"><summary>Each alone</summary>{table(head, rows)}</details>'


def _method(plan: Plan) -> str:
    confidence = plan.settings.confidence
    said = [words.design(plan)]
    if confidence.redraws:
        said.append(
            f"The cheapest candidate is taken that meets every objective on the trace and on at"
            f" least {100 * confidence.share:g} % of {confidence.redraws} redrawn traces"
            f" ({words.redrawing(plan)}), the same for all candidates. Of equal prices the larger"
            " least margin decides, then fewer GPUs, fewer replicas, and the order of the space."
        )
    said.append(
        "Sensitivities, head-room and growth replay the trace as it is, altered in one respect; the"
        " rate is changed by compressing time, which keeps the shape of bursts."
    )
    counts = "".join(
        f"<div><dt>{escape(what)}</dt><dd>{count:,}</dd></div>"
        for what, count in plan.replays.items()
    )
    dropped = "".join(
        f"<li>{one.candidates:,} candidates, {escape(one.reason)}: {escape(one.example)}</li>"
        for one in plan.dropped
    )
    left_out = f'<p class="finding">Left out:</p><ul class="why">{dropped}</ul>' if dropped else ""
    paragraphs = "".join(f'<p class="finding">{escape(text)}</p>' for text in said)
    return (
        f'<div class="panel">{paragraphs}{left_out}</div><div class="panel">'
        '<p class="finding">Replays, by what they were for:</p>'
        f'<dl class="facts">{counts}</dl></div>'
    )


def _stated(plan: Plan) -> str:
    stated = yaml.safe_dump(
        plan.settings.model_dump(mode="json", exclude_unset=True),
        sort_keys=False,
        allow_unicode=True,
        width=100,
    )
    return (
        f"<details><summary>The plan, as stated</summary><pre>{escape(stated)}</pre></details>"
        f"<details><summary>The winner's scenario (winner.yaml): kvcast replay of it gives these"
        f" figures</summary><pre>{escape(to_yaml(plan.scenario))}</pre></details>"
    )
