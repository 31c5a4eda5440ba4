"""Where each cell of a store lies: a DuckDB file that can be made again from the Parquet files.

DuckDB lets one process at a time open a file for writing. So it is opened for a moment, under the
store's lock; where somebody else has it open all the same, the store does without.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

INDEX: Final = "index.duckdb"
FORMAT: Final = 1

_TABLES: Final = """
CREATE TABLE IF NOT EXISTS format (number INTEGER);
CREATE TABLE IF NOT EXISTS parts (version VARCHAR, part VARCHAR, cells BIGINT);
CREATE TABLE IF NOT EXISTS cells (version VARCHAR, part VARCHAR, number BIGINT, key VARCHAR);
"""


class Index:
    """An open index. One that turns out to be damaged knows nothing more, and is to be removed."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self.damaged = False

    def parts(self, version: str) -> dict[str, list[str]]:
        """Keys by row of each part of a version that the index knows whole."""
        known = dict(self._run("SELECT part, cells FROM parts WHERE version = ?", [version]))
        found: dict[str, list[str]] = {part: [] for part in known}
        for part, key in self._run(
            "SELECT part, key FROM cells WHERE version = ? ORDER BY part, number", [version]
        ):
            found.setdefault(part, []).append(key)
        return {part: keys for part, keys in found.items() if len(keys) == known.get(part)}

    def rows_of_others(self, version: str) -> dict[str, dict[str, int]]:
        """Rows of each part of each version but one."""
        found: dict[str, dict[str, int]] = {}
        for other, part, cells in self._run(
            "SELECT version, part, cells FROM parts WHERE version <> ?", [version]
        ):
            found.setdefault(other, {})[part] = cells
        return found

    def change(
        self, version: str, added: Mapping[str, Sequence[str]], removed: Iterable[str]
    ) -> None:
        """Take in parts, with their keys by row, and forget others."""
        self._run("BEGIN")
        for part in {*removed, *added}:
            self._run("DELETE FROM parts WHERE version = ? AND part = ?", [version, part])
            self._run("DELETE FROM cells WHERE version = ? AND part = ?", [version, part])
        for part, keys in added.items():
            self._run("INSERT INTO parts VALUES (?, ?, ?)", [version, part, len(keys)])
            self._run(
                "INSERT INTO cells SELECT ?, ?, generate_subscripts(k, 1) - 1, unnest(k)"
                " FROM (SELECT ?::VARCHAR[] AS k)",
                [version, part, list(keys)],
            )
        self._run("COMMIT")

    def _run(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        import duckdb

        if self.damaged:
            return []
        try:
            return self._connection.execute(statement, values).fetchall()
        except duckdb.Error:
            self.damaged = True
            return []


@contextmanager
def opened(folder: Path) -> Generator[Index | None]:
    """The index of a store, made anew if it is not a sound one; None where it cannot be had."""
    path = folder / INDEX
    connection = _connected(path)
    if connection is None:
        yield None
        return
    index = Index(connection)
    try:
        yield index
    finally:
        connection.close()
        if index.damaged:
            _remove(path)


def _connected(path: Path) -> Any:
    import duckdb

    for _ in range(2):
        connection = None
        try:
            connection = duckdb.connect(str(path), config={"threads": 1})
            connection.execute(_TABLES)
            held = connection.execute("SELECT number FROM format").fetchall()
            if not held:
                connection.execute("INSERT INTO format VALUES (?)", [FORMAT])
            if not held or held == [(FORMAT,)]:
                return connection
        except duckdb.Error as error:
            if "set lock" in str(error):  # another process has it open
                return None
        if connection is not None:
            connection.close()
        _remove(path)
    return None


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.with_name(f"{path.name}.wal").unlink(missing_ok=True)
