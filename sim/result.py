"""What a run gives: the summary, frames of requests and segments, pictures, a folder of files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import plotly.graph_objects as go
    import polars as pl


@dataclass(frozen=True)
class Result:
    """A finished run; docs/report.md has the columns of its rows.

    Frames are made when first asked for. Pictures do without: they read rows where they are, so a
    folder's run can be drawn that is too large to be loaded.
    """

    scenario: Mapping[str, Any]
    """The complete settings; `sim.scenario.scenario_of` makes a Scenario of them again."""
    summary: Mapping[str, Any]
    """The run in a few dozen numbers: what summary.json holds."""
    roofline: Any = None
    """The cost model where it knows the work of a step, else None."""
    _requests: Callable[[], Any] | None = field(default=None, repr=False)
    _segments: Callable[[], Any] | None = field(default=None, repr=False)

    @property
    def requests(self) -> pl.DataFrame | None:
        """One row a request, in the order they ended; None if they were not kept."""
        return self._request_frame

    @property
    def segments(self) -> pl.DataFrame | None:
        """One row a run of identical steps; None if they were not kept."""
        return self._segment_frame

    @property
    def request_rows(self) -> pl.LazyFrame | None:
        """`requests`, not loaded: a query begins here, `collect` runs it."""
        return self._lazy_requests

    @property
    def segment_rows(self) -> pl.LazyFrame | None:
        """`segments`, not loaded."""
        return self._lazy_segments

    @cached_property
    def _lazy_requests(self) -> pl.LazyFrame | None:
        return _lazy(self._requests)

    @cached_property
    def _lazy_segments(self) -> pl.LazyFrame | None:
        return _lazy(self._segments)

    @cached_property
    def _request_frame(self) -> pl.DataFrame | None:
        return None if self.request_rows is None else self.request_rows.collect()

    @cached_property
    def _segment_frame(self) -> pl.DataFrame | None:
        return None if self.segment_rows is None else self.segment_rows.collect()

    def plot(self, name: str | None = None) -> go.Figure | dict[str, go.Figure]:
        """The picture `name` of the report, or all of them.

        Raises:
            KeyError: there is no such picture, or the run kept nothing to draw it from.
        """
        from sim.report.chosen import chosen
        from sim.report.figures import figures

        return chosen(figures(self), name)

    def _repr_html_(self) -> str:
        latency = self.summary["latency"]
        rows = "".join(
            f"<tr><td>{name.removesuffix('_s')}</td>"
            + "".join(f"<td>{value:.4g} s</td>" for value in values.values())
            + "</tr>"
            for name, values in latency.items()
            if values
        )
        names = ("", "mean", "p50", "p90", "p95", "p99", "max")
        head = "".join(f"<th>{name}</th>" for name in names)
        return f"<table><tr>{head}</tr>{rows}</table>"


def _lazy(rows: Callable[[], Any] | None) -> pl.LazyFrame | None:
    if rows is None:
        return None
    import polars as pl

    made = rows()
    if isinstance(made, pl.LazyFrame):
        return made
    frame = pl.from_arrow(made)
    assert isinstance(frame, pl.DataFrame)
    return frame.lazy()
