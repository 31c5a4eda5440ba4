"""Rows of integers as tables with units: what segments.parquet holds."""

from typing import Any

import numpy as np
import pyarrow as pa

from engine.frames import no_rows
from engine.metrics import PICOSECONDS, Rows
from sim.records import SEGMENT_COLUMNS


def segments_table(rows: Rows) -> Any:
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


def segments_schema() -> Any:
    """Names and types of the columns of `segments_table`."""
    return segments_table(no_rows(len(SEGMENT_COLUMNS))).schema
