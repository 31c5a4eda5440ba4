"""A fit becomes a profile: with what it is of and what it rests on."""

import datetime
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from calibration.copies import CopySettings
from calibration.devices import StatedDevice
from calibration.evidence import Experiment as Evidence
from calibration.fitted import fitted_cost
from calibration.fitting.fit import Fit
from calibration.fitting.prediction import predicted_s
from calibration.hardware import gpu, model, model_cards
from calibration.measuring.conditions import Host, summary_of
from calibration.measuring.experiment import Experiment
from calibration.profiles import Profile
from engine.config import EngineSettings
from engine.loading import LoadedModel
from engine.shapes import ModelShape
from traces.errors import ConfigError

if TYPE_CHECKING:
    import polars as pl

UNKNOWN_BYTES: Final = 1
"""Memory of a device whose size nobody tells."""


def evidence_of(
    settings: EngineSettings, machine: Host, experiment: Experiment, command: str
) -> Evidence:
    """When, on what and how the steps were measured."""
    points = experiment.campaign.points
    steps = sum(len(visit.steps) for visit in experiment.campaign.visits)
    return Evidence(
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        device=machine.device,
        command=command,
        engine=settings.model_dump(mode="json") | {"model": Path(settings.model).name},
        versions=dict(machine.versions),
        points=points,
        repeats=max(1, round(steps / points)),
        taken_s=round(experiment.elapsed_s(), 1),
        conditions={"threads": machine.threads, **summary_of(experiment.samples)},
    )


def errors_of(fit: Fit, steps: "pl.DataFrame") -> dict[str, float]:
    """How far asynchronous steps, which the fit has not seen, are from what it says of them."""
    cost = fitted_cost(fit.cost, async_scheduling=True)
    errors = np.abs(predicted_s(cost, steps) / steps["time_s"].to_numpy() - 1)
    median, p95 = np.quantile(errors, (0.5, 0.95)).tolist()
    return {"steps": steps.height, "median": round(median, 4), "p95": round(p95, 4)}


def profile_of(
    loaded: LoadedModel, machine: Host, fit: Fit, out: Path, evidence: Evidence, note: str
) -> Profile:
    """The profile to be written at `out`.

    Args:
        loaded: what was measured.
        machine: on which it was.
        fit: of its steps.
        out: names it.
        evidence: how it was measured.
        note: what a reader should know besides.

    Raises:
        ConfigError: a .gguf of a model that is not in calibration/data/models.yaml, as no
            config.json says its shape.
    """
    settings = loaded.settings
    device = _device(loaded, machine)
    pool = f"{loaded.executor.num_blocks} blocks of {settings.cache.block_tokens} tokens"
    return Profile.model_validate(
        {
            "name": out.stem,
            "measured": True,
            "provenance": f"fitted to steps of the kvcast engine on {machine.device},"
            f" {settings.kernels} kernels, PyTorch {machine.versions.get('torch', 'unknown')}",
            "model": _model(loaded),
            **device,
            "tp": settings.tp,
            "weight_dtype": settings.dtype,
            "kv_dtype": settings.kv_dtype,
            "cost": fit.cost,
            "validity": fit.validity,
            "noise": fit.noise,
            "fit": fit.report,
            "experiment": evidence,
            "note": "; ".join(one for one in (f"the engine's pool had {pool}", note) if one),
        }
    )


def _device(loaded: LoadedModel, machine: Host) -> dict[str, Any]:
    """A GPU with a data sheet by its name; of anything else, what was measured."""
    if machine.gpu_uuid:
        try:
            return {"gpu": gpu(machine.device).name}
        except ConfigError:
            pass
    ceilings = None if loaded.measure is None else loaded.measure()
    copies = {}
    if ceilings is not None and not machine.gpu_uuid:  # a copy reads and writes; nothing hides it
        rate = ceilings.bytes_per_s / 2
        copies = {"copies": CopySettings(cpu_bytes_per_s=rate, beside_steps=False)}
    return {
        **copies,
        "device": StatedDevice(
            name=machine.device,
            memory_bytes=machine.memory_bytes or UNKNOWN_BYTES,
            memory_bytes_per_s=None if ceilings is None else ceilings.bytes_per_s,
            flops_per_s=None if ceilings is None else ceilings.flops_per_s,
        ),
    }


def _model(loaded: LoadedModel) -> str:
    """The known model of this shape, or the path of the config.json."""
    shape, path = loaded.shape, Path(loaded.settings.model)
    if shape is not None:
        for name in model_cards():
            if _nameless(model(name)) == _nameless(shape):
                return name
    if path.is_dir():
        return str(path.resolve())
    raise ConfigError(
        f"model: {path}: has a shape that no known model has, and a profile needs a config.json to"
        " state it; give the folder of the Hugging Face model instead of the .gguf file"
    )


def _nameless(shape: ModelShape) -> ModelShape:
    return replace(shape, name="")
