"""`kvcast calibrate`: measure an engine and write its profile."""

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from traces.errors import ConfigError

if TYPE_CHECKING:
    from calibration.evidence import FitReport
    from calibration.from_logs import Described
    from calibration.measuring.calibrate import Calibration

INTERRUPTED: Final = 130

UNITS_S: Final = {"": 1.0, "s": 1.0, "min": 60.0, "h": 3600.0}


def calibrate(
    model: Annotated[
        str | None,
        typer.Option(
            help="Hugging Face folder, or .gguf file; of logs and tables, the model's name.",
            show_default=False,
        ),
    ] = None,
    from_tables: Annotated[
        Path | None,
        typer.Option(
            help="Instead of measuring: a folder of operator tables (LLMServingSim,"
            " AIConfigurator, Vidur).",
            show_default=False,
        ),
    ] = None,
    from_steps: Annotated[
        Path | None,
        typer.Option(
            help="Instead: steps.parquet of kvcast's engine, forward-pass metrics (JSONL), or"
            " vLLM's log with iteration details.",
            show_default=False,
        ),
    ] = None,
    from_requests: Annotated[
        list[Path] | None,
        typer.Option(
            help="Instead, for want of better: a per-request log; repeatable.", show_default=False
        ),
    ] = None,
    gpu: Annotated[
        str | None, typer.Option(help="Of logs and tables: the GPU.", show_default=False)
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(help="Of a GPU without a data sheet here: 96GB.", show_default=False),
    ] = None,
    weight_dtype: Annotated[
        str | None, typer.Option(help="Of logs and tables: the weights.", show_default=False)
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu or cuda; default: cuda if there is one.")
    ] = None,
    kv_dtype: Annotated[
        str | None, typer.Option(help="How the cache is written; default: as the weights.")
    ] = None,
    tp: Annotated[str | None, typer.Option(metavar="N", help="GPUs that share the model.")] = None,
    budget: Annotated[
        str, typer.Option(help="Time to measure for: 180s, 10min, 1h. Loading comes on top.")
    ] = "180s",
    seed: Annotated[int, typer.Option(min=0, help="Of everything random.")] = 0,
    fresh: Annotated[
        bool | None,
        typer.Option(
            "--fresh/--resume",
            help="Discard what an interrupted run has measured, or insist on going on from it."
            " Neither: go on if there is something.",
            show_default=False,
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Any engine setting, such as scheduler.max_num_seqs=64; repeatable.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="The profile to write.")] = Path("profile.yaml"),
) -> None:
    """Measure what an engine's steps take and fit a profile, which the simulator then uses."""
    from rich.console import Console

    from calibration.from_logs import Described
    from calibration.measuring.calibrate import calibrate as calibrate_engine
    from calibration.measuring.calibrate import part_of
    from engine.config import EngineSettings
    from engine.progress import counting
    from traces.options import given, number
    from traces.settings import load_settings

    sources = [from_tables is not None, from_steps is not None, bool(from_requests)]
    if sum(sources) > 1:
        raise ConfigError("--from-tables, --from-steps, --from-requests: expected one of them")
    if any(sources):
        memory_bytes = None if memory is None else parse_bytes(memory)
        what = Described(model, gpu, memory_bytes, _degree(tp), weight_dtype, kv_dtype)
        for line in _imported(from_tables, from_steps, from_requests, what, seed, set_ or [], out):
            Console().print(line, markup=False, highlight=False)
        return
    budget_s = seconds(budget)
    options: dict[str, Any] = given(
        {"model": model, "device": device, "kv_dtype": kv_dtype, "tp": number(tp)}
    )
    settings = load_settings(EngineSettings, None, set_ or (), options)
    try:
        with counting("s of measuring", round(budget_s), "loading the model") as tell:
            done = calibrate_engine(
                settings,
                out,
                budget_s,
                seed=seed,
                fresh=fresh,
                command=" ".join(("kvcast", *sys.argv[1:])),
                tell=tell and (lambda spent_s, note: tell(round(spent_s), note)),
            )
    except KeyboardInterrupt:
        kept = part_of(out)
        way_on = f"{kept} is kept: the same command goes on from there" if kept.exists() else ""
        print(f"interrupted; {way_on or 'nothing was measured'}", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
    console = Console()
    for line in summary(done, out):
        console.print(line, markup=False, highlight=False)


def _imported(
    tables: Path | None,
    steps: Path | None,
    requests: list[Path] | None,
    what: "Described",
    seed: int,
    set_: list[str],
    out: Path,
) -> list[str]:
    """Write a profile from somebody else's measurements; what to tell of it."""
    from calibration.from_logs import profile_from_requests, profile_from_steps
    from calibration.from_tables import profile_from_tables
    from calibration.operator_profile import OperatorSettings
    from traces.options import given
    from traces.settings import load_settings

    command = " ".join(("kvcast", *sys.argv[1:]))
    if out.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"--out {out}: expected a .yaml file")
    if tables is not None:
        stated = {"kind": "operators", "tables": "beside"}
        settings = load_settings(OperatorSettings, None, set_, stated)
        asked = given(
            {
                "model_name": what.model,
                "gpu": what.gpu,
                "tp": what.tp,
                "weight_dtype": what.weight_dtype,
                "kv_dtype": what.kv_dtype,
            }
        )
        profile = profile_from_tables(
            tables,
            out,
            asked,
            memory_bytes=what.memory_bytes,
            settings=settings.model_dump(exclude=set(stated), exclude_unset=True),
            command=command,
        )
        return [profile.provenance, *profile.note.split("; "), f"{out}: written"]
    if set_:
        raise ConfigError(f"--set {set_[0]}: of logs there is nothing to set")
    if steps is not None:
        profile, fit = profile_from_steps(steps, out, what, command=command)
        return [profile.provenance, *_errors(fit.report), f"{out}: written"]
    profile, _ = profile_from_requests(requests or [], out, what, seed=seed, command=command)
    return [profile.provenance, *profile.note.split("; "), f"{out}: written"]


