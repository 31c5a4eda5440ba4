"""Operator tables as part of a profile: settings in its YAML, times in a Parquet file beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, Literal

import numpy as np
from pydantic import Field, field_validator

from calibration.costs import CostModel
from calibration.kernels import captured_size
from calibration.operators import (
    AttentionTable,
    Curve,
    OperatorTables,
    SkewTable,
    operator_cost,
)
from traces.errors import ConfigError
from traces.settings import Settings

if TYPE_CHECKING:
    from calibration.profiles import Profile

GRIDS: Final = {
    "prefill": ("chunk", "context"),
    "decode": ("decodes", "length"),
    "mixed": ("chunk", "context", "decodes", "length"),
}
"""Attention tables and their axes; `context` stands before a prompt's chunk, `length` before a
decode's token."""

CURVES: Final = {"tokens": "chunk", "rows": "decodes"}
"""Curves and the column their sizes are in."""

AXES: Final = GRIDS["mixed"]
SKEW: Final = b"kvcast.skew"

VLLM_GRAPHS: Final = tuple(sorted({captured_size(tokens) for tokens in range(1, 513)}))
"""Sizes of CUDA graphs that vLLM captures by default."""


class OperatorSettings(Settings):
    """Cost composed from operator tables: calibration.operators."""

    kind: Literal["operators"]
    tables: str = Field(min_length=1)
    """Parquet file with the times; relative to the profile's own folder."""
    graph_sizes: tuple[int, ...] = VLLM_GRAPHS
    """Tokens of the captured CUDA graphs; a smaller step computes as many as the next has."""
    step_s: float = Field(default=0.0, ge=0)
    """Device time of a step that is in no table."""
    host_step_s: float = Field(default=1.0e-3, ge=0)
    """CPU time of a step, and for each sequence in it."""
    host_sequence_s: float = Field(default=8.0e-6, ge=0)
    overlap_scheduling: bool | None = None
    """The CPU prepares a step while the one before runs; None: as the scheduler works."""

    @field_validator("graph_sizes")
    @classmethod
    def _increasing(cls, sizes: tuple[int, ...]) -> tuple[int, ...]:
        if any(size < 1 for size in sizes) or list(sizes) != sorted(set(sizes)):
            raise ValueError(f"graph_sizes: must increase from at least 1, got {list(sizes)}")
        return sizes

    def build(self, profile: Profile, *, async_scheduling: bool) -> CostModel:
        """The cost model of a replica of `profile`; a stated overlap rules `async_scheduling`.

        Raises:
            ConfigError: the tables cannot be read.
        """
        overlap = self.overlap_scheduling
        return operator_cost(
            read_tables(profile.folder / self.tables),
            self.graph_sizes,
            self.step_s,
            self.host_step_s,
            self.host_sequence_s,
            async_scheduling if overlap is None else overlap,
            profile.arithmetic,
        )


def write_tables(tables: OperatorTables, file: Path | IO[bytes]) -> None:
    """Write a Parquet file: part, four sizes (0 where a part has no such axis) and time_s."""
    import pyarrow.parquet as pq

    pq.write_table(_table(tables), file)


def read_tables(path: Path) -> OperatorTables:
    """Read what `write_tables` wrote.

    Raises:
        ConfigError: there is no such file, or it is none of ours.
    """
    import polars as pl
    import pyarrow.parquet as pq

    try:
        table: Any = pq.read_table(path)
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file; it belongs to the profile") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read: {' '.join(str(error).split())}") from error
    if table.column_names != ["part", *AXES, "time_s"]:
        columns = ", ".join(table.column_names)
        raise ConfigError(f"{path}: is no file of operator tables; it has columns {columns}")
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    curves = {
        part: Curve(tuple(rows[size].to_list()), tuple(rows["time_s"].to_list()))
        for part, size in CURVES.items()
        for rows in [frame.filter(pl.col("part") == part)]
    }
    sizes: dict[str, tuple[int, ...]] = {}
    times: dict[str, Any] = {}
    for part, axes in GRIDS.items():
        rows = frame.filter(pl.col("part") == part)
        if rows.is_empty():
            times[part] = np.empty(0)
            continue
        sizes |= {axis: tuple(rows[axis].unique().sort().to_list()) for axis in axes}
        times[part] = rows["time_s"].to_numpy().reshape([len(sizes[axis]) for axis in axes])
    attention = AttentionTable(
        chunks=sizes["chunk"],
        prefill_contexts=sizes["context"],
        decodes=sizes["decodes"],
        decode_contexts=sizes["length"],
        **times,
    )
    skew = (table.schema.metadata or {}).get(SKEW)
    return OperatorTables(
        curves["tokens"], curves["rows"], attention, _skew_of(json.loads(skew)) if skew else None
    )


def _table(tables: OperatorTables) -> Any:
    import pyarrow as pa

    attention = tables.attention
    sizes = {
        "chunk": attention.chunks,
        "context": attention.prefill_contexts,
        "decodes": attention.decodes,
        "length": attention.decode_contexts,
    }
    columns: dict[str, list[Any]] = {"part": [], **{axis: [] for axis in AXES}, "time_s": []}

    def add(part: str, axes: tuple[str, ...], places: Any, seconds: Any) -> None:
        count = len(seconds)
        columns["part"] += [part] * count
        for axis in AXES:
            columns[axis] += places[axes.index(axis)] if axis in axes else [0] * count
        columns["time_s"] += seconds

    for part, size in CURVES.items():
        curve: Curve = getattr(tables, part)
        add(part, (size,), [list(curve.sizes)], list(curve.seconds))
    for part, axes in GRIDS.items():
        times = getattr(attention, part)
        if times.size:
            places = np.meshgrid(*(sizes[axis] for axis in axes), indexing="ij")
            add(part, axes, [place.ravel().tolist() for place in places], times.ravel().tolist())
    kinds = {"part": pa.string(), "time_s": pa.float64()}
    schema: Any = pa.schema([(name, kinds.get(name, pa.int64())) for name in columns])
    if tables.skew is not None:
        schema = schema.with_metadata({SKEW: json.dumps(_skew_values(tables.skew))})
    return pa.table(columns, schema=schema)


def _skew_values(skew: SkewTable) -> dict[str, Any]:
    edges = {
        name: list(getattr(skew, name)) for name in ("decodes", "shares", "longest", "contexts")
    }
    alphas = [[*bucket, alpha] for bucket, alpha in skew.alphas.items()]
    return {**edges, "alphas": alphas, "otherwise": skew.otherwise}


def _skew_of(values: dict[str, Any]) -> SkewTable:
    alphas = {tuple(bucket): alpha for *bucket, alpha in values.pop("alphas")}
    otherwise = values.pop("otherwise")
    return SkewTable(
        **{name: tuple(edges) for name, edges in values.items()}, alphas=alphas, otherwise=otherwise
    )
