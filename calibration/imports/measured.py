"""Reading measured times with care: optional columns, one row a point, a believable unit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from calibration.imports.tables import read_table
from traces.errors import ConfigError

if TYPE_CHECKING:
    import polars as pl

DISAGREEMENT: Final = 2.0
"""Repeats of a measurement that differ by more are two different things under one name."""

SLOWEST: Final = 100.0
"""A large kernel that takes so many times what the data sheet allows was timed in another unit."""


def columns(path: Path) -> list[str]:
    """Names of a table's columns; none where it cannot be read (`read_table` says why)."""
    import polars as pl

    try:
        lazy = pl.scan_parquet(path) if path.suffix == ".parquet" else pl.scan_csv(path)
        return lazy.collect_schema().names()
    except (OSError, pl.exceptions.PolarsError):
        return []


def read_present(
    path: Path, needed: Mapping[str, str], optional: Mapping[str, str], time: str | None
) -> pl.DataFrame:
    """`read_table` of the needed columns and of those optional ones that the table has."""
    present = columns(path)
    wanted = {name: kind for name, kind in optional.items() if name in present}
    return read_table(path, {**needed, **wanted}, time)


def listed(values: Iterable[object]) -> str:
    """Values for the end of a message."""
    return ", ".join(str(value) for value in values) or "none"


def once(frame: pl.DataFrame, keys: Sequence[str], time: str, path: Path) -> pl.DataFrame:
    """One row a point, ordered by `keys`: the median of repeated measurements.

    Raises:
        ConfigError: naming the first point whose rows disagree by more than a factor of two.
    """
    import polars as pl

    apart = (
        frame.group_by(keys)
        .agg(pl.col(time).min().alias("least"), pl.col(time).max().alias("most"))
        .filter(pl.col("most") > DISAGREEMENT * pl.col("least"))
        .sort(keys)
    )
    if len(apart):
        row = apart.row(0, named=True)
        point = ", ".join(f"{key} {row[key]}" for key in keys)
        raise ConfigError(
            f"{path}: rows for the same point ({point}) disagree: {time} {row['least']:g} and"
            f" {row['most']:g}; repeats of one kernel would be within a factor of two"
        )
    return frame.group_by(keys).agg(pl.col(time).median()).sort(keys)


def believable(path: Path, where: str, seconds: float, least_s: float, unit: str) -> None:
    """Check the time of a large kernel against the data sheet.

    Args:
        path: the table.
        where: column and point of the time, in words.
        seconds: the time, if the table is in the unit that it should be in.
        least_s: what the operation takes at the data sheet's peak rates.
        unit: what the table's times should be in.

    Raises:
        ConfigError: when the time is below half of `least_s` or above a hundred times it.
    """
    if not least_s / 2 <= seconds <= SLOWEST * least_s:
        raise ConfigError(
            f"{path}: {where} would take {seconds:.3g} s where the data sheet allows"
            f" {least_s:.3g} s; expected {unit}, of the GPU that is named"
        )
