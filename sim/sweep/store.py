"""Figures that have been computed, by the key of their cell: Parquet files and an index of them.

    store/format.json                  says that this is a store, and of which format
    store/VERSION/part-*.parquet       results, of this version of kvcast and its source
    store/VERSION/journal-*.jsonl      results of a process that runs, for some seconds
    store/index.duckdb                 where each cell lies; made again if lost
    store/lock                         held for a moment by who changes any of these

A result is a line in its process's journal first, at once. Every FLUSH_S seconds, FLUSH_CELLS
results or at the end of a sweep they become a Parquet file, and the journal goes. The journal of a
process that died becomes one when the store is next opened. Many small files become one.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections import OrderedDict
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from engine.atomic import replacing
from sim.sweep import journal, parts
from sim.sweep.cells import code_version
from sim.sweep.index import INDEX, Index, opened
from sim.sweep.parts import Part, Row
from sim.uncertainty import Figures
from traces.errors import ConfigError

if TYPE_CHECKING:
    import polars as pl

FORMAT: Final = 1
FORMAT_FILE: Final = "format.json"
LOCK: Final = "lock"

FLUSH_S: Final = 5.0
FLUSH_CELLS: Final = 1000

PART_CELLS: Final = 5000
"""A part of so many rows is not made larger."""
SMALL_PARTS: Final = 16
"""More parts than this that could be larger become one."""

OPEN_PARTS: Final = 16
"""Parts whose rows are kept in memory."""

SETTLED_NS: Final = 100_000_000
"""File systems give changes within some milliseconds the same time."""

PATIENCE_S: Final = 60.0
"""Nobody holds the lock for longer."""


class Store:
    """Keeps figures; several processes may share one."""

    def __init__(self, folder: Path | str) -> None:
        """A store in `folder`, which need not exist yet.

        Raises:
            ConfigError: the folder holds something else, or a store of another format.
        """
        self.folder = Path(folder)
        self._version = code_version()
        self._mine = self.folder / self._version
        self._where: dict[str, tuple[str, int]] = {}
        """Part and row of each key."""
        self._cells_of: dict[str, list[str]] = {}
        """Keys by row of each part."""
        self._recent: dict[str, Row] = {}
        """In the journal, in no part yet."""
        self._journal: journal.Journal | None = None
        self._since_s = 0.0
        """When the first of the journal was put."""
        self._looked_ns = -1
        """Time of the folder's last change when it was looked at."""
        self._read: OrderedDict[str, Part] = OrderedDict()
        self._set_aside: list[str] = []
        self._others: dict[str, int] = {}
        """Results by version."""
        _check(self.folder)
        if self.folder.is_dir() and any(self.folder.iterdir()):
            with self._writing(), self._locked():
                self._open()

    def __len__(self) -> int:
        """How many cells of this version are known to be kept."""
        return len(self._where) + len(self._recent)

    def get(self, key: str) -> Figures | None:
        """The figures under a key; None if there are none.

        What another process has put is seen some seconds later, when it is in a part.
        """
        if key in self._recent:
            return dict(self._recent[key].figures)
        if key not in self._where:
            self._look()
        while key in self._where:
            name, row = self._where[key]
            try:
                return self._part(name).figures(row)
            except FileNotFoundError:  # another process has put its rows into a larger one
                self._forget([name])
                self._look(all_of_it=True)
            except (OSError, ValueError):
                self._put_aside(name)
        return None

    def put(self, key: str, figures: Figures, cell: str = "{}") -> None:
        """Keep figures under a key; when this returns, the end of the process loses nothing.

        Args:
            key: of the cell.
            figures: finite numbers; whole ones beyond 2^53 come back as floats.
            cell: canonical JSON of what the key stands for (`Keys.content`).

        Raises:
            ConfigError: the store cannot be written.
        """
        if key in self._recent or key in self._where:
            return
        row = Row(key, cell, dict(figures))
        with self._writing():
            if self._journal is None:
                with self._locked():  # so that nobody takes it for a dead one's
                    self._mine.mkdir(exist_ok=True)
                    self._journal = journal.Journal(self._mine)
                self._since_s = time.monotonic()
            self._journal.write(row)
        self._recent[key] = row
        if len(self._recent) >= FLUSH_CELLS or time.monotonic() - self._since_s >= FLUSH_S:
            self.flush()

    def flush(self) -> None:
        """Put what is in the journal into a Parquet file; raises ConfigError if that cannot be."""
        if self._journal is None:
            return
        with self._writing(), self._locked(), opened(self.folder) as index:
            self._look(all_of_it=True)
            self._add([row for key, row in self._recent.items() if key not in self._where], index)
            self._merge(index)
            self._journal.end()
            self._journal = None
            self._recent.clear()

    def frame(self) -> pl.DataFrame:
        """All results of this version: `key`, `replication`, `cell` (JSON) and a column a figure.

        Rows are ordered by their keys, whoever computed them and when.
        A figure that not every cell has is null in the others' rows.
        """
        import polars as pl

        self.flush()
        rows: list[Row] = []
        if self.folder.is_dir():
            with self._writing(), self._locked():  # so that no part goes meanwhile
                self._look(all_of_it=True)
                rows = sorted(self._rows(list(self._cells_of)), key=lambda row: row.key)
        return pl.DataFrame(
            [
                {
                    "key": row.key,
                    "replication": json.loads(row.cell).get("replication", 0),
                    "cell": row.cell,
                    **row.figures,
                }
                for row in rows
            ],
            infer_schema_length=None,
        )

    def of_others(self) -> str:
        """What lies here and is not used, in a line; empty if nothing does."""
        said: list[str] = []
        if self._others:
            said.append(
                f"{sum(self._others.values()):,} results of kvcast {', '.join(self._others)} are"
                f" ignored; this is {self._version}"
            )
        if self._set_aside:
            said.append(
                f"cannot be read, set aside as *{parts.BROKEN}: {', '.join(self._set_aside)}"
            )
        return f"{self.folder}: {'; '.join(said)}" if said else ""

    # ---- under the lock

    def _open(self) -> None:
        """Learn what there is, and finish what dead processes began."""
        with opened(self.folder) as index:
            known = index.parts(self._version) if index is not None else {}
            there = parts.names(self._mine)
            for name in there:
                if name in known:
                    self._learn(name, known.pop(name))
            fresh, replaced = self._look(all_of_it=True)
            for name in replaced:
                (self._mine / name).unlink(missing_ok=True)
            if index is not None and (fresh or known):
                index.change(self._version, {name: self._cells_of[name] for name in fresh}, known)
            self._recover(index)
            self._count_others(index)

    def _recover(self, index: Index | None) -> None:
        """Put journals of dead processes into a part."""
        if not self._mine.is_dir():
            return
        dead = journal.left_behind(self._mine)
        rows = {row.key: row for path in dead for row in journal.read(path)}
        self._add([row for key, row in rows.items() if key not in self._where], index)
        for path in dead:
            path.unlink()

    def _add(self, rows: Sequence[Row], index: Index | None, replaces: Sequence[str] = ()) -> None:
        """Write a part, in the place of others."""
        if not rows:
            return
        name = parts.write(self._mine, rows, replaces)
        for other in replaces:
            (self._mine / other).unlink(missing_ok=True)
        self._forget(replaces)
        self._learn(name, [row.key for row in rows])
        if index is not None:
            index.change(self._version, {name: self._cells_of[name]}, replaces)

    def _merge(self, index: Index | None) -> None:
        small = [name for name, keys in self._cells_of.items() if len(keys) < PART_CELLS]
        if len(small) > SMALL_PARTS:
            rows = self._rows(small)  # without those of one that turns out to be broken
            self._add(rows, index, [name for name in small if name in self._cells_of])

    def _count_others(self, index: Index | None) -> None:
        """How many results of each other version there are; a file a cell is what 0.1.0 wrote."""
        known = index.rows_of_others(self._version) if index is not None else {}
        for path in sorted(self.folder.iterdir()):
            if path != self._mine and path.is_dir():
                of_version = known.get(path.name, {})
                count = sum(1 for _ in path.glob("*.json"))
                for name in parts.names(path):
                    count += of_version.get(name) or parts.number_of_rows(path / name)
                if count:
                    self._others[path.name] = count

    # ---- parts

    def _look(self, *, all_of_it: bool = False) -> tuple[list[str], list[str]]:
        """Learn which parts have come and gone: those that have come, and those they replace.

        Without `all_of_it` only if the folder has changed since the last time.
        """
        try:
            changed_ns = self._mine.stat().st_mtime_ns
        except FileNotFoundError:
            changed_ns = 0
        if changed_ns == self._looked_ns and not all_of_it:
            return [], []
        # a folder that has just changed may change again without a later time
        settled = time.time_ns() - changed_ns > SETTLED_NS
        self._looked_ns = changed_ns if settled else -1
        there = parts.names(self._mine)
        self._forget([name for name in self._cells_of if name not in there])
        fresh: dict[str, list[str]] = {}
        replaced: list[str] = []
        for name in there:
            if name not in self._cells_of:
                try:
                    fresh[name], others = parts.keys(self._mine / name)
                    replaced += others
                except FileNotFoundError:
                    continue
                except (OSError, ValueError):
                    self._put_aside(name)
        self._forget(replaced)
        for name, keys in fresh.items():
            if name not in replaced:
                self._learn(name, keys)
        return [name for name in fresh if name not in replaced], replaced

    def _rows(self, names: Iterable[str]) -> list[Row]:
        """All rows of some parts, but of broken ones."""
        rows: list[Row] = []
        for name in names:
            try:
                rows += parts.rows(self._mine / name)
            except (OSError, ValueError):
                self._put_aside(name)
        return rows

    def _learn(self, name: str, keys: list[str]) -> None:
        self._cells_of[name] = keys
        self._where.update((key, (name, row)) for row, key in enumerate(keys))

    def _forget(self, names: Iterable[str]) -> None:
        for name in names:
            self._read.pop(name, None)
            for key in self._cells_of.pop(name, ()):
                if self._where.get(key, ("", 0))[0] == name:
                    del self._where[key]

    def _part(self, name: str) -> Part:
        if name not in self._read:
            self._read[name] = Part(self._mine / name)
            if len(self._read) > OPEN_PARTS:
                self._read.popitem(last=False)
        self._read.move_to_end(name)
        return self._read[name]

    def _put_aside(self, name: str) -> None:
        """Out of the way, so that its cells are computed again and queries of `*.parquet` work."""
        path = self._mine / name
        with suppress(OSError):
            path.rename(path.with_name(f"{name}{parts.BROKEN}"))
        self._forget([name])
        if name not in self._set_aside:
            self._set_aside.append(name)

    # ---- files

    @contextmanager
    def _writing(self) -> Generator[None]:
        try:
            yield
        except OSError as error:
            said = error.strerror or error
            raise ConfigError(f"{self.folder}: cannot be written: {said}") from None

    @contextmanager
    def _locked(self) -> Generator[None]:
        """Nobody else changes the store meanwhile."""
        self.folder.mkdir(parents=True, exist_ok=True)
        file = os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT)
        try:
            until_s = time.monotonic() + PATIENCE_S
            while not _taken(file):
                if time.monotonic() > until_s:
                    raise ConfigError(
                        f"{self.folder}: another process has held its lock for {PATIENCE_S:g} s"
                    )
                time.sleep(0.01)
            if not (self.folder / FORMAT_FILE).exists():
                with replacing(self.folder / FORMAT_FILE) as about:
                    about.write(json.dumps({"kvcast": "store", "format": FORMAT}).encode())
            yield
        finally:
            os.close(file)


def _taken(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _check(folder: Path) -> None:
    """Refuse what is no store, and stores that this version cannot read; raises ConfigError."""
    try:
        held = sorted(path.name for path in folder.iterdir())
    except FileNotFoundError:
        return
    except NotADirectoryError:
        raise ConfigError(f"{folder}: is a file; expected the folder of a store") from None
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be read: {error.strerror or error}") from None
    if FORMAT_FILE in held:
        found = _format(folder / FORMAT_FILE)
        if found != FORMAT:
            raise ConfigError(
                f"{folder}: is a store of format {found}; this kvcast reads format {FORMAT}"
            )
        return
    for name in held:
        if name not in (LOCK, INDEX) and not (folder / name).is_dir():
            raise ConfigError(
                f"{folder}: holds {name}, which is not of a store;"
                " expected a new, empty or store folder"
            )


def _format(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))["format"]
    except (OSError, ValueError, KeyError, TypeError):
        return "unknown"
