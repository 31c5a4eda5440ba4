"""Runs cells, on one process or several, and keeps what is done."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from math import inf
from multiprocessing import get_context
from multiprocessing.connection import wait
from signal import SIG_IGN, SIGINT, Signals, signal
from traceback import extract_tb
from typing import Any, Final

from sim.comparing.cells import Cell, Keys, Simulator
from sim.comparing.store import Store
from sim.uncertainty import Figures
from traces.errors import KvcastError

POLL_S: Final = 1.0
"""How long the wait for workers lasts at most, so that an interrupt is heard."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a cell has no figures."""

    error: str


Outcome = Figures | Failure
Work = Callable[[Cell], Figures]
Progress = Callable[[int, int], None]
"""Told how many cells are done, of how many."""


def run_cells(
    cells: Sequence[Cell],
    jobs: int = 1,
    store: Store | None = None,
    progress: Progress | None = None,
    *,
    timeout_s: float | None = None,
    work: Work | None = None,
) -> list[Outcome]:
    """The figures of cells, or why there are none, in their order.

    What the store has is not computed; what is computed goes there at once. Equal cells are
    computed once. A failure is nobody else's and is not stored.

    Args:
        cells: what to run.
        jobs: processes; their number changes nothing but the time. With 1 and no time limit
            everything happens in this process, and a crash of it is a crash.
        store: of figures; None: nothing is kept.
        progress: told after each cell.
        timeout_s: a cell that takes longer is ended, with its process.
        work: figures of a cell; it is sent to other processes. None: a simulation.
    """
    work = work or Simulator()
    keys = Keys()
    asked = [keys.of(cell) for cell in cells]
    found: dict[str, Outcome] = {}
    todo: dict[str, Cell] = {}
    for key, cell in dict(zip(asked, cells, strict=True)).items():
        kept = store.get(key) if store is not None else None
        if kept is None:
            todo[key] = cell
        else:
            found[key] = kept
    if progress is not None:
        progress(len(found), len(found) + len(todo))
    total = len(found) + len(todo)
    if jobs == 1 and timeout_s is None:
        outcomes = _here(todo, work)
    else:
        outcomes = _by_workers(todo, jobs, timeout_s, work)
    with closing(outcomes):  # workers end with it, whatever interrupts
        for key, outcome in outcomes:
            found[key] = outcome
            if store is not None and not isinstance(outcome, Failure):
                store.put(key, outcome)
            if progress is not None:
                progress(len(found), total)
    return [found[key] for key in asked]


def _outcome(work: Work, cell: Cell) -> Outcome:
    """Figures as they come back from the store, or what went wrong, in one line."""
    try:
        return json.loads(json.dumps(work(cell), allow_nan=False))
    except KvcastError as error:
        return Failure(str(error))
    except Exception as error:
        where = extract_tb(error.__traceback__)[-1]
        said = " ".join(str(error).split())
        return Failure(f"{type(error).__name__}: {said} ({where.filename}:{where.lineno})")


def _here(todo: Mapping[str, Cell], work: Work) -> Generator[tuple[str, Outcome]]:
    for key, cell in todo.items():
        yield key, _outcome(work, cell)


class _Worker:
    """A process that runs one cell after the other."""

    def __init__(self, work: Work, timeout_s: float | None) -> None:
        context = get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, work), daemon=True)
        self.process.start()
        theirs.close()
        self.key = ""
        """Of the cell it works on; empty: of none."""
        self.begun = False
        """It is there and takes cells: the time until then is nobody's."""
        self.gone = False
        self.until_s = inf
        self._timeout_s = timeout_s

    @property
    def idle(self) -> bool:
        """It can be given a cell."""
        return self.begun and not self.key and not self.gone

    def give(self, key: str, cell: Cell) -> None:
        """Have it work on a cell."""
        self.key = key
        if self._timeout_s is not None:
            self.until_s = time.monotonic() + self._timeout_s
        with suppress(OSError):  # it has died, which is heard next
            self.pipe.send(cell)

    def heard(self) -> Outcome | None:
        """What became of its cell; None if nothing did yet.

        Raises:
            RuntimeError: it ended before it took any cell, as its successor would.
        """
        if self.pipe.poll():
            try:
                said = self.pipe.recv()
            except (EOFError, OSError):
                return self._death()
            if self.begun:
                return said
            self.begun = True
        elif self.key and time.monotonic() > self.until_s:
            self.gone = True
            return Failure(f"took longer than {self._timeout_s:g} s")
        return None

    def end(self) -> None:
        """End it, whatever it does."""
        self.pipe.close()
        self.process.kill()
        self.process.join()

    def _death(self) -> Outcome | None:
        self.gone = True
        self.process.join()
        code = self.process.exitcode or 0
        how = f"signal {Signals(-code).name}" if code < 0 else f"exit code {code}"
        if not self.begun:
            raise RuntimeError(f"a worker process ended before it took a cell ({how})")
        return Failure(f"its process ended ({how})") if self.key else None


def _serve(pipe: Any, work: Work) -> None:
    """A worker's life: until its master closes the pipe or is gone."""
    signal(SIGINT, SIG_IGN)  # an interrupt is its master's to deal with
    with suppress(EOFError, OSError):
        pipe.send("here")
        while True:
            pipe.send(_outcome(work, pipe.recv()))


def _by_workers(
    todo: Mapping[str, Cell], jobs: int, timeout_s: float | None, work: Work
) -> Generator[tuple[str, Outcome]]:
    """Outcomes as they come; a worker that dies or is ended is replaced."""
    queue = deque(todo.items())
    missing = len(todo)
    workers = [_Worker(work, timeout_s) for _ in range(min(jobs, missing))]
    try:
        while missing:
            first_s = min(worker.until_s for worker in workers)
            wait(
                [worker.pipe for worker in workers],
                min(max(first_s - time.monotonic(), 0.0), POLL_S),
            )
            for place, worker in enumerate(workers):
                outcome = worker.heard()
                if outcome is not None:
                    missing -= 1
                    yield worker.key, outcome
                    worker.key, worker.until_s = "", inf
                if worker.gone:
                    worker.end()
                    workers[place] = _Worker(work, timeout_s)
                elif worker.idle and queue:
                    worker.give(*queue.popleft())
    finally:
        for worker in workers:
            worker.end()
