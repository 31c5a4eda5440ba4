"""`kvcast compare`: which settings are better, on the same requests and the same luck?"""

from pathlib import Path
from typing import Annotated, Any, Final

import typer

from sim.scenario_options import (
    Blocks,
    Op,
    ProfileName,
    Seed,
    Slo,
    TraceName,
    TrafficMethod,
    stated_options,
)
from sim.sweep.options import CellMemory, CellTimeout, Jobs, Ray, StoreFolder

FAILED: Final = 1
"""Exit code where a cell failed."""


def compare(
    scenario: Annotated[
        Path | None, typer.Argument(help="Scenario YAML; the defaults if not given.")
    ] = None,
    vary: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SETTING=V1,V2,...",
            help="A setting and its values, such as cache.eviction=lru,fifo; repeatable: every"
            " combination is a cell.",
        ),
    ] = None,
    curve: Annotated[
        str | None,
        typer.Option(
            metavar="SETTING=V1,V2,...",
            help="Repeat the comparison along a setting; load=0.5,1,2 multiplies the trace's rate.",
        ),
    ] = None,
    baseline: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SETTING=VALUE",
            help="What to compare with; repeatable. The first of each setting if not given.",
        ),
    ] = None,
    replications: Annotated[
        int, typer.Option(metavar="N", help="Pairs of runs; 1: plain differences, no verdicts.")
    ] = 10,
    traffic: TrafficMethod = None,
    blocks: Blocks = 20,
    metric: Annotated[
        list[str] | None,
        typer.Option(help="Figure of interest, such as latency.ttft_s.p99; repeatable."),
    ] = None,
    level: Annotated[
        float, typer.Option(help="Of intervals, and of all verdicts together.")
    ] = 0.95,
    trace: TraceName = None,
    profile: ProfileName = None,
    slo: Slo = None,
    seed: Seed = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(
            help="KIND=POLICY, a policy's name, or your own FILE.py:NAME; several of a kind are"
            " compared. See `kvcast policies`."
        ),
    ] = None,
    op: Op = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Any setting of all cells; repeatable.")
    ] = None,
    jobs: Jobs = 1,
    ray: Ray = None,
    store: StoreFolder = None,
    cell_timeout: CellTimeout = None,
    cell_memory: CellMemory = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for page, numbers and scenarios; a later run goes on there."),
    ] = None,
) -> None:
    """Simulate every combination of settings on the same luck and say which is better."""
    from rich.console import Console

    from engine.kinds import policy_values
    from sim.comparing.comparison import compare as compared
    from sim.comparing.folder import STORE, check_folder, write_folder
    from sim.comparing.grid import parse_vary, stated_values
    from sim.comparing.tables import comparison_table
    from sim.kinds import KINDS
    from sim.sweep.options import resumable, simulations_bar, sweep_arguments
    from traces.errors import ConfigError

    varied: dict[str, tuple[Any, ...]] = {}
    for text in vary or ():
        setting, values = parse_vary(text)
        if setting in varied:
            raise ConfigError(f"--vary {setting}: is stated twice; expected one list of values")
        varied[setting] = values
    for setting, specs in policy_values(policy or (), KINDS).items():
        if setting in varied:
            raise ConfigError(f"--policy {specs[0]}: --vary has {setting}; expected one of the two")
        varied[setting] = tuple(specs)
    chosen: dict[str, Any] = {}
    for text in baseline or ():
        setting, (value, *others) = parse_vary(text, "--baseline")
        if others:
            raise ConfigError(f"--baseline {text}: expected one value")
        chosen[setting] = value
    along = dict([parse_vary(curve, "--curve")]) if curve is not None else None
    stated = stated_values(scenario, set_ or (), stated_options(trace, profile, seed, slo, op))
    console = Console()
    if out is not None:
        check_folder(out)
    sweeping = sweep_arguments(
        jobs, ray, store, cell_timeout, cell_memory, beside=out / STORE if out else None
    )
    with resumable(store or out), simulations_bar() as tell:
        comparison = compared(
            stated,
            varied,
            curve=along,
            replications=replications,
            traffic=traffic,
            blocks=blocks,
            metrics=metric or (),
            baseline=chosen,
            level=level,
            progress=tell,
            **sweeping,
        )
    if out is not None:
        write_folder(comparison, out)
    console.print(comparison_table(comparison))
    if out is not None:
        written = ", ".join(sorted(path.name for path in out.iterdir()))
        console.print(f"{out}: {written}", markup=False, highlight=False, soft_wrap=True)
    if comparison.failed:
        raise typer.Exit(FAILED)
