"""How much prefill work waits on each replica, as a gateway can know it."""

from __future__ import annotations

from typing import Any

import numpy as np


class Backlog:
    """Predicted prefill times of the requests whose first token is not out.

    The oldest of a replica's is being computed since the one before was done, so it counts less as
    time passes, down to nothing: the prediction is settled to now without looking at the replica.
    """

    def __init__(self, replicas: int) -> None:
        self._works: list[dict[int, int]] = [{} for _ in range(replicas)]
        """Of each replica, by request, in the order they were sent."""
        self._total: Any = np.zeros(replicas, dtype=np.int64)
        self._first: Any = np.zeros(replicas, dtype=np.int64)
        """The oldest's."""
        self._since: Any = np.zeros(replicas, dtype=np.int64)
        """When the oldest became so."""

    def add(self, replica: int, request_id: int, work_ps: int, now_ps: int) -> None:
        """A request that takes `work_ps` was sent to `replica`."""
        works = self._works[replica]
        if not works:
            self._first[replica] = work_ps
            self._since[replica] = now_ps
        works[request_id] = work_ps
        self._total[replica] += work_ps

    def take(self, replica: int, request_id: int, now_ps: int) -> None:
        """The first token of a request is out, or it ended without; told twice, it counts once."""
        works = self._works[replica]
        work = works.get(request_id)
        if work is None:
            return
        oldest = next(iter(works)) == request_id
        del works[request_id]
        self._total[replica] -= work
        if oldest:
            self._first[replica] = next(iter(works.values()), 0)
            self._since[replica] = now_ps

    def waits_ps(self, now_ps: int) -> Any:
        """For each replica, how long it has to compute until it is through (an array)."""
        return self._total - np.minimum(now_ps - self._since, self._first)

    def wait_ps(self, replica: int, now_ps: int, *, besides: int = -1) -> int:
        """The same for one replica, without the request `besides`, which was sent last."""
        works = self._works[replica]
        total, first = int(self._total[replica]), int(self._first[replica])
        if besides in works:
            total -= works[besides]
            if len(works) == 1:
                return 0
        return total - min(now_ps - int(self._since[replica]), first)
