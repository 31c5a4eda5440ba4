"""Rows of integers as tables with units: what requests.parquet and segments.parquet hold."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from engine.metrics import OUTCOMES, PICOSECONDS, REQUEST_COLUMNS, Rows
from sim.records import SEGMENT_COLUMNS


def requests_table(rows: Rows, names: Sequence[str]) -> Any:
    """Request rows as an Arrow table; `names` are the tenants and SLO classes by number."""
    column = {name: rows[:, i] for i, name in enumerate(REQUEST_COLUMNS)}
    arrival, first, finish = column["arrival"], column["first_token"], column["finish"]
    tokens = column["generated_tokens"]
    served = column["outcome"] <= OUTCOMES.index("truncated")
    several = served & (tokens > 1)
    tpot = np.zeros(len(rows), dtype=np.int64)
    tpot[several] = (finish - first)[several] // (tokens - 1)[several]
    began = column["scheduled"] >= 0
    return pa.table(
        {
            "request_id": column["request_id"],
            "session_id": column["session_id"],
            "turn": column["turn"].astype(np.int32),
            "tenant": _named(column["tenant"], names),
            "priority": column["priority"].astype(np.int32),
            "slo_class": _named(column["slo_class"], names),
            "replica": column["replica"].astype(np.int32),
            "outcome": _named(column["outcome"], OUTCOMES),
            "arrival_s": arrival / PICOSECONDS,
            "scheduled_s": _seconds(column["scheduled"], began),
            "first_token_s": _seconds(first, first >= 0),
            "finish_s": _seconds(finish, finish >= 0),
            "prompt_tokens": column["prompt_tokens"],
            "output_tokens": column["output_tokens"],
            "generated_tokens": tokens,
            "cached_tokens": column["cached_tokens"],
            "preemptions": column["preemptions"].astype(np.int32),
            "queue_s": _seconds(column["scheduled"] - arrival, began),
            "ttft_s": _seconds(first - arrival, served),
            "tpot_s": _seconds(tpot, several),
            "e2e_s": _seconds(finish - arrival, served),
        }
    )


def segments_table(rows: Rows, names: Sequence[str] = ()) -> Any:
    """Segment rows as an Arrow table."""
    column = {name: rows[:, i] for i, name in enumerate(SEGMENT_COLUMNS)}
    times = {
        "start_s": column["start"] / PICOSECONDS,
        "end_s": column["end"] / PICOSECONDS,
        "steps": column["steps"],
        "first_step_s": column["first_step"] / PICOSECONDS,
        "step_growth_s": column["step_growth"] / PICOSECONDS,
    }
    counts = {name: column[name] for name in SEGMENT_COLUMNS[6:16]}
    return pa.table({"replica": column["replica"].astype(np.int32), **times, **counts})


class Sink(Protocol):
    """Takes blocks of rows as they come."""

    def take(self, rows: Rows) -> None:
        """Keep `rows`."""
        ...


class MemorySink:
    """Keeps rows in memory, to be a frame when asked for."""

    def __init__(self) -> None:
        self._blocks: list[Rows] = []

    def take(self, rows: Rows) -> None:
        """Keep `rows`."""
        self._blocks.append(rows)

    def rows(self, columns: int) -> Rows:
        """All rows, [rows, columns]."""
        if not self._blocks:
            return np.zeros((0, columns), dtype=np.int64)
        return np.concatenate(self._blocks)


class ParquetSink:
    """Streams rows into a Parquet file, a row group for each block."""

    def __init__(self, path: Path, to_table: Any, names: Any, columns: int) -> None:
        """`to_table(rows, names())` makes a block's table."""
        self._path = path
        self._to_table = to_table
        self._names = names
        schema = to_table(np.zeros((0, columns), dtype=np.int64), [""]).schema
        self._writer = pq.ParquetWriter(path, schema, compression="zstd")

    def take(self, rows: Rows) -> None:
        """Write `rows`."""
        self._writer.write_table(self._to_table(rows, self._names()))

    def close(self) -> None:
        """Finish the file."""
        self._writer.close()


def _seconds(values: Rows, present: Any) -> Any:
    return pa.array(values / PICOSECONDS, mask=~present)


def _named(numbers: Rows, names: Sequence[str]) -> Any:
    return pa.DictionaryArray.from_arrays(
        pa.array(numbers.astype(np.int32)), pa.array(list(names), pa.string())
    ).cast(pa.string())
