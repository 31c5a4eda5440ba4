"""A test whether a chance is above or below a share, which is looked at several times.

Replications of a rate meet the objectives or miss them, with a chance p. After 7 replications, then
10, 14 and so on one looks whether so many met that p is above the share, or so few that it is
below; if neither, there are more replications. Looking often gives chance more opportunities, so
each look may only spend a part of the error (alpha spending: Lan and DeMets, Discrete Sequential
Boundaries for Clinical Trials, Biometrika 70, 1983): half of it the first, the rest evenly the
others, what a look cannot spend the next one. The number that decides follows from the binomial
distribution itself, without an approximation: the probability that any look errs is computed, and
is at most what was stated.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import ceil, comb, log
from typing import Final

import numpy as np
from numpy.typing import NDArray

from traces.errors import ConfigError

GROWTH: Final = 1.4
"""By how much the number of tries grows from one look to the next."""


@dataclass(frozen=True)
class ShareTest:
    """Is the chance of a success above or below `share`? Each answer is wrong with probability
    `error` at most, whichever look gives it."""

    share: float
    error: float
    most: int
    """Tries at most: the last look."""

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ConfigError: a share that is none, or too few tries to ever decide.
        """
        if not 0 < self.share < 1:
            raise ConfigError(f"--share: must be above 0 and below 1, got {self.share:g}")
        if self.most < self.fewest:
            raise ConfigError(
                f"--replications {self.most}: are too few to decide anything at this confidence"
                f" and share; expected at least {self.fewest}, or 1 for the trace alone"
            )

    @property
    def fewest(self) -> int:
        """Tries after which, if all are alike, the first look decides."""
        return ceil(log(self.error / 2) / log(max(self.share, 1 - self.share)))

    @cached_property
    def looks(self) -> tuple[int, ...]:
        """Numbers of tries after which to look."""
        found = [self.fewest]
        while found[-1] * GROWTH < self.most:
            found.append(max(found[-1] + 1, round(found[-1] * GROWTH)))
        if found[-1] < self.most:
            found.append(self.most)
        return tuple(found)

    def least_for_above(self, tries: int) -> int:
        """So many successes or more, at a look, say that the chance is above the share; one more
        than there are tries: none do."""
        return self._above[tries]

    def most_for_below(self, tries: int) -> int:
        """So many successes or fewer, at a look, say that the chance is below; -1: none do."""
        return tries - self._below[tries]

    @cached_property
    def _above(self) -> dict[int, int]:
        return boundary(self.share, self.error, self.looks)

    @cached_property
    def _below(self) -> dict[int, int]:
        return boundary(1 - self.share, self.error, self.looks)


def boundary(share: float, error: float, looks: tuple[int, ...]) -> dict[int, int]:
    """Least numbers of successes that decide, by look, for tries whose chance is `share`.

    The probability to reach any of them is at most `error`.
    """
    undecided: NDArray[np.float64] = np.ones(1)  # probability of each number of successes
    spent, before = 0.0, 0
    limits: dict[int, int] = {}
    for number, tries in enumerate(looks):
        undecided = np.convolve(undecided, _binomial(tries - before, share))
        later = len(looks) - 1
        allowed = error / 2 + (error / 2 * number / later if later else error / 2)
        at_least = np.cumsum(undecided[::-1])[::-1]
        limit = int(np.searchsorted(-at_least, -(allowed - spent), side="left"))
        limits[tries] = limit
        spent += float(undecided[limit:].sum())
        undecided[limit:] = 0.0
        before = tries
    return limits


def _binomial(tries: int, chance: float) -> NDArray[np.float64]:
    return np.array(
        [comb(tries, k) * chance**k * (1 - chance) ** (tries - k) for k in range(tries + 1)]
    )
