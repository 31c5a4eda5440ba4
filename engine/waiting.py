"""Sequences that wait to be admitted, in the order of service."""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable
from functools import partial
from heapq import heapify, heappop, heappush
from typing import Any

from engine.order.discipline import QueueView
from engine.order.keys import first_come_first_served
from engine.sequence import Sequence


class WaitingQueue:
    """Arrival order with preempted sequences in front, least key first, or a discipline's order.

    Equal keys go by the request's id as a string, as in vLLM.
    """

    __slots__ = (
        "_announced",
        "_discipline",
        "_heap",
        "_key",
        "_queue",
        "admitted",
        "ended",
        "in_arrival_order",
        "outranked",
        "served",
        "size",
        "steady_steps",
    )

    def __init__(self, order: Callable[..., Any], view: QueueView) -> None:
        """An empty queue.

        Args:
            order: first_come_first_served, another key function, or a class of disciplines.
            view: what a discipline may look at.
        """
        self.size: int = 0
        """Sequences waiting, those announced included."""
        self._announced: list[Sequence] = []
        self._queue: deque[Sequence] = deque()
        self._heap: list[tuple[tuple[float, ...], str, Sequence]] = []
        self._key: Any = None
        self._discipline: Any = None
        self.in_arrival_order: bool = order is first_come_first_served
        if inspect.isclass(order.func if isinstance(order, partial) else order):
            self._discipline = order(view)
        elif not self.in_arrival_order:
            self._key = order
        self.admitted: Any = getattr(
            order if self._discipline is None else self._discipline, "admitted", None
        )
        self.served: Any = getattr(self._discipline, "served", None)
        self.ended: Any = getattr(self._discipline, "ended", None)
        self.steady_steps: Any = getattr(self._discipline, "steady_steps", None)
        self.outranked: Any = getattr(self._discipline, "outranked", None)
        """These are the discipline's, where it has them; see Discipline."""

    @property
    def remembers(self) -> bool:
        """Whether the order depends on what was served meanwhile: arrivals must be announced."""
        return self._discipline is not None

    def announce(self, seq: Sequence) -> None:
        """An arrival that has its place from the next `take_in` on."""
        self.size += 1
        self._announced.append(seq)

    def take_in(self) -> list[Sequence]:
        """Queue what was announced, now that what was served is known; returns it."""
        announced, self._announced = self._announced, []
        self.size -= len(announced)
        for seq in announced:
            self.push(seq)
        return announced

    def push(self, seq: Sequence) -> bool:
        """Queue an arrival; returns whether it may be the first now."""
        self.size += 1
        if self.in_arrival_order:
            self._queue.append(seq)
            return self.size == 1
        if self._discipline is None:
            heappush(self._heap, (self._key(seq), str(seq.request.request_id), seq))
            return self._heap[0][2] is seq
        self._discipline.add(seq, False)
        return True

    def put_back(self, seq: Sequence) -> None:
        """Queue a preempted sequence again: first, or where its order has it."""
        self.size += 1
        if self.in_arrival_order:
            self._queue.appendleft(seq)
        elif self._discipline is None:
            heappush(self._heap, (self._key(seq), str(seq.request.request_id), seq))
        else:
            self._discipline.add(seq, True)

    def first(self) -> Sequence:
        """The sequence to be admitted next; there must be one."""
        if self.in_arrival_order:
            return self._queue[0]
        if self._discipline is None:
            return self._heap[0][2]
        first: Sequence = self._discipline.first()
        return first

    def pop(self, seq: Sequence) -> None:
        """Take out the first, `seq`."""
        self.size -= 1
        if self.in_arrival_order:
            self._queue.popleft()
        elif self._discipline is None:
            heappop(self._heap)
        else:
            self._discipline.remove(seq)

    def remove(self, seq: Sequence) -> bool:
        """Take `seq` out from wherever it is; costs a walk over the queue.

        Returns whether it had its place, rather than being announced only.
        """
        self.size -= 1
        if seq in self._announced:
            self._announced.remove(seq)
            return False
        if self.in_arrival_order:
            self._queue.remove(seq)
        elif self._discipline is None:
            self._heap = [entry for entry in self._heap if entry[2] is not seq]
            heapify(self._heap)
        else:
            self._discipline.remove(seq)
        return True
