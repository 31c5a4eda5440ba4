"""By how often, or how lately, a piece was hit: one queue, ordered by a rank."""

from __future__ import annotations

from engine.eviction.protocol import CacheView
from engine.eviction.ranked import Ranked
from engine.prefix import Piece


class OneQueue:
    """A policy that ranks each piece as it is freed."""

    __slots__ = ("_clock", "_queue")

    def __init__(self) -> None:
        self._queue: Ranked = Ranked()
        self._clock: int = 0

    def remove(self, piece: Piece) -> None:
        """Take `piece` out."""
        self._queue.discard(piece)

    def replace(self, piece: Piece, tail: Piece) -> None:
        """Put `tail` where `piece` stands."""
        self._queue.stand_in(piece, tail)

    def victim(self) -> Piece:
        """The piece of least rank."""
        return self._queue.least()

    def evicted(self, piece: Piece, blocks: int) -> None:
        """Let `piece` go once it is empty."""
        self._queue.shrunk(piece, blocks)


class LeastFrequentlyUsed(OneQueue):
    """The piece hit least often goes first, of those the one freed first.

    Counts begin anew when a piece is evicted (in-cache LFU). What was popular once stays, however
    long ago: it hurts when what is popular changes.
    """

    __slots__ = ()

    def __init__(self, view: CacheView) -> None:
        super().__init__()

    def push(self, piece: Piece) -> None:
        """Queue `piece` by its hits."""
        self._clock += 1
        self._queue.add(piece, float(piece.hits), self._clock)


class LeastRecentlyUsedTwice(OneQueue):
    """LRU-2: by when a piece was used for the last time but one.

    What was used once goes first, oldest first; so a scan of content that is never asked for again
    passes through without harm. The history of a piece ends with its eviction, which hurts what
    returns only after longer than an unused piece survives.

    Source: O'Neil, O'Neil, Weikum, "The LRU-K page replacement algorithm", SIGMOD 1993; without
    the history of evicted pages and the correlated reference period.
    """

    __slots__ = ()

    def __init__(self, view: CacheView) -> None:
        super().__init__()

    def push(self, piece: Piece) -> None:
        """Queue `piece` by its last use but one: `rank`; its last is `place`."""
        self._clock += 1
        piece.rank = float(piece.place)
        piece.place = self._clock
        self._queue.add(piece, piece.rank, self._clock)


class GreedyDualSizeFrequency(OneQueue):
    """By uses times the work to compute a block anew, and age.

    Rank: age + uses × work, where the age is the rank of what was evicted last, so that what is no
    longer hit is overtaken. It keeps the deep end of long prompts over short prompts, which hurts
    when the beginnings are what is shared.

    Source: Cherkasova, "Improving WWW proxies performance with greedy-dual-size-frequency caching
    policy", HP Labs 1998 (HPL-98-69): cost is `recompute_tokens`, size is blocks.
    """

    __slots__ = ("_age", "_view", "_weight")

    def __init__(self, view: CacheView, *, weight: float = 1.0) -> None:
        """`weight`: of a use of a block whose tokens cost as much as tokens without context; it
        changes ranks, not their order, but for the last bits."""
        super().__init__()
        self._view: CacheView = view
        self._weight: float = weight
        self._age: float = 0.0

    def push(self, piece: Piece) -> None:
        """Queue `piece` by its worth."""
        self._clock += 1
        view = self._view
        work = view.recompute_tokens(piece.start, piece.end)
        work /= (piece.end - piece.start) * view.block_tokens
        rank = self._age + (piece.hits + 1) * self._weight * work
        self._queue.add(piece, rank, self._clock)

    def evicted(self, piece: Piece, blocks: int) -> None:
        """Let `piece` go once it is empty; the others age."""
        self._age = self._queue.least_rank()
        self._queue.shrunk(piece, blocks)


class FlopAware(OneQueue):
    """By last use and by the work that a hit on a block saves.

    Rank: how often the whole pool had been freed when the piece was, plus `alpha` for each token's
    worth of work that its tokens cost beyond a token without context. So a block that costs twice
    as much survives `alpha` turnovers of the pool longer: deep blocks of long prompts stay. It
    hurts when the deep ends are not what is shared, and is LRU where it is not known what
    attention costs.

    Source: Pan et al., "Marconi: prefix caching for the era of hybrid LLMs", MLSys 2025: recency
    plus alpha times FLOPs saved per byte; here recency is not scaled by what else is cached, so
    that ranks stay as they are.
    """

    __slots__ = ("_alpha", "_freed", "_view")

    def __init__(self, view: CacheView, *, alpha: float = 1.0) -> None:
        """`alpha`: see above; 0 is LRU."""
        super().__init__()
        self._view: CacheView = view
        self._alpha: float = alpha
        self._freed: int = 0

    def push(self, piece: Piece) -> None:
        """Queue `piece` by its last use and its worth."""
        self._clock += 1
        view = self._view
        blocks = piece.end - piece.start
        self._freed += blocks
        work = view.recompute_tokens(piece.start, piece.end) / (blocks * view.block_tokens)
        rank = self._freed / view.capacity + self._alpha * (work - 1.0)
        self._queue.add(piece, rank, self._clock)
