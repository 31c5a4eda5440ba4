"""One record a step: what it computed, what it took. The raw data of calibration.

The first columns are the forward-pass metrics (version 1) that Dynamo reads from vLLM, SGLang and
TensorRT-LLM, under their names, so that tools and fits for theirs read ours; the others are our
own, with units in their names.
"""

from pathlib import Path
from typing import Any, Final

from engine.batch import Batch
from engine.metrics import PICOSECONDS
from engine.scheduler import Scheduler
from engine.work import Share, StepOutput, Work

STEP_COLUMNS: Final[tuple[tuple[str, str], ...]] = (
    ("wall_time", "double"),
    ("num_prefill_requests", "int32"),
    ("sum_prefill_tokens", "int64"),
    ("var_prefill_length", "double"),
    ("sum_prefill_kv_tokens", "int64"),
    ("num_decode_requests", "int32"),
    ("sum_decode_kv_tokens", "int64"),
    ("var_decode_kv_tokens", "double"),
    ("num_queued_requests", "int32"),
    ("step", "int64"),
    ("called_s", "double"),
    ("start_s", "double"),
    ("end_s", "double"),
    ("device_s", "double"),
    ("scheduler_s", "double"),
    ("host_s", "double"),
    ("prefill_pairs", "int64"),
    ("max_decode_kv_tokens", "int64"),
    ("graph_bucket", "int32"),
    ("kv_dtype", "string"),
    ("running", "int32"),
    ("free_blocks", "int32"),
    ("admitted", "int32"),
    ("preempted", "int32"),
    ("cached_tokens", "int64"),
    ("moved_bytes", "int64"),
)
"""Name and Arrow type of each column, explained in docs/engine.md."""

Record = dict[str, Any]


def begin_record(step: int, batch: Batch, work: Work, core: Scheduler) -> Record:
    """What is known of a step as it is launched; the engine's loop adds when its scheduling and it
    itself began and the time the former took, `finish_record` the rest."""
    prefills, prefill_tokens, prefill_kv, _ = _sums(work.prefills)
    decodes, decode_tokens, decode_kv, most = _sums(work.decodes)
    return {
        "num_prefill_requests": prefills,
        "sum_prefill_tokens": prefill_tokens,
        "var_prefill_length": _variance(
            [share.generation.seq.prompt_tokens for share in work.prefills]
        ),
        "sum_prefill_kv_tokens": prefill_kv,
        "num_decode_requests": decodes,
        "sum_decode_kv_tokens": decode_kv + decode_tokens,
        "var_decode_kv_tokens": _variance([share.context for share in work.decodes]),
        "num_queued_requests": core.waiting,
        "step": step,
        "prefill_pairs": batch.prefill_pairs,
        "max_decode_kv_tokens": most,
        "running": len(core.running),
        "free_blocks": core.blocks.free,
        "admitted": len(batch.admitted),
        "preempted": len(batch.preempted),
        "cached_tokens": sum(
            seq.resumed_cached[-1] if seq.preemptions else seq.cached_tokens
            for seq in batch.admitted
        ),
    }


def finish_record(record: Record, output: StepOutput, now: int, host_ps: int) -> None:
    """Add what the step took; its output was there at `now` (picoseconds)."""
    end_s = now / PICOSECONDS
    record["wall_time"] = end_s - record["start_s"]
    record["end_s"] = end_s
    record["device_s"] = output.device_s
    record["host_s"] = host_ps / PICOSECONDS
    record["graph_bucket"] = output.graph_bucket
    record["moved_bytes"] = output.moved_bytes


def steps_schema() -> Any:
    """STEP_COLUMNS as an Arrow schema."""
    import pyarrow as pa

    return pa.schema([(name, pa.type_for_alias(kind)) for name, kind in STEP_COLUMNS])


def steps_table(records: list[Record], kv_dtype: str) -> Any:
    """Finished records as an Arrow table of `steps_schema`."""
    import pyarrow as pa

    rows = [{**record, "kv_dtype": kv_dtype} for record in records]
    return pa.Table.from_pylist(rows, schema=steps_schema())


def write_steps(records: list[Record], kv_dtype: str, path: Path) -> None:
    """Write finished records as Parquet, zstd-compressed."""
    import pyarrow.parquet as pq

    pq.write_table(steps_table(records, kv_dtype), path, compression="zstd")


def _sums(shares: list[Share]) -> tuple[int, int, int, int]:
    """Number, tokens computed, tokens of KV there before, and the longest context."""
    tokens = context = most = 0
    for _, reached, chunk in shares:
        tokens += chunk
        context += reached
        if reached > most:
            most = reached
    return len(shares), tokens, context - tokens, most


def _variance(values: list[int]) -> float:
    if not values:
        return 0.0
    mean = sum(values) / len(values)
    return sum((value - mean) ** 2 for value in values) / len(values)
