"""W-TinyLFU: who is let in is asked for more often than who has to go."""

from __future__ import annotations

from typing import Final

from engine.eviction.divided import Queues
from engine.eviction.protocol import CacheView
from engine.prefix import Piece


class Frequencies:
    """How often contents were asked for lately: counts that are halved now and then."""

    __slots__ = ("_counts", "_left", "_sample")

    MOST: Final = 15

    def __init__(self, sample: int) -> None:
        """Counts that are halved every `sample` times; those that become 0 are forgotten."""
        self._counts: dict[int, int] = {}
        self._sample: int = sample
        self._left: int = sample

    def count(self, key: int) -> None:
        """`key` was asked for."""
        counts = self._counts
        known = counts.get(key, 0)
        if known < self.MOST:
            counts[key] = known + 1
        self._left -= 1
        if self._left == 0:
            self._left = self._sample
            self._counts = {key: n // 2 for key, n in counts.items() if n > 1}

    def of(self, key: int) -> int:
        """How often, since about as many others as a sample counts."""
        return self._counts.get(key, 0)


class WindowTinyLfu(Queues):
    """A small LRU window in front of a segmented LRU, which a piece enters only for one less used.

    What leaves the window is compared with what would leave the main part, by how often their
    first blocks were asked for lately, evicted contents included. Scans do not get in. It hurts
    when content becomes popular at once and leaves the window before its count shows it.

    The paper estimates counts with a sketch of 4-bit counters; here they are exact, up to 15, and
    halved as often.

    Source: Einziger, Friedman, Manes, "TinyLFU: a highly efficient cache admission policy", ACM
    Transactions on Storage 2017. The room that is divided is what is evictable when a victim is
    chosen; at first, the whole pool.
    """

    __slots__ = ("_protected", "_room", "_uses", "_view", "_window")

    WINDOW: Final = 0
    PROBATION: Final = 1
    PROTECTED: Final = 2

    def __init__(
        self,
        view: CacheView,
        *,
        window: float = 0.01,
        protected: float = 0.8,
        sample: float = 10.0,
    ) -> None:
        """W-TinyLFU over a cache of `view`.

        Args:
            view: of the cache.
            window: share of the room for new pieces; a block at least.
            protected: share of the rest for what was hit there.
            sample: uses after which counts are halved, for each block of the capacity.
        """
        super().__init__(3)
        self._view: CacheView = view
        self._room: int = view.capacity
        self._window: float = window
        self._protected: float = protected
        self._uses: Frequencies = Frequencies(max(int(sample * view.capacity), 1))

    def begin(self, piece: Piece) -> None:
        """Count a use of content that is not there."""
        self._uses.count(piece.key)

    def push(self, piece: Piece) -> None:
        """Queue `piece`: in the window if it is new, else where its hits have got it."""
        hits = piece.hits - int(piece.rank)
        piece.rank = float(piece.hits)
        key = self._view.key(piece, piece.start)
        for _ in range(hits):
            self._uses.count(key)
        if piece.segment <= self.WINDOW:
            self.join(piece, self.WINDOW)
            self._overflow()
            return
        self.join(piece, self.PROTECTED if hits else piece.segment)
        protected = self._queues[self.PROTECTED]
        size = int(self._protected * (self._room - self._window_blocks()))
        while protected.blocks > size and len(protected) > 1:
            self._move(protected.least(), self.PROBATION)

    def choose(self) -> Piece:
        """The next to leave the window or the main part, whichever is asked for less."""
        self._room = self.blocks()
        window, probation, protected = self._queues
        main = probation if len(probation) else protected
        if window.blocks < self._window_blocks() or len(window) == 0:
            return (main if len(main) else window).least()
        new = window.least()
        if len(main) == 0:
            return new
        old = main.least()
        if self._frequency(new) <= self._frequency(old):
            return new
        self._move(new, self.PROBATION)
        return old

    def _overflow(self) -> None:
        """While there is room, what leaves the window goes to the main part unasked."""
        window = self._queues[self.WINDOW]
        size = self._window_blocks()
        while window.blocks > size and self.blocks() <= self._room and len(window) > 1:
            self._move(window.least(), self.PROBATION)

    def _window_blocks(self) -> int:
        return max(int(self._window * self._room), 1)

    def _frequency(self, piece: Piece) -> int:
        return self._uses.of(self._view.key(piece, piece.start))

    def _move(self, piece: Piece, queue: int) -> None:
        self._queues[piece.segment].discard(piece)
        self.join(piece, queue)
