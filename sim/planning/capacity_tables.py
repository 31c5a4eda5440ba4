"""A capacity in words and rows, for a terminal and for the page."""

from __future__ import annotations

from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from engine import units
from sim.planning.binding import MORE, RESOURCES, Experiment
from sim.planning.capacity import Capacity
from sim.planning.rates import WAYS

STYLES: Final = {"met": "green", "missed": "red", "undecided": "yellow"}
"""How a verdict looks on a terminal."""

MORE_WORDS: Final = f"{round(100 * (MORE - 1), 6):g} %"

EVIDENCE: Final = {
    "utilization": "busy",
    "waiting": "somebody waits",
    "kv_full": "somebody waits, KV memory full",
    "sequences_full": "somebody waits, as many sequences run as may",
    "tokens_full": "steps with as many tokens as may be",
    "kv.mean_occupancy": "KV memory in use, on average",
    "kv.peak_occupancy": "KV memory in use, at most",
}
"""Shares that say how full a resource was, in words; all but the first and the last two of busy
time."""


def capacity_table(found: Capacity) -> Group:
    """The capacity for a terminal. Print it with rich."""
    parts: list[RenderableType] = [
        Text.assemble((found.name, "bold"), (f"\n{setting(found)}", "dim")),
        *(Text(f"warning: {text}", style="yellow") for text in found.warnings),
        Text(),
        Text(answer(found), style="bold"),
        Text(per_gpu(found)),
    ]
    said = bound(found)
    if said:
        parts.append(Text(said))
    parts += [Text(), _decisions(found), Text(), Text(method(found), style="dim")]
    return Group(*parts)


def setting(found: Capacity) -> str:
    """What was asked, in a line."""
    objectives = ", ".join(one.name for one in found.objectives)
    replicas = f"{found.replicas:,} replica{'s' if found.replicas > 1 else ''}"
    return f"{objectives}; {replicas} of {found.scenario.profile}; {WAYS[found.by]}"


def answer(found: Capacity) -> str:
    """The rate and how sure it is."""
    rate = units.amount(found.rate_per_s, "requests/s")
    times = f"{found.rate_per_s / found.own_rate_per_s:.3g} times the trace's own rate"
    if found.confidence is None:
        high = units.amount(found.high_per_s or found.rate_per_s, "requests/s")
        return f"Sustains {rate} ({times}); at {high} an objective is missed."
    ends = interval(found)
    wide = (
        ""
        if found.decided
        else (
            f"; wider than the {100 * found.precision:g} % asked for, after"
            f" {found.replications} replications"
        )
    )
    return f"Sustains {rate} ({times}), {100 * found.confidence:g} % interval {ends}{wide}."


def interval(found: Capacity) -> str:
    """The ends of the interval: `8.21 to 8.40`."""
    low = units.significant(found.low_per_s) if found.low_per_s else "0"
    high = "no bound" if found.high_per_s is None else units.significant(found.high_per_s)
    return f"{low} to {high}"


def per_gpu(found: Capacity) -> str:
    """What a GPU of the fleet does at that rate."""
    return (
        f"A GPU: {units.amount(found.requests_per_s_per_gpu, 'requests/s')},"
        f" {units.amount(found.output_tokens_per_s_per_gpu, 'output tokens/s')},"
        f" {units.amount(found.prompt_tokens_per_s_per_gpu, 'prompt tokens/s')}"
        f" ({found.gpus:,} GPU{'s' if found.gpus > 1 else ''})."
    )


def bound(found: Capacity) -> str:
    """What binds, with the evidence; empty where it was not looked for, or nothing does."""
    what = found.binding
    if what is None:
        return ""
    objective = what.objective
    begin = (
        f"Just above, {objective.what} is {objective.shown(what.value)}"
        f" (limit {objective.shown(objective.limit)}). "
    )
    if what.resource == "objective":
        return f"{begin}{MORE_WORDS} more of no single resource of a replica would help."
    first, *others = what.experiments
    said = f"{begin}What binds is {what.in_words}: {helped(found, first)}"
    also = [resource(one.resource) for one in others if one.margin >= 0 and first.margin >= 0]
    return f"{said}; as much more of {' or '.join(also)} would do too." if also else f"{said}."


def helped(found: Capacity, experiment: Experiment) -> str:
    """What more of a resource would do."""
    assert found.binding is not None
    objective = found.binding.objective
    now = objective.shown(experiment.value)
    if experiment.resource == "steps":
        return f"with steps {MORE_WORDS} faster it would be {now}"
    return f"with {MORE_WORDS} more of it, it would be {now}"


def evidence(found: Capacity) -> list[tuple[str, str]]:
    """How full things were where an objective was just missed: what, and how much."""
    if found.binding is None:
        return []
    known = found.binding.evidence
    rows = [(words, units.share(known[name])) for name, words in EVIDENCE.items()]
    rows.append(("sequences at once, on average", f"{known['mean_running_sequences']:.1f}"))
    rows.append(("sequences at once, at most", f"{known['most_running_sequences']:,.0f}"))
    rows.append(("preemptions", f"{known['preemptions']:,.0f}"))
    return rows


def method(found: Capacity) -> str:
    """What the figures mean, and what they rest on."""
    simulations = (
        f"{found.replays:,} simulations, {found.stopped:,} of them ended as soon as the verdict"
        " was known"
    )
    if found.confidence is None:
        return (
            "Sustained: the highest rate at which the trace itself meets all objectives. Nothing is"
            f" drawn, so there is no interval of confidence. {simulations}."
        )
    return (
        f"Sustained: the objectives are met in {100 * found.share:g} % of hours like this one."
        f" Drawn anew in each of {found.replications} replications: {', '.join(found.drawn)};"
        " replication by replication the same at every rate. The true rate is in the interval with"
        f" a probability of at least {100 * found.confidence:g} %, however many rates were looked"
        " at. A replication that meets a rate counts as one that meets all lower ones."
        f" {simulations}."
    )


def resource(name: str) -> str:
    """A resource in words, without the name of its setting."""
    return RESOURCES[name].partition(" (")[0]


def _decisions(found: Capacity) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("requests/s", "simulated", "meet", "miss"):
        table.add_column(heading, justify="right")
    table.add_column("decided")
    for decision in found.decisions:
        verdict = decision.verdict
        table.add_row(
            units.significant(decision.rate_per_s, 4),
            f"{decision.simulated}",
            f"{decision.met}",
            f"{decision.missed}",
            Text(verdict, style=STYLES[verdict]),
        )
    return table
