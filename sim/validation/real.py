"""The real side of a comparison: somebody's request log, or a run of kvcast's own engine."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from calibration.hardware import gpu, model
from calibration.profiles import Profile
from engine.kvformats import KV_DTYPES
from engine.replay import REQUESTS, SETTINGS, STEPS, SUMMARY
from engine.serve import ReplaySettings
from sim.recorded import DivergenceError, retrace
from sim.validation.served import Floats, Served, of_frame
from traces.errors import ConfigError
from traces.request import Request
from traces.settings import load_settings

if TYPE_CHECKING:
    import polars as pl

DTYPES: Final = {
    "bfloat16": "bf16",
    "float16": "fp16",
    "half": "fp16",
    "float32": "fp32",
    "float": "fp32",
    "fp8_e4m3": "fp8",
}
"""Names of number formats elsewhere, and ours."""


@dataclass(frozen=True, slots=True)
class Timeline:
    """How full one engine was, [moments]; each value holds until the next moment."""

    at_s: Floats
    running: Floats
    waiting: Floats
    kv_occupancy: Floats


@dataclass(frozen=True, slots=True)
class Decisions:
    """Whether the simulator, given the engine's own step times, repeats its run step by step."""

    steps: int
    largest_error_s: float | None
    """Of first tokens and finishes; None: the runs part."""
    difference: str = ""
    """Where they part, or why they were not compared."""


@dataclass(frozen=True, slots=True)
class Real:
    """A real run, and what the simulator needs to foretell it."""

    where: str
    """The file or folder."""
    served: Served
    total: int
    """Requests asked for, those included that were not answered."""
    requests: list[Request]
    """To be simulated, in order of arrival."""
    settings: dict[str, Any]
    """A partial scenario."""
    about: dict[str, Any]
    timeline: Timeline | None = None
    itl_s: Mapping[str, float] | None = None
    """Statistics of the gaps between tokens."""
    decisions: Decisions | None = None


def read_real(path: Path, trace: Iterable[Request] | None = None) -> Real:
    """A real run from a folder that `kvcast engine replay` wrote, or from a request log.

    Args:
        path: a file or folder; see calibration.imports.requests for the logs it can be.
        trace: the requests that were sent, where they tell more than the log: content, tenants.

    Raises:
        ConfigError, TraceError: it cannot be read, or the trace is of other requests.
    """
    if path.is_dir() and all((path / name).is_file() for name in (SETTINGS, REQUESTS, STEPS)):
        return of_engine(path, trace)
    return of_log(path, trace)


def of_log(path: Path, trace: Iterable[Request] | None = None) -> Real:
    """A real run from a request log; arguments and errors as those of `read_real`."""
    from calibration.imports.requests import read_run, to_requests

    run = read_run(path)
    requests = to_requests(run)
    timeline = run.timeline
    return Real(
        where=str(path),
        served=of_frame(run.requests),
        total=len(requests),
        requests=requests if trace is None else _with_content(requests, trace, str(path)),
        settings=run.settings,
        about=run.about,
        timeline=None
        if timeline is None
        else Timeline(
            *(timeline[name].to_numpy() for name in ("t_s", "running", "waiting", "kv_occupancy"))
        ),
    )


def of_engine(folder: Path, trace: Iterable[Request] | None = None) -> Real:
    """A real run from a folder of `kvcast engine replay`; as `read_real`."""
    import polars as pl

    settings = load_settings(ReplaySettings, folder / SETTINGS)
    frame, steps = pl.read_parquet(folder / REQUESTS), pl.read_parquet(folder / STEPS)
    sent = settings.trace.open(settings.seed) if trace is None else trace
    requests = _as_they_came(sent, frame, folder)
    return Real(
        where=str(folder),
        served=of_frame(frame),
        total=frame.height,
        requests=requests,
        settings={
            "scheduler": settings.scheduler.model_dump(mode="json"),
            "cache": settings.cache.model_dump(mode="json"),
            "offload": settings.offload.model_dump(mode="json"),
            "memory": {"num_blocks": settings.num_blocks},
        },
        about={name: getattr(settings, name) for name in ("model", "dtype", "kv_dtype", "tp")},
        timeline=_timeline(steps, (settings.num_blocks or 2) - 1),
        itl_s=_summary(folder)["latency"]["itl_s"],
        decisions=_decisions(requests, frame, steps, settings),
    )


