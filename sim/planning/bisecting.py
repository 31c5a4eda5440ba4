"""Finds the rate that a share of replications sustain, with as few simulations as it can.

Rates lie on a grid, and replication i at a rate is one simulation: it meets the objectives, or it
misses them. Replication i is the same luck at every rate (common random numbers), so that it has a
rate of its own up to which it meets; what is looked for is the rate up to which a share of all
replications there might be do: a quantile of that distribution.

**One error for the whole search.** Let r* be that rate. A rate r below r* could be called missed
only if too few of the first n replications met it; at least as many meet r as meet r*, so too few
met r* too: that the test at r* ever errs bounds the chance that it errs at any rate below. The same
above. So a search of any number of rates, in any order, has the error of one test, twice (below and
above). It rests on each replication meeting all rates below one that it meets. Queues in order of
arrival do, to the sample path (Lindley's recursion: waits grow with every gap that shrinks);
batches, caches and orders by length do but for rare exceptions near the boundary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import ceil, floor
from typing import Final

from sim.planning.sequential import ShareTest

Meets = Callable[[int, Sequence[int]], Sequence[bool]]
"""Simulates replications at a rate of the grid: which of them meet the objectives."""

FIRST_WAVE: Final = 1
"""Replications that are asked for at once, at first; twice as many each time a rate is not decided.
They do not depend on how many processes there are: nor does the answer."""


@dataclass(frozen=True)
class Found:
    """Where on the grid the rate lies."""

    at: int
    """The rate that the share of the replications meet."""
    low: int | None
    """Decided: met. None: not even the lowest is."""
    high: int | None
    """Decided: missed. None: not even the highest is."""
    replications: int
    decided: bool
    """As precisely as was asked for."""


@dataclass
class Bisection:
    """A search over a grid of rates from `lowest` to `highest`."""

    meets: Meets
    test: ShareTest | None
    """None: there is one replication and no luck."""
    doubling: int
    """Steps of the grid that double the rate."""
    lowest: int
    highest: int
    width: int
    """Steps from the rate to either end of an interval that is precise enough."""
    first: int = 1
    """Number of the first replication."""
    _met: dict[int, int] = field(default_factory=dict[int, int])
    """Highest rate that a replication is known to meet."""
    _missed: dict[int, int] = field(default_factory=dict[int, int])
    """Lowest rate that it is known to miss."""

    def run(self) -> Found:
        """Bracket, bisect, and add replications until it is decided."""
        # the first alone shows where: cheaper than to look for it with all of them
        alone = self._highest(1, 1, 0, self.doubling)
        if self.test is None:
            if alone is None:
                return Found(self.lowest, None, self.lowest, 1, decided=True)
            return Found(alone, alone, alone + 1 if alone < self.highest else None, 1, decided=True)
        place = self.lowest if alone is None else alone
        most = self.test.most
        for count in self.test.looks:
            fine = 1 if count == most else max(1, self.width // 2)
            place = self._middle(count, place, fine)
            if self._is_close(count, place):
                return self._found(count, place, decided=True)
        for needed in (self._for_met(most), self._for_not_missed(most)):
            if needed is not None:
                self._highest(most, needed, place, self.width)
        return self._found(most, place, decided=False)

    def missed_from(self, number: int) -> int:
        """The lowest rate that a replication is known to miss; one above the highest: none."""
        return self._known_missed(number)

    def counts(self, at: int, replications: int) -> tuple[int, int]:
        """How many of the first replications are known to meet a rate, and to miss it."""
        numbers = range(self.first, self.first + replications)
        met = sum(self._known_met(number) >= at for number in numbers)
        return met, sum(self._known_missed(number) <= at for number in numbers)

    def _middle(self, count: int, start: int, fine: int) -> int:
        """The rate that the share of the first `count` replications meet: the highest that as many
        do, or halfway to the highest that more do; the lowest of the grid if none do. Within `fine`
        steps."""
        assert self.test is not None
        enough = max(1, ceil(self.test.share * count - 1e-9))
        more = min(count, floor(self.test.share * count + 1e-9) + 1)
        at = self._highest(count, enough, start, self.width, fine)
        if at is None:
            return self.lowest
        other = at if more == enough else self._highest(count, more, at, self.width, fine)
        return at if other is None else (at + other) // 2

    def _is_close(self, count: int, place: int) -> bool:
        """Whether it is decided at this number of replications, within `width` of a rate."""
        least, most = self._for_met(count), self._for_not_missed(count)
        if least is None or most is None:
            return False
        low, high = max(place - self.width, self.lowest), min(place + self.width, self.highest)
        if place == self.lowest and not self._enough(self.lowest, count, most):
            return True
        if place == self.highest and self._enough(self.highest, count, least):
            return True
        return self._enough(low, count, least) and not self._enough(high, count, most)

    def _for_met(self, count: int) -> int | None:
        """So many of the first `count` replications have to meet a rate for it to be called met."""
        assert self.test is not None
        least = self.test.least_for_above(count)
        return least if least <= count else None

    def _for_not_missed(self, count: int) -> int | None:
        """So many, and it is not called missed."""
        assert self.test is not None
        most = self.test.most_for_below(count)
        return most + 1 if most >= 0 else None

    def _found(self, count: int, place: int, *, decided: bool) -> Found:
        """What is known of the ends, without more simulations."""
        met, missed = self._ranked(count)
        least, most = self._for_met(count), self._for_not_missed(count)
        low = None if least is None else met[least - 1]
        high = None if most is None else missed[most - 1]
        return Found(
            place,
            low if low is not None and low >= self.lowest else None,
            high if high is not None and high <= self.highest else None,
            count,
            decided,
        )

    def _ranked(self, count: int) -> tuple[list[int], list[int]]:
        """For sure, at index k - 1: the highest rate that at least k of them meet, and the lowest
        that fewer than k do."""
        numbers = range(self.first, self.first + count)
        met = sorted(map(self._known_met, numbers), reverse=True)
        return met, sorted(map(self._known_missed, numbers), reverse=True)

    def _highest(
        self, count: int, needed: int, start: int, stride: int, fine: int = 1
    ) -> int | None:
        """Highest rate that at least `needed` of the first `count` replications meet, or one less
        than `fine` steps below; None: none.

        What is known bounds it; from `start` on it is bracketed by strides that double, then
        halved.
        """
        met, missed = self._ranked(count)
        low, high = met[needed - 1], missed[needed - 1]
        at, step = min(max(start, low + 1), high - 1), stride
        upward: bool | None = None
        closing_in = False
        while high - low > fine:
            enough = self._enough(at, count, needed)
            if enough:
                low = at
            else:
                high = at
            if upward is None:
                upward = enough
            at += step if upward else -step
            step = min(2 * step, self.doubling)
            closing_in = closing_in or enough != upward or not low < at < high
            if closing_in:
                at = (low + high) // 2
        return low if low >= self.lowest else None

    def _enough(self, at: int, count: int, needed: int) -> bool:
        """Whether at least `needed` of the first `count` replications meet a rate."""
        wave = FIRST_WAVE
        while True:
            met, missed = self.counts(at, count)
            if met >= needed:
                return True
            if count - missed < needed:
                return False
            unknown = [
                number
                for number in range(self.first, self.first + count)
                if self._known_met(number) < at < self._known_missed(number)
            ][:wave]
            for number, met_it in zip(unknown, self.meets(at, unknown), strict=True):
                if met_it:
                    self._met[number] = at
                else:
                    self._missed[number] = at
            wave *= 2

    def _known_met(self, number: int) -> int:
        return self._met.get(number, self.lowest - 1)

    def _known_missed(self, number: int) -> int:
        return self._missed.get(number, self.highest + 1)
