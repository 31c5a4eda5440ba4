"""Queues in the order of computing, where a hit does not move a piece but gives it a chance."""

from __future__ import annotations

from typing import Final

from engine.eviction.divided import Queues
from engine.eviction.protocol import CacheView
from engine.eviction.ranked import Ghosts
from engine.prefix import Piece

UNSEEN: Final = 0.0
SEEN: Final = 1.0

RETURNED: Final = -2
"""`Piece.segment` of content that was evicted lately and is computed again."""


class Clock(Queues):
    """First in, first out, but a piece that was hit since goes round once more.

    Near LRU without moving pieces at every hit. It hurts as LRU does: a scan flushes it.

    Source: Corbató, "A paging experiment with the Multics system", MIT 1968.
    """

    __slots__ = ()

    def __init__(self, view: CacheView) -> None:
        super().__init__(1)

    def push(self, piece: Piece) -> None:
        """Queue `piece` at the end if it is new, else back where it stood, as hit."""
        if piece.segment < 0:
            piece.rank = SEEN if piece.hits else UNSEEN
            self.join(piece, 0)
        else:
            piece.rank = SEEN
            self.rejoin(piece)
            self._chosen = None

    def choose(self) -> Piece:
        """The oldest that was not hit since it came up last."""
        queue = self._queues[0]
        piece = queue.least()
        while piece.rank == SEEN:
            piece.rank = UNSEEN
            queue.discard(piece)
            self.join(piece, 0)
            piece = queue.least()
        return piece


class Sieve(Queues):
    """A hand goes from the oldest piece to the newest, and evicts what was not hit since it passed.

    What is hit stays where it is, new pieces come in behind; so what is hit no more is sifted out
    quickly, and a scan does little harm. It hurts when content is hit again only after longer than
    a turn of the hand, as in a long conversation.

    Queue 0 is what the hand will pass in this turn, queue 1 what it has passed.

    Source: Zhang et al., "SIEVE is simpler than LRU", NSDI 2024.
    """

    __slots__ = ("_hand",)

    def __init__(self, view: CacheView) -> None:
        super().__init__(2)
        self._hand: int = 0

    def push(self, piece: Piece) -> None:
        """Queue `piece` at the end if it is new, else back where it stood, as hit."""
        if piece.segment < 0:
            piece.rank = SEEN if piece.hits else UNSEEN
            self.join(piece, 0)
            return
        piece.rank = SEEN
        piece.segment = 0 if piece.place > self._hand else 1
        self.rejoin(piece)

    def choose(self) -> Piece:
        """The next that the hand finds not hit."""
        while True:
            ahead = self._queues[0]
            while len(ahead):
                piece = ahead.least()
                if piece.rank == UNSEEN:
                    return piece
                piece.rank = UNSEEN
                ahead.discard(piece)
                self._hand = piece.place
                piece.segment = 1
                self.rejoin(piece)
            self._turn()

    def evicted(self, piece: Piece, blocks: int) -> None:
        """Let `piece` go once it is empty; the hand goes on from there."""
        super().evicted(piece, blocks)
        if piece.end == piece.start:
            self._hand = piece.place
            if not len(self._queues[0]):
                self._turn()

    def _turn(self) -> None:
        """The hand begins anew at the oldest."""
        self._queues.reverse()
        for piece in self._queues[0].pieces():
            piece.segment = 0
        self._hand = 0


class S3Fifo(Queues):
    """A small queue in front of a main one: what is hit in it gets into the main one.

    Both are first in, first out; in the main one a piece goes round as often as it was hit, at
    most three times. What was evicted from the small one and returns soon goes to the main one at
    once. A scan passes through the small queue only. It hurts when pieces are hit once, and later
    than the small queue lasts.

    Source: Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023. The room that
    the queues divide is what is evictable when a victim is chosen; at first, the whole pool.
    """

    __slots__ = ("_capacity", "_ghosts", "_hits", "_small")

    SMALL: Final = 0
    MAIN: Final = 1
    MOST: Final = 3

    def __init__(
        self, view: CacheView, *, small: float = 0.1, ghosts: float = 0.9, hits: int = 2
    ) -> None:
        """S3-FIFO over a cache of `view`.

        Args:
            view: of the cache.
            small: share of the small queue.
            ghosts: contents evicted from it that are remembered, as a share of the capacity.
            hits: that get a piece from the small queue into the main one.
        """
        super().__init__(2)
        self._small: float = small
        self._hits: int = hits
        self._capacity: int = view.capacity
        self._ghosts: Ghosts = Ghosts(view, int(ghosts * view.capacity))

    def begin(self, piece: Piece) -> None:
        """Note whether the content was evicted lately."""
        piece.segment = RETURNED if self._ghosts.take(piece.key) else -1

    def push(self, piece: Piece) -> None:
        """Queue `piece`: a new one at the end of its queue, others where they stood."""
        if piece.segment >= 0:
            self.rejoin(piece)
        elif piece.segment == RETURNED:
            self.join(piece, self.MAIN)
        else:
            small = self._queues[self.SMALL].blocks
            unused = self._capacity and small >= int(self._small * self._capacity)
            self.join(piece, self.MAIN if unused else self.SMALL)

    def choose(self) -> Piece:
        """The front of the small queue, unless the main one is over its share."""
        self._capacity = 0  # the pool is full from here on
        small, main = self._queues
        room = self.blocks()
        if main.blocks <= room - int(self._small * room):
            while len(small):
                piece = small.least()
                if piece.hits - int(piece.rank) < self._hits:
                    return piece
                small.discard(piece)
                piece.rank = float(piece.hits)
                self.join(piece, self.MAIN)
        while True:
            piece = main.least()
            left = min(piece.hits - int(piece.rank), self.MOST)
            if left <= 0:
                return piece
            main.discard(piece)
            piece.rank = float(piece.hits - left + 1)
            self.join(piece, self.MAIN)

    def evicted(self, piece: Piece, blocks: int) -> None:
        """Let `piece` go once it is empty; what leaves the small queue is remembered."""
        if piece.segment == self.SMALL:
            self._ghosts.add(piece, blocks)
        super().evicted(piece, blocks)
