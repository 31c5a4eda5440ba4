"""Rows of a run, read a piece at a time: what a picture adds up never stands in memory whole."""

from collections.abc import Iterable, Iterator

import polars as pl
import polars.selectors as cs

BLOCK_ROWS = 65_536
"""Rows read at once: some ten MB of the widest pieces."""
DIGITS = 7
"""Significant digits of what threads add up, whose last bits depend on who came first."""


def height(rows: pl.LazyFrame) -> int:
    """How many rows there are; a Parquet file knows without being read."""
    return rows.select(pl.len()).collect().item()


def blocks(rows: pl.LazyFrame, *columns: str | pl.Expr, **named: pl.Expr) -> Iterator[pl.DataFrame]:
    """All rows in their order, BLOCK_ROWS at a time, of which only `columns` are read.

    An empty table is one empty block. Filter blocks, not `rows`: places after a filter are not
    known, and finding each block would read all rows anew.
    """
    for first in range(0, max(1, height(rows)), BLOCK_ROWS):
        yield rows.slice(first, BLOCK_ROWS).select(*columns, **named).collect()


def sums(parts: Iterable[pl.DataFrame], *by: str) -> pl.DataFrame:
    """Sums of all columns for each `by`, in the order of `by`.

    Each part is added up as it comes, so that groups, not rows, take memory. Floats come with
    DIGITS significant digits and are then the same however many threads added them.
    """
    added = [part.group_by(by).agg(pl.all().sum()) for part in parts]
    return (
        pl.concat(added)
        .group_by(by)
        .agg(pl.all().sum())
        .sort(by)
        .with_columns(cs.float().round_sig_figs(DIGITS))
    )
