"""The fitted cost: exact progressions, monotone steps, parts that sum up, draws."""

import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from calibration.fitted import (
    TABLE,
    TERMS,
    Curve,
    FittedSettings,
    GraphSettings,
    fitted_cost,
)
from tests.calibration.steps import GPU
from tests.calibration.test_roofline import batch_of, step_forward

PICO = 1e-12

chunk_lists = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 60)), max_size=3)

graph_settings = st.builds(
    GraphSettings,
    sizes=st.lists(st.integers(1, 40), max_size=4, unique=True).map(lambda s: tuple(sorted(s))),
    steps=st.sampled_from(["decodes", "all"]),
)


@st.composite
def costs(draw: st.DrawFn) -> FittedSettings:
    """Costs with small whole picoseconds as coefficients, so that kinks are everywhere."""
    stated: dict[str, Any] = {
        term: draw(st.integers(0, 60)) * PICO for term in TERMS if not term.startswith("host_")
    }
    stated["weights_s"] = draw(st.integers(0, 600)) * PICO
    stated["host_step_s"] = draw(st.integers(0, 6000)) * PICO
    stated["host_sequence_s"] = draw(st.integers(0, 100)) * PICO
    graphs = draw(graph_settings)
    if not graphs.sizes:
        stated["eager_s"] = 0
    knots = sorted(draw(st.lists(st.integers(0, 50), max_size=4, unique=True)))
    seconds = tuple(draw(st.integers(-500, 500)) * PICO for _ in knots)
    return FittedSettings(
        kind="fitted", graphs=graphs, curve=Curve(tokens=tuple(knots), seconds=seconds), **stated
    )


@settings(max_examples=300)
@given(costs(), st.integers(0, 5), st.integers(0, 200), chunk_lists, st.booleans())
def test_progressions_equal_single_steps_to_the_bit(stated, decodes, context, chunks, overlap):
    cost = fitted_cost(stated, async_scheduling=overlap)
    batch = batch_of(decodes, max(context, decodes), chunks)
    total = 0
    while total < 120:  # a few progressions, through their kinks
        first, growth, steps = cost.progression(batch)
        assert steps >= 1
        for step in range(min(steps, 40)):
            assert cost.progression(batch)[0] == first + growth * step
            step_forward(batch)
            total += 1


def test_the_device_overtaking_the_host_ends_a_progression():
    stated = FittedSettings(
        kind="fitted", step_s=100 * PICO, context_s=10 * PICO, host_step_s=200 * PICO
    )
    cost = fitted_cost(stated, async_scheduling=True)
    batch = batch_of(1, 1, [])
    assert cost.progression(batch) == (200, 0, 10)
    for _ in range(10):
        step_forward(batch)
    assert cost.progression(batch) == (210, 10, 10**9)


def test_pairs_overtaking_contexts_end_a_progression():
    stated = FittedSettings(kind="fitted", pair_s=4 * PICO, prefill_context_s=40 * PICO)
    cost = fitted_cost(stated, async_scheduling=False)
    batch = batch_of(0, 0, [(10, 5), (15, 0)])
    _, growth, steps = cost.progression(batch)
    assert growth == 40 * 25
    batch.prefill_context_tokens += steps * 25
    batch.prefill_pairs += steps * 325
    assert cost.progression(batch)[1] == 4 * 325


@given(
    costs(),
    st.integers(1, 60),
    st.integers(0, 10**6),
    chunk_lists,
    st.booleans(),
    st.sampled_from(["decode", "context", "chunk", "token", "before"]),
)
@settings(max_examples=300)
def test_cost_never_falls_when_a_feature_grows(stated, decodes, context, chunks, overlap, more):
    # The first chunk of a step that replays graphs only for decodes saves it the padding.
    assume(chunks or more != "chunk" or stated.graphs.steps == "all" or not stated.graphs.sizes)
    cost = fitted_cost(stated, async_scheduling=overlap)
    larger_chunks = {
        "chunk": [*chunks, (1, 0)],
        "token": [(tokens + 1, before) for tokens, before in chunks],
        "before": [(tokens, before + 50) for tokens, before in chunks],
    }.get(more, chunks)
    before = cost.progression(batch_of(decodes, context, chunks))[0]
    after = cost.progression(
        batch_of(decodes + (more == "decode"), context + 100 * (more == "context"), larger_chunks)
    )[0]
    assert after >= before >= 0


@given(costs(), st.integers(0, 60), st.integers(0, 4000), chunk_lists, st.booleans())
@settings(max_examples=100)
def test_the_parts_sum_to_the_step(stated, decodes, each, chunks, overlap):
    cost = fitted_cost(stated, async_scheduling=overlap)
    batch = batch_of(decodes, decodes * each, chunks)
    parts = cost.explain(batch)
    assert sum(parts.values()) == pytest.approx(cost.progression(batch)[0] * PICO, abs=0.01 * PICO)
    assert all(part >= 0 for name, part in parts.items() if name != "curve")


