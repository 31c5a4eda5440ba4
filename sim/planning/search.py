"""The cheapest candidate that meets every objective: branch and bound over configurations.

Assumed, and checked around what is found: *more replicas of a configuration never hurt*. Then a
configuration's candidates miss up to some number of replicas and meet from there on, and one replay
at the dearest candidate that is still cheaper than the best one known (the incumbent) tells whether
a configuration can better it at all. Configurations are taken by the least price they could have;
fewer than a cheap sound bound (sim.planning.bounds) are never replayed.

The assumption is doubtful where requests share prefixes: more replicas may each know fewer of them.
There a configuration is given up only once the cheapest of the candidates in question misses too.

Nothing here simulates: `meets` does, and a table does as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from math import inf, isqrt

from sim.planning.candidates import Candidate, Configuration

Meets = Callable[[Candidate, Sequence[Candidate]], bool]
"""Whether a candidate meets every objective; the second argument are candidates that are likely to
be asked for next, which may be looked at ahead where there is time."""

Holds = Callable[[Candidate], bool]
"""Whether a candidate that meets every objective does so surely enough."""

AHEAD = 8
"""Candidates that are likely to be asked for next, at most."""


@dataclass
class Known:
    """What is known of a configuration: indices into its candidates, ascending."""

    configuration: Configuration
    candidates: Sequence[Candidate]
    low: int = 0
    """All candidates before this one miss."""
    high: int = -1
    """All candidates from this one on meet; -1: none is known to."""
    bound: int = 0
    """Candidates before this one miss by a bound, without a replay."""
    doubtful: bool = False
    """More replicas may hurt: they may find fewer prefixes."""
    contradictions: list[int] = field(default_factory=list[int])
    """Candidates that meet though one with more replicas misses, or the other way round."""

    @classmethod
    def of(
        cls, configuration: Configuration, fewest: int | None = 1, *, doubtful: bool = False
    ) -> Known:
        """Nothing is known yet, but that fewer than `fewest` replicas miss (None: all do)."""
        candidates = configuration.candidates
        low = sum(fewest is None or one.replicas < fewest for one in candidates)
        return cls(configuration, candidates, low, bound=low, doubtful=doubtful)

    @property
    def hopeless(self) -> bool:
        """No candidate can meet."""
        return self.low >= len(self.candidates)

    @property
    def least_usd(self) -> float:
        """Price of the cheapest candidate that may meet; infinite if none can."""
        return inf if self.hopeless else self.candidates[self.low].usd_per_hour

    def below(self, usd: float) -> int:
        """Index of the dearest candidate that is cheaper than `usd`; -1: none is."""
        return sum(one.usd_per_hour < usd for one in self.candidates) - 1

    def learn(self, index: int, meets: bool) -> None:
        """Take in what a replay said; what contradicts the assumption is kept as such."""
        if (meets and index < self.low) or (not meets and index >= self.high >= 0):
            self.contradictions.append(index)
        elif meets:
            self.high = index if self.high < 0 else min(self.high, index)
        else:
            self.low = max(self.low, index + 1)


def cheapest(
    known: Iterable[Known],
    meets: Meets,
    holds: Holds | None = None,
    under_usd: float = inf,
) -> tuple[Known, Candidate] | None:
    """The cheapest candidate that meets, and holds, with what is known of its configuration.

    Of equal prices the one that is found first: by least possible price, then by place. `at_price`
    finds the others.

    Args:
        known: the configurations; what replays say is added.
        meets: see Meets.
        holds: a stricter and dearer question, asked of candidates that meet; None: there is none.
        under_usd: only what is cheaper counts.

    Returns:
        None if nothing cheaper than `under_usd` does.
    """
    best: tuple[Known, Candidate] | None = None
    order = sorted(known, key=lambda one: (one.least_usd, one.configuration.place))
    for number, one in enumerate(order):
        limit = best[1].usd_per_hour if best is not None else under_usd
        top = one.below(limit)
        if top < one.low:
            continue
        if not 0 <= one.high <= top:
            later = [
                other.candidates[at]
                for other in order[number + 1 : number + 1 + AHEAD]
                if (at := other.below(limit)) >= other.low and not 0 <= other.high <= at
            ]
            if not _some_meets(one, top, meets, later):
                continue
        _bisect(one, meets)
        index = one.high if holds is None else _climb(one, top, holds)
        if index is not None:
            best = (one, one.candidates[index])
    return best


def _some_meets(one: Known, top: int, meets: Meets, later: Sequence[Candidate]) -> bool:
    """Whether a candidate up to `top` meets, as far as can be told from a few."""
    if meets(one.candidates[top], later):
        one.learn(top, True)
        return True
    if one.doubtful and one.low < top and meets(one.candidates[one.low], []):
        one.contradictions.append(top)
        one.high = one.low
        return True
    one.learn(top, False)
    return False


def first_that_meets(one: Known, meets: Meets) -> bool:
    """Find the first candidate of a configuration that meets; whether there is any."""
    top = len(one.candidates) - 1
    if one.hopeless:
        return False
    if one.high < 0 and not _some_meets(one, top, meets, []):
        return False
    _bisect(one, meets)
    return True


def _climb(one: Known, top: int, holds: Holds) -> int | None:
    """The first candidate that holds, from the first that meets up to `top`; None if none does.

    In growing steps, then by bisection: it is seldom far.
    """
    below, at, step = one.high - 1, one.high, 1
    while not holds(one.candidates[at]):
        if at == top:
            return None
        below, at, step = at, min(at + step, top), 2 * step
    while at - below > 1:
        middle = _between(below + 1, at)
        if holds(one.candidates[middle]):
            at = middle
        else:
            below = middle
    return at


def _bisect(one: Known, meets: Meets) -> None:
    """Narrow a configuration down to its first candidate that meets; some is known to."""
    while one.low < one.high:
        middle = _between(one.low, one.high)
        ahead = dict.fromkeys((_between(one.low, middle), _between(middle + 1, one.high)))
        likely = [one.candidates[at] for at in ahead if one.low <= at < one.high and at != middle]
        one.learn(middle, meets(one.candidates[middle], likely))


def _between(low: int, high: int) -> int:
    """An index from `low` to below `high`: their geometric mean, as few replicas often do."""
    return max(low, min(high - 1, isqrt((low + 1) * (high + 1)) - 1))


def at_price(known: Iterable[Known], usd: float) -> list[tuple[Known, int]]:
    """Every candidate of exactly this price that may meet, by place."""
    return [
        (one, index)
        for one in sorted(known, key=lambda one: one.configuration.place)
        for index, candidate in enumerate(one.candidates)
        if candidate.usd_per_hour == usd and index >= one.low
    ]


def order_of(candidate: Candidate, margin: float) -> tuple[float, float, int, int, int]:
    """How candidates that meet are ranked: price; then margin, GPUs, replicas, place."""
    return (
        candidate.usd_per_hour,
        -margin,
        candidate.gpus,
        candidate.replicas,
        candidate.configuration.place,
    )
