"""Which measured steps are odd: they are kept and marked, not fitted to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from calibration.fitting.regressors import alike

if TYPE_CHECKING:
    import polars as pl

FEW_REPEATS: Final = 4
"""Fewer say nothing of which of them is odd."""

ODD: Final = 6.0
"""Robust standard deviations from its repeats' median that make a step odd."""

ODD_ALONE: Final = 8.0
"""The same from what is predicted, for a step without repeats: the form may be off there."""

LEAST_ODD: Final = 0.05
"""Relative distance that is never odd among repeats."""

LEAST_ODD_ALONE: Final = 0.25

MAD_TO_DEVIATION: Final = 1.4826


def mark_repeats(steps: pl.DataFrame) -> pl.DataFrame:
    """Mark steps far from the median of their repeats (see calibration.fitting.regressors.alike).

    Distances are relative and measured in robust standard deviations: those of the step's own
    repeats or of all repeats, whichever are larger, as the spread of a few is known badly.
    """
    import polars as pl

    usual_s = pl.col("time_s").filter(~pl.col("outlier")).median().over(alike())
    counted = steps.with_columns(
        off=pl.col("time_s") / usual_s - 1, repeats=(~pl.col("outlier")).sum().over(alike())
    )
    repeated = pl.col("repeats") >= FEW_REPEATS
    of_all = counted.filter(repeated & ~pl.col("outlier"))["off"].abs().median()
    if of_all is None:
        return steps
    of_own = pl.col("off").abs().median().over(alike())
    reach = ODD * MAD_TO_DEVIATION * pl.max_horizontal(of_own, pl.lit(of_all))
    far = pl.col("off").abs() > pl.max_horizontal(reach, pl.lit(LEAST_ODD))
    return counted.with_columns(outlier=pl.col("outlier") | (repeated & far)).drop("off", "repeats")


def mark_odd_steps(steps: pl.DataFrame, predicted_s: NDArray[np.float64]) -> pl.DataFrame:
    """Mark steps with few repeats that are far from what a fit predicts; held-out ones never.

    Args:
        steps: step frame.
        predicted_s: of each step, [steps].
    """
    import polars as pl

    off = np.log(steps["time_s"].to_numpy() / predicted_s)
    fitting = ~(steps["held_out"] | steps["outlier"]).to_numpy()
    center = np.median(off[fitting])
    spread = MAD_TO_DEVIATION * np.median(np.abs(off[fitting] - center))
    far = np.abs(off - center) > max(ODD_ALONE * spread, np.log1p(LEAST_ODD_ALONE))
    few = steps.select(pl.len().over(alike()) < FEW_REPEATS).to_series().to_numpy()
    return steps.with_columns(outlier=pl.col("outlier") | pl.Series(fitting & far & few))
