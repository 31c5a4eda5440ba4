"""Rows of integers as tables with units: what requests.parquet holds, here and in the simulator."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from engine.metrics import OUTCOMES, PICOSECONDS, REQUEST_COLUMNS, Rows


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
            "queued_s": _seconds(column["queued"], column["queued"] >= 0),
            "admitted_s": _seconds(column["admitted"], column["admitted"] >= 0),
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


def requests_schema() -> Any:
    """Names and types of the columns of `requests_table`."""
    return requests_table(no_rows(len(REQUEST_COLUMNS)), [""]).schema


def no_rows(columns: int) -> Rows:
    """[0, columns]."""
    return np.zeros((0, columns), dtype=np.int64)


class MemorySink:
    """Keeps rows in memory, to be a frame when asked for."""

    def __init__(self) -> None:
        self._blocks: list[Rows] = []

    def take(self, rows: Rows) -> None:
        """Keep `rows`."""
        self._blocks.append(rows)

    def rows(self, columns: int) -> Rows:
        """All rows, [rows, columns]."""
        return np.concatenate(self._blocks) if self._blocks else no_rows(columns)


class ParquetSink:
    """Streams blocks of rows into a Parquet file, a row group for each."""

    def __init__(self, path: Path, schema: Any, to_table: Callable[[Any], Any]) -> None:
        """`to_table(block)` makes a block's table, of that schema."""
        self._to_table = to_table
        self._writer = pq.ParquetWriter(path, schema, compression="zstd")

    def take(self, block: Any) -> None:
        """Write a block."""
        self._writer.write_table(self._to_table(block))

    def close(self) -> None:
        """Finish the file."""
        self._writer.close()


def _seconds(values: Rows, present: Any) -> Any:
    return pa.array(values / PICOSECONDS, mask=~present)


def _named(numbers: Rows, names: Sequence[str]) -> Any:
    return pa.DictionaryArray.from_arrays(
        pa.array(numbers.astype(np.int32)), pa.array(list(names), pa.string())
    ).cast(pa.string())
