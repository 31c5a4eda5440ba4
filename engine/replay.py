"""Replay a trace on the engine: from settings to a summary, and a folder with all of it."""

import json
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Final

from engine.atomic import check_replaceable, replacing_folder
from engine.config import EngineSettings
from engine.frames import ParquetSink, requests_schema, requests_table
from engine.loading import Load, LoadedModel, load_model
from engine.metrics import TRUNCATED, ServiceMetrics
from engine.records import ServiceRecords
from engine.roofline import Roofline, StepWork
from engine.serve import Progress, ReplaySettings, serve
from engine.slo import SloSettings
from engine.steps import steps_schema
from traces.reader import Trace
from traces.settings import to_yaml
from traces.version import installed_version

SETTINGS: Final = "settings.yaml"
SUMMARY: Final = "summary.json"
REQUESTS: Final = "requests.parquet"
STEPS: Final = "steps.parquet"
FILES: Final = frozenset({SETTINGS, SUMMARY, REQUESTS, STEPS})


def replay(
    settings: ReplaySettings,
    folder: Path | None = None,
    *,
    load: Load = load_model,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Load the model, serve the trace, write `folder` if it is given; returns the summary.

    An earlier run's folder is replaced when this one is complete.

    Raises:
        ConfigError, TraceError: settings, a model, a folder or a trace that cannot be used.
    """
    trace = settings.trace.open(settings.seed)
    if folder is not None:
        check_replaceable(folder, FILES, FILES)
    with ExitStack() as undo:
        part = None if folder is None else undo.enter_context(replacing_folder(folder))
        model = undo.enter_context(closing(load(settings)))
        summary = _served(model, settings, trace, part, progress)
        if part is not None:
            _write(part, summary, settings, model.settings)
    return summary


def _served(
    model: LoadedModel,
    settings: ReplaySettings,
    trace: Trace,
    part: Path | None,
    progress: Progress | None,
) -> dict[str, Any]:
    roofline = Roofline(
        model.shape and StepWork(model.shape, model.settings),
        model.measure and model.measure(),
    )
    engine = model.engine()
    records = ServiceRecords(engine, _metrics(settings.slo), roofline)
    with ExitStack() as files:
        if part is not None:
            requests = ParquetSink(
                part / REQUESTS, requests_schema(), lambda rows: requests_table(rows, records.names)
            )
            files.callback(requests.close)
            steps = ParquetSink(part / STEPS, steps_schema(), lambda table: table)
            files.callback(steps.close)
            records.send(requests.take, steps.take)
        serve(engine, trace, records, speed=settings.speed, progress=progress)
    return {
        **_header(model, settings),
        **records.summary(),
        "warnings": _warnings(records, trace, model.settings.scheduler.max_model_len),
    }


def _metrics(slo: SloSettings) -> ServiceMetrics:
    return ServiceMetrics(slo_ps=slo.limits_ps(), class_slo_ps=slo.classes_ps())


def _write(
    part: Path, summary: dict[str, Any], settings: ReplaySettings, resolved: EngineSettings
) -> None:
    filled = {name: getattr(resolved, name) for name in EngineSettings.model_fields}
    text = to_yaml(settings.model_copy(update=filled))
    (part / SETTINGS).write_text(text, encoding="utf-8")
    text = json.dumps(summary, indent=2, allow_nan=False)
    (part / SUMMARY).write_text(text + "\n", encoding="utf-8")


def _header(model: LoadedModel, settings: ReplaySettings) -> dict[str, Any]:
    resolved = model.settings
    return {
        "kvcast": installed_version(),
        "name": Path(resolved.model).name if model.shape is None else model.shape.name,
        "device": resolved.device,
        "dtype": resolved.dtype,
        "kv_dtype": resolved.kv_dtype,
        "kernels": resolved.kernels,
        "trace": settings.trace.path,
        "speed": settings.speed,
        "replicas": 1,
        "gpus": resolved.tp,
    }


def _warnings(records: ServiceRecords, trace: Trace, longest: int | None) -> list[str]:
    warnings = [
        f"{count:,} requests rejected: {reason}" for reason, count in records.refusals.items()
    ]
    truncated = records.metrics.outcomes[TRUNCATED]
    if truncated:
        warnings.append(
            f"{truncated:,} answers cut short at {longest:,} tokens (scheduler.max_model_len)"
        )
    if trace.skipped:
        warnings.append(f"{trace.skipped:,} malformed rows of the trace skipped")
    if trace.failed:
        warnings.append(f"{trace.failed:,} failed requests of the trace left out")
    return warnings