def check_profile(profile: Profile, real: Real) -> None:
    """Check that a profile is of what ran, as far as the run tells.

    Raises:
        ConfigError: it is of another model, GPU, number of GPUs or number format.
    """
    about, whose = real.about, f"{real.where} is of"
    name, device = about.get("model"), about.get("device")
    weights = _plain(about.get("dtype"))
    kv = _plain(about.get("kv_dtype", about.get("kv_cache_dtype")))
    kv = weights if kv == "auto" else kv
    try:
        profile.require(
            model=name if name is not None and _known(model, name) else None,
            weight_dtype=None if about.get("quantization") else weights,
            kv_dtype=kv if kv in KV_DTYPES else None,
        )
    except ConfigError as error:
        raise ConfigError(f"{error} by {real.where}") from None
    ran_on = None if device is None else _known(gpu, device)
    if ran_on is not None and profile.gpu is not None and ran_on != profile.device:
        raise ConfigError(f"profile {profile.name}: is of gpu {profile.gpu}; {whose} {device}")
    tp = about.get("tp", about.get("tensor_parallel_size"))
    if tp not in (None, profile.tp):
        raise ConfigError(f"profile {profile.name}: is of tp {profile.tp}; {whose} tp {tp}")


def _known(look_up: Any, name: str) -> Any:
    try:
        return look_up(name)
    except ConfigError:
        return None


def _plain(dtype: Any) -> str | None:
    return None if dtype is None else DTYPES.get(str(dtype), str(dtype))


def _with_content(requests: list[Request], trace: Iterable[Request], where: str) -> list[Request]:
    """Requests of a trace at the times of a log, which must be the same requests in order."""
    sent = list(trace)
    if len(sent) != len(requests):
        raise ConfigError(f"{where}: has {len(requests):,} requests, the trace {len(sent):,}")
    for ours, theirs in zip(sent, requests, strict=True):
        for what in ("prompt_tokens", "output_tokens"):
            asked, got = getattr(ours, what), getattr(theirs, what)
            if asked != got:
                raise ConfigError(
                    f"{where}: request {theirs.request_id} has {got:,} {what}, the trace's"
                    f" {asked:,}; expected the same requests in order of arrival"
                )
    return [
        ours._replace(request_id=theirs.request_id, arrival_s=theirs.arrival_s)
        for ours, theirs in zip(sent, requests, strict=True)
    ]


def _as_they_came(trace: Iterable[Request], frame: pl.DataFrame, folder: Path) -> list[Request]:
    """Requests of an engine's trace at the times at which they came, by its own table."""
    columns = ("request_id", "arrival_s", "prompt_tokens", "output_tokens")
    came = {row[0]: row for row in frame.select(columns).iter_rows()}
    requests: list[Request] = []
    for request in trace:
        row = came.pop(request.request_id, None)
        if row is None:
            break
        if row[2:] != (request.prompt_tokens, request.output_tokens):
            raise ConfigError(
                f"{folder}: request {row[0]} has {row[2]:,} prompt and {row[3]:,} output tokens,"
                f" the trace's {request.prompt_tokens:,} and {request.output_tokens:,}"
            )
        requests.append(request._replace(arrival_s=row[1]))
    if came:
        raise ConfigError(f"{folder}: request {min(came)} was served, but is not in the trace")
    return requests


def _timeline(steps: pl.DataFrame, usable_blocks: int) -> Timeline:
    start_s, running, waiting, free = (
        steps[name].to_numpy().astype(float)
        for name in ("start_s", "running", "num_queued_requests", "free_blocks")
    )
    return Timeline(start_s, running, waiting, 1 - free / usable_blocks)


def _summary(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder / SUMMARY}: cannot be read: {error}") from None


def _decisions(
    requests: list[Request], frame: pl.DataFrame, steps: pl.DataFrame, settings: ReplaySettings
) -> Decisions:
    try:
        retraced = retrace(requests, frame, steps, settings)
    except DivergenceError as difference:
        return Decisions(steps.height, None, str(difference))
    except ConfigError as error:
        return Decisions(steps.height, None, f"not compared: {error}")
    return Decisions(retraced.steps, retraced.largest_error_s)
