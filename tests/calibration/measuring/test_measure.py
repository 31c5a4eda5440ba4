from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration.measuring.design import Limits, Point, space_filling
from calibration.measuring.measure import Bench
from tests.calibration.engines import TRUTH, HandClock, Lawful, lawful_settings

LIMITS = Limits(
    max_sequences=64,
    max_tokens=1024,
    max_context_tokens=4096,
    pool_blocks=1999,
    block_tokens=16,
)


def bench_of(executor: Lawful) -> Bench:
    return Bench(executor, lawful_settings(), executor.clock)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(40, 1999))
def test_the_engine_runs_exactly_the_points_that_are_asked_for(seed, pool_blocks):
    random = np.random.default_rng(seed)
    limits = replace(LIMITS, pool_blocks=pool_blocks)
    executor = Lawful(HandClock(), num_blocks=pool_blocks + 1)
    bench = bench_of(executor)
    for point in space_filling(limits, 12, random):
        for number, step in enumerate(bench.measure(point, 3, random), 1):
            wanted = point.features(limits)
            assert step.decodes == wanted.decodes
            assert step.prefills == wanted.prefills
            assert step.prefill_tokens == wanted.prefill_tokens
            assert step.prefill_context_tokens == wanted.prefill_context_tokens
            assert step.prefill_pairs == wanted.prefill_pairs
            grown = sum(point.contexts()) + number * point.decodes
            assert step.decode_context_tokens == grown
            assert abs(sum(point.contexts()) - wanted.decode_context_tokens) <= 2 * point.decodes
    assert not executor.rows


def test_time_is_that_of_the_whole_step_and_of_the_device():
    executor = Lawful(HandClock())
    point = Point(decodes=10, context_tokens=1000)
    (step,) = bench_of(executor).measure(point, 1, np.random.default_rng(0))
    device_s = 0.002 + 0.010 + 10 * 0.0001 + step.decode_context_tokens * 4e-7
    assert step.device_s == pytest.approx(device_s, rel=1e-6)
    host_s = TRUTH.host_step_s.value + 10 * TRUTH.host_sequence_s.value
    assert step.time_s == pytest.approx(device_s + host_s, rel=1e-6)


def test_setting_up_computes_next_to_nothing():
    executor = Lawful(HandClock())
    point = Point(decodes=8, context_tokens=1000, prefills=2, chunk_tokens=100, before_tokens=2000)
    bench_of(executor).measure(point, 2, np.random.default_rng(0))
    setup, *steps = executor.launched
    assert [share.chunk for share in setup.prefills] == [1] * 8
    assert len(steps) == 3  # one to warm up


def test_what_is_cached_before_a_chunk_is_its_own():
    executor = Lawful(HandClock())  # which refuses shared blocks
    point = Point(prefills=4, chunk_tokens=50, before_tokens=640)
    for step in bench_of(executor).measure(point, 3, np.random.default_rng(0)):
        assert step.prefill_context_tokens == 4 * 690


def test_another_step_than_asked_for_is_a_fault():
    executor = Lawful(HandClock(), num_blocks=20)
    with pytest.raises(RuntimeError, match="asked for Point"):
        bench_of(executor).measure(
            Point(decodes=4, context_tokens=200), 2, np.random.default_rng(0)
        )
