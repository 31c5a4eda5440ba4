"""Pieces of the HTML page that are not plots: banners, cards, tables. Everything is escaped."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from engine import units
from sim.report import theme
from sim.report.bounds import bounds, fleet_bounds, heading
from sim.report.found import found_line

Summary = Mapping[str, Any]

LATENCIES = {
    "ttft_s": "Time to first token",
    "tpot_s": "Time per output token",
    "itl_s": "Inter-token latency",
    "e2e_s": "End to end",
    "queue_s": "Queueing",
}


def banners(summary: Summary) -> str:
    """A loud one if the profile is not measured, and one for each warning."""
    parts: list[str] = []
    profile = summary["profile"]
    if not profile["measured"]:
        reason = profile.get("warning") or (
            "Step times come from an analytic model, not from a GPU: compare runs with each other, "
            "but do not promise these latencies to anyone."
        )
        parts.append(
            f'<div class="banner alarm" role="alert"><b>Not measured: profile '
            f"{escape(profile['name'])}</b>{escape(reason)}</div>"
        )
    elif profile.get("warning"):
        parts.append(_warning(profile["warning"]))
    parts += [_warning(text) for text in summary["warnings"]]
    return "\n".join(parts)


def _warning(text: str) -> str:
    return f'<div class="banner warning" role="note">{escape(text)}</div>'


def percentile(summary: Summary, latency: str, statistic: str = "p99") -> float | None:
    """One latency statistic, or None if no request has that latency."""
    statistics = summary["latency"].get(latency)
    return None if statistics is None else statistics[statistic]


def answer(summary: Summary) -> str:
    """The run in one or two sentences."""
    gpus, replicas = summary["gpus"], summary["replicas"]
    text = (
        f"{units.count(gpus)} GPU{'s' * (gpus != 1)} in {units.count(replicas)} "
        f"replica{'s' * (replicas != 1)} served "
        f"{units.amount(summary['throughput']['requests_per_s'], 'requests/s')}"
    )
    ttft, tpot = percentile(summary, "ttft_s"), percentile(summary, "tpot_s")
    if ttft is not None:
        text += f"; 99 % had their first token within {units.seconds(ttft)}"
        if tpot is not None:
            text += f" and a token every {units.seconds(tpot)} or faster after it"
    goodput = summary["goodput"]
    if goodput:
        text += f". {units.share(goodput['share'])} met their objectives"
    lost = sum(summary["requests"][outcome] for outcome in ("rejected", "timed_out", "unfinished"))
    if lost:
        text += (
            f". {units.count(lost)} of {units.count(summary['requests']['total'])} were not served"
        )
    return escape(text + ".")


def setting(summary: Summary) -> str:
    """What ran, for how long, on what; what is in brackets below, if anything is."""
    total = summary["requests"]["total"]
    text = (
        f"{units.count(total)} request{'s' * (total != 1)} over "
        f"{units.seconds(summary['duration_s'])} of simulated time, profile "
        f"{summary['profile']['name']}"
    )
    brackets = heading(summary)
    return escape(f"{text}. In brackets: {brackets}" if brackets else text)


def cards(summary: Summary) -> str:
    """The six headline numbers; `data-value` holds each one unrounded."""
    throughput, kv, goodput = summary["throughput"], summary["kv"], summary["goodput"]
    slo = goodput["slo"] if goodput else {}
    made = [
        _card(
            "Throughput",
            throughput["requests_per_s"],
            _split(units.amount(throughput["requests_per_s"], "req/s")),
            f"{units.amount(throughput['output_tokens_per_s'], 'output tok/s')}",
            fleet_bounds(summary, "throughput.requests_per_s"),
        )
    ]
    for name, latency in (("P99 TTFT", "ttft_s"), ("P99 TPOT", "tpot_s")):
        value, limit = percentile(summary, latency), slo.get(latency)
        missed = value is not None and limit is not None and value > limit
        note = "no request got that far"
        if value is not None and limit is None:
            note = f"median {units.seconds(percentile(summary, latency, 'p50'))}"
        elif value is not None and limit is not None:
            note = f"{'misses' if missed else 'meets'} SLO {units.limit(limit)}"
        interval = bounds(summary, f"latency.{latency}.p99")
        made.append(_card(name, value, _split(units.seconds(value)), note, interval, bad=missed))
    if goodput:
        made.append(
            _card(
                "Goodput",
                goodput["requests_per_s"],
                _split(units.amount(goodput["requests_per_s"], "req/s")),
                f"{units.share(goodput['share'])} within SLO",
                fleet_bounds(summary, "goodput.requests_per_s"),
            )
        )
    else:
        made.append(_card("Goodput", None, units.ABSENT, "no SLO was set"))
    made.append(
        _card(
            "KV occupancy",
            kv["mean_occupancy"],
            _split(units.share(kv["mean_occupancy"])),
            f"peak {units.share(kv['peak_occupancy'])}",
            fleet_bounds(summary, "kv.mean_occupancy"),
        )
    )
    made.append(
        _card(
            "GPU-hours",
            summary["gpu_hours"],
            units.significant(summary["gpu_hours"]),
            f"{units.count(summary['gpus'])} GPU{'s' * (summary['gpus'] != 1)}, "
            f"{units.share(summary['utilization'])} busy",
            fleet_bounds(summary, "gpu_hours"),
        )
    )
    return f'<div class="cards">{"".join(made)}</div>'


def _card(
    label: str,
    value: float | None,
    shown: str,
    note: str,
    interval: str = "",
    *,
    bad: bool = False,
) -> str:
    exact = "" if value is None else repr(float(value))
    return (
        f'<div class="card" data-label="{label}" data-value="{exact}">'
        f'<div class="label">{label}</div><div class="value">{shown}</div>'
        f"{_interval(interval)}"
        f'<div class="note{" bad" if bad else ""}">{note}</div></div>'
    )


def _interval(text: str) -> str:
    return f'<div class="interval">{escape(text)}</div>' if text else ""


def _split(text: str) -> str:
    """Number and unit, the unit smaller."""
    number, _, unit = text.rpartition(" ")
    return f"{number} <small>{unit}</small>" if number else text


Cell = str | tuple[str, str]
"""A text, or a text and the interval under it."""


def table(head: Sequence[str], rows: Iterable[Sequence[Cell]]) -> str:
    """A table of texts; wider than the screen it scrolls by itself."""
    header = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in rows)
    return (
        f'<div class="panel scroll"><table><thead><tr>{header}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _cell(cell: Cell) -> str:
    text, interval = (cell, "") if isinstance(cell, str) else cell
    return f"<td>{escape(text)}{_interval(interval)}</td>"


def percentiles(summary: Summary) -> str:
    """Every latency and every statistic of the summary."""
    rows: list[list[Cell]] = []
    for latency, name in LATENCIES.items():
        statistics = summary["latency"].get(latency)
        cells = [
            (units.seconds(statistics[key]), bounds(summary, f"latency.{latency}.{key}"))
            if statistics
            else units.ABSENT
            for key in units.STATISTICS
        ]
        rows.append([name, *cells])
    return table(["Latency", *units.STATISTICS.values()], rows)


def outcome_bar(summary: Summary) -> str:
    """All requests as one bar, with counts."""
    counts = {name: summary["requests"][name] for name in theme.OUTCOMES}
    total = sum(counts.values())
    present = {name: number for name, number in counts.items() if number}
    if not total:
        return '<p class="absent">No request arrived.</p>'
    bar = "".join(
        f'<i style="flex: {number} 0 0; background: {theme.OUTCOMES[name]}"></i>'
        for name, number in present.items()
    )
    key = "".join(
        f'<li><i style="background: {theme.OUTCOMES[name]}"></i>{name.replace("_", " ")} '
        f"<b>{units.count(number)}</b> ({units.share(number / total)})</li>"
        for name, number in present.items()
    )
    return f'<div class="bar">{bar}</div><ul class="key">{key}</ul>'


def facts(summary: Summary) -> str:
    """The numbers that are neither latencies nor outcomes."""
    throughput, cache, kv = summary["throughput"], summary["cache"], summary["kv"]
    rows = [
        (
            "Prompt tokens",
            units.amount(throughput["prompt_tokens_per_s"], "tok/s"),
            ("throughput.prompt_tokens_per_s",),
        ),
        (
            "Output tokens",
            units.amount(throughput["output_tokens_per_s"], "tok/s"),
            ("throughput.output_tokens_per_s",),
        ),
        (
            "Prefix cache hits",
            f"{units.share(cache['hit_rate'])} of prompt tokens",
            ("cache.hit_rate",),
        ),
        *([("Prompts came from", line, ())] if (line := found_line(summary)) else []),
        (
            "Cached blocks evicted",
            units.count(cache["evicted_blocks"]),
            ("cache.evicted_blocks",),
        ),
        ("Preemptions", units.count(summary["preemptions"]), ("preemptions",)),
        (
            "KV cache of a replica",
            f"{units.count(kv['blocks_per_replica'])} blocks of {kv['block_tokens']} tokens",
            (),
        ),
        (
            "KV occupancy",
            f"{units.share(kv['mean_occupancy'])} mean, {units.share(kv['peak_occupancy'])} peak",
            ("kv.mean_occupancy", "kv.peak_occupancy"),
        ),
        ("Busy", f"{units.share(summary['utilization'])} of replica time", ("utilization",)),
        (
            "Steps",
            f"{units.count(summary['steps'])} in {units.count(summary['segments'])} segments",
            ("steps",),
        ),
    ]
    items = "".join(
        f"<div><dt>{name}</dt><dd>{text}"
        f"{_interval(', '.join(filter(None, (fleet_bounds(summary, one) for one in figures))))}"
        "</dd></div>"
        for name, text, figures in rows
    )
    return f'<div class="panel"><dl class="facts">{items}</dl></div>'
