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

from sim.report.rows import blocks, sums

Floats = NDArray[np.float64]

MAX_BINS = 300
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
    starts_s, ends_s = np.sort(starts_s), np.sort(ends_s)
    integral = _elapsed(starts_s, edges_s) - _elapsed(ends_s, edges_s)
    mean = np.maximum(np.diff(integral) / bins.widths_s, 0.0)

    # a bin is fullest as it begins or just after a start
    rises_s = np.union1d(edges_s[:-1], starts_s)
    rises_s = rises_s[(rises_s >= 0) & (rises_s < bins.end_s)]
    after = np.searchsorted(starts_s, rises_s, "right")
    after -= np.searchsorted(ends_s, rises_s, "right")
    first_of_bin = np.searchsorted(rises_s, edges_s[:-1])
    return mean, np.maximum.reduceat(after, first_of_bin).astype(float)


def _elapsed(ordered_s: Floats, at_s: Floats) -> Floats:
    """Sum over events of max(0, at - event), for each `at`."""
    before = np.searchsorted(ordered_s, at_s, side="right")
    return before * at_s - np.concatenate([[0.0], np.cumsum(ordered_s)])[before]


def replica_means(
    segments: pl.LazyFrame,
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
    read = blocks(segments, "replica", "start_s", "end_s", **columns)
    totals = sums((_pieces(block, bins, list(columns)) for block in read), "replica", "bin")
    names = sorted({*replicas, *totals["replica"]})
    rows = np.searchsorted(names, totals["replica"].to_numpy())
    means = {name: np.zeros((len(names), bins.count)) for name in columns}
    for name, mean in means.items():
        mean[rows, totals["bin"].to_numpy()] = totals[name].to_numpy()
        mean /= bins.widths_s
    return names, means


def _pieces(segments: pl.DataFrame, bins: TimeBins, values: list[str]) -> pl.DataFrame:
    """Segments cut at the edges of bins: replica, bin, and each value times the piece's seconds."""
    seconds = (
        pl.min_horizontal("end_s", (pl.col("bin") + 1) * bins.width_s, pl.lit(bins.end_s))
        - pl.max_horizontal("start_s", pl.col("bin") * bins.width_s)
    ).clip(0)
    first, last = bins.index("start_s"), bins.index("end_s")
    return (
        segments.with_columns(bin=pl.int_ranges(first, last + 1))
        .explode("bin", empty_as_null=False)
        .select("replica", "bin", pl.col(values) * seconds)
    )
