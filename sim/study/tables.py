"""A study as rows of text: for the terminal and for the page."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from engine import units
from sim.study.study import BOUND, Flip, Row, Study, capacity

HEAD: Final = (
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
FLIP_HEAD: Final = ("Ahead", "At", "By", "Then", "At", "By")

TELLING: Final = 8
"""Flips that are shown at once; with many policies there are as many as pairs."""

NAME_CHARACTERS: Final = 36
"""Longer policies, such as those in files, go over several lines."""
GAP_CHARACTERS: Final = 2


@dataclass(frozen=True, slots=True)
class Grid:
    """A share by policy and capacity, in per cent."""

    title: str
    policies: tuple[str, ...]
    capacities: tuple[int | None, ...]
    shares: tuple[tuple[float | None, ...], ...]
    """A row a policy, a column a capacity; None of nothing."""

    @property
    def head(self) -> list[str]:
        """Headings of `rows`."""
        return ["Eviction", *map(capacity, self.capacities)]

    @property
    def rows(self) -> list[list[str]]:
        """The policy, and its shares."""
        return [
            [policy, *map(_per_cent, shares)]
            for policy, shares in zip(self.policies, self.shares, strict=True)
        ]


def grids(study: Study) -> list[Grid]:
    """What is hit and, where there are policies other than the bound, how near it they come."""
    asked = study.settings.policies()
    made = [_grid(study, "Prompt tokens hit, %", asked, lambda row: row.token_hit_ratio)]
    others = tuple(policy for policy in asked if policy != BOUND)
    if others:
        title = f"Of the tokens that {BOUND} hits, %"
        made.append(_grid(study, title, others, lambda row: row.of_bound))
    return made


def study_table(study: Study, width: int = 80) -> Group:
    """The study for a terminal of so many characters: what is hit by policy and capacity."""
    parts: list[RenderableType] = [Text(about(study), style="dim")]
    for grid in grids(study):
        parts += [Text(), Text(grid.title, style="bold"), *_tables(grid, width)]
    parts += [Text(), Text(f"{BOUND} knows the future: no policy can hit more.", style="dim")]
    parts += [Text(text, style="dim") for text in said_of_alike(study)]
    if study.flips:
        parts += [Text(), *_flips(study)]
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
    """What went past the caches."""
    texts: list[str] = []
    for tokens in study.settings.capacity_tokens:
        bypassed = study.row(study.settings.policies()[0], tokens).total.bypassed
        if bypassed:
            are = "request is" if bypassed == 1 else "requests are"
            texts.append(
                f"{units.count(bypassed)} {are} larger than {capacity(tokens)} tokens and"
                " went past the cache"
            )
    return texts


def said_of_alike(study: Study) -> list[str]:
    """Which policies cannot be told apart on this trace."""
    texts: list[str] = []
    for first, *others in study.alike:
        if others:
            *most, last = others
            names = f"{', '.join(most)} and {last}" if most else last
            verb = "hit" if most else "hits"
            texts.append(f"{names} {verb} as much as {first} at every capacity.")
    return texts


def telling_flips(study: Study) -> list[Flip]:
    """At most TELLING flips: those with the largest lead on the side where it is smaller, of each
    set of policies that hit alike the first only."""
    firsts = {group[0] for group in study.alike}
    found = [flip for flip in study.flips if {flip.ahead_small, flip.ahead_large} <= firsts]
    found.sort(key=lambda flip: -min(flip.lead_small, flip.lead_large))
    return found[:TELLING]


def flip_rows(flips: Sequence[Flip]) -> list[tuple[str, ...]]:
    """Who is ahead at the smaller capacity, and who at the larger one, under FLIP_HEAD."""
    return [
        (
            flip.ahead_small,
            capacity(flip.small_tokens),
            _points(flip.lead_small),
            flip.ahead_large,
            capacity(flip.large_tokens),
            _points(flip.lead_large),
        )
        for flip in flips
    ]


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


def _grid(
    study: Study, title: str, policies: tuple[str, ...], share: Callable[[Row], float | None]
) -> Grid:
    capacities = study.settings.capacity_tokens
    shares = tuple(
        tuple(share(study.row(policy, tokens)) for tokens in capacities) for policy in policies
    )
    return Grid(title, policies, capacities, shares)


def _tables(grid: Grid, width: int) -> Iterator[RenderableType]:
    """As many capacities side by side as fit, the others below; the best of each is bold."""
    name = min(max(map(len, ("eviction", *grid.policies))), NAME_CHARACTERS)
    cell = max(len(text) for row in (grid.head, *grid.rows) for text in row[1:])
    most = max((width - name) // (cell + GAP_CHARACTERS), 1)
    abreast = ceil(len(grid.capacities) / ceil(len(grid.capacities) / most))
    best = [_best(grid, place) for place in range(len(grid.capacities))]
    for begin in range(0, len(grid.capacities), abreast):
        places = range(begin, min(begin + abreast, len(grid.capacities)))
        made = Table(box=None, padding=(0, GAP_CHARACTERS, 0, 0), header_style="dim")
        made.pad_edge = False
        made.add_column("eviction", max_width=NAME_CHARACTERS, overflow="fold")
        for place in places:
            made.add_column(capacity(grid.capacities[place]), justify="right", min_width=cell)
        for policy, shares in zip(grid.policies, grid.shares, strict=True):
            cells = [
                Text(_per_cent(shares[place]), style=_style(policy, shares[place], best[place]))
                for place in places
            ]
            made.add_row(Text(policy, style="dim" if policy == BOUND else ""), *cells)
        if begin:
            yield Text()
        yield made


def _best(grid: Grid, place: int) -> float | None:
    """The largest share at a capacity that policies reach; None if all are alike."""
    found = {
        shares[place]
        for policy, shares in zip(grid.policies, grid.shares, strict=True)
        if policy != BOUND
    }
    known = [share for share in found if share is not None]
    return max(known) if len(known) > 1 else None


def _style(policy: str, share: float | None, best: float | None) -> str:
    if policy == BOUND:
        return "dim"
    return "bold" if best is not None and share == best else ""


def _flips(study: Study) -> Iterator[RenderableType]:
    telling, count = telling_flips(study), len(study.flips)
    yield Text("Where ranks flip: who is ahead, by points of token hit ratio", style="bold magenta")
    made = Table(box=None, padding=(0, GAP_CHARACTERS, 0, 0), header_style="dim")
    made.pad_edge = False
    for heading in FLIP_HEAD:
        number = heading in ("At", "By")
        made.add_column(
            heading.lower(), justify="right" if number else "left", no_wrap=number, overflow="fold"
        )
    for row in flip_rows(telling):
        made.add_row(*row)
    yield made
    if count > len(telling):
        yield Text(
            f"These lead most on both sides; {units.count(count - len(telling))} more are in the"
            " page and the numbers that --out writes.",
            style="dim",
        )


def _points(lead: float) -> str:
    return f"{100 * lead:.1f}"


def _per_cent(share: float | None) -> str:
    return units.share(share).removesuffix(" %")


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
