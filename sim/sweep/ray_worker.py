"""What runs on a node of a Ray cluster."""

from __future__ import annotations

import pickle

from sim.sweep.cells import Cell, Keys, code_version
from sim.sweep.local import attempt_within
from sim.sweep.memory import bound_memory
from sim.sweep.outcomes import Failure, Outcome, Work


class RayWorker:
    """Runs cells, one after the other, in an actor's process."""

    def __init__(self, work: bytes, memory_bytes: int | None) -> None:
        """Do `work` (pickled), within that much memory beyond what the process has now."""
        self._work: Work = pickle.loads(work)
        self._keys = Keys(self._work)
        self._memory_bytes = memory_bytes
        if memory_bytes is not None:
            bound_memory(memory_bytes)

    def here(self) -> tuple[str, str]:
        """The node's id, and the version of kvcast there."""
        import ray

        return ray.get_runtime_context().get_node_id(), code_version()

    def attempt(self, key: str, pickled: bytes) -> Outcome:
        """The outcome of a cell; a failure if what it names is not the same on this node."""
        cell: Cell = pickle.loads(pickled)
        if self._keys.of(cell) != key:
            return Failure(
                "a file that its settings name is missing or another on the Ray node that had it;"
                " expected the same files under the same paths on all nodes"
            )
        return attempt_within(self._work, cell, self._memory_bytes)
