"""Parquet files of a store: a row a cell, written once and never changed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from engine.atomic import replacing
from sim.uncertainty import Figures

PREFIX: Final = "part-"
SUFFIX: Final = ".parquet"
BROKEN: Final = ".broken"
REPLACES: Final = b"kvcast.replaces"
"""Metadata of a part that holds the rows of others: their names. Where such a one is still there,
its writer was killed before it could remove it."""

EXACT: Final = 1 << 53
"""Up to here every whole number is a double."""


@dataclass(frozen=True, slots=True)
class Row:
    """A cell's result."""

    key: str
    cell: str
    """Canonical JSON of which the key is the SHA-256: sim.sweep.cells.Keys.content."""
    figures: Figures


class Part:
    """One file's rows, in memory as Arrow has them: figures become a dict when asked for."""

    def __init__(self, path: Path) -> None:
        """Read a file; raises OSError or ValueError (of which Arrow's errors are)."""
        import pyarrow.parquet as pq

        self._table: Any = pq.read_table(path, columns=["figures", "whole"]).combine_chunks()

    def figures(self, row: int) -> Figures:
        """The figures in a row, as they were put."""
        whole = set(self._table["whole"][row].as_py())
        return {
            name: int(value) if name in whole else value
            for name, value in self._table["figures"][row].as_py()
        }


def names(folder: Path) -> list[str]:
    """The names of the parts in a folder, in order; none if there is no folder."""
    if not folder.is_dir():
        return []
    return sorted(
        path.name
        for path in folder.iterdir()
        if path.name.startswith(PREFIX) and path.suffix == SUFFIX
    )


def write(folder: Path, rows: Sequence[Row], replaces: Sequence[str] = ()) -> str:
    """Write a part, whole or not at all, and give its name; raises OSError."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    contents: list[dict[str, Any]] = [json.loads(row.cell) for row in rows]
    table = pa.table(
        {
            "key": [row.key for row in rows],
            "kvcast": [content.get("kvcast", "") for content in contents],
            "replication": [content.get("replication", 0) for content in contents],
            "cell": [row.cell for row in rows],
            "figures": [list(row.figures.items()) for row in rows],
            "whole": [
                [
                    name
                    for name, value in row.figures.items()
                    if isinstance(value, int) and abs(value) <= EXACT
                ]
                for row in rows
            ],
        },
        schema=pa.schema(
            [
                ("key", pa.string()),
                ("kvcast", pa.string()),
                ("replication", pa.int64()),
                ("cell", pa.string()),
                ("figures", pa.map_(pa.string(), pa.float64())),
                ("whole", pa.list_(pa.string())),
            ],
            metadata={REPLACES: json.dumps(list(replaces)).encode()} if replaces else None,
        ),
    )
    name = f"{PREFIX}{uuid4().hex}{SUFFIX}"
    with replacing(folder / name) as file:
        pq.write_table(table, file, compression="zstd")
    return name


def keys(path: Path) -> tuple[list[str], list[str]]:
    """The keys of a part by row, and the names of the parts it replaces.

    Raises:
        OSError, ValueError: it is no such file.
    """
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        said = (file.schema_arrow.metadata or {}).get(REPLACES)
        return file.read(columns=["key"])["key"].to_pylist(), json.loads(said) if said else []


def number_of_rows(path: Path) -> int:
    """How many rows a part has; 0 if it cannot be read."""
    import pyarrow.parquet as pq

    try:
        return pq.read_metadata(path).num_rows
    except (OSError, ValueError):
        return 0


def rows(path: Path) -> list[Row]:
    """All rows of a part, in order; raises OSError or ValueError."""
    import pyarrow.parquet as pq

    table = pq.read_table(path, columns=["key", "cell"])
    part = Part(path)
    return [
        Row(key, cell, part.figures(row))
        for row, (key, cell) in enumerate(
            zip(table["key"].to_pylist(), table["cell"].to_pylist(), strict=True)
        )
    ]
