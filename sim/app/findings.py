"""What the page needs of a run: its figures and some hundred points of each curve, as JSON."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import numpy as np
import polars as pl

from calibration.profiles import Profile
from sim.report.bins import bins_over, level, replica_means
from sim.report.contract import end_s
from sim.report.latency_figures import sketch
from sim.result import Result
from sim.scenario import Scenario

LATENCIES: Final = ("ttft_s", "tpot_s", "e2e_s", "queue_s")

DIGITS: Final = 6
"""Of the numbers of a curve, which a screen shows three of."""


def findings(result: Result, scenario: Scenario, profile: Profile) -> dict[str, Any]:
    """A finished run for the page; `result` has kept its rows.

    Returns:
        summary: as summary.json has it.
        gpu, model, tp: of the profile.
        latencies: by column, its values in s at the levels of `sketch`; None if nothing has it.
        queue: end_s, x_s, mean and peak of requests that wait, by time.
        kv: end_s, x_s, mean, low and high of replicas' shares of KV blocks in use, by time.
    """
    return {
        "summary": dict(result.summary),
        "profile": {
            "gpu": profile.device.name,
            "model": profile.model,
            "tp": profile.tp,
            "kv_dtype": profile.kv_dtype,
        },
        "latencies": {column: _distribution(result, column) for column in LATENCIES},
        "queue": _queue(result),
        "kv": _kv(result),
    }


def _distribution(result: Result, column: str) -> list[float] | None:
    assert result.request_rows is not None
    known = result.request_rows.select(pl.col(column).drop_nulls()).collect()
    values = known[column].to_numpy()
    return _short(sketch(values)[0]) if len(values) else None


def _queue(result: Result) -> dict[str, Any]:
    """Requests of the whole fleet that have arrived and were never scheduled yet."""
    assert result.request_rows is not None
    end = end_s(result)
    waits = (
        result.request_rows.filter(pl.col("outcome") != "rejected")
        .select("arrival_s", left_s=pl.coalesce("scheduled_s", "finish_s", pl.lit(end)))
        .collect()
    )
    bins = bins_over(end)
    mean, peak = level(waits["arrival_s"].to_numpy(), waits["left_s"].to_numpy(), bins)
    return {
        "end_s": end,
        "x_s": _short(bins.centers_s),
        "mean": _short(mean),
        "peak": _short(peak),
    }


def _kv(result: Result) -> dict[str, Any]:
    assert result.segment_rows is not None
    summary = result.summary
    end = end_s(result)
    bins = bins_over(end)
    share = pl.col("kv_blocks_used") / summary["kv"]["blocks_per_replica"]
    _, means = replica_means(
        result.segment_rows, bins, {"share": share}, range(summary["replicas"])
    )
    shares = means["share"]
    return {
        "end_s": end,
        "x_s": _short(bins.centers_s),
        "mean": _short(shares.mean(axis=0)),
        "low": _short(shares.min(axis=0)),
        "high": _short(shares.max(axis=0)),
    }


def _short(values: Iterable[float]) -> list[float]:
    return [float(f"{value:.{DIGITS}g}") for value in np.asarray(values).tolist()]
