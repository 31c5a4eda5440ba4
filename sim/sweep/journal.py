"""What a process has computed and not yet put in a Parquet file: a line a cell, written at once.

A line is with the operating system when `write` returns, so that a process that is killed loses
nothing it wrote. The lock on the file tells others whether its writer still lives.
"""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import Final
from uuid import uuid4

from sim.sweep.parts import Row

PREFIX: Final = "journal-"
SUFFIX: Final = ".jsonl"


class Journal:
    """The journal that this process writes."""

    def __init__(self, folder: Path) -> None:
        """Begin one; nobody else may look for dead ones meanwhile. Raises OSError."""
        self._path = folder / f"{PREFIX}{os.getpid()}-{uuid4().hex}{SUFFIX}"
        self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND)
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def write(self, row: Row) -> None:
        """Add a row; raises OSError."""
        line = json.dumps([row.key, row.cell, row.figures], allow_nan=False)
        os.write(self._file, f"{line}\n".encode())

    def end(self) -> None:
        """Remove it: its rows are elsewhere."""
        self._path.unlink(missing_ok=True)
        os.close(self._file)


def left_behind(folder: Path) -> list[Path]:
    """Journals whose writer is dead."""
    found: list[Path] = []
    for path in sorted(folder.glob(f"{PREFIX}*{SUFFIX}")):
        file = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            found.append(path)
        except BlockingIOError:
            pass  # it lives
        finally:
            os.close(file)
    return found


def read(path: Path) -> list[Row]:
    """The rows of a journal; a line that was cut off by the end of its writer is none."""
    rows: list[Row] = []
    for line in path.read_bytes().splitlines():
        try:
            key, cell, figures = json.loads(line)
        except ValueError:
            continue
        rows.append(Row(key, cell, figures))
    return rows
