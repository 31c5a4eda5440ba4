"""What comes of a cell: its figures, or why there are none."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from traceback import extract_tb
from typing import Protocol

from sim.sweep.cells import Cell
from sim.sweep.parts import EXACT
from sim.uncertainty import Figures
from traces.errors import KvcastError


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a cell has no figures."""

    error: str
    key: str = ""
    """Of the cell."""
    cell: str = ""
    """The cell's settings that are not the default, in words."""

    def __str__(self) -> str:
        """The error, with the cell that it befell."""
        return f"{self.error} (cell {self.key[:12]}: {self.cell})" if self.key else self.error


class OutOfMemory(Failure):
    """The cell wanted more memory than it may have; its process is not to be used again."""


Outcome = Figures | Failure
Work = Callable[[Cell], Figures]
"""Figures of a cell. What it does beyond a plain simulation is in its attribute `content`, a value
that JSON can hold and that is part of the cells' keys; None or no attribute: nothing."""
Progress = Callable[[int, int], None]
"""Told how many cells are done, of how many."""


class Pool(Protocol):
    """Runs cells somewhere."""

    def add(self, key: str, cell: Cell) -> None:
        """Queue a cell under a key that is not queued."""
        ...

    def drop(self) -> list[str]:
        """Forget the cells that no worker has; their keys."""
        ...

    def take(self) -> list[tuple[str, Outcome]]:
        """What has come of cells since: waits for at least one, of those that were added."""
        ...

    def close(self) -> None:
        """End all workers, whatever they do."""
        ...


def attempt(work: Work, cell: Cell) -> Outcome:
    """Figures as they come back from a store, or what went wrong, in one line."""
    try:
        found = json.loads(json.dumps(work(cell), allow_nan=False))
        return {name: _kept(value) for name, value in found.items()}
    except KvcastError as error:
        return Failure(str(error))
    except MemoryError:
        return OutOfMemory("ran out of memory")
    except Exception as error:
        where = extract_tb(error.__traceback__)[-1]
        said = " ".join(str(error).split())
        return Failure(f"{type(error).__name__}: {said} ({where.filename}:{where.lineno})")


def _kept(value: float) -> float:
    """A figure as a store keeps it; raises TypeError for what is none."""
    if isinstance(value, float) or abs(value) <= EXACT:
        return value
    return float(value)
