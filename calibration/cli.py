"""`kvcast profile ...`: what profiles there are, and what one says."""

from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from calibration.profiles import SPEC, Profile, load_profile, shipped_profiles
from calibration.roofline import RooflineCost
from engine.batch import Batch

profile_app = typer.Typer(help="Cost and capacity profiles.", no_args_is_help=True)

STEPS = (
    ("decode 1 x 1k", 1, 1024, 0),
    ("decode 64 x 1k", 64, 1024, 0),
    ("decode 256 x 1k", 256, 1024, 0),
    ("decode 128 x 4k", 128, 4096, 0),
    ("prefill 2k", 0, 0, 2048),
    ("prefill 448 + decode 64 x 1k", 64, 1024, 448),
)
"""Steps shown: label, decodes, context of each, tokens of one prefill chunk without context."""


@profile_app.command("list")
def list_profiles() -> None:
    """List the profiles that come with kvcast."""
    table = Table(box=SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False)
    for column in ("name", "model", "GPU", "weights", "KV", "measured"):
        table.add_column(column, no_wrap=True)
    for name in shipped_profiles():
        one = load_profile(name)
        gpus = f"{one.tp} x {one.gpu}" if one.tp > 1 else one.gpu
        measured = "yes" if one.measured else "no"
        table.add_row(name, one.model, gpus, one.weight_dtype, one.kv_dtype, measured)
    console = Console()
    console.print(table)
    console.print(f"or state one: {SPEC}", markup=False)


@profile_app.command("show")
def show_profile(
    name: Annotated[str, typer.Argument(help="Shipped name, YAML file or analytic:<gpu>/<model>")],
) -> None:
    """Show a profile's step times, its memory and where its numbers are from."""
    profile = load_profile(name)
    tables = (_steps(profile), _memory(profile), _sources(profile))
    console = Console()
    if profile.warning:
        console.print(profile.warning, style="bold yellow", markup=False)
    for table in tables:
        console.print(table)
    console.print(f"provenance: {profile.provenance}", markup=False)
    if profile.note:
        console.print(f"note: {profile.note}", markup=False)


def typical_batch(decodes: int, context_tokens: int, chunk: int) -> Batch:
    """Features of a step: decodes with `context_tokens` each, and the first chunk of one prompt.

    It schedules nothing: the chunk's row of logits is left out.
    """
    batch = Batch()
    batch.decodes = decodes
    batch.decode_context_tokens = decodes * context_tokens
    batch.prefill_tokens = chunk
    batch.prefill_context_tokens = chunk
    batch.prefill_pairs = chunk * (chunk + 1) // 2
    batch.prefill_pairs_growth = chunk * chunk
    return batch


def _steps(profile: Profile) -> Table:
    table = Table(title=f"{profile.name}: typical steps, ms")
    table.add_column("part")
    cost = profile.cost_model()
    columns: list[dict[str, float]] = []
    for label, decodes, context_tokens, chunk in STEPS:
        table.add_column(label, justify="right")
        batch = typical_batch(decodes, context_tokens, chunk)
        parts = cost.explain(batch) if isinstance(cost, RooflineCost) else {}
        columns.append({**parts, "step": cost.progression(batch)[0] / 1e12})
    for part in columns[0]:
        if any(column[part] for column in columns):
            cells = (f"{1e3 * column[part]:.3f}" for column in columns)
            table.add_row(part, *cells, style="bold" if part == "step" else None)
    return table


def _memory(profile: Profile) -> Table:
    capacity = profile.capacity()
    table = Table(title=f"memory of each {profile.gpu}")
    table.add_column("part")
    table.add_column("GiB", justify="right")
    for part, size_bytes in capacity.parts().items():
        table.add_row(part, f"{size_bytes / 2**30:.2f}")
    table.add_row("sum", f"{capacity.memory_bytes / 2**30:.2f}", style="bold")
    table.caption = (
        f"{capacity.blocks:,} blocks of {capacity.block_tokens} = {capacity.tokens:,} tokens,"
        f" {capacity.block_bytes:,} bytes a block"
    )
    return table


def _sources(profile: Profile) -> Table:
    table = Table(title=f"{profile.gpu} and {profile.model}")
    for column in ("datum", "value", "source"):
        table.add_column(column)
    device = profile.device
    for field, source in device.sources:
        value = getattr(device, field)
        table.add_row(field, value if isinstance(value, str) else f"{value:,}", source)
    shape = profile.shape
    table.add_row("parameters", f"{shape.parameters:,}", "computed from config.json")
    if shape.experts:
        table.add_row("of which active", f"{shape.active_parameters:,}", "for each token")
    return table
