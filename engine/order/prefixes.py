"""An order by what the prefix cache holds."""

from __future__ import annotations

from typing import Final

from engine.batch import Batch
from engine.order.discipline import FOREVER, QueueView
from engine.order.stated import check_at_least
from engine.sequence import Sequence


class LongestPrefixMatch:
    """Longest cached prefix first, so that what is cached is used before it is evicted.

    Everybody who waits is looked up at each step; with more than `most` waiting it is first come,
    first served. Source: Zheng et al., SGLang, NeurIPS'24; the limit of 128 is its. Depth-first
    order of a shared tree has the best hit ratio a cache of one size can have (theorem 3.1 there).
    Requests that share nothing starve while others that share keep coming.
    """

    def __init__(self, view: QueueView, *, most: int = 128) -> None:
        check_at_least("order 'longest-prefix-match'", "most", most, 1)
        self._view: Final = view
        self._most: Final = most
        self._waiting: dict[Sequence, None] = {}
        self._best: Sequence | None = None
        """The first, as long as the cache is what it was."""
        self._best_tokens: int = 0

    def add(self, seq: Sequence, again: bool) -> None:
        """Come in last, among equals; a preempted sequence first."""
        if again:
            self._waiting = {seq: None, **self._waiting}
            self._best = None
            return
        self._waiting[seq] = None
        if self._best is not None:
            tokens = self._view.cached_tokens(seq)
            if tokens > self._best_tokens:
                self._best, self._best_tokens = seq, tokens

    def first(self) -> Sequence:
        """The longest match; of equals, the one that came first."""
        waiting = self._waiting
        if len(waiting) == 1 or len(waiting) > self._most:
            return next(iter(waiting))
        best = self._best
        if best is None:
            self._best = best = max(waiting, key=self._view.cached_tokens)
            self._best_tokens = self._view.cached_tokens(best)
        return best

    def remove(self, seq: Sequence) -> None:
        """Leave the queue."""
        del self._waiting[seq]
        self._best = None

    def served(self, batch: Batch, steps: int) -> None:
        """Look again: the cache may have changed."""
        self._best = None

    def steady_steps(self, batch: Batch) -> int:
        """One where the cache may change and there is a choice."""
        return 1 if 1 < len(self._waiting) <= self._most else FOREVER
