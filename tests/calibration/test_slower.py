"""A cost model made slower: every step takes as many times as long, and progressions stay exact."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.costs import CostModel, LinearCost
from calibration.fitted import FittedSettings, fitted_cost
from calibration.hardware import gpu, model
from calibration.operators import operator_cost
from calibration.roofline import roofline_cost
from calibration.slower import SLOWER
from tests.calibration.test_operators import tables
from tests.calibration.test_roofline import batch_of, step_forward

FITTED = FittedSettings.model_validate(
    {
        "kind": "fitted",
        "step_s": {"value": 2e-3, "low": 1.9e-3, "high": 2.1e-3},
        "eager_s": 3e-4,
        "weights_s": 4e-3,
        "token_s": 3e-5,
        "decode_s": 1e-6,
        "context_s": 2e-8,
        "chunk_s": 5e-6,
        "pair_s": 1e-9,
        "prefill_context_s": 3e-8,
        "host_step_s": 5e-3,
        "host_sequence_s": 1e-5,
        "curve": {"tokens": [8, 64], "seconds": [1e-4, -1e-4]},
        "graphs": {"sizes": [1, 2, 4, 8, 16]},
    }
)
COSTS: tuple[CostModel, ...] = (
    LinearCost(4_000_000_000, 30_000_000, 50_000_000, 20_000),
    roofline_cost(model("llama-3.1-8b"), gpu("h200")),
    roofline_cost(model("qwen3-30b-a3b"), gpu("h100"), 2, "fp8", "int8"),
    fitted_cost(FITTED, async_scheduling=True),
    fitted_cost(FITTED, async_scheduling=False),
    operator_cost(tables(), (1, 2, 4, 8), 1e-4, 1e-3, 1e-6),
)
batches = st.builds(
    batch_of,
    st.integers(1, 600),
    st.integers(600, 10**6),
    st.lists(st.tuples(st.integers(1, 3000), st.integers(0, 10_000)), max_size=3),
)


@given(st.sampled_from(COSTS), batches, st.sampled_from([0.3, 0.9, 1.1, 7.0]))
def test_a_step_takes_so_many_times_as_long(cost, batch, factor):
    slow = SLOWER[type(cost)](cost, factor)
    whole, slowed = cost.progression(batch)[0], slow.progression(batch)[0]
    assert slowed == pytest.approx(factor * whole, rel=2e-3)  # coefficients are whole picoseconds


@given(st.sampled_from(COSTS), batches, st.floats(0.3, 7.0))
def test_its_progressions_are_exact(cost, batch, factor):
    slow = SLOWER[type(cost)](cost, factor)
    first, growth, steps = slow.progression(batch)
    for step in range(min(steps, 20)):
        assert slow.progression(batch)[0] == first + step * growth
        step_forward(batch)


def test_nothing_is_slower_by_a_factor_of_one():
    for cost in COSTS:
        same = SLOWER[type(cost)](cost, 1.0)
        steps = [batch_of(n, 1000 * n, [(m, 50)] if m else []) for n in (1, 30) for m in (0, 700)]
        assert [same.progression(one) for one in steps] == [cost.progression(one) for one in steps]


def test_measured_operators_stay_as_they_were():
    measured = tables()
    cost = operator_cost(measured)
    SLOWER[type(cost)](cost, 3.0)
    np.testing.assert_array_equal(measured.attention.prefill, tables().attention.prefill)
    assert replace(measured, attention=None) == replace(tables(), attention=None)
