"""`kvcast`: replay traces, look at traces and profiles."""

import signal
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple

import typer
from typer.core import TyperCommand

from calibration.calibrate_cli import calibrate
from calibration.cli import profile_app
from engine.cli import engine_app
from sim.app_cli import what_if
from sim.cache_cli import cache
from sim.capacity_cli import capacity
from sim.compare_cli import compare
from sim.plan_cli import plan
from sim.policies_cli import policies
from sim.prices_cli import prices
from sim.replay import Progress
from sim.scenario_options import (
    Op,
    Policy,
    ProfileName,
    Replicas,
    Router,
    Seed,
    Set,
    Slo,
    TraceName,
    stated_options,
)
from sim.validate_cli import validate
from traces.cli import trace_app
from traces.errors import KvcastError

app = typer.Typer(
    name="kvcast",
    help="KV cache forecast: how many GPUs, which policy, what latency, on this traffic?",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(trace_app, name="trace")
app.add_typer(profile_app, name="profile")
app.add_typer(engine_app, name="engine")
app.command()(calibrate)
app.command()(validate)
app.command()(compare)
app.command()(capacity)
app.command()(cache)
app.command()(policies)
app.command()(plan)
app.command("app")(what_if)
app.command()(prices)

BAD_INPUT = 2
INTERRUPTED = 130

UNCERTAINTY: Final = "--uncertainty"
REPLICATIONS: Final = "20"
"""Of a replay whose --uncertainty states no number."""


def _show_version(asked: bool) -> None:
    if asked:
        from traces.version import installed_version

        typer.echo(f"kvcast {installed_version()}")
        raise typer.Exit


@app.callback()
def kvcast(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", is_eager=True, callback=_show_version),
    ] = False,
) -> None:
    """KV cache forecast: how many GPUs, which policy, what latency, on this traffic?"""


class ReplayCommand(TyperCommand):
    """A command whose --uncertainty may stand alone."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """The arguments, a number put after a bare --uncertainty: Typer knows no such option."""
        stated: list[str] = []
        for argument, following in zip(args, [*args[1:], ""], strict=True):
            stated.append(argument)
            if argument == UNCERTAINTY and not following.isdecimal():
                stated.append(REPLICATIONS)
        return super().parse_args(ctx, stated)


@app.command(cls=ReplayCommand)
def replay(
    scenario: Annotated[
        Path | None, typer.Argument(help="Scenario YAML; the defaults if not given.")
    ] = None,
    trace: TraceName = None,
    profile: ProfileName = None,
    replicas: Replicas = None,
    router: Router = None,
    policy: Policy = None,
    preset: Annotated[
        str | None, typer.Option(help="Way of serving: vllm, vllm-v0, orca, static.")
    ] = None,
    seed: Seed = None,
    slo: Slo = None,
    op: Op = None,
    skip_bad_rows: Annotated[
        bool, typer.Option("--skip-bad-rows", help="Count malformed rows instead of failing.")
    ] = False,
    set_: Set = None,
    replications: Annotated[
        str | None,
        typer.Option(
            UNCERTAINTY,
            metavar="[N]",
            help=f"Intervals on all figures, from N replications ({REPLICATIONS} if not stated).",
        ),
    ] = None,
    jobs: Annotated[
        int, typer.Option(metavar="N", min=1, help="Processes that share the replications.")
    ] = 1,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the report, tables and scenario.")
    ] = None,
    requests: Annotated[bool, typer.Option(help="Write requests.parquet.")] = True,
    segments: Annotated[bool, typer.Option(help="Write segments.parquet.")] = True,
    report: Annotated[bool, typer.Option(help="Write report.html and the timeline.")] = True,
) -> None:
    """Replay a trace on a simulated cluster and say what came of it."""
    from rich.console import Console

    from engine.kinds import policy_settings
    from sim.folder import replay_to_folder
    from sim.kinds import KINDS
    from sim.replay import replay as replay_in_memory
    from sim.report.table import summary_table
    from sim.scenario import load_scenario
    from traces.options import number
    from traces.settings import merged

    more = {
        "trace": {"skip_bad_rows": skip_bad_rows or None},
        "cluster": {"replicas": number(replicas), "router": router},
        "preset": preset,
        "uncertainty": {"replications": number(replications)},
    }
    options = stated_options(trace, profile, seed, slo, op, more)
    settings = load_scenario(
        scenario, set_ or (), merged(options, policy_settings(policy or (), KINDS))
    )
    console = Console()
    with _progress(settings.uncertainty.replications) as seen:
        if out is None:
            result = replay_in_memory(
                settings,
                keep_requests=False,
                keep_segments=False,
                progress=seen.arrived,
                replicated=seen.replicated,
                jobs=jobs,
            )
        else:
            result = replay_to_folder(
                settings,
                out,
                keep_requests=requests,
                keep_segments=segments,
                report=report,
                progress=seen.arrived,
                replicated=seen.replicated,
                jobs=jobs,
            )
    console.print(summary_table(result.summary))
    if out is not None:
        written = ", ".join(sorted(path.name for path in out.iterdir()))
        console.print(f"{out}: {written}", markup=False, highlight=False)


class Seen(NamedTuple):
    """Who is told how far a replay has come; nobody where the output is a file."""

    arrived: Progress | None = None
    replicated: Progress | None = None


@contextmanager
def _progress(replications: int | None) -> Generator[Seen]:
    """Counters of requests and of replications, if there are any, on a terminal."""
    from rich.console import Console
    from rich.progress import Progress as Bar
    from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield Seen()
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task("0 requests replayed")

        def arrived(count: int) -> None:
            bar.update(task, description=f"{count:,} requests replayed")

        def replicated(count: int) -> None:
            bar.update(task, description=f"{count} of {replications} replications")

        yield Seen(arrived, replicated)


def main() -> None:
    """Entry point: user errors are one line on stderr and exit code 2."""
    signal.signal(
        signal.SIGTERM, signal.default_int_handler
    )  # so that nothing is left half-written
    try:
        code: Any = app(standalone_mode=False, prog_name=app.info.name)
    except KvcastError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(BAD_INPUT)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except Exception as error:
        complaint = _complaint(error)
        if complaint is None:
            raise
        if complaint:
            print(f"error: {complaint}", file=sys.stderr)
        sys.exit(BAD_INPUT)
    if code == INTERRUPTED:
        print("interrupted; nothing was written", file=sys.stderr)
    sys.exit(code if isinstance(code, int) else 0)


def _complaint(error: Exception) -> str | None:
    """What the command line itself finds wrong, in one line; None for any other error.

    Empty where no command was named and the help was shown instead.
    """
    message: Any = getattr(error, "format_message", None)
    if message is None:
        return None
    said = " ".join(str(message()).split())
    if not said:
        return ""
    context: Any = getattr(error, "ctx", None)
    command = context.command_path if context is not None else app.info.name
    return f"{said.rstrip('.')}; see '{command} --help'"
