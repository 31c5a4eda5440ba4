"""A policy of several queues: what those that divide the cache have in common."""

from __future__ import annotations

from engine.eviction.ranked import Ranked
from engine.prefix import Piece


class Queues:
    """A policy of several queues; `Piece.segment` is the number of the one a piece is in.

    Once chosen, a victim stays so until it is empty or a piece is hit, although the sizes of the
    queues that led to it change: it makes no difference how many blocks are taken at once.
    """

    __slots__ = ("_chosen", "_clock", "_queues")

    def __init__(self, queues: int) -> None:
        self._queues: list[Ranked] = [Ranked() for _ in range(queues)]
        self._chosen: Piece | None = None
        self._clock: int = 0

    def choose(self) -> Piece:
        """The piece to evict from next."""
        raise NotImplementedError

    def join(self, piece: Piece, queue: int) -> None:
        """Put `piece` at the end of a queue."""
        self._clock += 1
        piece.segment = queue
        piece.place = self._clock
        self._queues[queue].add(piece, 0.0, piece.place)

    def rejoin(self, piece: Piece) -> None:
        """Put `piece` back where it stood, as long as it was not moved."""
        self._queues[piece.segment].add(piece, 0.0, piece.place)

    def blocks(self) -> int:
        """Blocks of all queues."""
        total = 0
        for queue in self._queues:
            total += queue.blocks
        return total

    def remove(self, piece: Piece) -> None:
        """Take `piece` out of its queue."""
        self._queues[piece.segment].discard(piece)
        self._chosen = None

    def replace(self, piece: Piece, tail: Piece) -> None:
        """Put `tail` where `piece` stands."""
        self._queues[piece.segment].stand_in(piece, tail)
        self._chosen = None

    def victim(self) -> Piece:
        """The piece chosen."""
        chosen = self._chosen
        if chosen is None:
            chosen = self._chosen = self.choose()
        return chosen

    def evicted(self, piece: Piece, blocks: int) -> None:
        """Let `piece` go once it is empty."""
        self._queues[piece.segment].shrunk(piece, blocks)
        if piece.end == piece.start:
            self._chosen = None
