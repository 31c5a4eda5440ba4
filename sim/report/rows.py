"""Rows of a run, read a piece at a time: what a picture adds up never stands in memory whole."""

from collections.abc import Iterable, Iterator

import polars as pl

BLOCK_ROWS = 65_536
"""Rows read at once: a few MB, a few row groups of a file."""


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

    Each part is added up as it comes, so that groups, not rows, take memory.
    """
    return _summed(pl.concat(_summed(part, by) for part in parts), by).sort(by)


def _summed(rows: pl.DataFrame, by: tuple[str, ...]) -> pl.DataFrame:
    """One row a group. Lists keep the rows' order; `agg(sum)` adds in an order that threads set."""
    lists = rows.group_by(by).agg(pl.all())
    return lists.with_columns(pl.all().exclude(by).list.sum())