def _degree(tp: str | None) -> int | None:
    if tp is None:
        return None
    if not tp.isdecimal() or int(tp) < 1:
        raise ConfigError(f"--tp {tp}: expected a whole number of at least 1")
    return int(tp)


def parse_bytes(text: str) -> int:
    """A stated size, in bytes.

    Raises:
        ConfigError: it is none.
    """
    from pydantic import ByteSize, TypeAdapter, ValidationError

    try:
        size = int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError:
        size = 0
    if size <= 0:
        raise ConfigError(f"--memory {text}: expected a size above 0, like 96GB or 80GiB")
    return size


def seconds(budget: str) -> float:
    """A stated time, in seconds.

    Raises:
        ConfigError: it is none.
    """
    match = re.fullmatch(r"(\d+\.?\d*|\.\d+) *(s|min|h|)", budget.strip())
    if match is None or float(match[1]) == 0:
        raise ConfigError(f"--budget {budget}: expected a time above 0, like 180s, 10min or 1h")
    return float(match[1]) * UNITS_S[match[2]]


def summary(done: "Calibration", out: Path) -> list[str]:
    """What was measured and how good the fit is, in a few lines."""
    from calibration.profile_files import steps_beside
    from engine import units

    report = done.fit.report
    lines = [
        f"{units.count(done.fit.steps.height)} steps of {units.count(done.points)} points and of"
        f" serving: {units.count(report.steps)} fitted to, {units.count(report.held_out)} held out,"
        f" {units.count(report.outliers)} odd"
    ]
    lines += _errors(report)
    if done.warning:
        lines.append(f"warning: {done.warning}")
    return [*lines, f"{out}, {steps_beside(out).name}"]


def _errors(report: "FitReport") -> list[str]:
    """Held-out errors, a line for each kind of step."""
    from engine import units

    kinds = {"all": report.all, "decode": report.decode}
    kinds |= {"prefill": report.prefill, "mixed": report.mixed}
    return [
        f"error of held-out steps, {kind}: median {units.share(error.median)},"
        f" P95 {units.share(error.p95)} of {units.count(error.steps)}"
        for kind, error in kinds.items()
        if error is not None
    ]
