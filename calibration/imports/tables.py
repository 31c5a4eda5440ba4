"""Tables of measured times from CSV or Parquet, checked, and curves that are added up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from calibration.operators import Curve
from traces.errors import ConfigError

if TYPE_CHECKING:
    import polars as pl


def read_table(path: Path, columns: Mapping[str, str], time: str | None) -> pl.DataFrame:
    """Read the named columns and a column of times; others are left.

    Args:
        path: .csv or .parquet.
        columns: polars types by name.
        time: column of durations, > 0; None: the table has none.

    Raises:
        ConfigError: naming the file and what is missing or wrong: a column, a value that is not of
            its type, a time that is not a positive number.
    """
    import polars as pl

    try:
        # everything as text first, so that a wrong value can be named
        frame = (
            pl.read_parquet(path)
            if path.suffix == ".parquet"
            else pl.read_csv(path, infer_schema=False)
        )
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file") from None
    except (OSError, pl.exceptions.PolarsError) as error:
        raise ConfigError(f"{path}: cannot be read: {' '.join(str(error).split())}") from error
    wanted = {**columns, time: "Float64"} if time is not None else dict(columns)
    missing = [name for name in wanted if name not in frame.columns]
    if missing:
        has = ", ".join(frame.columns)
        raise ConfigError(f"{path}: column {missing[0]} is missing; it has {has}")
    if frame.is_empty():
        raise ConfigError(f"{path}: has no rows")
    typed = frame.select(
        pl.col(name).cast(getattr(pl, kind), strict=False) for name, kind in wanted.items()
    )
    for name, kind in wanted.items():
        bad = typed[name].is_null()
        if bad.any():
            row = bad.arg_max() or 0
            sort = "whole number" if kind == "Int64" else "number" if kind == "Float64" else "text"
            raise ConfigError(
                f"{_line(path, row)}: {name} is {frame[name][row]!r}; expected a {sort}"
            )
    return typed if time is None else check_times(typed, time, path)


def check_times(frame: pl.DataFrame, time: str, path: Path) -> pl.DataFrame:
    """The frame itself, if all times are finite and above zero.

    Raises:
        ConfigError: naming the first row that is not.
    """
    bad = ~(frame[time].is_finite() & (frame[time] > 0))
    if bad.any():
        row = bad.arg_max() or 0
        raise ConfigError(f"{_line(path, row)}: {time} is {frame[time][row]}; expected a time > 0")
    return frame


def sum_of_curves(curves: Sequence[Curve]) -> Curve:
    """The curve of what several operators take together, at every size that any was measured at."""
    sizes = tuple(sorted({size for curve in curves for size in curve.sizes}))
    return Curve(sizes, tuple(sum(curve(size) for curve in curves) for size in sizes))


def _line(path: Path, row: int) -> str:
    """Where a data row stands: a CSV's header is its line 1."""
    return f"{path}:{row + 2}" if path.suffix == ".csv" else f"{path}: row {row}"
