"""A study as rows of text: for the terminal and for the page."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from engine import units
from sim.study.study import Row, Study, capacity

HEAD = (
    "Eviction",
    "Capacity",
    "Tokens hit",
    "Of the bound",
    "Mean of requests",
    "Requests with a hit",
    "Blocks hit",
    "Prefill work left",
    "Served past the cache",
)


def study_table(study: Study) -> Group:
    """The study for a terminal: token hit ratios by capacity, each with its share of the bound."""
    capacities = study.settings.capacity_tokens
    grid = Table(box=SIMPLE_HEAD, pad_edge=False)
    grid.add_column("eviction")
    for tokens in capacities:
        grid.add_column(capacity(tokens), justify="right")
    for policy in study.settings.policies():
        rows = [study.row(policy, tokens) for tokens in capacities]
        grid.add_row(policy, *(_hit(row) for row in rows))
    parts: list[RenderableType] = [Text(about(study), style="dim"), grid]
    parts.append(
        Text("share of prompt tokens hit, and of what Belady's bound hits there", style="dim")
    )
    parts += [Text(f"warning: {text}", style="yellow") for text in warnings(study)]
    return Group(*parts)


def about(study: Study) -> str:
    """What was served from what."""
    settings = study.settings
    total = study.rows[0].total
    unit = "blocks" if settings.index == "blocks" else "pages of a radix tree"
    text = (
        f"{settings.trace.path}: {units.count(total.requests)} requests,"
        f" {units.amount(total.prompt_tokens)} prompt tokens, {unit} of"
        f" {settings.block_tokens} tokens"
    )
    if settings.replicas > 1:
        text += (
            f", {settings.replicas} caches each of the capacity, router {settings.router};"
            " the bound has the room of all of them in one"
        )
    return text


def warnings(study: Study) -> list[str]:
    """Where ranks flip, and what went past the caches."""
    texts = [str(flip) for flip in study.flips]
    for tokens in study.settings.capacity_tokens:
        bypassed = study.row(study.settings.policies()[0], tokens).total.bypassed
        if bypassed:
            texts.append(
                f"{units.count(bypassed)} requests are larger than {capacity(tokens)} tokens and"
                " went past the cache"
            )
    return texts


def rows(shown: Sequence[Row]) -> list[tuple[str, ...]]:
    """All figures, a row each, under HEAD."""
    return [
        (
            row.eviction,
            capacity(row.capacity_tokens),
            *_figures(row),
            units.count(row.total.bypassed),
        )
        for row in shown
    ]


def tenant_rows(study: Study) -> list[tuple[str, ...]]:
    """Of each tenant: its share of prompt tokens, and its token hit ratio by policy."""
    found: list[tuple[str, ...]] = []
    for row in study.rows:
        for name, tally in row.tallies.tenants.items():
            found.append(
                (
                    name,
                    row.eviction,
                    capacity(row.capacity_tokens),
                    units.share(tally.prompt_tokens / row.total.prompt_tokens),
                    units.share(tally.ratios()["token_hit_ratio"]),
                )
            )
    return found


def _figures(row: Row) -> tuple[str, ...]:
    ratios = row.total.ratios()
    return (
        units.share(ratios["token_hit_ratio"]),
        units.share(row.of_bound),
        units.share(ratios["mean_request_hit_ratio"]),
        units.share(ratios["request_hit_ratio"]),
        units.share(ratios["block_hit_ratio"]),
        units.share(ratios["prefill_work_left"]),
    )


def _hit(row: Row) -> Text:
    of_bound = "" if row.of_bound is None else f" {100 * row.of_bound:3.0f} %"
    return Text.assemble(units.share(row.token_hit_ratio), (of_bound, "dim"))
