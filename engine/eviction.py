"""What leaves the prefix cache first."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from engine.prefix import Piece


class EvictionPolicy(Protocol):
    """Keeps the pieces nobody references and says which to shrink next, always from its tail."""

    def push(self, piece: Piece) -> None:
        """`piece` lost its last reference."""
        ...

    def remove(self, piece: Piece) -> None:
        """`piece` was hit, or is evicted whole."""
        ...

    def replace(self, piece: Piece, tail: Piece) -> None:
        """`tail` was split off `piece`, which is about to be hit; it takes the place of it."""
        ...

    def victim(self) -> Piece:
        """The piece to evict from; there is one."""
        ...


class LeastRecentlyFreed:
    """vLLM's order: first freed, first evicted; being hit and freed again renews a piece.

    A queue linked through the pieces themselves, so that leaving its middle costs nothing.
    """

    __slots__ = ("_ends",)

    def __init__(self) -> None:
        from engine.prefix import Piece

        ends = Piece(0, 0, None)
        ends.before = ends.after = ends
        self._ends: Piece = ends

    def push(self, piece: Piece) -> None:
        """Queue `piece` as the last to go; what nobody can hit joins its like before it."""
        ends = self._ends
        last = ends.before
        assert last is not None
        if piece.owner is None and last.owner is None and last is not ends:
            last.end += piece.end - piece.start
            return
        last.after = piece
        piece.before = last
        piece.after = ends
        ends.before = piece

    def remove(self, piece: Piece) -> None:
        """Take `piece` out of the queue."""
        before, after = piece.before, piece.after
        assert before is not None and after is not None
        before.after = after
        after.before = before
        piece.before = piece.after = None

    def replace(self, piece: Piece, tail: Piece) -> None:
        """Put `tail` where `piece` stands."""
        before, after = piece.before, piece.after
        assert before is not None and after is not None
        before.after = after.before = tail
        tail.before = before
        tail.after = after
        piece.before = piece.after = None

    def victim(self) -> Piece:
        """The piece that was freed first."""
        first = self._ends.after
        assert first is not None and first is not self._ends
        return first


class FirstComputed:
    """First in, first out: what was begun first goes first, however often it was hit since.

    A heap; an entry counts as long as its piece has not been taken out since it was pushed.
    """

    __slots__ = ("_count", "_heap", "_pushes")

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, int, Piece]] = []
        self._pushes: dict[Piece, int] = {}
        self._count: int = 0

    def push(self, piece: Piece) -> None:
        """Queue `piece` by its age; of one request's pieces the last goes first."""
        self._count += 1
        self._pushes[piece] = self._count
        heappush(self._heap, (piece.born, -piece.start, self._count, piece))

    def remove(self, piece: Piece) -> None:
        """Take `piece` out."""
        del self._pushes[piece]

    def replace(self, piece: Piece, tail: Piece) -> None:
        """Queue `tail`, which is as old, and take `piece` out."""
        self.remove(piece)
        self.push(tail)

    def victim(self) -> Piece:
        """The oldest piece."""
        heap = self._heap
        while self._pushes.get(heap[0][3]) != heap[0][2]:
            heappop(heap)
        return heap[0][3]


EVICTION: dict[str, Callable[[], EvictionPolicy]] = {
    "lru": LeastRecentlyFreed,
    "fifo": FirstComputed,
}
