"""`kvcast prices`: what GPUs cost by the hour, where that is from, and a copy to edit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from traces.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

    from sim.economics.prices import Prices

HEADS: Final = ("GPU", "contract", "$/GPU-hour", "seen", "of", "source")


def prices(
    file: Annotated[
        Path | None, typer.Argument(help="A price file; the one that comes with kvcast if none.")
    ] = None,
    write: Annotated[
        Path | None,
        typer.Option(help="Write a copy to edit; name it in a scenario as economics.prices."),
    ] = None,
    grids: Annotated[
        bool, typer.Option("--grids", help="List the carbon intensity of grids instead.")
    ] = False,
) -> None:
    """List GPU prices with their dates and sources, or copy them to edit."""
    from rich.console import Console

    from sim.economics.prices import load_prices

    console = Console()
    if grids:
        console.print(grid_table())
        return
    known = load_prices(file)
    if write is None:
        console.print(price_table(known))
        return
    copy_prices(file, write)
    console.print(
        f"{write}: edit it, then set economics.prices: {write}", markup=False, highlight=False
    )


def price_table(known: Prices) -> Group:
    """Every price of a file, a row each, and the sources that its numbers stand for."""
    from rich.console import Group
    from rich.text import Text

    from sim.economics.saying import usd

    table = _table(f"US dollars an hour ({known.where})")
    for head in HEADS:
        right = head in ("$/GPU-hour", "source")
        table.add_column(head, justify="right" if right else "left", no_wrap=head != "of")
    sources: dict[str, int] = {}
    for name, contracts in known.gpus.items():
        for contract, price in contracts.items():
            number = sources.setdefault(price.source, len(sources) + 1)
            seen, source = price.date.isoformat(), f"({number})"
            table.add_row(name, contract, usd(price.usd), seen, price.derivation, source)
    notes = [Text(f"({number}) {source}", style="dim") for source, number in sources.items()]
    return Group(table, *notes)


def grid_table() -> Table:
    """Every grid by name, a row each."""
    from sim.economics.grids import grids

    table = _table("Carbon intensity of electricity (economics.grid)")
    table.add_column("grid", no_wrap=True)
    table.add_column("g CO2e/kWh", justify="right", no_wrap=True)
    table.add_column("year", no_wrap=True)
    table.add_column("source", style="dim")
    for name, grid in grids().items():
        table.add_row(name, f"{grid.g_co2e_per_kwh:g}", str(grid.year), grid.source)
    return table


def copy_prices(file: Path | None, to: Path) -> None:
    """Write a price file, comments and all, where none is yet.

    Raises:
        ConfigError: there is a file already, or it cannot be written.
    """
    from engine.atomic import replacing
    from sim.economics.prices import shipped_text

    if to.exists():
        raise ConfigError(f"--write {to}: exists already; expected a new file")
    text = shipped_text() if file is None else file.read_text(encoding="utf-8")
    try:
        with replacing(to) as copy:
            copy.write(text.encode())
    except OSError as error:
        raise ConfigError(f"--write {to}: cannot be written: {error.strerror or error}") from None


def _table(title: str) -> Table:
    from rich.table import Table

    return Table(
        title=title,
        title_justify="left",
        title_style="bold",
        pad_edge=False,
        box=None,
        show_edge=False,
    )
