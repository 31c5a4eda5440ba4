"""First in, first out: by when a piece was freed, or by when it was computed."""

from heapq import heappop, heappush
from typing import Final

from engine.eviction.protocol import CacheView
from engine.prefix import Piece


class LeastRecentlyFreed:
    """vLLM's order: first freed, first evicted; being hit and freed again renews a piece.

    A queue linked through the pieces themselves, so that leaving its middle costs nothing.
    """

    leaf_first: Final = True
    by_piece: Final = True

    __slots__ = ("_ends",)

    def __init__(self, view: CacheView) -> None:
        ends = Piece(0, 0, None)
        ends.before = ends.after = ends
        self._ends: Piece = ends

    def push(self, piece: Piece) -> None:
        """Queue `piece` as the last to go; what nobody can hit joins its like before it."""
        ends = self._ends
        last = ends.before
        assert last is not None
        if piece.lost:
            if last.lost:
                last.end += piece.end - piece.start
                return
            piece.owner = None  # it would keep its sequence alive for nothing
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

    def evicted(self, piece: Piece, blocks: int) -> None:
        """Take `piece` out once it is empty."""
        if piece.end == piece.start:
            self.remove(piece)

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

    by_piece: Final = True

    __slots__ = ("_count", "_heap", "_pushes")

    def __init__(self, view: CacheView) -> None:
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

    def evicted(self, piece: Piece, blocks: int) -> None:
        """Take `piece` out once it is empty."""
        if piece.end == piece.start:
            self.remove(piece)

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
