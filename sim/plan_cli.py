"""`kvcast plan`: the cheapest fleet for this traffic, and how sure that is."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sim.sweep.options import CellMemory, CellTimeout, Jobs, Ray, StoreFolder

if TYPE_CHECKING:
    from sim.planning.evaluating import Told


def plan(
    settings: Annotated[Path, typer.Argument(metavar="PLAN.YAML", help="See docs/planning.md.")],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for report, plan.json, candidates and the winner's scenario."),
    ] = None,
    jobs: Jobs = 1,
    ray: Ray = None,
    store: StoreFolder = None,
    cell_timeout: CellTimeout = None,
    cell_memory: CellMemory = None,
) -> None:
    """Find the cheapest fleet that meets every objective, and say why, and for how long."""
    from rich.console import Console

    from sim.planning.plan import plan as planned
    from sim.planning.plan_folder import STORE, check_folder, write_folder
    from sim.planning.plan_tables import plan_table
    from sim.planning.space import load_plan_settings
    from sim.sweep.options import resumable, sweep_arguments

    load_plan_settings(settings)
    if out is not None:
        check_folder(out)
    sweeping = sweep_arguments(
        jobs, ray, store, cell_timeout, cell_memory, beside=out / STORE if out else None
    )
    console = Console()
    with resumable(store or out), _counter() as told:
        found = planned(settings, progress=told, **sweeping)
    if out is not None:
        write_folder(found, out)
    console.print(plan_table(found))
    if out is not None:
        written = ", ".join(sorted(path.name for path in out.iterdir()))
        console.print(f"{out}: {written}", markup=False, highlight=False, soft_wrap=True)


@contextmanager
def _counter() -> "Generator[Told | None]":
    """What is being done, and how many replays it took; nothing where the output is a file."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("")
        yield lambda what, count: bar.update(task, description=f"{what}: {count:,} replays")
