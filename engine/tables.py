"""Results in the terminal, within 80 columns; print them with rich."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from engine import units

if TYPE_CHECKING:
    from engine.compare import Row
    from engine.quality import Quality

LATENCIES = {"ttft_s": "TTFT", "tpot_s": "TPOT", "itl_s": "ITL", "e2e_s": "E2E", "queue_s": "queue"}
COLOURS = {
    "finished": "green",
    "truncated": "yellow",
    "rejected": "red",
    "timed_out": "magenta",
    "unfinished": "bright_black",
}


def latency_table(summary: Mapping[str, Any]) -> Table:
    """The latencies of a run, those beyond its SLO in red."""
    slo: Mapping[str, float] = summary["goodput"]["slo"] if summary["goodput"] else {}
    table = Table(
        box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, header_style="bold"
    )
    table.add_column("latency", no_wrap=True, min_width=7)
    for name in units.STATISTICS.values():
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
            for key in units.STATISTICS
        ]
        table.add_row(name, *cells, *([units.limit(limit) if limit else ""] if slo else []))
    return table


def outcomes_line(summary: Mapping[str, Any]) -> Text:
    """How many requests ended how."""
    requests = summary["requests"]
    text = Text("outcomes      ", style="dim")
    parts = [
        Text(f"{units.count(requests[name])} {name.replace('_', ' ')}", style=f"not dim {colour}")
        for name, colour in COLOURS.items()
        if requests[name]
    ]
    text.append_text(Text(", ", style="not dim").join(parts) if parts else Text("no requests"))
    return text


def replay_table(summary: Mapping[str, Any]) -> Group:
    """What the engine did with a trace: summary of engine.replay."""
    speed = summary["speed"]
    pace = "all at once" if speed is None else f"at {speed:g} x its pace"
    title = Text.assemble(
        (f"{summary['name']} on {summary['device']}", "bold"),
        (
            f"\n{units.count(summary['requests']['total'])} requests of {summary['trace']} {pace},"
            f" {units.seconds(summary['duration_s'])}, {summary['dtype']}, KV in"
            f" {summary['kv_dtype']}, {summary['kernels']} kernels",
            "dim",
        ),
    )
    warnings = [Text(f"warning: {text}", style="yellow") for text in summary["warnings"]]
    return Group(
        title,
        *warnings,
        Text(),
        latency_table(summary),
        Text(),
        _service(summary),
        outcomes_line(summary),
    )


def _service(summary: Mapping[str, Any]) -> Table:
    throughput, cache, kv = summary["throughput"], summary["cache"], summary["kv"]
    engine, goodput = summary["engine"], summary["goodput"]
    left = [
        ("throughput", units.amount(throughput["requests_per_s"], "req/s")),
        ("prompt", units.amount(throughput["prompt_tokens_per_s"], "tok/s")),
        ("output", units.amount(throughput["output_tokens_per_s"], "tok/s")),
        ("cache hits", f"{units.share(cache['hit_rate'])} of prompt"),
        ("KV peak", f"{units.share(kv['peak_occupancy'])} of {units.count(engine['num_blocks'])}"),
        ("preemptions", units.count(summary["preemptions"])),
    ]
    right = [
        ("device busy", f"{units.share(engine['device_share'])} of the time"),
        ("host busy", f"{units.share(engine['host_share'])} of the time"),
        ("scheduler", f"{units.share(engine['scheduler_share'])} of the time"),
        *_roofline(engine["roofline"]),
    ]
    if goodput:
        reached = f"{units.amount(goodput['requests_per_s'], 'req/s')}"
        left.append(("goodput", f"{reached} ({units.share(goodput['share'])})"))
    if engine["tiers"] is not None:
        right.append(("tiers", f"{units.amount(engine['moved_bytes'], 'B')} moved"))
    return _two_columns(left, right)


def _roofline(roofline: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    if roofline is None:
        return []
    ceilings: Mapping[str, float] | None = roofline["ceilings"]

    def beside(of: str) -> str:
        return "" if ceilings is None else f", {units.share(ceilings[of])} of peak"

    rows = [
        ("FLOP/s", units.amount(roofline["flops_per_s"], "FLOP/s") + beside("flops_share")),
        ("bytes/s", units.amount(roofline["bytes_per_s"], "B/s") + beside("bytes_share")),
    ]
    if ceilings is not None:
        bound = units.share(ceilings["memory_bound_share"])
        rows.append(("memory-bound", f"{bound} of device time"))
    return rows


def _two_columns(left: Sequence[tuple[str, str]], right: Sequence[tuple[str, str]]) -> Table:
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(style="dim", width=13)
    grid.add_column(width=19)
    grid.add_column(style="dim", width=13)
    grid.add_column()
    for number in range(max(len(left), len(right))):
        cells = [column[number] if number < len(column) else ("", "") for column in (left, right)]
        grid.add_row(*cells[0], *cells[1])
    return grid


def compare_table(rows: "Sequence[Row]") -> Group:
    """What each variant of engine.compare came to, and what is to be said of it."""
    table = Table(
        box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, header_style="bold"
    )
    table.add_column("variant", no_wrap=True)
    names = ("tok/s", "ratio", "TTFT", "TPOT", "hits", "preem.", "blocks", "same")
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        if not row.refused:
            table.add_row(row.variant, *_cells(row))
    return Group(table, *_remarks(rows))


def quality_table(rows: "Sequence[Quality]") -> Table:
    """What each KV format of engine.quality costs and gains."""
    table = Table(
        box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, header_style="bold"
    )
    table.add_column("KV format", no_wrap=True)
    for name in ("perplexity", "more", "bytes a token", "room", "tokens read"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row.kv_dtype,
            f"{row.perplexity:.4f}",
            f"{row.more:+.2%}",
            f"{row.kv_bytes_per_token:,.0f}",
            f"{row.room:.2f}x",
            f"{row.tokens:,}",
        )
    return table


def _cells(row: "Row") -> list[Text]:
    ratio = units.ABSENT if row.ratio is None else f"{units.significant(row.ratio)}x"
    same = f"{row.same_answers}/{row.answers}"
    return [
        Text(units.amount(row.output_tokens_per_s)),
        Text(ratio),
        Text(units.seconds(row.ttft_p50_s)),
        Text(units.seconds(row.tpot_p50_s)),
        Text(units.share(row.hit_rate)),
        Text(units.count(row.preemptions)),
        Text(units.count(row.num_blocks)),
        Text(same, style="bold red" if row.differs else ""),
    ]


def _remarks(rows: "Sequence[Row]") -> list[RenderableType]:
    remarks: list[RenderableType] = [
        Text("medians of TTFT and TPOT; same: answers equal to the first row's", style="dim")
    ]
    for row in rows:
        if row.refused:
            remarks.append(Text(f"{row.variant}: not possible: {row.refused}", style="yellow"))
        if row.differs:
            assert row.answers is not None and row.same_answers is not None
            remarks.append(
                Text(
                    f"{row.variant}: {row.answers - row.same_answers} of {row.answers} answers are"
                    f" not those of the first row, from output token {row.first_difference} on",
                    style="bold red",
                )
            )
    exact = sum(row.comparable for row in rows)
    if exact > 1 and not any(row.differs for row in rows):
        text = f"all {exact} variants without quantised KV gave the same answers"
        remarks.append(Text(text, style="green"))
    return remarks
