"""Intervals keep what they promise, and so do many verdicts at once."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.comparing.pairing import SAME, holm, interval_of_mean, paired, verdict

TRIALS = 3000
FIGURES = st.lists(st.floats(1e-6, 1e6), min_size=2, max_size=12)


@pytest.mark.parametrize("scale", ["difference", "ratio"])
@pytest.mark.parametrize(("count", "level"), [(3, 0.95), (10, 0.95), (10, 0.8), (40, 0.99)])
def test_an_interval_holds_the_truth_as_often_as_it_says(scale, count: int, level: float):
    """Luck in common is ten times the difference: pairs do not see it."""
    random = np.random.default_rng(count)
    held = narrow = 0
    for _ in range(TRIALS):
        luck = random.normal(0.0, 2.0, count)
        here, there = luck + 0.2 + random.normal(0.0, 0.1, count), luck
        if scale == "ratio":
            here, there = np.exp(here), np.exp(there)
        found = paired(here.tolist(), there.tolist(), level, scale)
        low, high = found.low, found.high
        if scale == "ratio":  # the ratio itself is what is estimated
            low, high = (np.log(1 + end / found.baseline) for end in (low, high))
        held += low <= 0.2 <= high
        narrow += high - low < 1.0
    error = 4 * (level * (1 - level) / TRIALS) ** 0.5
    assert held / TRIALS == pytest.approx(level, abs=error)
    assert narrow > 0.9 * TRIALS


def test_the_interval_of_a_mean_holds_it_as_often_as_it_says():
    random = np.random.default_rng(1)
    held = 0
    for _ in range(TRIALS):
        low, high = interval_of_mean(random.normal(5.0, 1.0, 8).tolist(), 0.9)
        held += low <= 5.0 <= high
    assert held / TRIALS == pytest.approx(0.9, abs=0.022)


def test_a_difference_that_is_not_there_has_every_probability_alike():
    random = np.random.default_rng(2)
    ps = [
        paired(random.normal(size=6).tolist(), random.normal(size=6).tolist(), 0.95).p
        for _ in range(TRIALS)
    ]
    for share in (0.05, 0.25, 0.5, 0.9):
        assert np.mean(np.array(ps) <= share) == pytest.approx(share, abs=0.037)


@given(FIGURES, st.sampled_from(["difference", "ratio"]), st.floats(0.5, 0.99))
def test_the_same_figures_differ_by_exactly_nothing(figures: list[float], scale, level: float):
    found = paired(figures, figures, level, scale)
    assert (found.difference, found.low, found.high, found.p) == (0.0, 0.0, 0.0, 1.0)
    assert verdict(found.difference, found.p, level, "lower") == SAME


@given(FIGURES, st.data())
def test_the_other_way_round_is_the_opposite(here: list[float], data: st.DataObject):
    there = data.draw(st.lists(st.floats(1e-6, 1e6), min_size=len(here), max_size=len(here)))
    one, other = paired(here, there, 0.95), paired(there, here, 0.95)
    assert one.difference == pytest.approx(-other.difference)
    assert one.low == pytest.approx(-other.high)
    assert one.p == pytest.approx(other.p)
    assert one.low <= one.difference <= one.high


def test_a_scale_does_not_matter_to_ratios():
    here, there = [1.0, 20.0, 3.0], [2.0, 30.0, 7.0]
    one = paired(here, there, 0.95, "ratio")
    scaled = paired([1e3 * x for x in here], [1e3 * x for x in there], 0.95, "ratio")
    assert scaled.p == pytest.approx(one.p)
    assert scaled.share == pytest.approx(one.share)
    assert one.share == pytest.approx((1 / 2 * 2 / 3 * 3 / 7) ** (1 / 3) - 1)


def test_one_pair_is_a_plain_difference():
    found = paired([3.0], [2.0], 0.95)
    assert (found.difference, found.low, found.high, found.p) == (1.0, None, None, None)
    assert verdict(found.difference, None, 0.95, "lower") == ""


def test_differences_all_alike_are_as_sure_as_their_number():
    assert paired([2.0, 3.0], [1.0, 2.0], 0.95).p == 0.5
    assert paired([2.0] * 10, [1.0] * 10, 0.95).p == 2 / 2**10


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_many_tests_make_each_less_sure_and_keep_their_order(ps: list[float]):
    adjusted = holm(ps)
    assert all(p <= one <= 1 for p, one in zip(ps, adjusted, strict=True))
    assert min(adjusted) == min(1.0, min(ps) * len(ps))
    in_order = [one for _, one in sorted(zip(ps, adjusted, strict=True))]
    assert in_order == sorted(in_order)


def test_of_many_comparisons_of_the_same_hardly_ever_one_is_told_apart():
    random = np.random.default_rng(3)
    wrong = 0
    for _ in range(1000):
        there = random.normal(size=8)
        ps = [
            paired((there + random.normal(size=8)).tolist(), there.tolist(), 0.95).p
            for _ in range(10)
        ]
        wrong += any(verdict(1.0, p, 0.95, "lower") != SAME for p in holm(ps))
    assert wrong / 1000 <= 0.05 + 4 * (0.05 * 0.95 / 1000) ** 0.5
    assert wrong > 10  # and now and then one is: the tests are not idle


@pytest.mark.parametrize(
    ("difference", "good", "said"),
    [
        (-1.0, "lower", "better"),
        (1.0, "lower", "worse"),
        (1.0, "higher", "better"),
        (-1.0, "higher", "worse"),
        (1.0, "", "higher"),
        (-1.0, "", "lower"),
    ],
)
def test_which_way_is_good_makes_the_verdict(difference: float, good, said: str):
    assert verdict(difference, 0.01, 0.95, good) == said
    assert verdict(difference, 0.06, 0.95, good) == SAME
