"""A plan in sentences, for a terminal and for the page."""

from __future__ import annotations

from collections.abc import Iterator
from math import isfinite
from typing import Final

from engine import units
from sim.planning.evaluating import Redrawn
from sim.planning.explaining import Cheaper, statuses
from sim.planning.pareto import Front
from sim.planning.plan import Choice, Plan
from sim.planning.sensitivity import Swing

HOURS_A_MONTH: Final = 730
WIDE: Final = 1.0
"""A gap that says nothing."""


def usd(value: float | None) -> str:
    """Dollars an hour, in words: $27.52/h."""
    return units.ABSENT if value is None else f"${value:,.2f}/h"


def usd_a_month(value: float) -> str:
    """What an hour's price comes to in a month of 730 hours: $20.1k a month."""
    month = value * HOURS_A_MONTH
    return f"${month / 1000:,.1f}k a month" if month >= 10_000 else f"${month:,.0f} a month"


def answer(plan: Plan) -> str:
    """The winner in a sentence or two."""
    one = plan.winner.candidate
    text = (
        f"{one.label}: {units.count(one.gpus)} GPU{'s' * (one.gpus != 1)}, {usd(one.usd_per_hour)}"
        f" ({usd_a_month(one.usd_per_hour)})."
    )
    held = plan.winner.redrawn
    if held is not None:
        text += f" {confidence(plan, held)}"
    return text


def confidence(plan: Plan, redrawn: Redrawn) -> str:
    """On how much redrawn traffic every objective is met, with the interval."""
    text = f"It meets every objective on {redrawn.met} of {len(redrawn.results)} redrawn traces"
    interval = redrawn.interval(plan.settings.confidence.level)
    if interval is not None:
        low, high = interval
        level = 100 * plan.settings.confidence.level
        text += f" ({100 * low:.0f} to {100 * high:.0f} %, {level:g} % interval)"
    elif not redrawn.complete:
        text += f"; the other {redrawn.redraws - len(redrawn.results)} were not needed to know"
    return f"{text}."


def design(plan: Plan) -> str:
    """How large the space is, how it was searched, and how many replays that took."""
    total = sum(plan.replays.values())
    text = (
        f"{units.count(plan.stated)} candidates in {units.count(plan.configurations)}"
        f" configurations; {units.count(total)} replays, {plan.replays.get('search', 0)} of them"
        " to find the cheapest"
    )
    if plan.method == "optuna":
        text += (
            f". NOT exhaustive: Optuna tried {units.count(plan.tried)} configurations; a cheaper"
            " one may exist"
        )
    else:
        text += (
            ". Exact, if more replicas of a configuration never hurt (checked around the winner)"
        )
    return f"{text}."


def why(plan: Plan) -> Iterator[str]:
    """Why the winner wins, in sentences."""
    winner = plan.winner.candidate
    counts = statuses(plan.known, plan.judge, winner.usd_per_hour)
    total = sum(counts.values())
    if total:
        known = [
            (counts["missed"], "were replayed and miss an objective"),
            (counts["too few replicas"], "have fewer replicas than one that misses"),
            (counts["bound"], "cannot do the work, by a bound"),
            (counts["met"], "meet every objective on the trace, but not surely enough"),
            (
                counts["not replayed"],
                "have fewer replicas than one that is not sure enough, or were not tried",
            ),
        ]
        said = "; ".join(f"{units.count(count)} {words}" for count, words in known if count)
        yield f"{units.count(total)} candidates are cheaper: {said}."
    else:
        yield "No candidate of the space is cheaper."
    nominal = plan.nominal
    if nominal.candidate.identity != winner.identity and nominal.redrawn is not None:
        seen = nominal.redrawn
        yield (
            f"On the trace as it is {nominal.candidate.label} at"
            f" {usd(nominal.candidate.usd_per_hour)} would do, but it met every objective on only"
            f" {seen.met} of the {len(seen.results)} redrawn traces that it was tried on"
            f" (asked: {100 * seen.asked:g} %)."
        )
    same = sum(
        1
        for one in plan.judge.evaluated.values()
        if one.met and one.candidate.usd_per_hour == winner.usd_per_hour
    )
    if same > 1:
        yield (
            f"{same} candidates of this price meet every objective; the winner has the largest"
            " least margin of those that do so surely enough."
        )
    if plan.runner_up is not None:
        second = plan.runner_up
        more = second.candidate.usd_per_hour - winner.usd_per_hour
        price = "the same price" if round(more, 2) == 0 else f"{usd(more)} more"
        margin = f"least margin {units.share(max(0.0, second.evaluation.margin))}"
        yield f"Runner-up: {second.candidate.label}, {price}, {margin}."
    else:
        yield "No other configuration meets every objective."


