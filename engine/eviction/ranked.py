"""What most policies are made of: pieces ordered by rank, and contents that have left."""

from __future__ import annotations

from collections import OrderedDict
from heapq import heapify, heappop, heappush
from typing import Final

from engine.eviction.protocol import CacheView
from engine.prefix import Piece

SLACK: Final = 64
"""Entries a heap may hold beyond twice those that count."""


class Ranked:
    """Pieces by rank, least first. Equal ranks: least place, then the last of a request.

    A heap in which an entry counts as long as its piece has not been taken out since; it is
    rebuilt when most entries no longer count. O(log pieces) a call, amortised.
    """

    __slots__ = ("_count", "_heap", "_live", "blocks")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, int, int, Piece]] = []
        self._live: dict[Piece, tuple[float, int, int, int, Piece]] = {}
        self._count: int = 0
        self.blocks: int = 0
        """Blocks of all pieces."""

    def __len__(self) -> int:
        return len(self._live)

    def __contains__(self, piece: Piece) -> bool:
        return piece in self._live

    def pieces(self) -> list[Piece]:
        """All pieces, in no order that means anything."""
        return list(self._live)

    def add(self, piece: Piece, rank: float, place: int) -> None:
        """Take in `piece`, which is not here."""
        self._count += 1
        entry = (rank, place, -piece.start, self._count, piece)
        self._live[piece] = entry
        if len(self._heap) > 2 * len(self._live) + SLACK:
            self._heap = list(self._live.values())
            heapify(self._heap)
        else:
            heappush(self._heap, entry)
        self.blocks += piece.end - piece.start

    def discard(self, piece: Piece) -> None:
        """Take `piece` out."""
        del self._live[piece]
        self.blocks -= piece.end - piece.start

    def stand_in(self, piece: Piece, tail: Piece) -> None:
        """Put `tail`, just split off `piece`, in its place."""
        entry = self._live.pop(piece)
        self.blocks -= piece.end - piece.start
        self.blocks -= tail.end - tail.start
        self.add(tail, entry[0], entry[1])

    def shrunk(self, piece: Piece, blocks: int) -> None:
        """`piece` has lost its last `blocks` blocks; it goes if it is empty."""
        self.blocks -= blocks
        if piece.end == piece.start:
            del self._live[piece]

    def least(self) -> Piece:
        """The piece of least rank; there must be one."""
        return self._first()[4]

    def least_rank(self) -> float:
        """Its rank."""
        return self._first()[0]

    def least_place(self) -> int:
        """Its place."""
        return self._first()[1]

    def _first(self) -> tuple[float, int, int, int, Piece]:
        heap = self._heap
        while True:
            first = heap[0]
            live = self._live.get(first[4])
            if live is not None and live[3] == first[3]:
                return first
            heappop(heap)


class Ghosts:
    """Contents that were evicted lately, oldest first: one entry a run of blocks.

    A run is known by its first block: what was evicted is asked for again where a hit on what is
    left ends. Its entry is made when nothing more of it is evicted, so that it makes no difference
    whether its blocks went at once or one by one.
    """

    __slots__ = ("_blocks", "_cut", "_end", "_entries", "_piece", "_view", "most")

    def __init__(self, view: CacheView, most: int) -> None:
        """No contents yet, and room for as many as once filled `most` blocks."""
        self._view: CacheView = view
        self.most: int = most
        self._entries: OrderedDict[int, int] = OrderedDict()
        self._blocks: int = 0
        self._piece: Piece | None = None
        self._cut: int = 0
        self._end: int = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def blocks(self) -> int:
        """Blocks that the contents filled."""
        self._settle()
        return self._blocks

    def add(self, piece: Piece, blocks: int) -> None:
        """`piece` has lost its last `blocks` blocks."""
        if piece is not self._piece:
            self._settle()
            self._piece = piece
        self._cut += blocks
        self._end = piece.end
        if piece.end == piece.start:
            self._settle()

    def take(self, key: int) -> int:
        """Forget the content `key`; returns the blocks it filled, 0 if it is unknown."""
        self._settle()
        blocks = self._entries.pop(key, 0)
        self._blocks -= blocks
        return blocks

    def trim(self, most: int) -> None:
        """Forget the oldest until the others filled at most `most` blocks."""
        self._settle()
        while self._blocks > most:
            self._blocks -= self._entries.popitem(last=False)[1]

    def _settle(self) -> None:
        piece = self._piece
        if piece is None:
            return
        end, blocks = self._end, self._cut
        self._piece = None
        self._cut = 0
        view = self._view
        key = view.key(piece, end)
        entries = self._entries
        if view.prefix is not None:
            blocks += self.take(view.key(piece, end + blocks))
        self.take(key)
        entries[key] = blocks
        self._blocks += blocks
        self.trim(self.most)
