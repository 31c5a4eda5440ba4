"""The test of a share, and the search that rests on it: their errors are what they say."""

from math import ceil, log2
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.planning.bisecting import Bisection
from sim.planning.sequential import ShareTest
from traces.errors import ConfigError


def error_of(test: ShareTest, chance: float, *, above: bool) -> float:
    """Probability that any look says so, if tries succeed with `chance`: path by path, exactly."""
    alive = {0: 1.0}
    said = 0.0
    for tries in range(1, test.most + 1):
        after: dict[int, float] = {}
        for successes, weight in alive.items():
            after[successes] = after.get(successes, 0.0) + weight * (1 - chance)
            after[successes + 1] = after.get(successes + 1, 0.0) + weight * chance
        alive = {}
        for successes, weight in after.items():
            decides = False
            if tries in test.looks:
                above_it = successes >= test.least_for_above(tries)
                decides = above_it if above else successes <= test.most_for_below(tries)
            if decides:
                said += weight
            else:
                alive[successes] = weight
    return said


@pytest.mark.parametrize("share", [0.5, 0.9, 0.2])
@pytest.mark.parametrize("error", [0.025, 0.1])
@pytest.mark.parametrize("most", [60, 200])
def test_looking_often_errs_no_more_than_stated(share: float, error: float, most: int) -> None:
    """And not so much less that the statement would be idle."""
    test = ShareTest(share, error, most)
    assert 0.6 * error <= error_of(test, share, above=True) <= error * (1 + 1e-9)
    assert 0.6 * error <= error_of(test, share, above=False) <= error * (1 + 1e-9)
    # where it is not a close call, it errs hardly ever
    assert error_of(test, share / 2, above=True) <= error / 5
    assert error_of(test, (1 + share) / 2, above=False) <= error / 5


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_it_decides(share: float) -> None:
    """Clear cases at the first look, nearly clear ones in the end."""
    test = ShareTest(share, 0.025, 100)
    assert test.least_for_above(test.fewest) <= test.fewest
    assert test.most_for_below(test.fewest) >= 0
    assert error_of(test, share + 0.9 * (1 - share), above=True) > 0.99
    assert error_of(test, share / 2, above=False) > 0.99


@given(st.floats(0.1, 0.9), st.floats(0.005, 0.2), st.integers(0, 60))
def test_looks_grow_and_end_with_the_last_try(share: float, error: float, more: int) -> None:
    fewest = ShareTest(share, error, 10_000).fewest
    test = ShareTest(share, error, fewest + more)
    assert test.looks[0] == fewest
    assert test.looks[-1] == fewest + more
    assert list(test.looks) == sorted(set(test.looks))
    for tries in test.looks:
        assert test.most_for_below(tries) < share * tries < test.least_for_above(tries)


def test_too_few_tries_to_decide() -> None:
    with pytest.raises(ConfigError, match=r"--replications 5: are too few .* expected at least 7"):
        ShareTest(0.5, 0.025, 5)


def test_a_share_is_one() -> None:
    with pytest.raises(ConfigError, match="above 0 and below 1, got 1"):
        ShareTest(1.0, 0.1, 50)


# ---- the search

DOUBLING = 139
"""Steps of half a percent."""


class Lottery:
    """Replications that each have a rate of their own, lognormal about a median."""

    def __init__(self, seed: int, spread: float, median: float = 1.7) -> None:
        own = np.random.default_rng(seed).normal(np.log2(median), spread / np.log(2), 100)
        self.steps: list[int] = np.floor(own * DOUBLING).astype(int).tolist()
        self.asked: list[tuple[int, int]] = []

    def meets(self, at: int, numbers: object) -> list[bool]:
        numbers = [int(number) for number in numbers]  # type: ignore[attr-defined]
        self.asked += [(at, number) for number in numbers]
        return [at <= self.steps[number] for number in numbers]

    def search(self, share: float = 0.5, most: int = 30, error: float = 0.025) -> Bisection:
        return Bisection(
            self.meets, ShareTest(share, error, most), DOUBLING, -10 * DOUBLING, 20 * DOUBLING, 4
        )