def cheaper(one: Cheaper) -> str:
    """What a cheaper candidate misses."""
    if one.evaluation.error:
        return one.evaluation.error
    if one.misses:
        return ", ".join(f"{miss.shown} ({_times(miss.value, miss.limit)})" for miss in one.misses)
    if one.redrawn is not None:
        return (
            f"meets every objective here, but on {one.redrawn.met} of {len(one.redrawn.results)}"
            " redrawn traces"
        )
    return "meets every objective here; misses surely on redrawn traffic, as more replicas do"


def _times(value: float | None, limit: float) -> str:
    if value is None:
        return "never"
    if value > 2 * limit:
        return f"{units.significant(value / limit, 2)} x the limit"
    if value > limit:
        return f"{units.significant(100 * (value / limit - 1), 2)} % beyond the limit"
    return f"limit {units.significant(limit)}"


def front(plan: Plan, one: Front) -> str:
    """What is guaranteed of a front, in a sentence."""
    if not isfinite(one.gap):
        return "Of the candidates that were replayed; others may be better."
    if one.gap > WIDE:
        return (
            f"The walk ended after its {one.replays} replays (fronts.replays): better candidates"
            " may lie between those shown."
        )
    text = (
        f"Up to {plan.settings.fronts.reach:g} times the winner's"
        f" {'price' if one.name == 'cost_ttft' else 'GPU time a token'} no candidate betters the"
        f" front by more than {100 * one.gap:.0f} % at its place, if more replicas of a"
        " configuration never make it slower"
    )
    if one.gap > plan.settings.fronts.tolerance:
        text += f"; the walk ended after its {one.replays} replays (fronts.replays)"
    if one.contradicted:
        text += (
            f"; {one.contradicted} pairs of replays contradict that (more replicas find fewer"
            " prefixes, or luck), so that better ones may have been passed over"
        )
    return f"{text}."


def swing(one: Swing, usd_per_hour: float) -> str:
    """What an assumption does to the cost, or to the margin."""
    if one.usd_per_hour is None:
        return "no number of replicas does"
    change = one.usd_per_hour - usd_per_hour
    words = f"{one.replicas} replica{'s' * (one.replicas != 1)}, {usd(one.usd_per_hour)}"
    if one.instead:
        words = f"{one.instead}, {usd(one.usd_per_hour)}"
    if round(change, 2):
        words += f" ({'+' if change > 0 else '−'}{usd(abs(change))})"  # noqa: RUF001
    return words


def headroom(plan: Plan) -> str:
    """The largest rate of the winner."""
    room = plan.headroom
    if room is None:
        return ""
    rate = units.amount(room.factor * plan.rate_per_s, "req/s")
    text = f"The winner holds {100 * (room.factor - 1):.0f} % more traffic ({rate} on average)"
    if room.missed_at is None:
        return f"{text}, and perhaps more: nothing beyond was tried."
    return f"{text}; beyond it misses {' and '.join(room.missed)}."


def growth(plan: Plan) -> str:
    """When growth breaks the fleet, and what is to be added."""
    grown = plan.growth
    if grown is None:
        return ""
    pace = f"At {grown.percent_a_month:g} % a month"
    last = grown.months[-1]
    broken = grown.breaks
    if broken is None:
        return f"{pace} the fleet lasts {last.month} months (traffic x {last.rate:.2f})."
    text = (
        f"{pace} it misses {' and '.join(broken.missed) or 'an objective'} in month"
        f" {broken.month} (traffic x {broken.rate:.2f})"
    )
    if broken.replicas is None:
        return f"{text}; no number of replicas of this configuration helps."
    added = broken.replicas - plan.winner.candidate.replicas
    more = (broken.usd_per_hour or 0.0) - plan.winner.candidate.usd_per_hour
    text += f"; then add {added} replica{'s' * (added != 1)} ({usd(more)} more)."
    if last.replicas is not None and last.month > broken.month:
        text += (
            f" In month {last.month} (x {last.rate:.2f}) it takes {last.replicas} replicas,"
            f" {usd(last.usd_per_hour)}."
        )
    over = next((one for one in grown.months if one.beyond), None)
    if over is not None:
        text += f" From month {over.month} on that exceeds {', '.join(over.beyond)}."
    return text


def redrawing(plan: Plan) -> str:
    """How traffic is redrawn: `20 blocks of the trace, drawn with replacement`."""
    return plan.traffic.in_words.removeprefix("traffic (").removesuffix(")")


def choice_margin(choice: Choice) -> str:
    """The least margin of a choice."""
    return units.share(max(0.0, choice.evaluation.margin))
