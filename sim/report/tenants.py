"""What each tenant got."""

import polars as pl

from engine import units
from sim.report.fragments import Summary
from sim.report.fragments import table as html_table
from sim.report.rows import blocks, sums

MOST_ROWS = 40
LATENCIES = {"ttft": (0.5, 0.99), "tpot": (0.99,), "e2e": (0.99,)}
"""Latency -> levels of the quantiles to show."""
SERVED = ("finished", "truncated")


def by_tenant(requests: pl.LazyFrame, slo: dict[str, float]) -> pl.DataFrame:
    """One row a tenant, largest first: counts, latencies and the share that met the objectives.

    A request meets them if it was served and no latency it has is above its limit; one without a
    time per output token, because it has a single token, cannot miss that one.
    """
    tenant = pl.col("tenant").fill_null(units.ABSENT)
    met = pl.col("outcome").is_in(SERVED)
    for latency, limit_s in slo.items():
        met &= (pl.col(latency) <= limit_s).fill_null(value=True)
    counted = blocks(
        requests,
        tenant,
        "cached_tokens",
        "prompt_tokens",
        requests=pl.lit(1, pl.Int64),
        served=pl.col("outcome").is_in(SERVED),
        met=met,
    )
    table = sums(counted, "tenant").with_columns(
        pl.col("served", "met") / pl.col("requests"),
        hits=pl.col("cached_tokens") / pl.col("prompt_tokens"),
    )
    for latency, levels in LATENCIES.items():
        quantiles = requests.group_by(tenant).agg(
            pl.col(f"{latency}_s")
            .quantile(level, interpolation="linear")
            .alias(f"{latency}_p{100 * level:.0f}")
            for level in levels
        )
        table = table.join(quantiles.collect(), on="tenant")
    return table.sort("requests", "tenant", descending=[True, False])


def tenant_table(requests: pl.LazyFrame, summary: Summary) -> str | None:
    """HTML table by tenant; None if there are not several."""
    if requests.select(pl.col("tenant").n_unique()).collect().item() < 2:
        return None
    slo = summary["goodput"]["slo"] if summary["goodput"] else {}
    frame = by_tenant(requests, slo)
    head = [
        "Tenant",
        "requests",
        "served",
        "TTFT P50",
        "TTFT P99",
        "TPOT P99",
        "E2E P99",
        "cache hits",
    ]
    rows = [
        [
            row["tenant"],
            units.count(row["requests"]),
            units.share(row["served"]),
            units.seconds(row["ttft_p50"]),
            units.seconds(row["ttft_p99"]),
            units.seconds(row["tpot_p99"]),
            units.seconds(row["e2e_p99"]),
            units.share(row["hits"]),
            *([units.share(row["met"])] if slo else []),
        ]
        for row in frame.head(MOST_ROWS).iter_rows(named=True)
    ]
    html = html_table([*head, *(["within SLO"] if slo else [])], rows)
    if frame.height > MOST_ROWS:
        of = units.count(frame.height)
        html += f'<p class="finding">The {MOST_ROWS} largest of {of} tenants.</p>'
    return html
