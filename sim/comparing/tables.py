"""A comparison in words and rows, for a terminal and for the page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from engine import units
from sim.comparing import metrics as named
from sim.comparing.comparison import Comparison
from sim.comparing.grid import shown
from sim.comparing.judging import Entry, Flip, Row
from sim.comparing.pairing import SAME, centre, interval_of_mean

STYLES: Final = {
    "better": "bold green",
    "worse": "bold red",
    "higher": "bold",
    "lower": "bold",
    SAME: "dim",
    "": "dim",
}
"""How a verdict looks on a terminal."""

FAILED: Final = "failed"
BASELINE: Final = "baseline"


def comparison_table(comparison: Comparison) -> Group:
    """The comparison for a terminal: a table a figure. Print it with rich."""
    parts: list[RenderableType] = [
        Text.assemble((comparison.name, "bold"), (f"\n{design(comparison)}", "dim"))
    ]
    parts += [Text(f"warning: {text}", style="yellow") for text in comparison.warnings]
    for metric in comparison.metrics:
        heading = (named.heading(metric), "bold"), (f" ({metric}, {direction(metric)})", "dim")
        parts += [Text(), Text.assemble(*heading), _of_metric(comparison, metric)]
    parts += [Text(), Text(method(comparison), style="dim")]
    parts += [
        Text(said_of_flip(comparison, flip), style="bold magenta") for flip in comparison.flips
    ]
    for entry in comparison.failed:
        parts.append(Text(said_of_failure(comparison, entry), style="bold red"))
    return Group(*parts)


def design(comparison: Comparison) -> str:
    """How many of what are compared."""
    if comparison.alone:
        text = "One scenario"
    else:
        text = f"{len(comparison.labels)} settings of {', '.join(comparison.varied)}"
    fixed = [name for name in comparison.vary if name not in comparison.varied]
    if fixed:
        stated = (f"{name}={shown(comparison.vary[name][0])}" for name in fixed)
        text += f" with {', '.join(stated)}"
    if comparison.curve is not None:
        setting, values = comparison.curve
        text += f" at {len(values)} values of {setting}"
    if not comparison.spread:
        return f"{text}, one run" + " each" * (len(comparison.entries) > 1)
    text += f", {comparison.replications} replications"
    return text + " each on the same luck" * (len(comparison.entries) > 1)


def method(comparison: Comparison) -> str:
    """What replications draw, and what intervals and verdicts mean, in sentences."""
    if not comparison.spread and comparison.alone:
        return (
            "One run at each value: whether its figures would last on other traffic is unknown;"
            " --replications 10 tells."
            if comparison.curve
            else "One run: whether its figures would last on other traffic is unknown;"
            " --replications 10 tells."
        )
    if not comparison.spread:
        return (
            "One run of each: differences are plain, and whether they would last on other traffic"
            " is unknown; --replications 10 tells."
        )
    level = f"{100 * comparison.level:g} %"
    drawn = f"Replications draw anew: {', '.join(comparison.drawn)}"
    if comparison.alone:
        return (
            f"{drawn}. Shown are means over replications"
            f"{' (of latencies geometric ones)' * ('ratio' in comparison.scales.values())}, with"
            f" Student's intervals, {level} each. Nothing is varied, so nothing is compared;"
            " --vary SETTING=V1,V2 says which of two is better."
        )
    if not comparison.rows:
        return f"{drawn}. Nothing could be compared: no setting and its baseline both have figures."
    ratios = ""
    if "ratio" in comparison.scales.values():
        ratios = " (of latencies for ratios, means being geometric)"
    count = len(comparison.rows)
    verdicts = f"Verdicts hold with {level} for all {count} comparisons together (Holm)."
    return (
        f"{drawn}; replication i of every setting"
        " draws the same. Differences are means over these pairs, intervals are Student's for"
        f" paired differences{ratios}, {level} each."
        f" {verdicts if count > 1 else f'The verdict holds with {level}.'}"
    )


def said_of_flip(comparison: Comparison, flip: Flip) -> str:
    """Where two settings change places, in a sentence."""
    assert comparison.curve is not None
    setting = comparison.curve[0]
    good = named.good(flip.metric)
    word = "better" if good else "lower"
    return (
        f"rank flips: {named.heading(flip.metric)} of {flip.better_below} is {word} than that of"
        f" {flip.better_above} at {setting} = {shown(flip.below)}, and"
        f" {'worse' if good else 'higher'} at {shown(flip.above)}"
    )


def said_of_failure(comparison: Comparison, entry: Entry) -> str:
    """Which settings failed and why."""
    at = ""
    if comparison.curve is not None:
        at = f" at {comparison.curve[0]} = {shown(entry.variant.at)}"
    return f"{FAILED}: {stated(entry)}{at}: {entry.error}"


def stated(entry: Entry) -> str:
    """Settings with their names: cache.eviction=lru cluster.replicas=2."""
    settings = entry.variant.settings.items()
    return " ".join(f"{name}={shown(value)}" for name, value in settings) or entry.variant.label


def head(comparison: Comparison) -> list[str]:
    """Headings of `rows`."""
    along = [comparison.curve[0].rpartition(".")[2]] if comparison.curve else []
    begin = [*along, *varied(comparison), "mean" if comparison.spread else "value"]
    if comparison.alone:
        return [*begin, f"{100 * comparison.level:g} % interval"] if comparison.spread else begin
    begin.append("difference")
    if not comparison.spread:
        return begin
    return [*begin, f"{100 * comparison.level:g} % interval", "verdict"]


def varied(comparison: Comparison) -> list[str]:
    """Settings by which combinations differ, as short as they can be told apart."""
    return [_short(name, comparison) for name in comparison.varied]


def values(comparison: Comparison, entry: Entry) -> list[str]:
    """An entry's values of the settings in `varied`."""
    return [shown(entry.variant.settings[name]) for name in comparison.varied]


