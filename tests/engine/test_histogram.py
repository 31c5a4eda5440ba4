"""Histograms: quantiles to 0.1 %, counts and sums exact, progressions like their values."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.metrics import Histogram, sum_exactly

SHARES = (0.001, 0.25, 0.5, 0.9, 0.95, 0.99, 1.0)
EDGE_ERROR = 1e-12
"""Relative: a value this close to a bucket's end may be counted on either side of it."""

durations = st.one_of(
    st.integers(0, 10), st.integers(0, 10**9), st.integers(10**9, 10**13), st.integers(0, 2**62)
)
progressions = st.lists(
    st.tuples(
        st.integers(0, 10**12),  # first
        st.one_of(st.just(0), st.integers(1, 1000), st.integers(1, 10**9)),  # growth
        st.integers(1, 400),  # steps
        st.integers(0, 300),  # weight
    ),
    min_size=1,
    max_size=12,
)


@given(st.lists(durations, min_size=1, max_size=200))
def test_quantiles_are_within_a_thousandth(values: list[int]) -> None:
    histogram = Histogram()
    histogram.add(np.array(values))
    want = np.quantile(np.array(values), SHARES, method="inverted_cdf") / 1e12
    assert [histogram.quantile(share) for share in SHARES] == pytest.approx(want, rel=1e-3)


@given(st.lists(durations, min_size=1, max_size=200))
def test_count_mean_least_and_greatest_are_exact(values: list[int]) -> None:
    histogram = Histogram()
    for part in np.array_split(np.array(values), 3):
        histogram.add(part)
    assert histogram.count == histogram.counts.sum() == len(values)
    assert histogram.total_ps == sum(values)
    assert (histogram.min_ps, histogram.max_ps) == (min(values), max(values))
    summary = histogram.summary()
    assert summary is not None
    assert summary["mean"] == sum(values) / len(values) / 1e12
    assert summary["max"] == max(values) / 1e12


@settings(deadline=None)
@given(progressions)
def test_progressions_count_like_their_values(rows: list[tuple[int, int, int, int]]) -> None:
    at_once, one_by_one = Histogram(), Histogram()
    at_once.add_progressions(*columns(rows))
    values = expanded(rows)
    one_by_one.add(values)
    assert at_once.count == at_once.counts.sum() == len(values)
    assert at_once.total_ps == one_by_one.total_ps
    assert at_once.max_ps == one_by_one.max_ps
    assert at_once.min_ps == one_by_one.min_ps
    assert (at_once.counts >= 0).all()
    for edge in np.flatnonzero(np.cumsum(at_once.counts) != np.cumsum(one_by_one.counts)):
        end = Histogram.GAMMA ** float(edge)
        near = np.abs(values - end) <= np.maximum(end * EDGE_ERROR, 1e-6)
        moved = at_once.counts[: edge + 1].sum() - one_by_one.counts[: edge + 1].sum()
        assert abs(moved) <= near.sum()


@settings(deadline=None)
@given(progressions, progressions)
def test_a_negative_weight_takes_back(
    kept: list[tuple[int, int, int, int]], mistaken: list[tuple[int, int, int, int]]
) -> None:
    histogram, right = Histogram(), Histogram()
    first, growth, steps, weight = columns(mistaken)
    histogram.add_progressions(first, growth, steps, weight)
    histogram.add_progressions(*columns(kept))
    histogram.add_progressions(first, growth, steps, -weight)
    right.add_progressions(*columns(kept))
    assert np.array_equal(histogram.counts, right.counts)
    assert (histogram.count, histogram.total_ps) == (right.count, right.total_ps)


def test_a_day_of_large_batches_sums_exactly() -> None:
    """Sums of products past 64 bits: 16,384 segments of 20,000 steps of 2 s with 1,024 decodes."""
    rows = [(2 * 10**12 + i, 1, 20_000, 1024) for i in range(16_384)]
    histogram = Histogram()
    histogram.add_progressions(*columns(rows))
    want = sum(w * (k * first + k * (k - 1) // 2 * g) for first, g, k, w in rows)
    assert want > 2**63
    assert histogram.total_ps == want


def test_without_durations_there_is_no_quantile() -> None:
    histogram = Histogram()
    nothing = np.zeros(1, dtype=np.int64)
    histogram.add(nothing[:0])
    histogram.add_progressions(nothing, nothing, nothing + 1, nothing)
    assert histogram.summary() is None
    with pytest.raises(ValueError, match="no durations"):
        histogram.quantile(0.5)


@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=50))
def test_sums_do_not_overflow(values: list[int]) -> None:
    assert sum_exactly(np.array(values, dtype=np.int64)) == sum(values)


def columns(rows: list[tuple[int, int, int, int]]) -> Any:
    return np.array(rows, dtype=np.int64).T


def expanded(rows: list[tuple[int, int, int, int]]) -> Any:
    parts = [np.repeat(first + growth * np.arange(k), w) for first, growth, k, w in rows]
    return np.concatenate(parts)