def test_the_form_is_the_documented_one():
    truth = GPU | {"eager_s": 1e-3}
    stated = FittedSettings(kind="fitted", graphs=GraphSettings(sizes=(4, 8)), **truth)
    sum_s = fitted_cost(stated, async_scheduling=False).progression(batch_of(5, 500, []))[0] * PICO
    device_s = 3e-4 + 3.6e-3 + 1.5e-6 * 8 + 4e-6 * 5 + 3.2e-8 * 500
    host_s = 8e-4 + 5 * 7e-6
    assert sum_s == pytest.approx(device_s + host_s, rel=1e-6)
    overlapped = fitted_cost(stated, async_scheduling=True)
    assert overlapped.progression(batch_of(5, 500, []))[0] * PICO == pytest.approx(device_s)
    chunked = overlapped.progression(batch_of(5, 500, [(1000, 3000)]))[0] * PICO
    tokens_s = 3e-4 + 1e-3 + (2.2e-5 + 1.5e-6) * 1005
    prefill_s = 6e-5 + max(1.1e-9 * (1000 * 3000 + 500500), 1.4e-7 * 4000)
    assert chunked == pytest.approx(tokens_s + 4e-6 * 5 + 3.2e-8 * 500 + prefill_s)


def test_steps_beyond_the_tables_cost_the_same_way():
    cost = fitted_cost(FittedSettings(kind="fitted", **GPU), async_scheduling=True)
    small, large = (cost.progression(batch_of(0, 0, [(n, 0)]))[0] for n in (TABLE - 1, TABLE))
    assert small < large < 1.001 * small
    assert cost.progression(batch_of(TABLE, TABLE, []))[0] > 0


def test_nothing_takes_no_time_and_the_horizon_bounds_a_progression():
    cost = fitted_cost(FittedSettings(kind="fitted", **GPU), async_scheduling=True)
    assert cost.progression(batch_of(0, 0, [], horizon=3)) == (0, 0, 3)
    assert cost.explain(batch_of(0, 0, [])) == {}
    assert cost.progression(batch_of(4, 4000, [], horizon=7))[2] == 7


def test_it_is_a_value():
    stated = FittedSettings(kind="fitted", **GPU)
    cost = fitted_cost(stated, async_scheduling=True)
    cost.progression(batch_of(3, 3000, []))
    again = fitted_cost(stated.model_copy(), async_scheduling=True)
    assert again == cost == pickle.loads(pickle.dumps(cost))
    assert again != fitted_cost(stated, async_scheduling=False)


def test_draws_follow_intervals_and_correlation():
    stated = FittedSettings(
        kind="fitted",
        step_s={"value": 1.0, "low": 0.804, "high": 1.196},
        token_s={"value": 2.0, "low": 1.02, "high": 2.98},
        decode_s={"value": 0.0, "low": 0.0, "high": 1.0},
        context_s=5.0,
        correlation={"terms": ["step_s", "token_s"], "rows": [[1, -0.8], [-0.8, 1]]},
    )
    random = np.random.default_rng(1)
    draws = [stated.drawn(random) for _ in range(4000)]
    step, token, decode = (
        np.array([getattr(one, term).value for one in draws])
        for term in ("step_s", "token_s", "decode_s")
    )
    assert step.std() == pytest.approx(0.1, rel=0.05) and step.mean() == pytest.approx(1, abs=0.01)
    assert token.std() == pytest.approx(0.5, rel=0.05)
    assert np.corrcoef(step, token)[0, 1] == pytest.approx(-0.8, abs=0.03)
    assert decode.min() == 0.0 and (decode == 0).mean() == pytest.approx(0.5, abs=0.05)
    assert all(one.context_s.value == 5.0 and not one.has_intervals for one in draws)
    assert stated.drawn(np.random.default_rng(7)) == stated.drawn(np.random.default_rng(7))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"step_s": -1e-3}, "greater than or equal to 0"),
        ({"step_s": float("nan")}, "finite number"),
        ({"step_s": {"value": 1, "low": 2, "high": 3}}, "between low and high"),
        ({"step_s": {"value": 1, "low": 0}}, "both or neither"),
        ({"eager_s": 1e-3}, "needs graphs.sizes"),
        ({"curve": {"tokens": [4, 2], "seconds": [0, 0]}}, "increasing"),
        ({"curve": {"tokens": [4], "seconds": []}}, "one for each of 1 tokens, got 0"),
        ({"graphs": {"sizes": [0, 2]}}, "increasing and above 0"),
        ({"correlation": {"terms": ["step_s"], "rows": [[1]]}}, "step_s has no interval"),
        ({"correlation": {"terms": ["steps"], "rows": [[1]]}}, "'steps' is unknown"),
        ({"correlation": {"terms": ["step_s"], "rows": []}}, "1 rows of 1"),
        (
            {"correlation": {"terms": ["step_s", "pair_s"], "rows": [[1, 0.5], [0.4, 1]]}},
            "symmetric.*0.5 for step_s and pair_s",
        ),
    ],
)
def test_what_is_no_cost_is_refused(wrong, message):
    with pytest.raises(ValidationError, match=message):
        FittedSettings.model_validate({"kind": "fitted", **wrong})