def within(error: float) -> float:
    """Share of 1,000 searches whose interval has the true median."""
    true = log2(1.7) * DOUBLING
    found = [Lottery(seed, 0.03).search(most=20, error=error).run() for seed in range(1000)]
    return sum(
        (one.low is None or one.low <= true) and (one.high is None or true <= one.high)
        for one in found
    ) / len(found)


def test_a_search_over_many_rates_errs_no_more_than_one_test() -> None:
    """At a confidence of 80 % no less of the intervals have the true median. More do, for many a
    search ends at another look than that which would have erred; but a laxer test has fewer."""
    assert within(error=0.1) >= 0.8
    assert within(error=0.4) < within(error=0.1) - 0.05


def test_a_share_of_hours_is_a_quantile() -> None:
    true = (log2(1.7) - NormalDist().inv_cdf(0.75) * 0.02 / np.log(2)) * DOUBLING
    found = [Lottery(seed, 0.02).search(share=0.75, most=40).run() for seed in range(100)]
    off = [one.at + 0.5 - true for one in found]
    assert abs(np.mean(off)) < 1.0
    assert sum(one.low is not None and one.low > true for one in found) <= 5
    assert sum(one.high is not None and one.high < true for one in found) <= 5


def test_easy_rates_take_one_replication_and_hard_ones_more() -> None:
    lottery = Lottery(3, 0.01)
    lottery.search().run()
    tried = {at: 0 for at, _ in lottery.asked}
    for at, _ in lottery.asked:
        tried[at] += 1
    true = log2(1.7) * DOUBLING
    far = [count for at, count in tried.items() if abs(at - true) > 20]
    assert far
    assert max(far) == 1
    assert max(tried.values()) >= 5
    assert len(lottery.asked) == len(set(lottery.asked))  # none twice
    assert len(lottery.asked) < 50


def test_nothing_is_met_and_everything_is() -> None:
    none = Lottery(0, 0.01)
    none.steps = [-100 * DOUBLING] * 100
    found = none.search().run()
    assert (found.low, found.high, found.decided) == (None, -10 * DOUBLING, True)
    every = Lottery(0, 0.01)
    every.steps = [100 * DOUBLING] * 100
    found = every.search().run()
    assert (found.at, found.low, found.high) == (20 * DOUBLING, 20 * DOUBLING, None)


@given(st.integers(-1200, 2500))
def test_without_luck_one_replication_says_all(step: int) -> None:
    asked: list[int] = []

    def meets(at: int, numbers: object) -> list[bool]:
        asked.append(at)
        return [at <= step]

    found = Bisection(meets, None, DOUBLING, -10 * DOUBLING, 20 * DOUBLING, 4, first=0).run()
    assert (found.at, found.low, found.high) == (step, step, step + 1)
    assert len(asked) <= 20 + 2 + ceil(log2(DOUBLING))


def test_counts_are_of_all_that_is_known() -> None:
    lottery = Lottery(5, 0.02)
    search = lottery.search(most=12)
    found = search.run()
    for at, _ in lottery.asked:
        met, missed = search.counts(at, found.replications)
        numbers = range(1, found.replications + 1)
        assert met <= sum(lottery.steps[number] >= at for number in numbers)
        assert missed <= sum(lottery.steps[number] < at for number in numbers)
        assert met + missed >= 1


@pytest.mark.parametrize("spread", [0.005, 0.03, 0.2])
def test_the_ends_are_where_the_test_says_so(spread: float) -> None:
    """By all replications there are, those not simulated at a rate included."""
    for seed in range(30):
        lottery = Lottery(seed, spread)
        search = lottery.search()
        found, test = search.run(), search.test
        assert test is not None
        assert found.low is not None
        assert found.high is not None
        count = found.replications
        own = lottery.steps[1 : count + 1]
        assert sum(step >= found.low for step in own) >= test.least_for_above(count)
        assert sum(step >= found.high for step in own) <= test.most_for_below(count)
        if not found.decided:  # and not a step further in
            assert sum(step >= found.low + 1 for step in own) < test.least_for_above(count)
            assert sum(step >= found.high - 1 for step in own) > test.most_for_below(count)
