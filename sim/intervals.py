"""Bounds for a figure from a few replications of it."""

from collections.abc import Sequence
from math import cos, exp, floor, log, pi, sin, sqrt, tan
from statistics import fmean, stdev

BISECTIONS = 60


def prediction_interval(values: Sequence[float], level: float) -> tuple[float, float]:
    """Bounds that one more draw from where `values` come from keeps with probability `level`.

    Percentiles of a few values are too narrow for that: the next one falls outside the least and
    the greatest of n with probability 2 / (n + 1). With as many values as it takes (39 for 95 %)
    the bounds are order statistics, at the ranks (n + 1) (1 - level) / 2 from either end, right for
    any distribution. With fewer they are Student's prediction interval, mean -+ t s sqrt(1 + 1/n),
    of logarithms where all values are positive: right for normal and log-normal figures. Both:
    Hahn and Meeker, Statistical Intervals, 1991, chapters 4 and 5.

    Args:
        values: at least two.
        level: above 0, below 1.
    """
    count = len(values)
    tail = (1 - level) / 2
    rank = (count + 1) * tail
    if rank > 1 - 1e-9:
        ordered = sorted(values)
        return _at_rank(ordered, rank), _at_rank(ordered, count + 1 - rank)
    if min(values) == max(values):
        return values[0], values[0]
    in_logs = min(values) > 0
    scale = [log(value) for value in values] if in_logs else values
    reach = student_quantile(1 - tail, count - 1) * stdev(scale) * sqrt(1 + 1 / count)
    low, high = fmean(scale) - reach, fmean(scale) + reach
    return (exp(low), exp(high)) if in_logs else (low, high)


def student_quantile(share: float, freedom: int) -> float:
    """The value that `share` (a half or more) of Student's t distribution lies below.

    The distribution in closed form (Abramowitz and Stegun, Handbook of Mathematical Functions,
    26.7.3 and 26.7.4), inverted by bisection over the angle atan(t / sqrt(freedom)).
    """
    low, high = 0.0, pi / 2
    for _ in range(BISECTIONS):
        angle = (low + high) / 2
        if _share_within(angle, freedom) < 2 * share - 1:
            low = angle
        else:
            high = angle
    return sqrt(freedom) * tan(low)


def _share_within(angle: float, freedom: int) -> float:
    """Share of the t distribution within -+ sqrt(freedom) tan(angle)."""
    odd = freedom % 2
    term = cos(angle) if odd else 1.0
    total = 0.0
    for index in range(freedom // 2):
        total += term
        factor = 2 * index + 1 + odd
        term *= cos(angle) ** 2 * factor / (factor + 1)
    total *= sin(angle)
    return 2 / pi * (angle + total) if odd else total


def _at_rank(ordered: Sequence[float], rank: float) -> float:
    """The value at a rank counted from 1; between two of them, on the line from one to the other.

    The rank is at least 1 and at most the number of values, up to rounding.
    """
    below = min(max(floor(rank), 1), len(ordered) - 1)
    share = min(max(rank - below, 0.0), 1.0)
    return ordered[below - 1] + share * (ordered[below] - ordered[below - 1])
