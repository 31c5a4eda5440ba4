"""Two settings on the same luck: the difference of a figure, how sure it is, who is better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log, sqrt
from statistics import fmean, stdev
from typing import Final, Literal

from sim.intervals import student_quantile

Direction = Literal["lower", "higher", ""]
"""Which way a figure is good; empty: neither."""

Verdict = Literal["better", "worse", "higher", "lower", "not distinguishable", ""]
"""Empty: nothing can be said of a single run."""

Scale = Literal["difference", "ratio"]
"""How two values are compared; `ratio` takes positive values only."""

SAME: Final = "not distinguishable"


@dataclass(frozen=True, slots=True)
class Difference:
    """A figure here minus the figure there, over pairs of replications."""

    mean: float
    """Of the figure here; of ratios the geometric one."""
    baseline: float
    """Mean of the figure there."""
    difference: float
    """The means' difference."""
    low: float | None
    high: float | None
    """Bounds of the true difference; None for a single pair."""
    p: float | None
    """Probability of a difference so large, either way, if there were none in truth."""

    @property
    def share(self) -> float | None:
        """The difference as a share of the baseline; None if that is 0."""
        return self.difference / abs(self.baseline) if self.baseline else None


def paired(
    here: Sequence[float], there: Sequence[float], level: float, scale: Scale = "difference"
) -> Difference:
    """Student's interval and test for paired differences, or for paired ratios.

    mean -+ t(n - 1) s / sqrt(n) of the n differences (Student, The Probable Error of a Mean,
    Biometrika 6, 1908); for simulations with common random numbers: Law, Simulation Modeling and
    Analysis, 5th ed. 2015, 10.2.1 and 11.2. Differences that are all alike, and not 0, have no
    spread to go by: n of one sign have the probability 2 / 2^n of the sign test.

    Ratios are differences of logarithms: means are geometric, and the bounds of the ratio are
    given as bounds of the difference to the baseline's mean. It suits figures that settings
    multiply rather than shift, such as latencies near overload, where one replication is ten times
    another and differences would follow the worst one alone.

    Args:
        here: a figure of each replication, at least one.
        there: of the replications that are their pairs.
        level: probability that the interval holds the true difference or ratio.
        scale: what is compared.
    """
    mean, baseline = centre(here, scale), centre(there, scale)
    count = len(here)
    pairs = list(zip(here, there, strict=True))
    if all(one == other for one, other in pairs):
        return Difference(mean, baseline, 0.0, *((0.0, 0.0, 1.0) if count > 1 else [None] * 3))
    if scale == "ratio":
        differences = [log(one / other) for one, other in pairs]
    else:
        differences = [one - other for one, other in pairs]
    if count == 1:
        return Difference(mean, baseline, mean - baseline, None, None, None)
    found = fmean(differences)
    if min(differences) == max(differences):
        reach, p = 0.0, 2.0 ** (1 - count)
    else:
        error = stdev(differences) / sqrt(count)
        reach = student_quantile(0.5 + level / 2, count - 1) * error
        p = _two_sided(found / error, count - 1)
    low, middle, high = found - reach, found, found + reach
    if scale == "ratio":
        low, middle, high = (baseline * (exp(end) - 1) for end in (low, middle, high))
    return Difference(mean, baseline, middle, low, high, p)


def centre(values: Sequence[float], scale: Scale) -> float:
    """The mean; of what is compared by ratios the geometric one."""
    if min(values) == max(values):
        return values[0]
    return exp(fmean(map(log, values))) if scale == "ratio" else fmean(values)


def interval_of_mean(
    values: Sequence[float], level: float, scale: Scale = "difference"
) -> tuple[float, float]:
    """Student's interval for the mean of one setting; a single value is all there is to say."""
    if len(values) == 1 or min(values) == max(values):
        return values[0], values[0]
    found = list(map(log, values)) if scale == "ratio" else values
    mean = fmean(found)
    reach = student_quantile(0.5 + level / 2, len(found) - 1) * stdev(found) / sqrt(len(found))
    low, high = mean - reach, mean + reach
    return (exp(low), exp(high)) if scale == "ratio" else (low, high)


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's adjusted probabilities: whatever is at most a is wrong, in even one of them, with
    probability at most a, however the tests depend on each other.

    Source: Holm, A Simple Sequentially Rejective Multiple Test Procedure, Scandinavian Journal of
    Statistics 6, 1979.
    """
    adjusted = [0.0] * len(ps)
    highest = 0.0
    for done, index in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        highest = max(highest, min(1.0, ps[index] * (len(ps) - done)))
        adjusted[index] = highest
    return adjusted


def verdict(difference: float, adjusted: float | None, level: float, good: Direction) -> Verdict:
    """What a difference says of the figure here.

    Args:
        difference: here minus there.
        adjusted: its probability by `holm`; None for a single pair.
        level: as of the intervals.
        good: which way the figure is good.
    """
    if adjusted is None:
        return ""
    if difference == 0 or adjusted > 1 - level:
        return SAME
    direction: Direction = "higher" if difference > 0 else "lower"
    if not good:
        return direction
    return "better" if direction == good else "worse"


def _two_sided(t: float, freedom: int) -> float:
    from scipy.special import stdtr

    return float(2 * stdtr(freedom, -abs(t)))
