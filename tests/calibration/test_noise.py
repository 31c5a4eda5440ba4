"""Step noise: mean, spread and autocorrelation as measured, the same for the same generator."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from calibration.costs import LinearCost
from calibration.noise import Noise, NoisyCost, noise_of
from tests.calibration.test_roofline import batch_of

COST = LinearCost(10**9, 0, 10**6, 10**3)
SKEWED = Noise(
    quantiles=tuple(
        np.exp(0.3 * np.random.default_rng(0).standard_normal(101)).cumsum() / 400 - 0.1
    ),
    autocorrelation=0.6,
)


def factors(noise: Noise, steps: int, seed: int = 0) -> np.ndarray:
    cost = NoisyCost(COST, noise, np.random.default_rng(seed))
    batch = batch_of(4, 4000, [])
    first = COST.progression(batch)[0]
    return np.array([cost.progression(batch)[0] for _ in range(steps)]) / first


@pytest.mark.parametrize("autocorrelation", [-0.2, 0.0, 0.5, 0.9])
@pytest.mark.parametrize("shape", ["even", "tail", "two lumps"])
def test_mean_spread_and_autocorrelation_are_those_given(autocorrelation, shape):
    levels = (np.arange(101) + 0.5) / 101
    quantiles = {
        "even": 0.2 * levels - 0.1,
        "tail": 0.02 / (1.05 - levels) - 0.06,
        "two lumps": np.where(levels < 0.7, -0.05, 0.1) + 0.01 * levels,
    }[shape]
    noise = Noise(quantiles=tuple(quantiles), autocorrelation=autocorrelation)
    drawn = factors(noise, 60_000) - 1
    assert drawn.mean() == pytest.approx(quantiles.mean(), abs=0.04 * quantiles.std())
    assert drawn.std() == pytest.approx(quantiles.std(), rel=0.05)
    assert np.corrcoef(drawn[:-1], drawn[1:])[0, 1] == pytest.approx(autocorrelation, abs=0.03)


def test_the_same_generator_gives_the_same_steps():
    assert (factors(SKEWED, 5000) == factors(SKEWED, 5000)).all()
    assert (factors(SKEWED, 50) != factors(SKEWED, 50, seed=1)).any()


@given(st.lists(st.floats(-0.999, 5), min_size=1, max_size=9), st.floats(-0.9, 0.9))
@settings(max_examples=60)
def test_steps_take_time_and_no_more_than_the_noise_allows(values, autocorrelation):
    noise = Noise(quantiles=tuple(sorted(values)), autocorrelation=autocorrelation)
    drawn = factors(noise, 200)
    assert (drawn > 0).all()
    assert (drawn >= 1 + min(values) - 1e-6).all() and (drawn <= 1 + max(values) + 1e-6).all()


def test_each_step_is_a_progression_of_its_own_and_nothing_takes_no_time():
    cost = NoisyCost(COST, SKEWED, np.random.default_rng(0))
    assert cost.progression(batch_of(4, 4000, []))[1:] == (0, 1)
    assert cost.progression(batch_of(0, 0, [])) == (0, 0, 1)
    still = LinearCost(1, 0, 0, 0)
    assert NoisyCost(still, Noise(quantiles=(-0.9,)), np.random.default_rng(0)).progression(
        batch_of(1, 1, [])
    ) == (1, 0, 1)


def test_noise_of_residuals_gives_them_back():
    random = np.random.default_rng(3)
    residuals = np.zeros(20_000)
    for i in range(1, len(residuals)):
        residuals[i] = 0.7 * residuals[i - 1] + 0.02 * random.standard_normal()
    noise = noise_of(residuals, np.stack([residuals[:-1], residuals[1:]]))
    assert noise.autocorrelation == pytest.approx(0.7, abs=0.02)
    drawn = factors(noise, 40_000) - 1
    assert drawn.std() == pytest.approx(residuals.std(), rel=0.05)
    assert np.corrcoef(drawn[:-1], drawn[1:])[0, 1] == pytest.approx(0.7, abs=0.03)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"quantiles": [0.1, 0.0]}, "must not fall"),
        ({"quantiles": [-1.0, 0.0]}, "above -1"),
        ({"quantiles": []}, "at least 1 item"),
        ({"quantiles": [0.0], "autocorrelation": 1.0}, "0.99"),
        ({"quantiles": [float("nan")]}, "finite"),
    ],
)
def test_what_is_no_noise_is_refused(wrong, message):
    with pytest.raises(ValidationError, match=message):
        Noise.model_validate(wrong)
