"""From an engine to a profile: design steps, measure them, fit, write."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from calibration.fitting.fit import Fit, fit_steps
from calibration.measuring.conditions import Host, disturbance, host_of
from calibration.measuring.experiment import ASYNCHRONOUS, Experiment, Tell, frame_of
from calibration.measuring.partial import Partial
from calibration.measuring.publish import errors_of, evidence_of, profile_of
from calibration.profile_files import save_profile
from calibration.profiles import Profile
from engine.config import EngineSettings
from engine.llm import Clock, WallClock
from engine.loading import Load, load_model
from engine.units import seconds as duration
from traces.errors import ConfigError

if TYPE_CHECKING:
    import polars as pl

SUFFIXES: Final = (".yaml", ".yml")

LOAD: Final[Load] = partial(load_model, noise=True)


@dataclass(frozen=True)
class Calibration:
    """What came of it."""

    profile: Profile
    fit: Fit
    points: int
    """Distinct steps of the design that were measured."""
    warning: str
    """What disturbed the measurement; empty: nothing is known."""


def calibrate(
    settings: EngineSettings,
    out: Path,
    budget_s: float,
    *,
    seed: int = 0,
    fresh: bool | None = None,
    command: str = "",
    load: Load = LOAD,
    host: Callable[[EngineSettings], Host] = host_of,
    clock: Clock | None = None,
    tell: Tell | None = None,
) -> Calibration:
    """Measure an engine's steps within a budget, fit a cost to them and write a profile.

    What is measured is kept in `out`.part until the profile is there: after an interruption the
    same call goes on. Beside the profile, `<name>.steps.parquet` holds every step.

    Args:
        settings: of the engine; the limits of its scheduler and its block size matter, its
            policies do not.
        out: a .yaml file.
        budget_s: for measuring; loading the model and fitting come on top. An interrupted
            calibration may go on with another one.
        seed: of the design, the tokens and the served workload.
        fresh: True: discard what an interrupted one has measured; False: insist on going on.
        command: for the profile's record.
        load: the model; its KV pool holds finite numbers.
        host: describes the machine that it runs on.
        clock: of the executor's steps; the wall clock if not given.
        tell: of progress.

    Raises:
        ConfigError: a model, device or setting that cannot be used; a budget that is too short,
            saying for what; what another calibration left at `out`.
    """
    _check(settings, out, budget_s)
    with closing(load(settings)) as model:
        machine = host(model.settings)
        kept = Partial(part_of(out), _identity(model.settings, machine, seed), fresh)
        experiment = Experiment(model, machine, kept, budget_s, seed, clock or WallClock(), tell)
        experiment.run()
        served = [one for one in kept.visits if one.stage.startswith(ASYNCHRONOUS)]
        fit = _fitted(frame_of(one for one in kept.visits if one not in served), experiment)
        evidence = evidence_of(model.settings, machine, experiment, command)
        if served:
            evidence.conditions["asynchronous_serving"] = errors_of(fit, frame_of(served))
        note = disturbance(experiment.samples)
        profile = profile_of(model, machine, fit, out, evidence, note)
        save_profile(profile, out, fit.steps)
    kept.remove()
    return Calibration(profile, fit, experiment.campaign.points, note)


def _fitted(steps: "pl.DataFrame", experiment: Experiment) -> Fit:
    try:
        return fit_steps(steps, graph_sizes=experiment.limits.graph_sizes)
    except ConfigError as error:
        raise ConfigError(f"{error}; a longer budget measures more") from None


def part_of(out: Path) -> Path:
    """Where an unfinished calibration keeps what it has measured."""
    return out.with_name(f"{out.name}.part")


def _check(settings: EngineSettings, out: Path, budget_s: float) -> None:
    """What can be refused before a model is loaded."""
    if out.suffix not in SUFFIXES:
        raise ConfigError(f"--out {out}: must be a .yaml file")
    if not out.parent.is_dir():
        raise ConfigError(f"--out {out}: there is no folder {out.parent}")
    if not (isfinite(budget_s) and budget_s > 0):
        raise ConfigError(f"--budget: must be a time above 0, got {duration(budget_s)}")
    if not settings.kv_reuse:
        raise ConfigError(
            "kv_reuse: must be true to calibrate: without it a step's cost does not follow from"
            " what a cost model sees, got false"
        )


def _identity(settings: EngineSettings, machine: Host, seed: int) -> dict[str, Any]:
    """What has to be the same for measurements to belong together."""
    return {
        "device": machine.device,
        "versions": dict(machine.versions),
        "seed": seed,
        "engine": settings.model_dump(mode="json"),
    }
