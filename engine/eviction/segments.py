"""Two or more queues, least recently used first, between which hits move pieces."""

from __future__ import annotations

from typing import Final

from engine.eviction.divided import Queues
from engine.eviction.protocol import CacheView
from engine.eviction.ranked import Ghosts
from engine.prefix import Piece

RETURNED: Final = -2
"""`Piece.segment` of content that was evicted lately and is computed again."""


class SegmentedLru(Queues):
    """LRU in segments of equal size: a hit moves a piece one up, who is pushed out goes one down.

    The lowest segment is evicted from, so what was hit often stays longest. It hurts when what was
    hit often is not asked for any more: it has to sink through all segments.

    Source: Karedla, Love, Wherry, "Caching strategies to improve disk system performance", IEEE
    Computer 1994 (two segments). The room that is divided is what is evictable when a victim is
    chosen; at first, the whole pool.
    """

    __slots__ = ("_room", "_spilling", "_strict")

    def __init__(self, view: CacheView, *, segments: int = 4, strict: bool = False) -> None:
        """Segmented LRU over a cache of `view`.

        Args:
            view: of the cache.
            segments: how many.
            strict: what sinks into the lowest segment while that is over its size pushes the
                oldest there out at once, although there may be room.
        """
        super().__init__(segments)
        self._room: int = view.capacity
        self._strict: bool = strict
        self._spilling: bool = False

    def push(self, piece: Piece) -> None:
        """Queue `piece`, moved up by the hits it had; into the lowest with room if it is new."""
        queues = self._queues
        size = self._room // len(queues)
        level = piece.segment
        if level < 0:
            level = 0
            blocks = piece.end - piece.start
            for number, queue in enumerate(queues):
                if queue.blocks + blocks <= size:
                    level = number
                    break
        level += piece.hits - int(piece.rank)
        if level >= len(queues):
            level = len(queues) - 1
        piece.rank = float(piece.hits)
        self.join(piece, level)
        while level > 0:
            queue = queues[level]
            level -= 1
            while queue.blocks > size and len(queue) > 1:
                sinking = queue.least()
                queue.discard(sinking)
                self.join(sinking, level)
                self._spilling = self._strict and level == 0

    def expired(self) -> Piece | None:
        """If strict, the oldest of a lowest segment that runs over."""
        if self._spilling:
            lowest = self._queues[0]
            if lowest.blocks > self._room // len(self._queues):
                return lowest.least()
            self._spilling = False
        return None

    def choose(self) -> Piece:
        """The least recently used of the lowest segment that holds any."""
        self._room = self.blocks()
        for queue in self._queues:
            if len(queue):
                return queue.least()
        raise AssertionError("no piece")


class TwoQueues(Queues):
    """A first-in, first-out queue for what is new, LRU for what returns after leaving it.

    Hits in the first queue do not count: they are thought to belong to the same use. A scan passes
    through that queue only. It hurts when content is asked for a second time long after, and not
    a third time.

    Source: Johnson, Shasha, "2Q: a low overhead high performance buffer management replacement
    algorithm", VLDB 1994 (full version). The room that is divided is what is evictable when a
    victim is chosen.
    """

    __slots__ = ("_first", "_ghosts")

    FIRST: Final = 0
    MAIN: Final = 1

    def __init__(self, view: CacheView, *, first: float = 0.25, ghosts: float = 0.5) -> None:
        """Full 2Q over a cache of `view`.

        Args:
            view: of the cache.
            first: share of the queue for what is new (Kin).
            ghosts: contents evicted from it that are remembered, as a share of the capacity (Kout).
        """
        super().__init__(2)
        self._first: float = first
        self._ghosts: Ghosts = Ghosts(view, int(ghosts * view.capacity))

    def begin(self, piece: Piece) -> None:
        """Note whether the content was evicted lately."""
        piece.segment = RETURNED if self._ghosts.take(piece.key) else -1

    def push(self, piece: Piece) -> None:
        """Queue `piece` last in the main queue; a new one in the first, where it stays put."""
        if piece.segment == self.FIRST:
            self.rejoin(piece)
        else:
            self.join(piece, self.FIRST if piece.segment == -1 else self.MAIN)

    def choose(self) -> Piece:
        """The oldest of the first queue if that is over its share, else of the main one."""
        first, main = self._queues
        if first.blocks > int(self._first * self.blocks()) or len(main) == 0:
            return first.least()
        return main.least()

    def evicted(self, piece: Piece, blocks: int) -> None:
        """Let `piece` go once it is empty; what leaves the first queue is remembered."""
        if piece.segment == self.FIRST:
            self._ghosts.add(piece, blocks)
        super().evicted(piece, blocks)


class AdaptiveReplacement(Queues):
    """ARC: LRU of what was used once and of what was used more often, sized by what returns.

    Content that comes back soon after it left one of them makes that one larger. It hurts when the
    content that returns does so after longer than it is remembered: then it is LRU with overhead.

    Source: Megiddo, Modha, "ARC: a self-tuning, low overhead replacement cache", FAST 2003, with
    steps that are not rounded. Sizes are in blocks nobody references.
    """

    __slots__ = ("_capacity", "_ghosts", "_once_blocks", "_returned_often")

    ONCE: Final = 0
    OFTEN: Final = 1

    def __init__(self, view: CacheView) -> None:
        super().__init__(2)
        self._capacity: int = view.capacity
        self._ghosts: tuple[Ghosts, Ghosts] = (
            Ghosts(view, 2 * view.capacity),
            Ghosts(view, 2 * view.capacity),
        )
        self._once_blocks: float = 0.0
        """What the queue of those used once is to hold (p)."""
        self._returned_often: bool = False
        """The content to make room for was used more than once before it left."""

    def begin(self, piece: Piece) -> None:
        """Adapt to a content that returns."""
        once, often = self._ghosts[0].blocks, self._ghosts[1].blocks
        self._returned_often = False
        piece.segment = -1
        if self._ghosts[self.ONCE].take(piece.key):
            target = self._once_blocks + max(1.0, often / once)
            self._once_blocks = min(target, float(self._capacity))
            piece.segment = RETURNED
        elif self._ghosts[self.OFTEN].take(piece.key):
            self._once_blocks = max(self._once_blocks - max(1.0, once / often), 0.0)
            piece.segment = RETURNED
            self._returned_often = True

    def push(self, piece: Piece) -> None:
        """Queue `piece`: with those used once if it is new, else with those used more often."""
        new = piece.segment == -1 and piece.hits == 0
        if piece.segment == self.ONCE and piece.hits == int(piece.rank):
            new = True
        piece.rank = float(piece.hits)
        self._returned_often = False
        self.join(piece, self.ONCE if new else self.OFTEN)
        once, often = self._ghosts
        used = self._queues[self.ONCE].blocks
        once.trim(max(self._capacity - used, 0))
        used += self._queues[self.OFTEN].blocks + once.blocks
        often.trim(max(2 * self._capacity - used, 0))

    def choose(self) -> Piece:
        """The least recently used of the queue that is larger than it should be."""
        once, often = self._queues
        target = self._once_blocks
        larger = once.blocks > target or (self._returned_often and once.blocks == target)
        if len(once) and (larger or len(often) == 0):
            return once.least()
        return often.least()

    def evicted(self, piece: Piece, blocks: int) -> None:
        """Let `piece` go once it is empty, and remember it."""
        self._ghosts[piece.segment].add(piece, blocks)
        super().evicted(piece, blocks)
