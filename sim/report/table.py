"""The answer in the terminal, within 80 columns."""

from collections.abc import Mapping
from typing import Any

from rich.box import HEAVY, SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from engine import units
from engine.tables import LATENCIES, latency_table, outcomes_line
from sim.economics.saying import cost_line, missing_lines
from sim.report.bounds import FIGURES, bounds, fleet_bounds, heading
from sim.report.found import found_line

BOUNDED = {key: units.STATISTICS[key] for key in ("mean", "p50", "p90", "p99")}
"""Statistics whose intervals find room in 80 columns."""


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
        *_found(summary),
        *_cost(summary),
        outcomes_line(summary),
        *_intervals(summary),
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


def _found(summary: Mapping[str, Any]) -> list[RenderableType]:
    """Where prompts were found, if there are tiers below the GPU."""
    line = found_line(summary)
    return [Text.assemble(("prompts from  ", "dim"), line)] if line else []


def _cost(summary: Mapping[str, Any]) -> list[RenderableType]:
    """The bill in a line, and a line on each part of it that is not known."""
    lines = [line] if (line := cost_line(summary)) else []
    lines += [reason.partition(";")[0] for reason in missing_lines(summary)]
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(style="dim", width=13)
    grid.add_column()
    for number, text in enumerate(lines):
        grid.add_row("" if number else "cost", text)
    return [grid] if lines else []


def _intervals(summary: Mapping[str, Any]) -> list[RenderableType]:
    """How far the figures may be off, if the run knows."""
    said = heading(summary)
    if not said:
        return []
    latencies, fleet = _latency_intervals(summary), _fleet_intervals(summary)
    return [Text(), Text(said, style="bold"), latencies, Text(), fleet]


def _latency_intervals(summary: Mapping[str, Any]) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False, header_style="bold")
    table.add_column("latency", no_wrap=True, min_width=7)
    for name in BOUNDED.values():
        table.add_column(name, justify="right", no_wrap=True)
    for latency, name in LATENCIES.items():
        cells = (bounds(summary, f"latency.{latency}.{key}") or units.ABSENT for key in BOUNDED)
        table.add_row(name, *cells)
    return table


def _fleet_intervals(summary: Mapping[str, Any]) -> Table:
    rows = [
        (name, text)
        for figure, (name, _) in FIGURES.items()
        if (text := fleet_bounds(summary, figure))
    ]
    half = -(-len(rows) // 2)
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(style="dim", width=13)
    grid.add_column(width=23)
    grid.add_column(style="dim", width=13)
    grid.add_column()
    for one, other in zip(rows[:half], [*rows[half:], ("", "")], strict=False):
        grid.add_row(*one, *other)
    return grid
