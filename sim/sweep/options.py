"""The options that commands which sweep have in common, and the bar they show meanwhile."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, TypedDict

import typer

if TYPE_CHECKING:
    from sim.sweep.outcomes import Progress
    from sim.sweep.store import Store

INTERRUPTED: Final = 130

Jobs = Annotated[
    int,
    typer.Option("--jobs", metavar="N", min=1, help="Processes that share the simulations."),
]
Ray = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="auto|ADDRESS",
        help="Simulate on a Ray cluster: the one of this machine, or HOST:PORT of its head.",
    ),
]
StoreFolder = Annotated[
    Path | None,
    typer.Option(
        "--store",
        metavar="FOLDER",
        help="Keep and find figures here: a simulation that it has is not run again.",
    ),
]
CellTimeout = Annotated[
    float | None,
    typer.Option(
        "--cell-timeout", metavar="S", min=0.001, help="End a simulation that takes longer, in s."
    ),
]
CellMemory = Annotated[
    str | None,
    typer.Option(
        "--cell-memory", metavar="SIZE", help="End a simulation that takes more, such as 4GiB."
    ),
]


class SweepArguments(TypedDict):
    """Keyword arguments of `Sweep`, and of `compare`, `capacity` and `plan`."""

    jobs: int
    ray: str | None
    store: Store | None
    timeout_s: float | None
    memory_bytes: int | None


def sweep_arguments(
    jobs: int,
    ray: str | None,
    store: Path | None,
    cell_timeout: float | None,
    cell_memory: str | None,
    *,
    beside: Path | None = None,
) -> SweepArguments:
    """What the options ask for; a line on stderr says which results of the store are not used.

    Args:
        jobs: as the option has it, like those that follow.
        ray: see `Ray`.
        store: see `StoreFolder`.
        cell_timeout: see `CellTimeout`.
        cell_memory: see `CellMemory`.
        beside: where figures are kept if `store` does not say; None: nowhere.

    Raises:
        ConfigError: a size that is none, or a folder that is no store.
    """
    from rich.console import Console

    from sim.sweep.memory import parse_size
    from sim.sweep.store import Store

    memory_bytes = parse_size(cell_memory) if cell_memory is not None else None
    folder = store or beside
    kept = Store(folder) if folder is not None else None
    if kept is not None and kept.of_others():
        Console(stderr=True).print(kept.of_others(), markup=False, highlight=False, soft_wrap=True)
    return {
        "jobs": jobs,
        "ray": ray,
        "store": kept,
        "timeout_s": cell_timeout,
        "memory_bytes": memory_bytes,
    }


@contextmanager
def simulations_bar() -> Generator[Progress | None]:
    """A bar of simulations, with the time that is left; nothing where the output is a file."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    columns = (
        TextColumn("simulations"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def resumable(kept_in: Path | None) -> Generator[None]:
    """An interrupt says where what is done is kept, if it is, and ends the command."""
    try:
        yield
    except KeyboardInterrupt:
        kept = f"; what is done is kept in {kept_in}, and the same command goes on"
        print(f"interrupted{kept if kept_in else ''}", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
