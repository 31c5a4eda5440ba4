"""`kvcast validate`: how well does the simulator foretell a real run?"""

import re
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from sim.scenario_options import Op, ProfileName, stated_options
from traces.errors import ConfigError

if TYPE_CHECKING:
    from sim.scenario import Scenario
    from sim.validation.real import Real
    from traces.request import Request

MISSED: Final = 1
"""Exit code where a threshold is not met."""

UNITS_S: Final = {"s": 1.0, "ms": 1e-3, "us": 1e-6}


def validate(
    scenario: Annotated[
        Path | None, typer.Argument(help="Scenario YAML; the defaults if not given.")
    ] = None,
    real: Annotated[
        Path | None,
        typer.Option(help="The real run: a request log, or a folder of `kvcast engine replay`."),
    ] = None,
    engine: Annotated[
        Path | None,
        typer.Option(help="Run kvcast's engine now, with these settings (YAML)."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Run kvcast's engine now, with this model.")
    ] = None,
    trace: Annotated[
        str | None,
        typer.Option(help="Trace to serve; with --real, of the requests that were sent."),
    ] = None,
    profile: ProfileName = None,
    threshold: Annotated[
        str | None,
        typer.Option(help="Errors to keep within: ttft.mean=3%,tpot.p99=5%; else exit code 1."),
    ] = None,
    replications: Annotated[
        int, typer.Option(min=0, help="Simulations with other arrivals; 0: none.")
    ] = 20,
    jitter: Annotated[
        str, typer.Option(help="Standard deviation of the shift of each arrival.")
    ] = "3ms",
    op: Op = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any setting of the simulation; repeatable."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for page, numbers and requests of both sides.")
    ] = None,
) -> None:
    """Simulate a real run and say how far off every figure is, and how much of it is chance."""
    from rich.console import Console

    from engine.progress import counting
    from sim.scenario import load_scenario
    from sim.validate import ENGINE, check_folder, write_folder
    from sim.validate import validate as compare
    from sim.validation.tables import comparison_table
    from sim.validation.thresholds import parse_thresholds
    from sim.validation.validation import Jitter
    from traces.settings import merged

    limits = parse_thresholds(threshold) if threshold is not None else {}
    spread = Jitter(parse_jitter(jitter), _at_least_two(replications))
    options = stated_options(trace, profile, None, None, op)
    asked = load_scenario(scenario, set_ or (), options)
    if out is not None:
        check_folder(out)
    with ExitStack() as undo:
        if real is not None:
            _refuse_both(engine, model)
            run, made = _read(real, asked), None
        else:
            # beside the folder to write, so that the run can be moved there
            beside = None if out is None else out.resolve().parent
            if beside is not None:
                beside.mkdir(parents=True, exist_ok=True)
            folder = undo.enter_context(TemporaryDirectory(prefix=".kvcast-", dir=beside))
            made = Path(folder) / ENGINE
            run = replace(
                _served(engine, model, asked, made),
                where=str(ENGINE if out is None else out / ENGINE),
            )
        settings = load_scenario(scenario, set_ or (), merged(run.settings, options))
        with counting("replications", spread.replications, "simulating") as tell:
            validation = compare(
                settings,
                run,
                thresholds=limits,
                jitter=spread,
                progress=tell and (lambda done: tell(done, "")),
            )
        if out is not None:
            write_folder(validation, out, made)
    console = Console()
    console.print(comparison_table(validation))
    if out is not None:
        written = ", ".join(sorted(path.name for path in out.iterdir()))
        console.print(f"{out}: {written}", markup=False, highlight=False)
    if not validation.passed:
        raise typer.Exit(MISSED)


def parse_jitter(text: str) -> float:
    """`3ms` in seconds; raises ConfigError."""
    match = re.fullmatch(r"(\d+(?:\.\d*)?)(s|ms|us)", text.strip())
    if match is None:
        raise ConfigError(f"--jitter {text}: is no duration; expected one like 3ms")
    return float(match[1]) * UNITS_S[match[2]]


def _at_least_two(replications: int) -> int:
    if replications == 1:
        raise ConfigError("--replications 1: shows no spread; expected 0, or 2 or more")
    return replications


def _refuse_both(engine: Path | None, model: str | None) -> None:
    if engine is not None or model is not None:
        option = "--engine" if engine is not None else "--model"
        raise ConfigError(f"--real: goes without {option}: the run is there already")


def _read(path: Path, scenario: "Scenario") -> "Real":
    from sim.validation.real import read_real

    sent: Iterable[Request] | None = None
    if "trace" in scenario.model_fields_set:
        sent = scenario.trace.open(scenario.seed)
    return read_real(path, sent)


def _served(engine: Path | None, model: str | None, scenario: "Scenario", folder: Path) -> "Real":
    """Have the engine serve the scenario's trace."""
    from engine.progress import counting
    from engine.replay import replay
    from engine.serve import ReplaySettings
    from sim.validation.real import of_engine
    from traces.settings import load_settings

    if engine is None and model is None:
        raise ConfigError("--real: is missing; expected --real LOG, --engine YAML or --model PATH")
    options: dict[str, Any] = {} if model is None else {"model": model}
    if engine is None or "trace" in scenario.model_fields_set:
        options["trace"] = scenario.trace.model_dump(mode="json")
    settings = load_settings(ReplaySettings, engine, (), options)
    with counting("requests served", None, "loading the model") as tell:
        replay(
            settings,
            folder,
            progress=tell
            and (lambda records: tell(records.ended, f"{records.generated_tokens:,} tokens")),
        )
    return of_engine(folder)
