"""A run cut into equal stretches of time, and what happened in each.

Every function is exact: the mean of a bin is the integral over the bin by its width, not the mean
of samples that happen to fall into it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil

import numpy as np
import polars as pl
from numpy.typing import NDArray

Floats = NDArray[np.float64]

MAX_BINS = 300
DIGITS = 7
"""Significant digits of what threads add up, whose last bits depend on who came first."""
_NICE_S = (1, 2, 5, 10, 15, 20, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 86400)


@dataclass(frozen=True)
class TimeBins:
    """Time from 0 to `end_s`; bin i is [i, i + 1) times the width, the last one cut at the end."""

    width_s: float
    end_s: float

    @property
    def count(self) -> int:
        """How many bins there are."""
        return max(1, ceil(self.end_s / self.width_s - 1e-9))

    @property
    def edges_s(self) -> Floats:
        """Both ends of every bin: one more than there are bins."""
        return np.append(np.arange(self.count) * self.width_s, self.end_s)

    @property
    def widths_s(self) -> Floats:
        """The width of every bin: the same for all but the last."""
        return np.diff(self.edges_s)

    @property
    def centers_s(self) -> Floats:
        """The middle of every bin."""
        return self.edges_s[:-1] + self.widths_s / 2

    def index(self, time_s: str) -> pl.Expr:
        """Bin of column `time_s`; what lies past the last edge counts into the last bin."""
        return (pl.col(time_s) / self.width_s).floor().cast(pl.Int64).clip(0, self.count - 1)


def bins_over(end_s: float, at_most: int = 240) -> TimeBins:
    """Bins of a round width that cover 0 to `end_s` with at most `at_most` (and 300) of them."""
    end_s = max(end_s, 1e-9)
    least_s = end_s / max(1, min(at_most, MAX_BINS))
    if least_s > _NICE_S[-1]:
        width_s = float(_NICE_S[-1] * ceil(least_s / _NICE_S[-1]))
    elif least_s > _NICE_S[0]:
        width_s = float(next(nice for nice in _NICE_S if nice >= least_s))
    else:
        decade = 10.0 ** np.floor(np.log10(least_s))
        width_s = float(next(m * decade for m in (1, 2, 5, 10) if m * decade >= least_s * 0.999999))
    return TimeBins(width_s, end_s)


def quantiles(
    frame: pl.DataFrame, bins: TimeBins, time_s: str, value: str, levels: tuple[float, ...]
) -> pl.DataFrame:
    """Quantiles of `value` in each bin of `time_s`: columns bin, count, q0, q1, ... by bin.

    Bins without a value have no row.
    """
    return (
        frame.select(bin=bins.index(time_s), value=value)
        .drop_nulls()
        .group_by("bin")
        .agg(
            pl.len().alias("count"),
            *(
                pl.col("value").quantile(level, interpolation="linear").alias(f"q{i}")
                for i, level in enumerate(levels)
            ),
        )
        .sort("bin")
    )


def level(starts_s: Floats, ends_s: Floats, bins: TimeBins) -> tuple[Floats, Floats]:
    """How many intervals [start, end) are open: mean and peak of each bin.

    The integral of the level up to t is the sum of max(0, t - start) less that of max(0, t - end),
    so the cost is a sort, whatever the lengths of the intervals.
    """
    edges_s = bins.edges_s
    integral = _elapsed(starts_s, edges_s) - _elapsed(ends_s, edges_s)
    mean = np.maximum(np.diff(integral) / bins.widths_s, 0.0)

    starts_s, ends_s = np.sort(starts_s), np.sort(ends_s)
    changes_s = np.unique(np.concatenate([edges_s[:-1], starts_s, ends_s]))
    changes_s = changes_s[(changes_s >= 0) & (changes_s < bins.end_s)]
    after = np.searchsorted(starts_s, changes_s, "right") - np.searchsorted(
        ends_s, changes_s, "right"
    )
    first_of_bin = np.searchsorted(changes_s, edges_s[:-1])
    return mean, np.maximum.reduceat(after.astype(float), first_of_bin)


def _elapsed(events_s: Floats, at_s: Floats) -> Floats:
    """Sum over events of max(0, at - event), for each `at`."""
    ordered = np.sort(events_s)
    before = np.searchsorted(ordered, at_s, side="right")
    return before * at_s - np.concatenate([[0.0], np.cumsum(ordered)])[before]


def replica_means(
    segments: pl.DataFrame,
    bins: TimeBins,
    columns: dict[str, pl.Expr],
    replicas: Iterable[int] = (),
) -> tuple[list[int], dict[str, Floats]]:
    """Time-weighted means over each bin of values that are constant within a segment.

    Time in which a replica runs no segment counts as 0.

    Arguments:
        segments: rows with replica, start_s, end_s.
        bins: the time bins.
        columns: name -> value of a segment.
        replicas: who is there; one without a segment was idle throughout.

    Returns:
        The replicas in order, and for each name an array of replicas x bins.
    """
    pieces = (
        segments.select(
            "start_s",
            "end_s",
            "replica",
            first=bins.index("start_s"),
            last=bins.index("end_s"),
            **columns,
        )
        .with_columns(bin=pl.int_ranges("first", pl.col("last") + 1))
        .drop("first", "last")
        .explode("bin", empty_as_null=False)
        .with_columns(
            seconds=(
                pl.min_horizontal("end_s", (pl.col("bin") + 1) * bins.width_s, pl.lit(bins.end_s))
                - pl.max_horizontal("start_s", pl.col("bin") * bins.width_s)
            ).clip(0)
        )
        .group_by("replica", "bin")
        .agg((pl.col(name) * pl.col("seconds")).sum().round_sig_figs(DIGITS) for name in columns)
        .sort("replica", "bin")
    )
    names = sorted({*replicas, *pieces["replica"]})
    rows = np.searchsorted(names, pieces["replica"].to_numpy())
    means = {name: np.zeros((len(names), bins.count)) for name in columns}
    for name, mean in means.items():
        mean[rows, pieces["bin"].to_numpy()] = pieces[name].to_numpy()
        mean /= bins.widths_s
    return names, means
