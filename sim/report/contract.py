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
    """A finished run. Rows that were not kept are None, and so is an unknown roofline."""

    @property
    def summary(self) -> Mapping[str, Any]:
        """The run in a few dozen numbers: what summary.json holds."""
        ...

    @property
    def request_rows(self) -> pl.LazyFrame | None:
        """One row a request; a picture reads the columns it needs."""
        ...

    @property
    def segment_rows(self) -> pl.LazyFrame | None:
        """One row a run of identical steps on a replica; read a block at a time."""
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
    for rows, columns in (
        (result.request_rows, ("arrival_s", "finish_s")),
        (result.segment_rows, ("end_s",)),
    ):
        if rows is not None:
            maxima = rows.select(pl.max(column).fill_null(0.0) for column in columns)
            ends += maxima.collect().row(0)
    return max(ends)
