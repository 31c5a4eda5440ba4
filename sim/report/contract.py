"""What a report needs to know of a run: docs/report.md has the schema of each part."""

from collections.abc import Mapping
from typing import Any, Protocol

import polars as pl


class Roofline(Protocol):
    """A cost model's arithmetic: what a step computes and moves, and what the device could."""

    @property
    def peak_flops_per_s(self) -> float:
        """Arithmetic the device can do, FLOP/s."""
        ...

    @property
    def memory_bytes_per_s(self) -> float:
        """Bytes the device can read from its memory, bytes/s."""
        ...

    def work(
        self,
        decodes: Any,
        decode_context_tokens: Any,
        prefill_tokens: Any,
        prefill_context_tokens: Any,
        prefill_pairs: Any,
        sequences: Any,
    ) -> tuple[Any, Any]:
        """FLOP and bytes of one step; numbers or numpy arrays of equal length."""
        ...


class RunResult(Protocol):
    """A finished run. Frames that were not kept are None, and so is an unknown roofline."""

    @property
    def summary(self) -> Mapping[str, Any]:
        """The run in a few dozen numbers: what summary.json holds."""
        ...

    @property
    def requests(self) -> pl.DataFrame | None:
        """One row a request."""
        ...

    @property
    def segments(self) -> pl.DataFrame | None:
        """One row a run of identical steps on a replica."""
        ...

    @property
    def scenario(self) -> Mapping[str, Any]:
        """The complete settings of the run, for display."""
        ...

    @property
    def roofline(self) -> Roofline | None:
        """Arithmetic of the cost model, where it has one."""
        ...


def end_s(result: RunResult) -> float:
    """Where time axes end: the last thing any record speaks of."""
    ends = [float(result.summary["duration_s"] or 0.0), 1e-9]
    for frame, columns in (
        (result.requests, ("arrival_s", "finish_s")),
        (result.segments, ("end_s",)),
    ):
        if frame is not None:
            maxima = frame.select(pl.max(column).fill_null(0.0) for column in columns)
            ends += maxima.row(0)
    return max(ends)
