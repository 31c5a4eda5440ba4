"""`kvcast profile ...`: what profiles there are, what one says, how two differ."""

from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from calibration.fitted import FittedSettings
from calibration.profiles import SPEC, load_profile, shipped_profiles

profile_app = typer.Typer(help="Cost and capacity profiles.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="Shipped name, YAML file or analytic:<gpu>/<model>")]


@profile_app.command("list")
def list_profiles() -> None:
    """List the profiles that come with kvcast."""
    table = Table(box=SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False)
    for column in ("name", "model", "GPU", "weights", "KV", "measured"):
        table.add_column(column, no_wrap=True)
    for name in shipped_profiles():
        one = load_profile(name)
        device = one.device.name
        gpus = f"{one.tp} x {device}" if one.tp > 1 else device
        measured = "yes" if one.measured else "no"
        table.add_row(name, one.model, gpus, one.weight_dtype, one.kv_dtype, measured)
    console = Console()
    console.print(table)
    console.print(f"or state one: {SPEC}", markup=False)


@profile_app.command("show")
def show_profile(
    name: Name,
    out: Annotated[
        Path | None, typer.Option(help="HTML page: measured steps beside the fitted cost.")
    ] = None,
) -> None:
    """Show a profile's step times, its memory and where its numbers are from."""
    from calibration.showing import tables

    profile = load_profile(name)
    shown = [tables.steps_table(profile)]
    if isinstance(profile.cost, FittedSettings):
        shown.append(tables.coefficients_table(profile, profile.cost))
    if profile.fit is not None:
        shown.append(tables.errors_table(profile))
    shown += [tables.memory_table(profile), tables.sources_table(profile)]
    console = Console()
    if profile.warning:
        console.print(profile.warning, style="bold yellow", markup=False)
    for table in shown:
        console.print(table)
    console.print(f"provenance: {profile.provenance}", markup=False)
    if profile.note:
        console.print(f"note: {profile.note}", markup=False)
    if out is not None:
        from calibration.showing.page import write_page

        console.print(f"wrote {write_page(name, profile, out)}", markup=False)


@profile_app.command("compare")
def compare_profiles(one: Name, other: Name) -> None:
    """Show step times of two profiles side by side, and which fitted coefficients differ."""
    from calibration.showing import tables

    first, second = load_profile(one), load_profile(other)
    console = Console()
    for profile in (first, second):
        if profile.warning:
            console.print(profile.warning, style="bold yellow", markup=False)
    console.print(tables.step_comparison(first, second))
    if isinstance(first.cost, FittedSettings) and isinstance(second.cost, FittedSettings):
        console.print(tables.coefficient_comparison(first, first.cost, second, second.cost))
    else:
        kinds = f"{first.cost.kind} and {second.cost.kind}"
        console.print(f"no coefficients to compare: the costs are {kinds}", markup=False)
