"""The process that speaks with Ray: it gives cells to actors, one for each CPU of the cluster.

An actor lives as long as the sweep and keeps what it has loaded. When one dies, or its node does,
its cells go to others. What a cell's first finished try gave is its outcome; there is no second.
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from logging import ERROR
from typing import Any, Final

from sim.sweep.assigned import Assigned
from sim.sweep.cells import code_version
from sim.sweep.memory import size
from sim.sweep.outcomes import Failure, Outcome, OutOfMemory

HERE: Final = "here"
DONE: Final = "done"
DROPPED: Final = "dropped"
REFUSED: Final = "refused"

CRASHES: Final = 3
"""A cell whose process dies as often, on nodes that live, has failed."""
NODE_DEATHS: Final = 10
"""A cell whose node dies as often has failed: it may be why they do."""
STILLBORN: Final = 3
"""So many actors in a row that cannot begin: none will."""

LOOK_S: Final = 1.0
"""How often to look whether nodes have come or gone."""
SOON_S: Final = 0.02
"""How long to wait for outcomes while an actor has nothing to do, ..."""
LATER_S: Final = 0.2
"""... and while all have."""
ROOM_S: Final = 60.0
"""A cluster that has had no node for a cell for so long has none."""

_NODE_DIED: Final = "node has died"
_LOW_MEMORY: Final = "running low on memory"
"""What Ray says of the death of an actor."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A sweep, as it is told to the driver."""

    address: str
    work: bytes
    """Pickled."""
    timeout_s: float | None
    memory_bytes: int | None
    folder: str
    """Where relative paths begin."""
    path: list[str]
    """Where modules may be."""


class RefusedError(Exception):
    """The cluster cannot be used; says why."""


def drive(pipe: Any, wanted: Wanted) -> None:
    """Work until the other end of the pipe is closed.

    Received are (key, pickled cell), or None: to drop what no actor has. Sent are (name, content).
    """
    _be_quiet()
    import ray

    try:
        ray.init(address=wanted.address, log_to_driver=False, logging_level=ERROR)
    except BaseException as error:  # Ray raises SystemExit too
        pipe.send((REFUSED, _in_a_line(error)))
        return
    try:
        pipe.send((HERE, None))
        _Driver(ray, pipe, wanted).run()
    except (EOFError, OSError):
        pass
    except RefusedError as refused:
        pipe.send((REFUSED, str(refused)))
    finally:
        ray.shutdown()


