"""What stands around the pictures: headline, figures, comparison."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import unescape
from typing import Any, Final

from dash import html

from engine import units
from sim.app.controls import TIMES
from sim.app.pictures import Drawn
from sim.app.stated import Choices
from sim.economics.saying import kilowatt_hours, usd
from sim.report import fragments

Summary = Mapping[str, Any]
Say = Callable[[str, Choices], tuple[str, str]]
"""A control's label, and what stands in it in words."""


def heading(findings: Mapping[str, Any]) -> str:
    """What was simulated, in a few words."""
    summary, profile = findings["summary"], findings["profile"]
    gpus, replicas = summary["gpus"], summary["replicas"]
    fleet = f"{units.count(gpus)} {TIMES} {profile['gpu']}"
    if replicas != gpus and replicas > 1:
        fleet += f" in {units.count(replicas)} replicas"
    return f"{profile['model']} on {fleet}"


def answer(summary: Summary) -> str:
    """The run in one or two sentences."""
    return unescape(fragments.answer(summary))


def setting(summary: Summary, took_s: float) -> str:
    """What ran, on what, and how long it took to find out."""
    return f"{unescape(fragments.setting(summary))}; simulated in {units.seconds(took_s)}"


def banners(summary: Summary) -> list[Any]:
    """What to know before believing it."""
    profile = summary["profile"]
    made: list[Any] = []
    if not profile["measured"]:
        made.append(
            html.Div(
                [
                    html.B("Not measured. "),
                    "Step times follow from data sheets and assumed efficiencies: compare settings"
                    " with each other, but promise these latencies to nobody.",
                ],
                className="unmeasured",
                role="note",
            )
        )
    elif profile.get("warning"):
        made.append(_warning(profile["warning"]))
    made += [_warning(text) for text in summary["warnings"]]
    return made


def _warning(text: str) -> Any:
    return html.Div(text, className="banner warning", role="note")


def cards(summary: Summary) -> list[Any]:
    """The six headline figures."""
    throughput, kv, goodput = summary["throughput"], summary["kv"], summary["goodput"]
    slo = goodput["slo"] if goodput else {}
    made = [
        _card(
            "Throughput",
            units.amount(throughput["requests_per_s"], "req/s"),
            units.amount(throughput["output_tokens_per_s"], "output tok/s"),
        )
    ]
    for label, latency in (("P99 TTFT", "ttft_s"), ("P99 TPOT", "tpot_s")):
        value, limit = fragments.percentile(summary, latency), slo.get(latency)
        missed = value is not None and limit is not None and value > limit
        note = "no request got that far"
        if value is not None:
            note = f"median {units.seconds(fragments.percentile(summary, latency, 'p50'))}"
            if limit is not None:
                note = f"{'misses' if missed else 'meets'} SLO {units.limit(limit)}"
        made.append(_card(label, units.seconds(value), note, bad=missed))
    if goodput:
        share = goodput["share"]
        made.append(
            _card(
                "Goodput",
                units.share(share),
                f"{units.amount(goodput['requests_per_s'], 'req/s')} within SLO",
            )
        )
    else:
        made.append(_card("Goodput", units.ABSENT, "set an objective"))
    made.append(
        _card(
            "KV cache in use",
            units.share(kv["mean_occupancy"]),
            f"peak {units.share(kv['peak_occupancy'])}",
        )
    )
    bill = summary["economics"]
    per_hour, per_million = bill["usd_per_hour"], bill["usd_per_million_output_tokens"]
    made.append(
        _card(
            "Cost",
            f"{usd(per_hour)} /h" if per_hour is not None else units.ABSENT,
            f"{usd(per_million)} per 1M output tok"
            if per_million is not None
            else "nobody states a price",
        )
    )
    return made


def price(summary: Summary) -> str:
    """What the bill rests on, or why there is none."""
    bill = summary["economics"]
    given = bill["given"]
    if "usd_per_gpu_hour" not in given:
        return " ".join(bill["missing"])
    said = f"{usd(given['usd_per_gpu_hour'])} a GPU and hour"
    if given.get("price_of"):
        said += f": {given['price_of']}, {given['price_date']}"
    return said + "."


def _card(label: str, shown: str, note: str, *, bad: bool = False) -> Any:
    number, _, unit = shown.rpartition(" ")
    value = [number, " ", html.Small(unit)] if number else shown
    return html.Div(
        [
            html.Div(label, className="label"),
            html.Div(value, className="value"),
            html.Div(note, className="note bad" if bad else "note"),
        ],
        className="card",
    )


