"""LIRS: by how long ago a piece was used before its last use."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from engine.eviction.divided import Queues
from engine.eviction.protocol import CacheView
from engine.prefix import Piece


class LowInterReferenceRecency(Queues):
    """What was used twice within a short time stays (LIR); little room is for the rest (HIR).

    A piece becomes LIR when it is used again sooner than the oldest LIR piece was: that one becomes
    HIR in exchange. Evicted contents are remembered as long as they could make that exchange. It
    resists scans and loops larger than the cache. It hurts when everything is used about equally
    far apart, and the small HIR part turns over before anything returns.

    The paper's stack is not kept as such: whether a piece is in it follows from comparing its last
    use with that of the oldest LIR piece.

    Source: Jiang, Zhang, "LIRS: an efficient low inter-reference recency set replacement policy",
    SIGMETRICS 2002. The room that is divided is what is evictable when a victim is chosen; at first
    the whole pool.
    """

    __slots__ = ("_ghosts", "_hir", "_most_ghosts", "_room", "_strict", "_uses", "_view")

    LIR: Final = 0
    HIR: Final = 1

    def __init__(
        self, view: CacheView, *, hir: float = 0.01, ghosts: float = 1.0, strict: bool = False
    ) -> None:
        """LIRS over a cache of `view`.

        Args:
            view: of the cache.
            hir: share of the room for HIR pieces; a block at least.
            ghosts: evicted pieces that are remembered at most, for each block of the capacity.
            strict: a HIR piece that is used again too late to become LIR makes the oldest LIR
                piece HIR all the same.
        """
        super().__init__(2)
        self._view: CacheView = view
        self._hir: float = hir
        self._room: int = view.capacity
        self._most_ghosts: int = max(int(ghosts * view.capacity), 1)
        self._strict: bool = strict
        self._ghosts: OrderedDict[int, int] = OrderedDict()
        """When the first block of an evicted piece was used last."""
        self._uses: int = 0

    def begin(self, piece: Piece) -> None:
        """Note when the content was used last."""
        used = self._ghosts.pop(piece.key, 0)
        piece.rank = float(used)

    def push(self, piece: Piece) -> None:
        """Queue `piece` as used now."""
        self._uses += 1
        lir = self._queues[self.LIR]
        used = int(piece.rank)
        piece.rank = float(self._uses)
        if piece.segment == self.LIR:
            self.join(piece, self.LIR)
            return
        most = self._room - max(int(self._hir * self._room), 1)
        blocks = piece.end - piece.start
        if piece.segment < 0 and lir.blocks + blocks <= most:
            self.join(piece, self.LIR)
            return
        if len(lir) and used > int(lir.least().rank):
            self.join(piece, self.LIR)
            while lir.blocks > most and len(lir) > 1:
                self._demote_oldest()
        else:
            late = piece.segment == self.HIR
            self.join(piece, self.HIR)
            if late and self._strict and len(lir):
                self._demote_oldest()

    def _demote_oldest(self) -> None:
        oldest = self._queues[self.LIR].least()
        self._queues[self.LIR].discard(oldest)
        self.join(oldest, self.HIR)

    def choose(self) -> Piece:
        """The HIR piece that was queued first."""
        self._room = self.blocks()
        lir, hir = self._queues
        return hir.least() if len(hir) else lir.least()

    def evicted(self, piece: Piece, blocks: int) -> None:
        """Let `piece` go once it is empty, and remember when it was used."""
        super().evicted(piece, blocks)
        if piece.end > piece.start:
            return
        key = self._view.key(piece, piece.start)
        lir = self._queues[self.LIR]
        oldest = int(lir.least().rank) if len(lir) else 0
        if piece.rank < oldest:
            return
        ghosts = self._ghosts
        ghosts.pop(key, None)
        ghosts[key] = int(piece.rank)
        while ghosts[first := next(iter(ghosts))] < oldest or len(ghosts) > self._most_ghosts:
            del ghosts[first]