class _Driver:
    def __init__(self, ray: Any, pipe: Any, wanted: Wanted) -> None:
        self._ray = ray
        self._pipe = pipe
        self._wanted = wanted
        self._queue: deque[tuple[str, bytes]] = deque()
        self._actors: list[_Actor] = []
        self._lost: Counter[tuple[str, bool]] = Counter()
        """How often a cell's actor died, by key and whether its node did too."""
        self._stillborn = 0
        self._room = 0
        """How many actors the cluster has room for."""
        self._looked_s = self._roomy_s = time.monotonic() - LOOK_S

    def run(self) -> None:
        """Raises EOFError or OSError when nobody listens any more, RefusedError."""
        while True:
            self._listen()
            self._hire()
            self._hand_out()
            done = self._hear()
            if done:
                self._pipe.send((DONE, done))

    def _listen(self) -> None:
        idle = not self._queue and not any(actor.has.cells for actor in self._actors)
        while self._pipe.poll(LATER_S if idle else 0):
            idle = False
            asked = self._pipe.recv()
            if asked is None:
                self._pipe.send((DROPPED, [key for key, _ in self._queue]))
                self._queue.clear()
            else:
                self._queue.append(asked)

    def _hire(self) -> None:
        """As many actors as there are CPUs, but not more than there are cells."""
        now_s = time.monotonic()
        if now_s - self._looked_s >= LOOK_S:
            self._room, self._looked_s = self._room_of(self._ray.nodes()), now_s
        if self._room:
            self._roomy_s = now_s
        elif self._queue and now_s - self._roomy_s > ROOM_S:
            memory = self._wanted.memory_bytes
            needed = f" and {size(memory)} of memory" if memory is not None else ""
            raise RefusedError(f"no node of the cluster has a CPU{needed}")
        wanted = len(self._queue) + sum(bool(actor.has.cells) for actor in self._actors)
        while len(self._actors) < min(self._room, wanted):
            self._actors.append(_Actor(self._ray, self._wanted))

    def _room_of(self, nodes: Sequence[Any]) -> int:
        room = 0
        for node in nodes:
            if node["Alive"]:
                resources = node["Resources"]
                cpus = int(resources.get("CPU", 0))
                if self._wanted.memory_bytes:
                    cpus = min(cpus, int(resources.get("memory", 0) // self._wanted.memory_bytes))
                room += cpus
        return room

    def _hand_out(self) -> None:
        for at_hand in (0, 1):  # nobody gets a second one while somebody has none
            for actor in self._actors:
                if self._queue and len(actor.has.cells) == at_hand < actor.room:
                    actor.give(*self._queue.popleft())

    def _hear(self) -> list[tuple[str, Outcome]]:
        """What has become of cells; waits a moment for it."""
        of_ref = {actor.refs[0]: actor for actor in self._actors if actor.refs}
        if not of_ref:
            if self._queue:
                time.sleep(LATER_S)  # there is no node for it
            return []
        idle = any(actor.begun and not actor.has.cells for actor in self._actors)
        until_s = min(actor.has.until_s for actor in self._actors)
        wait_s = min(max(until_s - time.monotonic(), 0), SOON_S if idle else LATER_S)
        self._ray.wait(list(of_ref), timeout=wait_s)
        ready, _ = self._ray.wait(list(of_ref), num_returns=len(of_ref), timeout=0)
        done: list[tuple[str, Outcome]] = []
        for ref in ready:
            done += self._heard(of_ref[ref], ref)
        for actor in self._actors:
            if actor.has.overdue():
                actor.gone = True
                said = f"took longer than {self._wanted.timeout_s:g} s"
                done.append((actor.has.done(), Failure(said)))
        for actor in [actor for actor in self._actors if actor.gone]:
            self._queue.extendleft(reversed(actor.has.cells))
            actor.end()
            self._actors.remove(actor)
        return done

    def _heard(self, actor: _Actor, ref: Any) -> list[tuple[str, Outcome]]:
        try:
            said = self._ray.get(ref)
        except self._ray.exceptions.RayTaskError as error:
            said = Failure(_last_line(error))
        except Exception as error:
            return self._death(actor, error)
        actor.refs.popleft()
        if not actor.begun:
            actor.begin(said)
            self._stillborn = 0
            return []
        actor.gone = isinstance(said, OutOfMemory)
        return [(actor.has.done(), said)]

    def _death(self, actor: _Actor, error: Exception) -> list[tuple[str, Outcome]]:
        """Its cells are to be tried again, unless the first has cost too many workers."""
        actor.gone = True
        with_node = _NODE_DIED in str(error) or (actor.begun and actor.node not in self._living())
        if not actor.begun:
            self._stillborn += not with_node
            if self._stillborn >= STILLBORN:
                raise RefusedError(f"no worker could begin: {_last_line(error)}")
            return []
        if not actor.has.cells:
            return []
        key, _ = actor.has.cells[0]
        self._lost[key, with_node] += 1
        times = self._lost[key, with_node]
        if times < (NODE_DEATHS if with_node else CRASHES):
            return []
        said = f"its {'Ray node' if with_node else 'process'} ended, {times} times"
        if _LOW_MEMORY in str(error):
            said += "; the last time Ray ended it, for want of memory on the node"
        if self._wanted.memory_bytes is not None:
            said += f"; it may take {size(self._wanted.memory_bytes)}"
        return [(actor.has.done(), Failure(said))]

    def _living(self) -> set[str]:
        return {node["NodeID"] for node in self._ray.nodes() if node["Alive"]}


class _Actor:
    """One actor, as its master sees it."""

    def __init__(self, ray: Any, wanted: Wanted) -> None:
        self._ray = ray
        self._actor = (
            ray.remote(_actor_class())
            .options(num_cpus=1, memory=wanted.memory_bytes, max_restarts=0, max_task_retries=0)
            .remote(wanted.work, wanted.memory_bytes, wanted.folder, wanted.path)
        )
        self.refs: deque[Any] = deque([self._actor.here.remote()])
        """Of what it has been asked, in order."""
        self.has = Assigned(wanted.timeout_s)
        self.begun = False
        self.gone = False
        self.node = ""

    @property
    def room(self) -> int:
        """How many cells it may have."""
        return self.has.room if self.begun and not self.gone else 0

    def begin(self, said: Any) -> None:
        """It is there; raises RefusedError if it is of another version."""
        if isinstance(said, Failure):
            raise RefusedError(f"no worker could begin: {said.error}")
        self.node, version = said
        if version != code_version():
            raise RefusedError(
                f"a node has kvcast {version}, this is {code_version()};"
                " expected the same source on all nodes"
            )
        self.begun = True

    def give(self, key: str, cell: bytes) -> None:
        """Have it work on a cell, after what it has."""
        self.has.add(key, cell)
        self.refs.append(self._actor.attempt.remote(key, cell))

    def end(self) -> None:
        """End it, whatever it does."""
        self._ray.kill(self._actor)


def _actor_class() -> type:
    """The class of actors; made here, so that Ray sends the code and need not find the module."""

    class KvcastWorker:
        """Lives on a node; knows the modules and paths that the one who began the sweep knows."""

        def __init__(
            self, work: bytes, memory_bytes: int | None, folder: str, path: list[str]
        ) -> None:
            import os
            import sys
            from pathlib import Path

            known = set(sys.path)
            sys.path += [entry for entry in path if entry not in known and Path(entry).exists()]
            if Path(folder).is_dir():
                os.chdir(folder)
            from sim.sweep.ray_worker import RayWorker

            self._worker = RayWorker(work, memory_bytes)

        def here(self) -> tuple[str, str]:
            return self._worker.here()

        def attempt(self, key: str, cell: bytes) -> Any:
            return self._worker.attempt(key, cell)

    return KvcastWorker


def _be_quiet() -> None:
    """Neither Ray nor the C++ beneath it writes to the console of who asked for a sweep."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is its master's to deal with
    sys.stdout.flush()
    sys.stderr.flush()
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    os.close(nowhere)


def _in_a_line(error: BaseException) -> str:
    said = " ".join(str(error).split()) or type(error).__name__
    return said if len(said) <= 300 else f"{said[:300]}..."


def _last_line(error: BaseException) -> str:
    """Of a traceback, which is what Ray passes on: the error itself."""
    return str(error).strip().splitlines()[-1].strip()
