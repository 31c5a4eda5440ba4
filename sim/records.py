"""Rows of a run on their way to metrics, frames and files, in constant memory.

Requests and segments are packed into buffers of integers; each full buffer is added to the metrics
and handed to a sink (a Parquet file, a list, or nothing), then used again.
"""

from collections.abc import Callable
from struct import Struct
from typing import Any, Final

import numpy as np

from engine.metrics import REQUEST_COLUMNS, Rows, ServiceMetrics, sum_exactly

SEGMENT_COLUMNS: Final = (
    "replica",
    "start",
    "end",
    "steps",
    "first_step",
    "step_growth",
    "decodes",
    "decode_context_tokens",
    "prefill_sequences",
    "prefill_tokens",
    "prefill_context_tokens",
    "prefill_pairs",
    "running",
    "waiting",
    "kv_blocks_used",
    "preempted",
    "streams",
)
"""A segment's row: integers, times in picoseconds; `streams` are the decodes whose token follows
another (all but recomputed ones)."""
_AT: Final = {name: i for i, name in enumerate(SEGMENT_COLUMNS)}
_FINISH: Final = REQUEST_COLUMNS.index("finish")

BUFFER_ROWS: Final = 16_384

Sink = Callable[[Rows], None]


class RowBuffer:
    """Rows of integers, packed: several times as fast as appending them to an array."""

    __slots__ = ("_at", "_bytes", "_on_full", "_pack", "_row_bytes", "_size")

    def __init__(self, columns: int, on_full: Callable[[], None]) -> None:
        """`on_full` is called when there is no room for another row; it must empty the buffer."""
        self._on_full: Any = on_full
        packing = Struct(f"{columns}q")
        self._pack: Any = packing.pack_into
        self._row_bytes: int = packing.size
        self._bytes: bytearray = bytearray(packing.size * BUFFER_ROWS)
        self._size: int = len(self._bytes)
        self._at: int = 0

    def append(self, row: tuple[int, ...]) -> None:
        """Add a row."""
        at = self._at
        self._pack(self._bytes, at, *row)
        at += self._row_bytes
        self._at = at
        if at == self._size:
            self._on_full()

    def rows_from(self, first: int) -> Rows:
        """A copy of the rows from number `first` on, [rows, columns]; they stay."""
        begin = first * self._row_bytes
        count = (self._at - begin) // 8
        rows = np.frombuffer(self._bytes, dtype=np.int64, count=count, offset=begin).copy()
        return rows.reshape(-1, self._row_bytes // 8)

    def emptied(self) -> Rows:
        """All rows since the last time, [rows, columns]."""
        rows = np.frombuffer(self._bytes, dtype=np.int64, count=self._at // 8).copy()
        self._at = 0
        return rows.reshape(-1, self._row_bytes // 8)


class Records:
    """Collects rows, keeps the running totals."""

    def __init__(
        self,
        metrics: ServiceMetrics,
        *,
        requests: Sink | None = None,
        segments: Sink | None = None,
    ) -> None:
        """Rows go to the sinks in blocks of at most BUFFER_ROWS."""
        self.metrics = metrics
        self._request_sink = requests
        self._segment_sink = segments
        self.request_rows = RowBuffer(len(REQUEST_COLUMNS), self._flush_requests)
        self.segment_rows = RowBuffer(len(SEGMENT_COLUMNS), self._flush_segments)
        self._gaps: list[tuple[int, int]] = []
        self.segments = 0
        self.steps = 0
        self.busy_ps = 0
        self.block_ps = 0
        """Sum over segments of blocks in use x duration."""
        self.peak_blocks = 0
        self.most_tokens = 0
        """Tokens of the largest step."""
        self.most_sequences = 0
        self.most_context_tokens = 0
        """Mean over a step's decodes, or over its chunks: the largest, as profiles limit it."""
        self.last_end_ps = 0

    def gap(self, duration_ps: int, count: int) -> None:
        """Count a gap between tokens that no segment shows; a negative count takes one back."""
        self._gaps.append((duration_ps, count))

    def flush(self) -> None:
        """Hand on everything that is still in the buffers."""
        self._flush_requests()
        self._flush_segments()

    def _flush_requests(self) -> None:
        rows = self.request_rows.emptied()
        if len(rows):
            self.metrics.add(rows)
            self.last_end_ps = max(self.last_end_ps, int(rows[:, _FINISH].max()))
            if self._request_sink is not None:
                self._request_sink(rows)

    def _flush_segments(self) -> None:
        rows = self.segment_rows.emptied()
        if len(rows) == 0:
            return
        itl = self.metrics.latency["itl_s"]
        first, growth = rows[:, _AT["first_step"]], rows[:, _AT["step_growth"]]
        steps, duration = rows[:, _AT["steps"]], rows[:, _AT["end"]] - rows[:, _AT["start"]]
        counted = rows[:, _AT["start"]] >= self.metrics.warmup_ps
        itl.add_progressions(first, growth, steps, rows[:, _AT["streams"]] * counted)
        if self._gaps:
            gaps = np.array(self._gaps, dtype=np.int64)
            one, none = np.ones(len(gaps), dtype=np.int64), np.zeros(len(gaps), dtype=np.int64)
            itl.add_progressions(gaps[:, 0], none, one, gaps[:, 1])
            self._gaps = []
        self.segments += len(rows)
        self.steps += int(steps.sum())
        self.busy_ps += sum_exactly(duration)
        used = rows[:, _AT["kv_blocks_used"]]
        self.block_ps += int(float((used.astype(np.float64) * duration).sum()))
        self.peak_blocks = max(self.peak_blocks, int(used.max()))
        self._extend(rows)
        if self._segment_sink is not None:
            self._segment_sink(rows)

    def _extend(self, rows: Rows) -> None:
        """Note how far the steps of some segments reach."""
        decodes, chunks = rows[:, _AT["decodes"]], rows[:, _AT["prefill_sequences"]]
        prefill_tokens, before_last = rows[:, _AT["prefill_tokens"]], rows[:, _AT["steps"]] - 1
        decoded = rows[:, _AT["decode_context_tokens"]] + decodes * before_last
        prefilled = rows[:, _AT["prefill_context_tokens"]] + prefill_tokens * before_last
        contexts = np.maximum(decoded // np.maximum(decodes, 1), prefilled // np.maximum(chunks, 1))
        self.most_tokens = max(self.most_tokens, int((decodes + prefill_tokens).max()))
        self.most_sequences = max(self.most_sequences, int((decodes + chunks).max()))
        self.most_context_tokens = max(self.most_context_tokens, int(contexts.max()))
