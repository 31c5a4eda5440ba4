"""`kvcast capacity`: how many requests a second does this configuration sustain?"""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sim.scenario_options import (
    Blocks,
    Op,
    Policy,
    ProfileName,
    Replicas,
    Router,
    Seed,
    Set,
    Slo,
    TraceName,
    TrafficMethod,
    stated_options,
)
from sim.sweep.options import CellMemory, CellTimeout, Jobs, Ray, StoreFolder

if TYPE_CHECKING:
    from sim.planning.capacity import Progress


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
    slo: Slo = None,
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
    traffic: TrafficMethod = None,
    blocks: Blocks = 20,
    by: Annotated[
        str,
        typer.Option(help="How the rate is changed: time (faster arrivals), users (more of them)."),
    ] = "time",
    trace: TraceName = None,
    profile: ProfileName = None,
    replicas: Replicas = None,
    router: Router = None,
    policy: Policy = None,
    seed: Seed = None,
    op: Op = None,
    set_: Set = None,
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
    from sim.kinds import KINDS
    from sim.planning.capacity import capacity as found_capacity
    from sim.planning.capacity_folder import STORE, check_folder, write_folder
    from sim.planning.capacity_tables import capacity_table
    from sim.planning.objectives import parse_objectives
    from sim.planning.rates import way
    from sim.scenario import load_scenario
    from sim.sweep.options import resumable, sweep_arguments
    from traces.options import number
    from traces.settings import merged

    cluster = {"replicas": number(replicas), "router": router}
    options = stated_options(trace, profile, seed, slo, op, {"cluster": cluster})
    settings = load_scenario(
        scenario, set_ or (), merged(options, policy_settings(policy or (), KINDS))
    )
    objectives = parse_objectives(objective or ())
    console = Console()
    if out is not None:
        check_folder(out)
    sweeping = sweep_arguments(
        jobs, ray, store, cell_timeout, cell_memory, beside=out / STORE if out else None
    )
    with resumable(store or out), _told() as tell:
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
