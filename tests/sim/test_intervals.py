"""Bounds from a few replications: Student's quantiles, and how often the next one lies within."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sim.intervals import prediction_interval, student_quantile

TRIALS = 4000


@given(st.floats(0.51, 0.999), st.integers(1, 200))
def test_students_quantiles(share: float, freedom: int):
    assert student_quantile(share, freedom) == pytest.approx(stats.t.ppf(share, freedom), rel=1e-9)


def within_binomial(hits: int, trials: int, level: float) -> bool:
    """As often as chance has it in all but one of a hundred thousand tests."""
    low, high = stats.binom.interval(1 - 1e-5, trials, level)
    return low <= hits <= high


def hits(values: np.ndarray, level: float) -> int:
    """How often the first of a row lies in the interval of the others."""
    found = 0
    for truth, *others in values.tolist():
        low, high = prediction_interval(others, level)
        found += low <= truth <= high
    return found


@pytest.mark.parametrize("level", [0.8, 0.95])
@pytest.mark.parametrize("draw", ["normal", "lognormal"])
@pytest.mark.parametrize("count", [5, 20])
def test_a_few_replications_cover_at_the_level_stated(draw: str, count: int, level: float):
    random = np.random.default_rng(count)
    values = random.normal(100, 5, (TRIALS, count + 1))
    if draw == "lognormal":
        values = np.exp(random.normal(0, 1, (TRIALS, count + 1)))
    assert within_binomial(hits(values, level), TRIALS, level)


@pytest.mark.parametrize("draw", ["normal", "exponential", "cauchy"])
@pytest.mark.parametrize("count", [39, 60])
def test_more_cover_at_it_whatever_the_distribution(draw: str, count: int):
    random = np.random.default_rng(count)
    size = (TRIALS, count + 1)
    values = {
        "normal": random.normal(size=size),
        "exponential": random.exponential(size=size),
        "cauchy": random.standard_cauchy(size=size),
    }[draw]
    assert within_binomial(hits(values, 0.95), TRIALS, 0.95)


def test_percentiles_of_a_few_would_not():
    values = np.random.default_rng(1).normal(size=(TRIALS, 21))
    low, high = np.percentile(values[:, 1:], [2.5, 97.5], axis=1)
    inside = int(((low <= values[:, 0]) & (values[:, 0] <= high)).sum())
    assert not within_binomial(inside, TRIALS, 0.95)


figures = st.lists(st.floats(1e-6, 1e6), min_size=5, max_size=60)


@given(figures, st.randoms(), st.floats(1e-3, 1e3))
def test_bounds_depend_on_neither_order_nor_unit(values, random, unit):
    low, high = prediction_interval(values, 0.95)
    assert low <= high
    shuffled = [unit * value for value in values]
    random.shuffle(shuffled)
    assert prediction_interval(shuffled, 0.95) == pytest.approx((unit * low, unit * high), rel=1e-6)


@given(st.floats(0, 1e9), st.integers(5, 60))
def test_what_never_varies_has_no_width(value: float, count: int):
    assert prediction_interval([value] * count, 0.95) == (value, value)


def test_at_39_the_bounds_are_the_least_and_the_greatest():
    values = [float(value) for value in range(39)]
    assert prediction_interval(values, 0.95) == pytest.approx((0.0, 38.0), abs=1e-9)
