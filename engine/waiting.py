"""Sequences that wait to be admitted, in the order of service."""

from collections import deque
from collections.abc import Callable
from heapq import heapify, heappop, heappush

from engine.sequence import Sequence


class WaitingQueue:
    """Arrival order with preempted sequences in front, or least key first.

    Equal keys go by the request's id as a string, as in vLLM.
    """

    __slots__ = ("_heap", "_key", "_queue", "size")

    def __init__(self, key: Callable[[Sequence], tuple[float, ...]] | None) -> None:
        """An empty queue in the order of `key` (engine.policies.ORDER); None: arrival order."""
        self._key: Callable[[Sequence], tuple[float, ...]] | None = key
        self._queue: deque[Sequence] = deque()
        self._heap: list[tuple[tuple[float, ...], str, Sequence]] = []
        self.size: int = 0
        """Sequences waiting."""

    def push(self, seq: Sequence) -> bool:
        """Queue an arrival; returns whether it is now the first."""
        self.size += 1
        key = self._key
        if key is None:
            self._queue.append(seq)
            return self.size == 1
        heappush(self._heap, (key(seq), str(seq.request.request_id), seq))
        return self._heap[0][2] is seq

    def put_back(self, seq: Sequence) -> None:
        """Queue a preempted sequence again: first, or by its key."""
        if self._key is None:
            self.size += 1
            self._queue.appendleft(seq)
        else:
            self.push(seq)

    def first(self) -> Sequence:
        """The sequence to be admitted next; there must be one."""
        return self._queue[0] if self._key is None else self._heap[0][2]

    def pop(self) -> None:
        """Take the first out."""
        self.size -= 1
        if self._key is None:
            self._queue.popleft()
        else:
            heappop(self._heap)

    def remove(self, seq: Sequence) -> None:
        """Take `seq` out from wherever it is; costs a walk over the queue."""
        self.size -= 1
        if self._key is None:
            self._queue.remove(seq)
        else:
            self._heap = [entry for entry in self._heap if entry[2] is not seq]
            heapify(self._heap)
