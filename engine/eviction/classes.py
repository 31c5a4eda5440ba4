"""By whose piece it is: stated importance, or the reuse that was seen of its like."""

from __future__ import annotations

from math import exp, expm1
from typing import Final

from engine.eviction.divided import Queues
from engine.eviction.protocol import CacheView
from engine.eviction.ranked import Ranked
from engine.moment import Moment
from engine.prefix import Piece
from engine.sequence import Sequence
from traces.errors import ConfigError

FOR_EVER: Final = 1 << 62


class RetentionPriority(Queues):
    """The pieces of the least important requests go first, of those the least recently used.

    A piece is as important as the most important request that used it (lower numbers are, as in
    scheduling). Tenants and SLO classes in `pin` keep up to a share of the pool beside that: their
    pieces go only when nothing else is left. What is pinned is there at once for its owners, and
    hurts all others, most when it is not used.

    Source: TensorRT-LLM's prioritized eviction and KvCacheRetentionConfig (documentation of 1.3),
    with the priorities of requests rather than of token ranges.
    """

    __slots__ = ("_pinned", "_pins")

    ORDINARY: Final = 0
    PINNED: Final = 1

    def __init__(self, view: CacheView, *, pin: str = "", share: float = 0.5) -> None:
        """Retention by priority in a cache of `view`.

        Args:
            view: of the cache.
            pin: names of tenants and SLO classes, with + between them.
            share: of the pool that may be pinned.

        Raises:
            ConfigError: `share` is not in [0, 1].
        """
        super().__init__(2)
        if not 0.0 <= share <= 1.0:
            raise ConfigError(f"eviction policy 'priority': share: must be 0 to 1, got {share:g}")
        self._pins: frozenset[str] = frozenset(name for name in pin.split("+") if name)
        self._pinned: int = int(share * view.capacity)

    def hit(self, piece: Piece, seq: Sequence) -> None:
        """Note in `rank` the most important request that hit `piece`."""
        if piece.hits <= 1 or seq.priority < piece.rank:
            piece.rank = float(seq.priority)

    def push(self, piece: Piece) -> None:
        """Queue `piece` by its importance, or pin it."""
        level = piece.rank if piece.hits else 0.0
        owner = piece.owner
        pinned = False
        if owner is not None:
            if not piece.hits or owner.priority < level:
                level = float(owner.priority)
            request = owner.request
            pinned = request.tenant in self._pins or request.slo_class in self._pins
        self._clock += 1
        piece.place = self._clock
        piece.segment = self.PINNED if pinned else self.ORDINARY
        self._queues[piece.segment].add(piece, -level, piece.place)
        held = self._queues[self.PINNED]
        while held.blocks > self._pinned:
            least = held.least()
            level = held.least_rank()
            held.discard(least)
            least.segment = self.ORDINARY
            self._queues[self.ORDINARY].add(least, level, least.place)
            self._chosen = None

    def choose(self) -> Piece:
        """The least important that is not pinned, if there is one."""
        ordinary, pinned = self._queues
        return ordinary.least() if len(ordinary) else pinned.least()


class Category:
    """What was seen of the pieces of one kind of request, in blocks and picoseconds."""

    __slots__ = ("freed", "reused", "waited")

    def __init__(self) -> None:
        self.freed: int = 0
        self.reused: int = 0
        self.waited: int = 0
        """Sum over reused blocks of the time from being freed to being hit."""

    def reuse_within(self, window: int, age: int) -> float:
        """Probability that a block freed `age` ago is hit within the next `window`, if a share of
        blocks is hit at all, after a time that is distributed exponentially; where none was seen
        yet, with the mean `window`."""
        share = (self.reused + 1) / (self.freed + 2)
        mean = self.waited / self.reused if self.waited else float(window)
        still = share * exp(-age / mean)
        return still / (1.0 - share + still) * -expm1(-window / mean)


class ByCategory(Queues):
    """What is least likely to be used again soon goes first, judged by requests of its kind.

    A kind is an SLO class (a tenant where there is none) and the turn of the session. For each it
    learns what share of blocks is used again, and after what time, taken as exponentially
    distributed; "soon" is the mean age at which blocks were evicted so far. Within a kind this is
    LRU. It hurts when requests of a kind have little in common, or habits change: all that was seen
    counts alike. O(kinds) a piece on top.

    Source: Wang et al., "KVCache cache in the wild: characterizing and optimizing KVCache cache at
    a large cloud provider", USENIX ATC 2025.
    """

    __slots__ = ("_categories", "_evicted", "_lived", "_moment", "_now", "_numbers", "_turns")

    def __init__(self, view: CacheView, *, turns: int = 3) -> None:
        """`turns`: later ones of a session are one kind with this one."""
        super().__init__(0)
        self._turns: int = turns
        self._moment: Moment = view.moment
        self._now: int = 0
        self._numbers: dict[tuple[str, int], int] = {}
        self._categories: list[Category] = []
        self._evicted: int = 0
        self._lived: int = 0

    def begin(self, piece: Piece) -> None:
        """Look at the clock: victims are chosen by the time at which a request last came or went,
        which does not depend on how many steps are taken at once."""
        self._now = self._moment.now

    def push(self, piece: Piece) -> None:
        """Queue `piece` in its category, as freed now."""
        self._now = self._moment.now
        number = self._number(piece.owner)
        self._categories[number].freed += piece.end - piece.start
        piece.rank = float(self._now)
        self.join(piece, number)

    def remove(self, piece: Piece) -> None:
        """`piece` is used again."""
        self._learn(piece)
        super().remove(piece)

    def replace(self, piece: Piece, tail: Piece) -> None:
        """`piece` is used again, `tail` is not."""
        self._learn(piece)
        super().replace(piece, tail)

    def choose(self) -> Piece:
        """Of the oldest of each category, the one least likely to be used again."""
        window = max(self._lived // self._evicted, 1) if self._evicted else FOR_EVER
        best: Piece | None = None
        least = 0.0
        for number, queue in enumerate(self._queues):
            if len(queue):
                piece = queue.least()
                age = self._now - int(piece.rank)
                chance = self._categories[number].reuse_within(window, age)
                if best is None or (chance, -piece.start) < (least, -best.start):
                    best, least = piece, chance
        assert best is not None
        return best

    def evicted(self, piece: Piece, blocks: int) -> None:
        """Let `piece` go once it is empty, and note how old it became."""
        self._evicted += blocks
        self._lived += blocks * (self._now - int(piece.rank))
        super().evicted(piece, blocks)

    def _learn(self, piece: Piece) -> None:
        self._now = self._moment.now
        category = self._categories[piece.segment]
        blocks = piece.end - piece.start
        category.reused += blocks
        category.waited += blocks * (self._now - int(piece.rank))

    def _number(self, owner: Sequence | None) -> int:
        kind = ("", 0)
        if owner is not None:
            request = owner.request
            kind = (request.slo_class or request.tenant, min(request.turn, self._turns))
        number = self._numbers.get(kind)
        if number is None:
            number = self._numbers[kind] = len(self._queues)
            self._queues.append(Ranked())
            self._categories.append(Category())
        return number
