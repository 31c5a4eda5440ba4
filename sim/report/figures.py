"""Every picture of a run, by name: for the HTML report and for notebooks."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import plotly.graph_objects as go

from sim.report import latency_figures, load_figures, phase_figures, roofline_figure
from sim.report.contract import RunResult


@dataclass(frozen=True)
class Picture:
    """A picture to be: what it is drawn from, and how."""

    draw: Callable[[RunResult], go.Figure | None]
    needs: tuple[str, ...]
    empty: str = "No request got far enough to be drawn here."


REQUESTS, SEGMENTS, ROOFLINE = ("requests",), ("segments",), ("segments", "roofline")
NO_STEPS = "No step ran."

PICTURES: dict[str, Picture] = {
    **{
        f"{name}_cdf": Picture(partial(latency_figures.cdf, column=f"{name}_s"), REQUESTS)
        for name in ("ttft", "tpot", "e2e", "queue")
    },
    "ttft_over_time": Picture(partial(latency_figures.over_time, column="ttft_s"), REQUESTS),
    "tpot_over_time": Picture(partial(latency_figures.over_time, column="tpot_s"), REQUESTS),
    "phases_over_time": Picture(phase_figures.phases_over_time, REQUESTS),
    "phases_by_percentile": Picture(phase_figures.phases_by_percentile, REQUESTS),
    "outcomes": Picture(load_figures.outcomes, REQUESTS, "No request arrived."),
    "queue_depth": Picture(load_figures.queue_depth, REQUESTS, "No request was let into a queue."),
    "batch_size": Picture(load_figures.batch_size, SEGMENTS, NO_STEPS),
    "kv_occupancy": Picture(
        load_figures.kv_occupancy, SEGMENTS, "No step ran, or the number of blocks is not known."
    ),
    "roofline": Picture(roofline_figure.roofline, ROOFLINE, NO_STEPS),
}

MISSING = {
    "requests": "This run kept no request records.",
    "segments": "This run kept no step segments.",
    "roofline": "This run's cost model does not tell arithmetic from memory traffic.",
}


def draw(result: RunResult, name: str) -> go.Figure | str:
    """One picture of `PICTURES`, or one sentence on why there is none."""
    picture = PICTURES[name]
    parts = {
        "requests": result.request_rows,
        "segments": result.segment_rows,
        "roofline": result.roofline,
    }
    for part in picture.needs:
        if parts[part] is None:
            return MISSING[part]
    drawn = picture.draw(result)
    return picture.empty if drawn is None else drawn


def figures(result: RunResult) -> dict[str, go.Figure]:
    """All pictures this run has the data for, by their name in `PICTURES`."""
    drawn = {name: draw(result, name) for name in PICTURES}
    return {name: picture for name, picture in drawn.items() if not isinstance(picture, str)}
