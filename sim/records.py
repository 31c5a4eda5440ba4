"""Rows of a run on their way to metrics, frames and files, in constant memory.

Requests and segments are appended to arrays of integers; each full array is added to the metrics
and handed to a sink (a Parquet file, a list, or nothing), then emptied.
"""

from array import array
from collections.abc import Callable
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

BUFFER_ROWS: Final = 16_384

Sink = Callable[[Rows], None]


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
        self._requests: Any = array("q")
        self._segments: Any = array("q")
        self._gaps: list[tuple[int, int]] = []
        self._request_limit: int = BUFFER_ROWS * len(REQUEST_COLUMNS)
        self._segment_limit: int = BUFFER_ROWS * len(SEGMENT_COLUMNS)
        self.segments = 0
        self.steps = 0
        self.busy_ps = 0
        self.block_ps = 0
        """Sum over segments of blocks in use x duration."""
        self.peak_blocks = 0
        self.most_tokens = 0
        """Tokens of the largest step."""
        self.most_sequences = 0
        self.last_end_ps = 0

    def request(self, row: tuple[int, ...]) -> None:
        """Append a request's row (engine.metrics.REQUEST_COLUMNS)."""
        rows = self._requests
        rows.extend(row)
        if len(rows) >= self._request_limit:
            self._flush_requests()

    def segment(self, row: tuple[int, ...]) -> None:
        """Append a segment's row (SEGMENT_COLUMNS)."""
        rows = self._segments
        rows.extend(row)
        if len(rows) >= self._segment_limit:
            self._flush_segments()

    def gap(self, duration_ps: int, count: int) -> None:
        """Count a gap between tokens that no segment shows; a negative count takes one back."""
        self._gaps.append((duration_ps, count))

    def flush(self) -> None:
        """Hand on everything that is still in the buffers."""
        self._flush_requests()
        self._flush_segments()

    def _flush_requests(self) -> None:
        rows = _emptied(self._requests, len(REQUEST_COLUMNS))
        if len(rows):
            self.metrics.add(rows)
            self.last_end_ps = max(self.last_end_ps, int(rows[:, 11].max()))
            if self._request_sink is not None:
                self._request_sink(rows)

    def _flush_segments(self) -> None:
        rows = _emptied(self._segments, len(SEGMENT_COLUMNS))
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
        decodes = rows[:, _AT["decodes"]]
        tokens = decodes + rows[:, _AT["prefill_tokens"]]
        sequences = decodes + rows[:, _AT["prefill_sequences"]]
        self.most_tokens = max(self.most_tokens, int(tokens.max()))
        self.most_sequences = max(self.most_sequences, int(sequences.max()))
        if self._segment_sink is not None:
            self._segment_sink(rows)


def _emptied(buffer: Any, columns: int) -> Rows:
    rows = np.frombuffer(buffer, dtype=np.int64).reshape(-1, columns).copy()
    del buffer[:]
    return rows
