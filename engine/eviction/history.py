"""By how often content was asked for since the start, whether it was cached or not."""

from __future__ import annotations

from engine.eviction.frequency import LeastFrequentlyUsed
from engine.eviction.protocol import CacheView
from engine.eviction.ranked import Ranked
from engine.eviction.tails import alike_at_end
from engine.prefix import Piece
from engine.sequence import Sequence


class LeastFrequentlyAsked:
    """Perfect LFU: counts outlive eviction; of equals the least recently freed goes first.

    Of a piece each block has its own count, which never rises towards the end: it gives up only
    blocks of one count before others have their turn. It hurts when what is popular changes, and
    remembers every content it ever saw (a number for each hash of the trace): for studies, not for
    a server. A piece that several requests hold at once counts once.

    Source: Breslau et al., "Web caching and Zipf-like distributions", INFOCOM 1999 (Perfect-LFU).
    """

    __slots__ = ("_block_tokens", "_clock", "_counts", "_plain", "_queue")

    def __init__(self, view: CacheView) -> None:
        self._queue: Ranked = Ranked()
        self._clock: int = 0
        self._counts: dict[int, int] = {}
        self._block_tokens: int = view.block_tokens
        self._plain: bool = view.prefix is None
        """A piece is a block, its content is `Piece.key`."""

    def push(self, piece: Piece) -> None:
        """Count a use of all its content and queue `piece`."""
        self._clock += 1
        piece.place = self._clock
        counts = self._counts
        owner = piece.owner
        if self._plain:
            counts[piece.key] = counts.get(piece.key, 0) + 1
        elif owner is not None:
            # a hash counts where its first block is, as a piece may begin or end in its midst
            block_tokens, hash_tokens = self._block_tokens, self._hash_tokens(owner)
            end = min(piece.end, owner.shared_blocks)
            if piece.start < end:
                first = -(-piece.start * block_tokens // hash_tokens)
                last = (end * block_tokens - 1) // hash_tokens
                for content in owner.hashes[first : last + 1]:
                    counts[content] = counts.get(content, 0) + 1
        self._add(piece)

    def _hash_tokens(self, owner: Sequence) -> int:
        """What a hash stands for; a request that came without hashes learns one a block."""
        return owner.request.hash_tokens or self._block_tokens

    def _count(self, piece: Piece, block: int) -> int:
        if self._plain:
            return self._counts.get(piece.key, 0)
        owner = piece.owner
        if owner is None or block >= owner.shared_blocks:
            return piece.hits + 1
        place = ((block + 1) * self._block_tokens - 1) // self._hash_tokens(owner)
        return self._counts.get(owner.hashes[place], 0)

    def _add(self, piece: Piece) -> None:
        self._queue.add(piece, float(self._count(piece, piece.end - 1)), piece.place)

    def remove(self, piece: Piece) -> None:
        """Take `piece` out."""
        self._queue.discard(piece)

    def replace(self, piece: Piece, tail: Piece) -> None:
        """Queue `tail`, freed when `piece` was, and take `piece` out."""
        self._queue.discard(piece)
        tail.place = piece.place
        self._add(tail)

    def victim(self) -> Piece:
        """The piece whose last block was asked for least often."""
        return self._queue.least()

    def together(self, piece: Piece) -> int:
        """How many of the last blocks of `piece` were asked for as often."""
        return alike_at_end(piece, lambda block: self._count(piece, block))

    def evicted(self, piece: Piece, blocks: int) -> None:
        """Let `piece` go once it is empty; else its last block is another now."""
        self._queue.shrunk(piece, blocks)
        if piece.end > piece.start:
            self._queue.discard(piece)
            self._add(piece)


def least_frequently_used(
    view: CacheView, *, history: bool = False
) -> LeastFrequentlyUsed | LeastFrequentlyAsked:
    """What was hit least often goes first; `history`: of all uses since the start.

    Without history counts begin anew when a piece is evicted.
    """
    return LeastFrequentlyAsked(view) if history else LeastFrequentlyUsed(view)
