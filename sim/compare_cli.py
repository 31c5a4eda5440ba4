"""`kvcast compare`: which settings are better, on the same requests and the same luck?"""

from pathlib import Path
from typing import Annotated, Any, Final

import typer

from sim.sweep.options import CellMemory, CellTimeout, Jobs, Ray, StoreFolder

FAILED: Final = 1
"""Exit code where a cell failed."""
INTERRUPTED: Final = 130


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
    traffic: Annotated[
        str | None,
        typer.Option(
            help="What replications serve: same, reseeded (a synthetic trace made anew), blocks"
            " (of the trace, drawn with replacement). Not given: reseeded if possible, else blocks."
        ),
    ] = None,
    blocks: Annotated[
        int, typer.Option(metavar="N", help="Blocks that the trace is cut into.")
    ] = 20,
    metric: Annotated[
        list[str] | None,
        typer.Option(help="Figure of interest, such as latency.ttft_s.p99; repeatable."),
    ] = None,
    level: Annotated[
        float, typer.Option(help="Of intervals, and of all verdicts together.")
    ] = 0.95,
    trace: Annotated[str | None, typer.Option(help="Trace file, or sample:NAME.")] = None,
    profile: Annotated[str | None, typer.Option(help="Profile; see `kvcast profile list`.")] = None,
    slo: Annotated[
        str | None, typer.Option(help="Limits of a good request: ttft=1s,tpot=50ms,e2e=30s.")
    ] = None,
    seed: Annotated[
        str | None, typer.Option(metavar="N", help="Seed of everything random.")
    ] = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(
            help="KIND=POLICY, a policy's name, or your own FILE.py:NAME; several of a kind are"
            " compared. See `kvcast policies`."
        ),
    ] = None,
    op: Annotated[
        list[str] | None,
        typer.Option(help="Operation on the trace, NAME:setting=value,...; repeatable."),
    ] = None,
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
    from engine.slo import parse_slo
    from sim.comparing.comparison import compare as compared
    from sim.comparing.folder import STORE, check_folder, write_folder
    from sim.comparing.grid import parse_vary, stated_values
    from sim.comparing.tables import comparison_table
    from sim.kinds import KINDS
    from sim.sweep.options import simulations_bar, sweep_arguments
    from traces.errors import ConfigError
    from traces.options import given, number
    from traces.pipeline import parse_operation

    options: dict[str, Any] = {
        "trace": {"path": trace},
        "profile": profile,
        "seed": number(seed),
        "slo": parse_slo(slo) if slo is not None else None,
    }
    if op:
        options["trace"]["operations"] = [parse_operation(one).model_dump() for one in op]
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
    stated = stated_values(scenario, set_ or (), given(options))
    console, errors = Console(), Console(stderr=True)
    if out is not None:
        check_folder(out)
    sweeping = sweep_arguments(
        jobs, ray, store, cell_timeout, cell_memory, beside=out / STORE if out else None
    )
    try:
        with simulations_bar() as tell:
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
    except KeyboardInterrupt:
        where = store or out
        kept = f"; what is done is kept in {where}, and the same command goes on" if where else ""
        errors.print(f"interrupted{kept}", markup=False, highlight=False, soft_wrap=True)
        raise SystemExit(INTERRUPTED) from None
    if out is not None:
        write_folder(comparison, out)
    console.print(comparison_table(comparison))
    if out is not None:
        written = ", ".join(sorted(path.name for path in out.iterdir()))
        console.print(f"{out}: {written}", markup=False, highlight=False, soft_wrap=True)
    if comparison.failed:
        raise typer.Exit(FAILED)
