"""A profile from logs of an engine that ran elsewhere: of its steps, or only of its requests."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from calibration.devices import stated_or_known
from calibration.evidence import Experiment
from calibration.fitting.fit import Fit, fit_steps
from calibration.fitting.requests import RequestFit, fit_requests
from calibration.imports.engine_steps import read_engine_steps
from calibration.imports.forward_pass import read_forward_pass
from calibration.imports.iteration_log import read_iteration_log
from calibration.imports.requests import read_run
from calibration.profile_files import save_profile
from calibration.profiles import Profile
from traces.errors import ConfigError

if TYPE_CHECKING:
    import polars as pl


class Described(NamedTuple):
    """What ran, which a log of steps does not say."""

    model: str | None = None
    gpu: str | None = None
    memory_bytes: int | None = None
    """Of a GPU that has no data sheet here."""
    tp: int | None = None
    weight_dtype: str | None = None
    kv_dtype: str | None = None


def profile_from_steps(
    log: Path, out: Path, what: Described, *, asynchronous: bool = False, command: str = ""
) -> tuple[Profile, Fit]:
    """Fit a step log and write `out`, the steps beside it.

    Args:
        log: steps.parquet of kvcast's engine (or its folder), forward-pass metrics as JSON lines,
            or a vLLM log with iteration details.
        out: the profile's YAML file.
        what: what ran.
        asynchronous: the engine scheduled a step while the one before ran.
        command: what the user typed, for the record.

    Raises:
        ConfigError: see the importers and calibration.fitting.fit.fit_steps.
    """
    steps, without = _steps(log)
    fit = fit_steps(steps, without=without, async_scheduling=asynchronous)
    profile = Profile.model_validate(
        {
            **_described(out, what, command),
            "provenance": f"fitted to {fit.report.steps} steps of {log.name}",
            "cost": fit.cost,
            "validity": fit.validity,
            "noise": fit.noise,
            "fit": fit.report,
        }
    )
    save_profile(profile, out, fit.steps)
    return profile, fit


def profile_from_requests(
    logs: Sequence[Path], out: Path, what: Described, *, seed: int = 0, command: str = ""
) -> tuple[Profile, RequestFit]:
    """Fit per-request logs of one engine, for want of anything better, and write `out`.

    Args:
        logs: see calibration.imports.requests; a log that says what ran need not be described.
        out: the profile's YAML file.
        what: what ran.
        seed: of the split into halves and of the bootstrap.
        command: what the user typed, for the record.

    Raises:
        ConfigError: see the importer and calibration.fitting.requests.
    """
    runs = [read_run(log) for log in logs]
    fit = fit_requests(runs, seed=seed)
    about = runs[0].about
    what = what._replace(
        model=what.model or about.get("model"),
        gpu=what.gpu or about.get("device"),
        tp=what.tp or about.get("tensor_parallel_size"),
    )
    error = fit.held_out
    intervals = ", ".join(
        f"{name} {one.value:.3g} [{one.low:.3g}, {one.high:.3g}]"
        for name, one in fit.coefficients.items()
    )
    profile = Profile.model_validate(
        {
            **_described(out, what, command),
            "provenance": f"fitted to {fit.requests} requests of"
            f" {', '.join(log.name for log in logs)}, not to steps",
            "cost": fit.settings,
            "note": f"decode times of requests held out: median error {error.median:.2%}, P95"
            f" {error.p95:.2%}; TTFT was not fitted; {fit.unsteady} requests that paused were left"
            f" out; 95 % intervals: {intervals}",
        }
    )
    save_profile(profile, out)
    return profile, fit


def _steps(log: Path) -> tuple[pl.DataFrame, tuple[str, ...]]:
    """A log's steps, and the terms that such a log does not tell."""
    if log.is_dir() or log.suffix == ".parquet":
        return read_engine_steps(log), ()
    if not log.is_file():
        raise ConfigError(f"{log}: there is no such file")
    if {".json", ".jsonl"} & set(log.suffixes):
        return read_forward_pass(log), ()
    found = read_iteration_log(log)
    return found.steps, found.unidentified


def _described(out: Path, what: Described, command: str) -> dict[str, Any]:
    if what.model is None:
        raise ConfigError("--model: is missing; the log does not say which model ran")
    if what.gpu is None:
        raise ConfigError("--gpu: is missing; the log does not say on which device it ran")
    weights = what.weight_dtype or "bf16"
    return {
        "name": out.stem,
        "measured": True,
        "model": what.model,
        **stated_or_known(what.gpu, what.memory_bytes),
        "tp": what.tp or 1,
        "weight_dtype": weights,
        "kv_dtype": what.kv_dtype or weights,
        "experiment": Experiment(
            date=datetime.datetime.now(datetime.UTC).date().isoformat(),
            device=what.gpu,
            command=command,
        ),
    }