def _latency(column: str, statistic: str) -> Callable[[Summary], float | None]:
    return lambda summary: fragments.percentile(summary, column, statistic)


def _bill(name: str) -> Callable[[Summary], float | None]:
    return lambda summary: summary["economics"][name]


MINUS: Final = "−"  # noqa: RUF001 as in print

FIGURES: Final[tuple[tuple[str, Callable[[Summary], Any], Callable[[Any], str]], ...]] = (
    (
        "Throughput",
        lambda s: s["throughput"]["requests_per_s"],
        lambda v: units.amount(v, "req/s"),
    ),
    (
        "Output tokens",
        lambda s: s["throughput"]["output_tokens_per_s"],
        lambda v: units.amount(v, "tok/s"),
    ),
    ("TTFT, median", _latency("ttft_s", "p50"), units.seconds),
    ("TTFT, P99", _latency("ttft_s", "p99"), units.seconds),
    ("TPOT, median", _latency("tpot_s", "p50"), units.seconds),
    ("TPOT, P99", _latency("tpot_s", "p99"), units.seconds),
    ("End to end, P99", _latency("e2e_s", "p99"), units.seconds),
    ("Queueing, P99", _latency("queue_s", "p99"), units.seconds),
    ("Within SLO", lambda s: s["goodput"]["share"] if s["goodput"] else None, units.share),
    (
        "Not served",
        lambda s: sum(s["requests"][name] for name in ("rejected", "timed_out", "unfinished")),
        units.count,
    ),
    ("KV in use, mean", lambda s: s["kv"]["mean_occupancy"], units.share),
    ("KV in use, peak", lambda s: s["kv"]["peak_occupancy"], units.share),
    ("Prefix cache hits", lambda s: s["cache"]["hit_rate"], units.share),
    ("Preemptions", lambda s: s["preemptions"], units.count),
    ("Busy", lambda s: s["utilization"], units.share),
    ("Price", _bill("usd_per_hour"), lambda v: f"{usd(v)} /h"),
    ("1M output tokens", _bill("usd_per_million_output_tokens"), usd),
    ("1M input tokens", _bill("usd_per_million_input_tokens"), usd),
    ("1k requests", _bill("usd_per_1k_requests"), usd),
    ("Energy of the run", _bill("energy_kwh"), kilowatt_hours),
)
"""Heading, value in a summary, and how it is said."""


def comparison(runs: Sequence[Drawn], choices: Mapping[str, Choices], say: Say) -> Any:
    """A column a run: which settings differ, then every figure.

    Args:
        runs: the one shown now first.
        choices: what stood in the controls, by label of the run.
        say: a control's label, and what stands in it in words, by its name.
    """
    head = html.Tr(
        [html.Th("")]
        + [
            html.Th([html.I(className="dot", style={"background": one.colour}), one.label])
            for one in runs
        ]
    )
    rows = [
        html.Tr([html.Th(label, scope="row"), *(html.Td(text) for text in texts)], className="set")
        for label, texts in differing(runs, choices, say)
    ]
    for name, value, shown in FIGURES:
        values = [value(one.findings["summary"]) for one in runs]
        if all(found is None for found in values):
            continue
        cells = [
            html.Td(
                [
                    units.ABSENT if found is None else shown(found),
                    html.Div(change(values[0], found), className="change")
                    if place and change(values[0], found)
                    else None,
                ]
            )
            for place, found in enumerate(values)
        ]
        rows.append(html.Tr([html.Th(name, scope="row"), *cells]))
    return html.Table([html.Thead(head), html.Tbody(rows)], className="compared")


def differing(
    runs: Sequence[Drawn], choices: Mapping[str, Choices], say: Say
) -> list[tuple[str, list[str]]]:
    """The labels of controls that do not stand alike in all runs, and how they stand."""
    names = dict.fromkeys(name for one in runs for name in choices[one.label])
    found: list[tuple[str, list[str]]] = []
    for name in names:
        said = [say(name, choices[one.label]) for one in runs]
        texts = [text for _, text in said]
        if len(set(texts)) > 1:
            found.append((said[0][0], texts))
    return found


def change(now: float | None, other: float | None) -> str:
    """How far a pinned figure is from that of now, if both are there."""
    if now is None or other is None or not now or now == other:
        return ""
    ratio = other / now
    if ratio > 3 or ratio < 1 / 3:
        return f"{TIMES} {units.significant(ratio, 2)}"
    return f"{100 * (ratio - 1):+.1f} %".replace("-", MINUS)
