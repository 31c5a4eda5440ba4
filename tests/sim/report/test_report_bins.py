import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.report.bins import MAX_BINS, TimeBins, bins_over, level, quantiles, replica_means

LEVELS = (0.5, 0.95, 0.99)


@given(st.floats(1e-3, 1e8), st.integers(1, 1_000))
def test_bins_cover_the_run_and_are_few(end_s, at_most):
    bins = bins_over(end_s, at_most)
    assert 1 <= bins.count <= min(at_most, MAX_BINS)
    assert bins.edges_s[0] == 0
    assert bins.edges_s[-1] == end_s
    assert (bins.widths_s > 0).all()
    assert bins.widths_s[:-1] == pytest.approx(bins.width_s)


def test_quantiles_of_a_bin_are_those_of_the_requests_that_arrived_in_it(result):
    bins = bins_over(float(result.requests["arrival_s"].max()), 30)
    table = quantiles(result.requests, bins, "arrival_s", "ttft_s", LEVELS)
    arrival, ttft = (
        result.requests.drop_nulls("ttft_s")[name].to_numpy() for name in ("arrival_s", "ttft_s")
    )
    for row in table.iter_rows(named=True):
        edges = bins.edges_s[row["bin"] : row["bin"] + 2]
        mine = ttft[(arrival >= edges[0]) & ((arrival < edges[1]) | (edges[1] == bins.end_s))]
        assert row["count"] == len(mine)
        assert [row[f"q{i}"] for i in range(3)] == pytest.approx(np.quantile(mine, LEVELS).tolist())
    assert table["count"].sum() == len(ttft)


intervals = st.lists(
    st.tuples(st.integers(0, 40), st.integers(0, 20)).map(lambda it: (it[0] / 4, sum(it) / 4)),
    max_size=30,
)


@given(intervals)
def test_level_counts_open_intervals(pairs):
    bins = TimeBins(width_s=1.0, end_s=11.5)
    starts, ends = (np.array([pair[i] for pair in pairs], dtype=float) for i in range(2))
    mean, peak = level(starts, ends, bins)
    # all times are quarters, so sampling at eighths sees every value the level ever has
    at = np.arange(92) / 8 + 1 / 16
    open_ = ((starts[:, None] <= at) & (at < ends[:, None])).sum(axis=0)
    bin_ = at.astype(int)
    assert mean == pytest.approx([open_[bin_ == i].mean() for i in range(12)])
    assert peak.tolist() == [open_[bin_ == i].max() for i in range(12)]


def test_replica_means_are_integrals(result):
    end_s = float(result.segments["end_s"].max())
    bins = bins_over(end_s, 40)
    replicas, means = replica_means(result.segment_rows, bins, {"running": pl.col("running")})
    assert replicas == [0, 1, 2, 3]
    expected = np.zeros((4, bins.count))
    for replica, start, end, running in result.segments.select(
        "replica", "start_s", "end_s", "running"
    ).iter_rows():
        for i, (low, high) in enumerate(zip(bins.edges_s, bins.edges_s[1:], strict=False)):
            expected[replica, i] += running * max(0.0, min(end, high) - max(start, low))
    expected /= bins.widths_s
    assert means["running"] == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_one_long_segment_fills_all_its_bins():
    segment = pl.LazyFrame({"replica": [3], "start_s": [0.5], "end_s": [3.5], "running": [8]})
    replicas, means = replica_means(segment, TimeBins(1.0, 4.0), {"running": pl.col("running")})
    assert replicas == [3]
    assert means["running"].tolist() == [[4.0, 8.0, 8.0, 4.0]]


def test_a_replica_without_a_segment_was_idle():
    segment = pl.LazyFrame({"replica": [1], "start_s": [0.0], "end_s": [2.0], "running": [8]})
    replicas, means = replica_means(
        segment, TimeBins(1.0, 2.0), {"running": pl.col("running")}, range(3)
    )
    assert replicas == [0, 1, 2]
    assert means["running"].tolist() == [[0.0, 0.0], [8.0, 8.0], [0.0, 0.0]]
