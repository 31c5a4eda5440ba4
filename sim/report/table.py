"""The answer in the terminal, within 80 columns."""

from collections.abc import Mapping
from typing import Any

from rich.box import HEAVY
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from engine import units
from engine.tables import latency_table, outcomes_line


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
        latency_table(summary),
        gap,
        _fleet(summary),
        outcomes_line(summary),
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
