"""Forward-pass metrics, version 1: one record a step, as vLLM, SGLang, TensorRT-LLM and Dynamo
publish them.

Dynamo defines the fields (components/src/dynamo/common/forward_pass_metrics.py) and writes them as
gzip-compressed JSON lines (DYN_FPM_TRACE=1, DYN_FPM_MODE=full); vLLM's own publisher
(vllm/v1/metrics/forward_pass_metrics.py) adds `timing_scope`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from calibration.imports.records import Record, read_records
from calibration.steps import STEP_FRAME, step_frame
from traces.errors import ConfigError

if TYPE_CHECKING:
    import polars as pl

VERSION: Final = 1

DEVICE_SCOPE: Final = "execute_model_cuda"
"""`timing_scope` of vLLM's publisher: wall_time is the model's on the CUDA timeline, without
scheduling and sampling."""

FIELDS: Final = (
    "num_prefill_requests",
    "sum_prefill_tokens",
    "sum_prefill_kv_tokens",
    "num_decode_requests",
    "sum_decode_kv_tokens",
)
"""What every record has to say of the requests it scheduled; var_prefill_length may be missing."""


def read_forward_pass(path: Path) -> pl.DataFrame:
    """Steps of a log of forward-pass metrics, as calibration.steps has them.

    Records are nested (`scheduled_requests` inside, perhaps in the envelope of Dynamo's trace or
    the results of its self-benchmark) or flat. Idle steps and heartbeats are left out. `source` is
    the file's name with worker and data-parallel rank.

    What is logged decides what is known:

    - decodes: `sum_decode_kv_tokens` counts what is there before the step, so the new token of
      each is added.
    - prefills: `sum_prefill_kv_tokens` is before the chunks, so the chunks are added.
    - prefill_pairs is not logged: see `estimated_pairs`.
    - time_s is wall_time: between the outputs of two steps (Dynamo on vLLM), or on the device
      alone, and then device_s too, where `timing_scope` says so.

    Raises:
        ConfigError: naming file, line, field and value.
    """
    rows = [
        row
        for record in read_records(path)
        for metrics in _metrics(record)
        if (row := _step(metrics, path)) is not None
    ]
    if not rows:
        raise ConfigError(f"{path}: every record is idle; expected steps with requests")
    return step_frame({name: [row[name] for row in rows] for name in STEP_FRAME if name in rows[0]})


def estimated_pairs(chunks: int, tokens: int, variance: float, before: int) -> int:
    """Pairs of tokens in causal attention of prefill chunks, from sums alone.

    For n chunks of mean m and variance v behind `before` tokens altogether:

        pairs = n (m^2 + v + m) / 2 + before x m

    The first term is exact for sum(chunk (chunk + 1) / 2); the second replaces sum(chunk x before)
    by the product of means. A single chunk is exact. What is logged as variance is that of whole
    prompts: chunks are taken to vary as they do, in proportion to the part of them that is new,
    and no more than that many chunks of at least one token can.

    On recorded schedules of vLLM, the steps with two or more chunks: all pairs together within
    1 %, half of the steps within 6 %, but one in twenty more than doubled, where a long prompt's
    last piece comes with new short prompts.
    """
    if chunks == 0:
        return 0
    mean = tokens / chunks
    longest = tokens - (chunks - 1)
    most = (longest * longest + chunks - 1) / chunks - mean * mean
    varies = min(variance * (tokens / (tokens + before)) ** 2, max(most, 0.0))
    return round(chunks * (mean * mean + varies + mean) / 2 + before * mean)


def _metrics(record: Record) -> Iterator[Record]:
    """The metrics in a record, out of their envelope, as flat fields."""
    values: Mapping[str, Any] = record.values
    if isinstance(values.get("results"), list):  # Dynamo's self-benchmark
        for i, result in enumerate(values["results"], 1):
            for metrics in result.get("fpms", ()):
                yield _flat(f"{record.place}: result {i}", metrics)
        return
    for envelope in ("event", "fpm"):
        inner = values.get(envelope)
        values = inner if isinstance(inner, dict) else values
    yield _flat(record.place, values)


def _flat(place: str, values: Mapping[str, Any]) -> Record:
    version = values.get("version", VERSION)
    if version != VERSION:
        raise ConfigError(f"{place}: version is {version!r}; expected {VERSION}")
    scheduled = values.get("scheduled_requests")
    flat = Record(place, {**values, **scheduled} if isinstance(scheduled, dict) else values)
    for name in ("wall_time", *FIELDS):
        if name not in flat.values:
            raise ConfigError(
                f"{place}: has no {name}; expected forward-pass metrics of version {VERSION}"
            )
    return flat


def _step(metrics: Record, path: Path) -> dict[str, Any] | None:
    """A row of the step frame; None for an idle step."""
    chunks, tokens, before, decodes, context = (metrics.whole(name) for name in FIELDS)
    if chunks == decodes == 0:
        return None
    time_s = metrics.number("wall_time")
    if time_s == 0:
        raise metrics.error("wall_time", "more than 0 for a step that is not idle")
    if tokens < chunks:
        raise metrics.error("sum_prefill_tokens", f"at least {chunks}, one for each prefill")
    spread = "var_prefill_length"
    variance = metrics.number(spread) if metrics.has(spread) else 0.0
    on_device = metrics.values.get("timing_scope") == DEVICE_SCOPE
    worker, rank = metrics.values.get("worker_id", ""), metrics.values.get("dp_rank", 0)
    return {
        "decodes": decodes,
        "decode_context_tokens": context + decodes,
        "prefills": chunks,
        "prefill_tokens": tokens,
        "prefill_context_tokens": before + tokens if chunks else 0,
        "prefill_pairs": estimated_pairs(chunks, tokens, variance, before),
        "time_s": time_s,
        "device_s": time_s if on_device else None,
        "source": f"{path.name}:{worker}/{rank}",
    }
