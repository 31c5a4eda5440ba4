"""A worker seen from the server: a process with bounds that does one thing after another.

Simulations and everything that was uploaded stay in there. What comes back is JSON, never a
pickle, so that whatever a file does to its reader, it cannot make the server run anything.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing import get_context
from signal import Signals
from threading import Event, Lock, Thread
from typing import Any, Final, Literal

from sim.app.bounds import GIB, Limits
from sim.app.work import serve

PRELOADED: Final = [
    "__main__",
    "plotly.graph_objects",
    "plotly.io",
    "polars",
    "pyarrow.compute",
    "pyarrow.parquet",
    "engine.frames",
    "sim.app.findings",
    "sim.app.work",
    "sim.frames",
    "sim.replay",
    "sim.report.html",
    "traces.describe",
]
"""Imported once, by the process that workers are forked from: a worker is there in milliseconds."""

ANSWER_BYTES: Final = 256 * 2**20
"""A longer message than this is no answer."""

State = Literal["working", "done", "failed", "cancelled"]


@dataclass(slots=True)
class Job:
    """One piece of work and what has become of it."""

    task: str
    arguments: Mapping[str, Any]
    state: State = "working"
    arrived: int = 0
    """Requests that have arrived so far."""
    described: Mapping[str, Any] | None = None
    """The trace in numbers, if that was asked for and is known."""
    answer: Any = None
    """What the task gave."""
    error: str = ""
    """One line, of a job that failed."""
    started_s: float = field(default_factory=time.monotonic)
    ended_s: float = 0.0
    ended: Event = field(default_factory=Event)

    def wait(self, seconds: float) -> bool:
        """Whether it has ended, after so long at most."""
        return self.ended.wait(seconds)


class Worker:
    """A process, which lives until it is ended or breaks a bound."""

    def __init__(self, limits: Limits) -> None:
        context = get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        self._limits = limits
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, limits), daemon=True)
        self._process.start()
        theirs.close()
        self._lock = Lock()
        self._job: Job | None = None
        self.alive = True

    @property
    def busy(self) -> bool:
        """Whether it works on something."""
        return self._job is not None

    def begin(self, task: str, **arguments: Any) -> Job:
        """Hand over a task of `sim.app.work.TASKS`; it must not be busy."""
        job = Job(task, arguments)
        with self._lock:
            assert self._job is None, "a worker does one thing at a time"
            self._job = job
        Thread(target=self._see_through, args=(job,), daemon=True).start()
        return job

    def end(self) -> None:
        """End the process at once, whatever it does; what it works on is cancelled."""
        self.alive = False
        self._process.kill()
        job = self._job
        if job is not None:
            self._conclude(job, "cancelled")

    def _see_through(self, job: Job) -> None:
        """Hear what the process says of a job until that has ended."""
        try:
            self._pipe.send((job.task, dict(job.arguments)))
            while job.state == "working":
                left_s = job.started_s + self._limits.seconds - time.monotonic()
                if not self._pipe.poll(max(left_s, 0.0)):
                    self._fail(job, f"took longer than {self._limits.seconds:g} s and was ended")
                    return
                self._hear(job, json.loads(self._pipe.recv_bytes(ANSWER_BYTES)))
        except (EOFError, OSError):
            self._process.join()
            self._fail(job, self._death())
        except ValueError:
            self._fail(job, "the worker process gave no answer that can be read")

    def _hear(self, job: Job, said: Mapping[str, Any]) -> None:
        if "arrived" in said:
            job.arrived = int(said["arrived"])
        elif "described" in said:
            job.described = said["described"]
        elif "error" in said:
            job.error = str(said["error"])
            self._conclude(job, "failed")
        else:
            job.answer = said["answer"]
            self._conclude(job, "done")

    def _fail(self, job: Job, error: str) -> None:
        """The process is of no use any more."""
        self.alive = False
        job.error = job.error if job.state == "cancelled" else error
        self._process.kill()
        self._conclude(job, "failed")

    def _conclude(self, job: Job, state: State) -> None:
        with self._lock:
            if self._job is job:
                self._job = None
        if job.state == "working":
            job.state = state
            job.ended_s = time.monotonic()
        job.ended.set()

    def _death(self) -> str:
        code = self._process.exitcode or 0
        how = f"signal {Signals(-code).name}" if code < 0 else f"exit code {code}"
        if how == "signal SIGXCPU":
            return f"took more than {4 * self._limits.seconds:g} s of CPU time and was ended"
        return (
            f"its process ended ({how}), most likely because it needs more than the"
            f" {self._limits.memory_bytes / GIB:.3g} GiB of memory it may take"
        )


class Workers:
    """Hands out workers; one is always there already, warm."""

    def __init__(self, limits: Limits, most: int = 8) -> None:
        self.limits = limits
        self.most = most
        self._lock = Lock()
        self._spare: Worker | None = Worker(limits)
        self._lent: dict[Worker, Callable[[], float]] = {}

    def take(self, seen_s: Callable[[], float]) -> Worker | None:
        """A worker; None where all that there may be are busy.

        Args:
            seen_s: when its user was last heard of: of the idle workers, that of the user
                longest silent is ended if there are too many.
        """
        with self._lock:
            self._lent = {one: seen for one, seen in self._lent.items() if one.alive}
            if len(self._lent) >= self.most:
                idle = [one for one in self._lent if not one.busy]
                if not idle:
                    return None
                oldest = min(idle, key=lambda one: self._lent[one]())
                oldest.end()
                del self._lent[oldest]
            worker = self._spare
            if worker is None or not worker.alive:
                worker = Worker(self.limits)
            self._lent[worker] = seen_s
            self._spare = Worker(self.limits)
            return worker

    def end(self) -> None:
        """End all of them."""
        with self._lock:
            for worker in (self._spare, *self._lent):
                if worker is not None:
                    worker.end()
            self._spare = None
            self._lent = {}
