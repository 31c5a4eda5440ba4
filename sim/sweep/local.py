"""Cells in this process, or in processes beside it."""

from __future__ import annotations

import sys
import time
from collections import deque
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import wait
from signal import SIG_IGN, SIGINT, Signals, signal
from typing import Any, Final

from sim.sweep.assigned import Assigned
from sim.sweep.cells import Cell
from sim.sweep.memory import bound_memory, size
from sim.sweep.outcomes import Failure, Outcome, OutOfMemory, Work, attempt
from traces.errors import ConfigError

POLL_S: Final = 1.0
"""How long the wait for workers lasts at most, so that an interrupt is heard."""

Queue = deque[tuple[str, Cell]]


class Here:
    """This process, one cell after the other; a crash of a cell is a crash."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._queue: Queue = deque()

    def add(self, key: str, cell: Cell) -> None:
        """See `Pool`."""
        self._queue.append((key, cell))

    def drop(self) -> list[str]:
        """See `Pool`."""
        return dropped(self._queue)

    def take(self) -> list[tuple[str, Outcome]]:
        """See `Pool`."""
        key, cell = self._queue.popleft()
        return [(key, attempt(self._work, cell))]

    def close(self) -> None:
        """See `Pool`."""


class Processes:
    """Processes of this machine, started when there is work; one that dies is replaced."""

    def __init__(
        self, jobs: int, work: Work, timeout_s: float | None, memory_bytes: int | None
    ) -> None:
        """At most `jobs` processes.

        Raises:
            ConfigError: memory is to be bounded where it cannot be.
        """
        if memory_bytes is not None and not sys.platform.startswith("linux"):
            raise ConfigError("--cell-memory: works on Linux only")
        self._jobs = jobs
        self._hire = lambda: Worker(work, timeout_s, memory_bytes)
        self._queue: Queue = deque()
        self._workers: list[Worker] = []

    def add(self, key: str, cell: Cell) -> None:
        """See `Pool`."""
        self._queue.append((key, cell))
        self._hand_out()

    def drop(self) -> list[str]:
        """See `Pool`."""
        return dropped(self._queue)

    def take(self) -> list[tuple[str, Outcome]]:
        """See `Pool`."""
        done: list[tuple[str, Outcome]] = []
        while not done:
            self._hand_out()
            until_s = min(worker.has.until_s for worker in self._workers)
            wait(
                [worker.pipe for worker in self._workers],
                min(max(until_s - time.monotonic(), 0.0), POLL_S),
            )
            for worker in self._workers:
                done += worker.heard()
            for worker in [worker for worker in self._workers if worker.gone]:
                # what lay ready behind the cell that it died of
                self._queue.extendleft(reversed(worker.has.cells))
                worker.end()
                self._workers.remove(worker)
        self._hand_out()
        return done

    def close(self) -> None:
        """See `Pool`."""
        while self._workers:
            self._workers.pop().end()

    def _hand_out(self) -> None:
        """Give each worker what it can take; workers are hired while cells are left over."""
        missing = min(self._jobs - len(self._workers), len(self._queue))
        self._workers += [self._hire() for _ in range(missing)]
        for at_hand in (0, 1):  # nobody gets a second one while somebody has none
            for worker in self._workers:
                if self._queue and len(worker.has.cells) == at_hand < worker.room:
                    worker.give(*self._queue.popleft())


class Worker:
    """A process that runs one cell after the other."""

    def __init__(self, work: Work, timeout_s: float | None, memory_bytes: int | None) -> None:
        context = get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, work, memory_bytes), daemon=True
        )
        self._process.start()
        theirs.close()
        self.has = Assigned(timeout_s)
        self.gone = False
        self._begun = False
        """It is there and takes cells: the time until then is nobody's."""
        self._timeout_s = timeout_s
        self._memory_bytes = memory_bytes

    @property
    def room(self) -> int:
        """How many cells it may have."""
        return 0 if self.gone or not self._begun else self.has.room

    def give(self, key: str, cell: Cell) -> None:
        """Have it work on a cell, after what it has."""
        self.has.add(key, cell)
        with suppress(OSError):  # it has died, which is heard next
            self.pipe.send(cell)

    def heard(self) -> list[tuple[str, Outcome]]:
        """What became of its cells, of those of which something did.

        Raises:
            RuntimeError: it ended before it took any cell, as its successor would.
        """
        found: list[tuple[str, Outcome]] = []
        while not self.gone and self.pipe.poll():
            try:
                said = self.pipe.recv()
            except (EOFError, OSError):
                return found + self._death()
            if self._begun:
                found.append(self._done(said))
            self._begun = True
        if not self.gone and self.has.overdue():
            self.gone = True
            found.append(self._done(Failure(f"took longer than {self._timeout_s:g} s")))
        return found

    def end(self) -> None:
        """End it, whatever it does."""
        self.pipe.close()
        self._process.kill()
        self._process.join()
        self._process.close()

    def _done(self, outcome: Outcome) -> tuple[str, Outcome]:
        self.gone |= isinstance(outcome, OutOfMemory)
        return self.has.done(), outcome

    def _death(self) -> list[tuple[str, Outcome]]:
        self.gone = True
        self._process.join()
        code = self._process.exitcode or 0
        how = f"signal {Signals(-code).name}" if code < 0 else f"exit code {code}"
        if not self._begun:
            raise RuntimeError(f"a worker process ended before it took a cell ({how})")
        if self._memory_bytes is not None:
            how += f"; it may take {size(self._memory_bytes)}"
        return [self._done(Failure(f"its process ended ({how})"))] if self.has.cells else []


def dropped(queue: Queue) -> list[str]:
    """Empty a queue; its keys."""
    keys = [key for key, _ in queue]
    queue.clear()
    return keys


def attempt_within(work: Work, cell: Cell, memory_bytes: int | None) -> Outcome:
    """`attempt` in a process of bounded memory."""
    outcome = attempt(work, cell)
    if isinstance(outcome, OutOfMemory) and memory_bytes is not None:
        return OutOfMemory(f"wanted more than the {size(memory_bytes)} of memory that it may take")
    return outcome


def _serve(pipe: Any, work: Work, memory_bytes: int | None) -> None:
    """A worker's life: until its master closes the pipe or is gone, or its memory is spent."""
    signal(SIGINT, SIG_IGN)  # an interrupt is its master's to deal with
    with suppress(EOFError, OSError, MemoryError):
        pipe.send("here")
        if memory_bytes is not None:
            bound_memory(memory_bytes)
        while True:
            outcome = attempt_within(work, pipe.recv(), memory_bytes)
            pipe.send(outcome)
            if isinstance(outcome, OutOfMemory):
                return
