"""The comparison as a table, for a terminal and for the page."""

from collections.abc import Mapping
from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from engine import units
from sim.validation.figures import RATES, STATISTICS, Comparison
from sim.validation.served import LATENCIES
from sim.validation.validation import Validation

HEAD: Final = ("", "", "simulated", "real", "error", "arrivals moved", "other requests")
"""Headings; the last two are intervals of the error."""

NAMES: Final = {**LATENCIES, "itl": "Inter-token latency"}


def rows(figures: Mapping[str, Comparison]) -> list[list[str]]:
    """A row a figure, as texts under HEAD."""
    made: list[list[str]] = []
    for latency, name in NAMES.items():
        for statistic in STATISTICS:
            one = figures.get(f"{latency}.{statistic}")
            if one is not None:
                first = name if statistic == "mean" else ""
                made.append([first, units.STATISTICS[statistic], *_cells(one, units.seconds)])
    for name, unit in zip(RATES, ("requests/s", "output tok/s"), strict=True):
        if name in figures:
            made.append(["Throughput", unit, *_cells(figures[name], units.significant)])
    return made


def said(error: float | None) -> str:
    """An error for a reader: +3.1 %."""
    return units.ABSENT if error is None else f"{100 * error:+.1f} %"


def counted_from(validation: Validation) -> str:
    """What TTFT and end-to-end latency are counted from, in a sentence."""
    if validation.origin == "queued":
        return (
            "TTFT and end-to-end latency count from when the scheduler first saw a request, on both"
            " sides."
        )
    return (
        "TTFT and end-to-end latency count from arrival: the log does not tell when the scheduler"
        " first saw a request."
    )


def decisions(validation: Validation) -> str:
    """What became of the engine's run with its own step times; empty for other engines' logs."""
    found = validation.real.decisions
    if found is None:
        return ""
    if found.largest_error_s is None:
        return f"Given the engine's step times: {found.difference}"
    apart = (
        f"first tokens and finishes are off by at most {units.seconds(found.largest_error_s)}"
        if found.largest_error_s
        else "every first token and finish is there at the same time"
    )
    return (
        f"Given the engine's own step times, the simulator repeats all {found.steps:,} steps, and"
        f" {apart}. What errors there are come from the cost model and from time between steps."
    )


def comparison_table(validation: Validation) -> Group:
    """The comparison for a terminal, within 80 columns. Print it with rich."""
    real, both = validation.real, len(validation.real_served)
    title = Text.assemble(
        ("Simulated and real", "bold"),
        (
            f"\n{real.where}: {both:,} requests, profile {validation.summary['profile']['name']}",
            "dim",
        ),
    )
    parts: list[RenderableType] = [title]
    parts += [Text(f"warning: {text}", style="yellow") for text in validation.warnings]
    parts += [Text(), _table(validation), Text(), Text(counted_from(validation), style="dim")]
    if decisions(validation):
        parts.append(Text(decisions(validation), style="dim"))
    parts += [
        Text(f"{'met' if verdict.met else 'MISSED'}  {verdict}", style=style)
        for verdict in validation.verdicts
        for style in ["green" if verdict.met else "bold red"]
    ]
    return Group(*parts)


def _table(validation: Validation) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    jitter = validation.jitter
    moved = f"+-{units.limit(jitter.sigma_s)}" if jitter.replications else ""
    for name in ("", "", "simulated", "real", "error", moved):
        table.add_column(name, justify="left" if not name else "right")
    for row, one in zip(rows(validation.figures), _in_order(validation.figures), strict=True):
        share = one.jitter_share
        table.add_row(*row[:5], "" if share is None else f"+-{100 * share:.1f} %")
    return table


def _in_order(figures: Mapping[str, Comparison]) -> list[Comparison]:
    names = [f"{latency}.{statistic}" for latency in NAMES for statistic in STATISTICS]
    return [figures[name] for name in (*names, *RATES) if name in figures]


def _cells(one: Comparison, say: object) -> list[str]:
    assert callable(say)
    return [
        str(say(one.simulated)),
        str(say(one.real)),
        said(one.error),
        *(_interval(ends) for ends in (one.jitter, one.bootstrap)),
    ]


def _interval(ends: tuple[float, float] | None) -> str:
    return "" if ends is None else f"{100 * ends[0]:+.1f} to {100 * ends[1]:+.1f} %"
