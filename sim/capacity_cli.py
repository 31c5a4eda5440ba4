"""`kvcast capacity`: how many requests a second does this configuration sustain?"""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from sim.sweep.options import CellMemory, CellTimeout, Jobs, Ray, StoreFolder

if TYPE_CHECKING:
    from sim.planning.capacity import Progress

INTERRUPTED: Final = 130


def capacity(
    scenario: Annotated[
        Path | None, typer.Argument(help="Scenario YAML; the defaults if not given.")
    ] = None,
    objective: Annotated[
        list[str] | None,
        typer.Option(
            help='What has to be kept, such as "p99 ttft <= 1s", "goodput >= 99%" or'
            ' "chat: p95 tpot <= 50ms"; repeatable: all of them.'
        ),
    ] = None,
    slo: Annotated[
        str | None, typer.Option(help="Limits of a good request: ttft=1s,tpot=50ms,e2e=30s.")
    ] = None,
    share: Annotated[
        str, typer.Option(help="Of the hours like this one in which all is kept: 50%.")
    ] = "50%",
    confidence: Annotated[
        str, typer.Option(help="Probability that the interval holds the true rate.")
    ] = "95%",
    precision: Annotated[
        str, typer.Option(help="How close the ends of the interval are to be to the rate.")
    ] = "2%",
    replications: Annotated[
        int,
        typer.Option(
            metavar="N", help="Simulated at most at a rate; 1: the trace alone, no confidence."
        ),
    ] = 30,
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
    by: Annotated[
        str,
        typer.Option(help="How the rate is changed: time (faster arrivals), users (more of them)."),
    ] = "time",
    trace: Annotated[str | None, typer.Option(help="Trace file, or sample:NAME.")] = None,
    profile: Annotated[str | None, typer.Option(help="Profile; see `kvcast profile list`.")] = None,
    replicas: Annotated[str | None, typer.Option(metavar="N", help="Engine instances.")] = None,
    router: Annotated[str | None, typer.Option(help="How requests are spread.")] = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(
            help="KIND=POLICY, a policy's name, or your own FILE.py:NAME; repeatable."
            " See `kvcast policies`."
        ),
    ] = None,
    seed: Annotated[
        str | None, typer.Option(metavar="N", help="Seed of everything random.")
    ] = None,
    op: Annotated[
        list[str] | None,
        typer.Option(help="Operation on the trace, NAME:setting=value,...; repeatable."),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any setting, such as scheduler.max_num_seqs=256; repeatable."),
    ] = None,
    jobs: Jobs = 1,
    ray: Ray = None,
    store: StoreFolder = None,
    cell_timeout: CellTimeout = None,
    cell_memory: CellMemory = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for page, numbers and scenario; a later run goes on there."),
    ] = None,
) -> None:
    """Find the highest rate of requests that a configuration sustains, and what binds it."""
    from rich.console import Console

    from engine.kinds import policy_settings
    from engine.slo import parse_slo
    from sim.kinds import KINDS
    from sim.planning.capacity import capacity as found_capacity
    from sim.planning.capacity_folder import STORE, check_folder, write_folder
    from sim.planning.capacity_tables import capacity_table
    from sim.planning.objectives import parse_objectives
    from sim.planning.rates import way
    from sim.scenario import load_scenario
    from sim.sweep.options import sweep_arguments
    from traces.options import given, number
    from traces.pipeline import parse_operation
    from traces.settings import merged

    options: dict[str, Any] = {
        "trace": {"path": trace},
        "profile": profile,
        "cluster": {"replicas": number(replicas), "router": router},
        "seed": number(seed),
        "slo": parse_slo(slo) if slo is not None else None,
    }
    if op:
        options["trace"]["operations"] = [parse_operation(one).model_dump() for one in op]
    options = merged(given(options), policy_settings(policy or (), KINDS))
    settings = load_scenario(scenario, set_ or (), options)
    objectives = parse_objectives(objective or ())
    console, errors = Console(), Console(stderr=True)
    if out is not None:
        check_folder(out)
    sweeping = sweep_arguments(
        jobs, ray, store, cell_timeout, cell_memory, beside=out / STORE if out else None
    )
    try:
        with _told() as tell:
            found = found_capacity(
                settings,
                objectives,
                share=_share("--share", share),
                confidence=_share("--confidence", confidence),
                precision=_share("--precision", precision),
                replications=replications,
                traffic=traffic,
                blocks=blocks,
                by=way(by),
                progress=tell,
                **sweeping,
            )
    except KeyboardInterrupt:
        where = store or out
        kept = f"; what is done is kept in {where}, and the same command goes on" if where else ""
        errors.print(f"interrupted{kept}", markup=False, highlight=False, soft_wrap=True)
        raise SystemExit(INTERRUPTED) from None
    if out is not None:
        write_folder(found, out)
    console.print(capacity_table(found))
    if out is not None:
        written = ", ".join(sorted(path.name for path in out.iterdir()))
        console.print(f"{out}: {written}", markup=False, highlight=False, soft_wrap=True)


def _share(option: str, text: str) -> float:
    """`95%` or `0.95`; raises ConfigError."""
    from traces.errors import ConfigError

    try:
        number = text.strip()
        return float(number[:-1]) / 100 if number.endswith("%") else float(number)
    except ValueError:
        raise ConfigError(f"{option} {text}: expected a share, such as 50% or 0.5") from None


@contextmanager
def _told() -> "Generator[Progress | None]":
    """A line that says how far the search is; nothing where the output is a file."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    with console.status("0 simulations") as status:
        yield status.update
