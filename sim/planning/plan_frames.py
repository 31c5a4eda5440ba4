"""A plan's candidates and margins as frames; docs/planning.md has the columns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sim.comparing.grid import shown
from sim.planning.explaining import status_of
from sim.planning.plan import Plan

if TYPE_CHECKING:
    import polars as pl

FIGURES: Final = (
    "latency.ttft_s.p50",
    "latency.ttft_s.p99",
    "latency.tpot_s.p50",
    "latency.tpot_s.p99",
    "latency.e2e_s.p99",
    "throughput.requests_per_s",
    "throughput.output_tokens_per_s",
    "goodput.share",
    "kv.peak_occupancy",
    "utilization",
    "cache.hit_rate",
    "preemptions",
    "economics.usd_per_million_tokens",
    "economics.energy_kwh",
    "stopped_s",
)
"""Columns of candidates.parquet beside those of the objectives; empty where a run has none."""


def candidates_frame(plan: Plan) -> pl.DataFrame:
    """One row a candidate of the configurations that were looked at."""
    import polars as pl

    names = list(dict.fromkeys([*(one.figure for one in plan.objectives), *FIGURES]))
    rows: list[dict[str, Any]] = []
    for known in plan.known:
        for index, candidate in enumerate(known.candidates):
            found = plan.judge.evaluated.get(candidate.identity)
            redrawn = plan.redrawn.get(candidate.identity)
            row: dict[str, Any] = {
                "candidate": candidate.label,
                **{
                    f"set.{name}": shown(value)
                    for name, value in known.configuration.settings.items()
                },
                "profile": known.configuration.scenario.profile,
                "gpu": known.configuration.gpu,
                "replicas": candidate.replicas,
                "gpus": candidate.gpus,
                "usd_per_hour": candidate.usd_per_hour,
                "kv_blocks_per_replica": known.configuration.kv_blocks,
                "status": status_of(known, index, plan.judge),
                "met": found.met if found is not None else None,
                "margin": None if found is None or found.margin < -1e300 else found.margin,
                "redrawn": None if redrawn is None else len(redrawn.results),
                "redrawn_met": None if redrawn is None else redrawn.met,
                "error": (found.error or None) if found is not None else None,
            }
            figures = found.figures if found is not None else {}
            row |= {name: figures.get(name) for name in names}
            rows.append(row)
    schema: dict[str, Any] = dict.fromkeys(rows[0], pl.String)
    schema |= dict.fromkeys(("replicas", "gpus", "kv_blocks_per_replica"), pl.Int64)
    schema |= dict.fromkeys(("redrawn", "redrawn_met"), pl.Int64)
    schema |= dict.fromkeys(("usd_per_hour", "margin", *names), pl.Float64)
    schema |= {"met": pl.Boolean}
    return pl.DataFrame(rows, schema=schema)


def margins_frame(plan: Plan) -> pl.DataFrame:
    """One row an objective: limit, the winner's figure, and the share of the limit that is left."""
    import polars as pl

    figures = plan.winner.evaluation.figures
    return pl.DataFrame(
        [
            {
                "objective": one.name,
                "limit": one.limit,
                "value": one.value(figures),
                "margin": one.margin(figures),
            }
            for one in plan.objectives
        ],
        schema={
            "objective": pl.String,
            "limit": pl.Float64,
            "value": pl.Float64,
            "margin": pl.Float64,
        },
    )
