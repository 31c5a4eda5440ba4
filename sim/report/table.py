"""The answer in the terminal, within 80 columns."""

from collections.abc import Mapping
from typing import Any

from rich.box import HEAVY, SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from sim.report import units
from sim.report.fragments import STATISTICS

LATENCIES = {"ttft_s": "TTFT", "tpot_s": "TPOT", "itl_s": "ITL", "e2e_s": "E2E", "queue_s": "queue"}
COLOURS = {
    "finished": "green",
    "truncated": "yellow",
    "rejected": "red",
    "timed_out": "magenta",
    "unfinished": "bright_black",
}


def summary_table(summary: Mapping[str, Any]) -> Group:
    """The run for a terminal: warnings, latencies, what the fleet did. Print it with rich."""
    total = summary["requests"]["total"]
    title = Text.assemble(
        (summary["name"], "bold"),
        (
            f"\n{units.count(total)} requests over {units.seconds(summary['duration_s'])} on "
            f"{units.count(summary['gpus'])} GPUs in {units.count(summary['replicas'])} replicas, "
            f"profile {summary['profile']['name']}",
            "dim",
        ),
    )
    gap = Text()
    return Group(
        title,
        *_alarms(summary),
        gap,
        _latencies(summary),
        gap,
        _fleet(summary),
        _outcomes(summary),
    )


def _alarms(summary: Mapping[str, Any]) -> list[RenderableType]:
    profile = summary["profile"]
    parts: list[RenderableType] = []
    if not profile["measured"]:
        parts.append(
            Panel(
                Text(profile.get("warning") or "Step times come from a model, not from a GPU."),
                title=Text("NOT MEASURED"),
                box=HEAVY,
                style="bold white on red",
                width=78,
            )
        )
    texts = [profile["warning"]] if profile["measured"] and profile.get("warning") else []
    parts += [Text(f"warning: {text}", style="yellow") for text in [*texts, *summary["warnings"]]]
    return parts


def _latencies(summary: Mapping[str, Any]) -> Table:
    slo: Mapping[str, float] = summary["goodput"]["slo"] if summary["goodput"] else {}
    table = Table(
        box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, header_style="bold"
    )
    table.add_column("latency", no_wrap=True, min_width=7)
    for name in STATISTICS.values():
        table.add_column(name, justify="right", no_wrap=True)
    if slo:
        table.add_column("SLO", justify="right", no_wrap=True)
    for latency, name in LATENCIES.items():
        statistics = summary["latency"].get(latency)
        limit = slo.get(latency)
        cells = [
            Text(
                units.seconds(statistics[key]) if statistics else units.ABSENT,
                style="red" if limit and statistics and statistics[key] > limit else "",
            )
            for key in STATISTICS
        ]
        table.add_row(name, *cells, *([units.limit(limit) if limit else ""] if slo else []))
    return table


def _fleet(summary: Mapping[str, Any]) -> Table:
    throughput, cache, kv = summary["throughput"], summary["cache"], summary["kv"]
    goodput = summary["goodput"]
    left = [
        ("throughput", units.amount(throughput["requests_per_s"], "req/s")),
        (
            "goodput",
            f"{units.amount(goodput['requests_per_s'], 'req/s')} ({units.share(goodput['share'])})"
            if goodput
            else "no SLO set",
        ),
        ("prompt", units.amount(throughput["prompt_tokens_per_s"], "tok/s")),
        ("output", units.amount(throughput["output_tokens_per_s"], "tok/s")),
        ("GPU-hours", units.significant(summary["gpu_hours"])),
    ]
    right = [
        (
            "KV occupancy",
            f"{units.share(kv['mean_occupancy'])} mean, {units.share(kv['peak_occupancy'])} peak",
        ),
        ("KV blocks", f"{units.count(kv['blocks_per_replica'])} x {kv['block_tokens']} tokens"),
        ("cache hits", f"{units.share(cache['hit_rate'])} of prompt tokens"),
        ("preemptions", units.count(summary["preemptions"])),
        ("utilisation", f"{units.share(summary['utilization'])} of replica time"),
    ]
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(style="dim", width=13)
    grid.add_column(width=23)
    grid.add_column(style="dim", width=13)
    grid.add_column()
    for one, other in zip(left, right, strict=True):
        grid.add_row(*one, *other)
    return grid


def _outcomes(summary: Mapping[str, Any]) -> Text:
    requests = summary["requests"]
    text = Text("outcomes      ", style="dim")
    parts = [
        Text(f"{units.count(requests[name])} {name.replace('_', ' ')}", style=f"not dim {colour}")
        for name, colour in COLOURS.items()
        if requests[name]
    ]
    text.append_text(Text(", ", style="not dim").join(parts) if parts else Text("no requests"))
    return text