def rows(comparison: Comparison, metric: str) -> Iterator[tuple[list[str], str]]:
    """Texts under `head` and the verdict, an entry after the other."""
    for entry in comparison.entries:
        variant = entry.variant
        along = [shown(variant.at)] if comparison.curve else []
        begin = [*along, *values(comparison, entry)]
        if comparison.alone:
            bounds = [interval_alone(comparison, entry, metric)] if comparison.spread else []
            said = "worse" if entry.error else ""
            yield (
                [*begin, FAILED if entry.error else mean(comparison, entry, metric), *bounds],
                said,
            )
            continue
        if variant.label == comparison.baseline:
            end, said = ["", BASELINE], ""
        else:
            row = comparison.row(variant.label, metric, variant.at)
            end, said = (["", "", ""], "") if row is None else (_said(row), row.verdict)
            if row is None and entry.error:
                end, said = ["", "", FAILED], "worse"
        if not comparison.spread:
            end = [BASELINE] if variant.label == comparison.baseline else end[:1]
        elif len(end) < 3:
            end = ["", "", BASELINE]
        yield [*begin, mean(comparison, entry, metric), *end], said


def mean(comparison: Comparison, entry: Entry, metric: str) -> str:
    """The mean of a figure over replications, or that of the run itself."""
    values = entry.values(metric)
    if values is None:
        return units.ABSENT
    return named.writer(metric)(centre(values, comparison.scales[metric]))


def interval_alone(comparison: Comparison, entry: Entry, metric: str) -> str:
    """Student's interval of a figure's own mean; empty where there is none."""
    values = entry.values(metric)
    if values is None or len(values) < 2:
        return ""
    low, high = interval_of_mean(values, comparison.level, comparison.scales[metric])
    write = named.writer(metric)
    return f"{write(low)} to {write(high)}"


def direction(metric: str) -> str:
    """Which way a figure is good, in words."""
    good = named.good(metric)
    return f"{good} is better" if good else "no way is better"


def _said(row: Row) -> list[str]:
    found, metric = row.difference, row.metric
    change = named.change(found.difference, found.share, metric)
    if found.low is None or found.high is None:
        return [change, "", ""]
    return [change, interval(row), row.verdict]


def interval(row: Row) -> str:
    """Bounds of a difference, as it is written itself."""
    found, metric = row.difference, row.metric
    if found.low is None or found.high is None:
        return ""
    base = abs(found.baseline)
    ends = [
        named.change(end, end / base if base else None, metric) for end in (found.low, found.high)
    ]
    low, _, unit = ends[0].rpartition(" ")
    same = ends[1].endswith(f" {unit}")
    return f"{low if same and low else ends[0]} to {ends[1]}"


def _short(name: str, comparison: Comparison) -> str:
    """A setting's last name, if no other varied setting has it."""
    last = name.rpartition(".")[2]
    alike = [one for one in comparison.varied if one.rpartition(".")[2] == last]
    return last if len(alike) == 1 else name


def _of_metric(comparison: Comparison, metric: str) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim")
    headings = head(comparison)
    texts = len(comparison.varied) + (comparison.curve is not None)
    for place, name in enumerate(headings):
        table.add_column(
            name,
            justify="left" if place < texts or name == "verdict" else "right",
            no_wrap=place >= texts,
            overflow="fold",
        )
    last: Any = None
    for (cells, said), entry in zip(rows(comparison, metric), comparison.entries, strict=True):
        shown_cells: Sequence[str] = cells
        if comparison.curve is not None:
            if entry.variant.at == last:
                shown_cells = ["", *cells[1:]]
            last = entry.variant.at
        styled = [Text(cell) for cell in shown_cells]
        styled[-1].stylize(STYLES.get(said, ""))
        table.add_row(*styled)
    return table
