"""`kvcast app`: the what-if page, served on this machine."""

from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Final

import typer

from traces.errors import ConfigError

GIB: Final = 2**30
MIB: Final = 2**20


def what_if(
    scenario: Annotated[
        Path | None, typer.Argument(help="Scenario YAML to begin with; the defaults if not given.")
    ] = None,
    trace: Annotated[
        list[str] | None, typer.Option(help="Trace file to offer on the page; repeatable.")
    ] = None,
    profile: Annotated[
        list[str] | None,
        typer.Option(help="Profile to offer beside those of `kvcast profile list`; repeatable."),
    ] = None,
    plan: Annotated[
        Path | None,
        typer.Option(help="A finished plan: its folder, or the plan.json in it."),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; any but this machine's own needs a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8050,
    token: Annotated[
        str | None,
        typer.Option(
            help="What a browser must show, at least 16 characters; made up and printed where"
            " --host needs one."
        ),
    ] = None,
    server_name: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Another name that browsers call this server; repeatable."
        ),
    ] = None,
    time_limit: Annotated[
        float, typer.Option(metavar="S", min=1, help="End a run that takes longer, in s.")
    ] = 120.0,
    memory_limit: Annotated[
        float, typer.Option(metavar="GIB", min=1, help="Memory of a run's process, in GiB.")
    ] = 4.0,
    upload_limit: Annotated[
        float, typer.Option(metavar="MIB", min=1, help="Size of an uploaded file, in MiB.")
    ] = 64.0,
) -> None:
    """Serve a page on which settings are changed and their effect is seen at once."""
    if find_spec("dash") is None:
        raise ConfigError("kvcast app: the package dash is missing; pip install 'kvcast[app]'")
    from sim.app.bounds import Limits
    from sim.app.guard import token_for
    from sim.app.plans import located
    from sim.app.server import AppServer
    from sim.app.stated import first_choices, offer
    from sim.app.unstated import offer_of
    from sim.scenario import load_scenario

    traces, profiles = tuple(trace or ()), tuple(profile or ())
    if scenario is None:
        offered = offer(traces, profiles)
        starts = first_choices(offered)
    else:
        offered, starts = offer_of(load_scenario(scenario), traces, profiles)
    limits = Limits(time_limit, round(memory_limit * GIB), round(upload_limit * MIB))
    server = AppServer(
        offered,
        host=host,
        port=port,
        token=token_for(host, token),
        names=tuple(server_name or ()),
        plan=None if plan is None else located(plan),
        limits=limits,
        starts=starts,
    )
    typer.echo(f"kvcast app: open {server.url}")
    typer.echo("Ctrl-C ends it.")
    with suppress(KeyboardInterrupt):
        server.serve()
    typer.echo("ended")
