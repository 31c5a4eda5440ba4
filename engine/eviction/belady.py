"""Belady's bound: what an eviction policy could do that knew the future."""

from __future__ import annotations

from heapq import heappop, heappush
from typing import Final

from engine.eviction.protocol import CacheView, Future
from engine.eviction.ranked import Ranked
from engine.eviction.tails import alike_at_end
from engine.future import NEVER
from engine.prefix import Piece, PrefixIndex
from traces.errors import ConfigError


class Belady:
    """What is asked for last goes first; of what is asked for together, the deepest.

    No policy hits more of a prefix cache that serves requests one at a time. The next use of a
    request's blocks never comes sooner towards its end, so a piece is ranked by its last block, and
    gives up only blocks that are asked for together with it before others have their turn. Of
    copies of one content only one is worth its place. With requests at work beside each other
    (which take up room the rule does not reckon with) and with several caches (it does not know
    which of them a request will come to) it is a policy like others, not a bound.

    O(log pieces + log blocks of the piece × log requests) a piece.

    Source: Belady, "A study of replacement algorithms for a virtual-storage computer", IBM Systems
    Journal 5(2), 1966; Mattson et al., "Evaluation techniques for storage hierarchies", 1970 (OPT).
    """

    needs_future: Final = True

    __slots__ = ("_future", "_prefix", "_queue", "_soonest", "_spare", "_ticks", "_view")

    def __init__(self, view: CacheView) -> None:
        if view.future is None:
            raise ConfigError(
                "eviction policy 'belady': needs to know what is to come; expected the replay of a"
                " trace whose requests come in its order"
            )
        self._view: CacheView = view
        self._future: Future = view.future
        self._prefix: PrefixIndex | None = view.prefix
        self._queue: Ranked = Ranked()
        self._soonest: list[tuple[int, int, Piece]] = []
        """By next use: a piece that was not hit by it has a later one."""
        self._ticks: int = 0
        self._spare: set[Piece] = set()
        """Pieces whose content another piece holds."""

    def begin(self, piece: Piece) -> None:
        """The request of `piece` has asked; copies of the block it begins with are not needed."""
        owner = piece.owner
        if owner is not None:
            self._future.passed(owner.request.request_id)
            self._spare_copies(piece)

    def push(self, piece: Piece) -> None:
        """Queue `piece` by when its last block is asked for next."""
        if self._spare_copies(piece):
            self._spare.add(piece)
        self._add(piece)

    def _spare_copies(self, piece: Piece) -> bool:
        """Let the copies of the first block of `piece` go; returns whether one has to stay.

        Copies are pieces of a block, but for one that goes on: `piece` gives way to that.
        """
        if self._prefix is None or piece.key < 0:
            return False
        one_stays = False
        held = self._prefix.oldest(piece.key)
        while held is not None:
            if held is not piece and held in self._queue:
                if held.end - held.start > 1:
                    one_stays = True
                elif held not in self._spare:
                    self._spare.add(held)
                    self._rank_anew(held)
            held = held.later
        return one_stays

    def _add(self, piece: Piece) -> None:
        rank = NEVER if piece in self._spare else self._next_use(piece, piece.end - 1)
        piece.rank = float(rank)
        self._queue.add(piece, -piece.rank, -piece.end)
        if rank < NEVER:
            self._ticks += 1
            heappush(self._soonest, (rank, self._ticks, piece))

    def _rank_anew(self, piece: Piece) -> None:
        self._queue.discard(piece)
        self._add(piece)

    def _next_use(self, piece: Piece, block: int) -> int:
        return self._future.next_use(self._view.key(piece, block))

    def remove(self, piece: Piece) -> None:
        """Take `piece` out; being hit, it is what stays of its copies."""
        self._queue.discard(piece)
        self._spare.discard(piece)
        self._spare_copies(piece)

    def replace(self, piece: Piece, tail: Piece) -> None:
        """Take `piece` out and queue `tail`."""
        self.remove(piece)
        self._add(tail)

    def victim(self) -> Piece:
        """The piece whose last block is asked for last."""
        soonest, rank = self._soonest, self._future.begins()
        while soonest and soonest[0][0] < rank:
            use, _, piece = heappop(soonest)
            if piece in self._queue and piece.rank == use:
                self._rank_anew(piece)
        return self._queue.least()

    def together(self, piece: Piece) -> int:
        """How many of the last blocks of `piece` are asked for next at the same time."""
        if piece in self._spare:
            return piece.end - piece.start
        return alike_at_end(piece, lambda block: self._next_use(piece, block))

    def evicted(self, piece: Piece, blocks: int) -> None:
        """Let `piece` go once it is empty; else its last block is another now."""
        self._queue.shrunk(piece, blocks)
        if piece.end > piece.start:
            self._rank_anew(piece)
        else:
            self._spare.discard(piece)
