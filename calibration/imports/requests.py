"""Request logs of real runs: what was asked when, and when it was served.

Formats are told apart by their columns: LLMServingSim's recordings of vLLM (per_request.csv,
requests.jsonl), logs of OpenAI-compatible servers and load generators with a row a request, saved
results of `vllm bench serve`, and kvcast's own requests.parquet. What lies beside a log (meta.json,
timeseries.csv; scenario.yaml, settings.yaml) is read too.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from calibration.imports.bench_serve import bench_rows, is_bench_result
from calibration.imports.records import read_records
from calibration.imports.request_columns import Columns, recognised
from calibration.imports.request_rows import Served, read_row, refuse_disorder, was_answered
from calibration.imports.vllm_meta import read_meta
from traces.errors import ConfigError
from traces.request import Request
from traces.rows import blocks_of
from traces.settings import read_mapping

if TYPE_CHECKING:
    import polars as pl

FILES: Final = ("per_request.csv", "requests.jsonl", "requests.parquet", "requests.csv")
"""What is read of a folder: the first of these that it holds."""

REQUESTS: Final[dict[str, str]] = {
    "request_id": "Int64",
    "arrival_s": "Float64",
    "queued_s": "Float64",
    "scheduled_s": "Float64",
    "first_token_s": "Float64",
    "finish_s": "Float64",
    "prompt_tokens": "Int64",
    "output_tokens": "Int64",
    "cached_tokens": "Int64",
}
"""Columns of `ServedRun.requests` and their polars types."""

TIMELINE: Final[dict[str, tuple[str, float]]] = {
    "t_s": ("t", 1.0),
    "running": ("running", 1.0),
    "waiting": ("waiting", 1.0),
    "kv_occupancy": ("kv_cache_pct", 0.01),
    "prompt_tokens_per_s": ("prompt_throughput", 1.0),
    "output_tokens_per_s": ("gen_throughput", 1.0),
}
"""Columns of `ServedRun.timeline`: what they are called in timeseries.csv, and the factor."""

CLOCK_S: Final = 60.0
"""A first arrival later than this is the reading of a clock: times count from it."""
OTHER_CLOCK_S: Final = 1e6
"""Times of one request that are further apart than this were read off different clocks."""
PLAUSIBLE_TPOT_S: Final = (20e-6, 20.0)
"""A median time per output token beyond these is a wrong unit."""


@dataclass(frozen=True)
class ServedRun:
    """What a real engine did for its clients."""

    requests: pl.DataFrame
    """Columns of REQUESTS, in order of arrival, which request_id numbers from 0. Times are seconds
    from the run's start; queued_s, scheduled_s and cached_tokens are null where the log is silent.
    `queued_s` is when the engine's own queue got it, behind HTTP and tokenizer; `scheduled_s` when
    the scheduler was called that first admitted it (vLLM's queued_ts and scheduled_ts)."""
    prefix_hashes: list[tuple[int, ...]] | None
    """Chained hashes of each request's prompt, as in traces.request.Request."""
    hash_tokens: int
    """Tokens a hash stands for; 0 without hashes."""
    settings: dict[str, Any]
    """As far as known, a partial scenario: `scheduler`, `cache`, `memory`, `cluster`."""
    timeline: pl.DataFrame | None
    """Columns of TIMELINE."""
    about: dict[str, Any]
    """Model, device, versions, requests left out, and what was assumed."""


def read_run(path: Path) -> ServedRun:
    """Read a request log, or the one a folder holds, and what lies beside it.

    Clocks: where arrivals are on another clock than the engine's times (vLLM: epoch and monotonic),
    they are aligned so that the least delay from arrival to queue is 0; `about` says so.

    Raises:
        ConfigError: naming file, line and value: columns missing or without a unit, values that
            are none, units that contradict each other, times out of order, requests twice.
        TraceError: there is no such file.
    """
    log = _log_of(path)
    settings, about = _beside(log.parent)
    records = read_records(log)
    if is_bench_result(records[0]):
        if len(records) > 1:
            raise ConfigError(f"{log}: holds {len(records)} saved results; expected one")
        about["model"] = records[0].values.get("model_id", about.get("model"))
        records = bench_rows(records[0])
    columns = recognised(records, log)
    served = [read_row(record, columns) for record in records if was_answered(record, columns)]
    if not served:
        raise ConfigError(f"{log}: none of its {len(records)} requests was answered")
    about |= _left_out(len(records) - len(served))
    about |= _align_clocks(served)
    _refuse_twice(served, columns)
    for request in served:
        refuse_disorder(request)
    _refuse_unlikely_speed(served, log)
    served.sort(key=lambda request: request.arrival_s)
    hash_tokens = settings.get("cache", {}).get("block_tokens", 16) if "hashes" in columns else 0
    _refuse_unchained(served, hash_tokens)
    return ServedRun(
        requests=_frame(served),
        prefix_hashes=[request.hashes for request in served] if hash_tokens else None,
        hash_tokens=hash_tokens,
        settings=settings,
        timeline=_timeline(log.with_name("timeseries.csv")),
        about=about,
    )


def to_requests(run: ServedRun) -> list[Request]:
    """The run as a trace, in order of arrival; request_id is that of `run.requests`.

    A request arrives when the engine's scheduler got it, where the log knows: what comes before
    (network, tokenisation, the way to the engine's process) is not simulated. Else as it was sent.
    """
    import polars as pl

    hashes = run.prefix_hashes or [()] * len(run.requests)
    rows = run.requests.select(
        "request_id",
        pl.coalesce("queued_s", "arrival_s"),
        "prompt_tokens",
        "output_tokens",
    )
    requests = [
        Request(
            request_id,
            arrival_s,
            prompt_tokens,
            output_tokens,
            hashes=chain,
            hash_tokens=run.hash_tokens if chain else 0,
            hashed_tokens=min(len(chain) * run.hash_tokens, prompt_tokens),
        )
        for (request_id, arrival_s, prompt_tokens, output_tokens), chain in zip(
            rows.iter_rows(), hashes, strict=True
        )
    ]
    return sorted(requests, key=lambda request: request.arrival_s)


# ---- files


def _log_of(path: Path) -> Path:
    if not path.is_dir():
        return path
    for name in FILES:
        if (path / name).is_file():
            return path / name
    raise ConfigError(f"{path}: holds no request log; expected one of {', '.join(FILES)}")


def _beside(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings and facts from the files that lie beside a log."""
    if (folder / "meta.json").is_file():
        return read_meta(folder / "meta.json")
    if (folder / "scenario.yaml").is_file():
        scenario = read_mapping(folder / "scenario.yaml")
        known = ("scheduler", "cache", "memory", "cluster")
        settings = {name: scenario[name] for name in known if name in scenario}
        return settings, {"profile": scenario.get("profile"), "simulated": True}
    if (folder / "settings.yaml").is_file():
        engine = read_mapping(folder / "settings.yaml")
        settings = {name: engine[name] for name in ("scheduler", "cache") if name in engine}
        memory = {name: engine.get(name) for name in ("num_blocks", "memory_share")}
        settings["memory"] = {name: value for name, value in memory.items() if value is not None}
        about = {name: engine.get(name) for name in ("model", "device", "dtype", "kv_dtype", "tp")}
        return settings, {**about, "speed": engine.get("speed")}
    return {}, {}


def _timeline(path: Path) -> pl.DataFrame | None:
    if not path.is_file():
        return None
    import polars as pl

    records = read_records(path)
    missing = [name for name, _ in TIMELINE.values() if name not in records[0].values]
    if missing:
        raise ConfigError(f"{path}:1: no column {missing[0]}")
    return pl.DataFrame(
        {
            column: [record.number(name) * factor for record in records]
            for column, (name, factor) in TIMELINE.items()
        }
    )


# ---- what cannot be


def _refuse_twice(served: Iterable[Served], columns: Columns) -> None:
    if "id" not in columns:
        return
    column = columns["id"][0]
    seen: dict[Any, str] = {}
    for request in served:
        record = request.record
        if (earlier := seen.setdefault(record.values.get(column), record.place)) != record.place:
            raise record.error(column, f"another one: {earlier} has it already")


def _refuse_unlikely_speed(served: Iterable[Served], log: Path) -> None:
    gaps = [
        (request.finish_s - request.first_token_s) / (request.output_tokens - 1)
        for request in served
        if request.output_tokens > 1
    ]
    least_s, most_s = PLAUSIBLE_TPOT_S
    if gaps and not least_s <= (median_s := statistics.median(gaps)) <= most_s:
        raise ConfigError(
            f"{log}: a token every {median_s:.3g} s (median); expected {least_s:g} to {most_s:g}:"
            " are its times in the unit its columns name?"
        )


def _refuse_unchained(served: Iterable[Served], hash_tokens: int) -> None:
    """A hash stands for all before it: it always follows the same one."""
    parents: dict[int, int] = {}
    for request in served:
        record, parent = request.record, -1
        longest = blocks_of(request.prompt_tokens, hash_tokens) if hash_tokens else 0
        if len(request.hashes) > longest:
            raise ConfigError(
                f"{record.place}: has {len(request.hashes)} hashes; expected at most {longest},"
                f" one for each {hash_tokens} of {request.prompt_tokens} prompt tokens"
            )
        for one in request.hashes:
            if parents.setdefault(one, parent) != parent:
                raise ConfigError(
                    f"{record.place}: hash {one} follows {parent} here and {parents[one]}"
                    " elsewhere; expected hashes of everything up to a block's end"
                )
            parent = one


def _left_out(count: int) -> dict[str, Any]:
    return {"left_out": count} if count else {}


def _align_clocks(served: list[Served]) -> dict[str, Any]:
    """One clock that starts with the run; says what had to be assumed."""
    about: dict[str, Any] = {}
    delays = [r.queued_s - r.arrival_s for r in served if r.queued_s is not None]
    if delays and abs(delays[0]) > OTHER_CLOCK_S:
        shift_s = min(delays)
        for request in served:
            request.arrival_s += shift_s
        about["clock"] = (
            "arrivals are on another clock than the engine's times; the least delay from arrival"
            " to queue is taken to be 0"
        )
    start_s = min(request.arrival_s for request in served)
    if start_s > CLOCK_S:
        for request in served:
            request.arrival_s -= start_s
            request.first_token_s -= start_s
            request.finish_s -= start_s
            if request.queued_s is not None:
                request.queued_s -= start_s
            if request.scheduled_s is not None:
                request.scheduled_s -= start_s
    return about


def _frame(served: list[Served]) -> pl.DataFrame:
    import polars as pl

    columns: dict[str, list[Any]] = {"request_id": list(range(len(served)))}
    for name in REQUESTS:
        if name != "request_id":
            columns[name] = [getattr(request, name) for request in served]
    return pl.DataFrame(columns, schema={k: getattr(pl, v) for k, v in REQUESTS.items()})
