"""A plan for a terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from engine import units
from sim.planning import plan_words as words
from sim.planning.plan import Plan


def plan_table(plan: Plan) -> Group:
    """The plan: winner, margins, why, sensitivities, growth. Print it with rich."""
    parts: list[RenderableType] = [
        Text.assemble((plan.name, "bold"), (f"\n{words.design(plan)}", "dim")),
        *(Text(f"warning: {text}", style="yellow") for text in plan.warnings),
        Text(),
        Text(words.answer(plan), style="bold green" if plan.confident else "bold yellow"),
        _margins(plan),
        *(Text(text) for text in words.why(plan)),
    ]
    if plan.cheaper:
        parts += [Text(), Text("Nearest cheaper candidates", style="bold"), _cheaper(plan)]
    if plan.tornado is not None:
        parts += [Text(), Text("Sensitivities, each alone", style="bold"), _tornado(plan)]
    if plan.headroom is not None:
        parts += [Text(), Text(words.headroom(plan))]
    if plan.growth is not None:
        parts += [Text(words.growth(plan)), _growth(plan)]
    for title, name in (
        ("Front: cost against P99 TTFT", "cost_ttft"),
        ("Front: tokens/s/GPU against tokens/s/user", "gpu_user"),
    ):
        parts += [Text(), Text(title, style="bold"), _front(plan, name)]
        parts.append(Text(words.front(plan, plan.fronts[name]), style="dim"))
    return Group(*parts)


def _table(*columns: str) -> Table:
    """A table whose first column is text, the others numbers."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", overflow="fold")
    return table


def _margins(plan: Plan) -> Table:
    table = _table("objective", "winner", "left of the limit")
    for one in plan.objectives:
        figures = plan.winner.evaluation.figures
        table.add_row(
            one.name, one.shown(one.value(figures)), units.share(max(0.0, one.margin(figures)))
        )
    return table


def _cheaper(plan: Plan) -> Table:
    table = _table("candidate", "price", "misses")
    table.columns[2].justify = "left"
    for one in plan.cheaper:
        candidate = one.evaluation.candidate
        table.add_row(candidate.label, words.usd(candidate.usd_per_hour), words.cheaper(one))
    return table


def _tornado(plan: Plan) -> Table:
    assert plan.tornado is not None
    table = _table("if", "needs", "margin of the winner")
    table.columns[1].justify = "left"
    for one in plan.tornado.swings:
        margin = units.ABSENT
        if one.margin is not None:
            margin = _margin(one.margin)
            if one.binding:
                margin += f" ({one.binding})"
        table.add_row(one.label, words.swing(one, plan.tornado.usd_per_hour), margin)
    return table


def _margin(value: float) -> str:
    if value < -9.99:
        return "far beyond"
    return f"{100 * value:.0f} %"


def _growth(plan: Plan) -> Table:
    assert plan.growth is not None
    table = _table("month", "traffic", "replicas", "GPUs", "price", "beyond")
    shown = plan.winner.candidate.replicas
    for one in plan.growth.months:
        first = one.month == 0 or one.month == plan.growth.months[-1].month
        if not first and one.replicas == shown:
            continue
        shown = one.replicas
        table.add_row(
            str(one.month),
            f"x {one.rate:.2f}",
            units.count(one.replicas),
            units.count(one.gpus),
            words.usd(one.usd_per_hour),
            ", ".join(one.beyond),
        )
    return table


def _front(plan: Plan, name: str) -> Table:
    table = _table("candidate", "price", "P99 TTFT", "tok/s/GPU", "tok/s/user")
    for one in plan.fronts[name].points:
        figures = one.figures
        output = figures.get("throughput.output_tokens_per_s", 0.0)
        tpot = figures.get("latency.tpot_s.p50")
        table.add_row(
            one.candidate.label,
            words.usd(one.candidate.usd_per_hour),
            units.seconds(figures.get("latency.ttft_s.p99")),
            units.amount(output / one.candidate.gpus),
            units.amount(1 / tpot if tpot else None),
        )
    return table
