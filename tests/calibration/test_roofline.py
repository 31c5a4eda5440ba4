"""The analytic cost model: exact progressions, monotone costs, sane parts."""

import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration.hardware import gpu, model, model_cards
from calibration.kernels import (
    Efficiencies,
    HostCosts,
    all_reduce_s,
    captured_size,
    experts_touched,
)
from calibration.roofline import TABLE, RooflineCost, roofline_cost
from engine.batch import Batch
from engine.sequence import Sequence
from traces.errors import ConfigError
from traces.request import Request

H200 = gpu("h200")
LLAMA = roofline_cost(model("llama-3.1-8b"), H200)


def batch_of(decodes: int, context: int, chunks: list[tuple[int, int]], horizon: int = 10**9):
    """A step of `decodes` with `context` tokens in all, and chunks as (tokens, context before)."""
    batch = Batch()
    batch.decodes = decodes
    batch.decode_context_tokens = context
    batch.prefill_tokens = sum(chunk for chunk, _ in chunks)
    batch.prefill_context_tokens = sum(chunk + before for chunk, before in chunks)
    batch.prefill_pairs = sum(c * before + c * (c + 1) // 2 for c, before in chunks)
    batch.prefill_pairs_growth = sum(c * c for c, _ in chunks)
    sequence = Sequence(Request(0, 0.0, 1, 1), 0, 0)
    batch.prefills = tuple((sequence, chunk) for chunk, _ in chunks)
    batch.horizon = horizon
    return batch


def step_forward(batch: Batch) -> None:
    """What a step does to the features, by Batch's contract."""
    batch.decode_context_tokens += batch.decodes
    batch.prefill_context_tokens += batch.prefill_tokens
    batch.prefill_pairs += batch.prefill_pairs_growth


def exaggerate(cost: RooflineCost, context: int, pair: int, prefill: int, host: int = 0):
    """The same model with small whole coefficients, so that kinks are everywhere."""
    return replace(
        cost,
        context_ps=context,
        pair_ps=pair,
        prefill_context_ps=prefill,
        host_step_ps=host,
        host_sequence_ps=0,
    )


chunk_lists = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 60)), max_size=3)


@settings(max_examples=300)
@given(
    st.integers(0, 5),
    st.integers(0, 200),
    chunk_lists,
    st.tuples(*[st.integers(0, 50)] * 3),
    st.integers(-100, 4000),
    st.booleans(),
)
def test_progressions_equal_single_steps_to_the_bit(
    decodes, context, chunks, rates, ahead, overlap
):
    tiny = roofline_cost(model("smollm2-135m"), H200, host=HostCosts(overlap_scheduling=overlap))
    batch = batch_of(decodes, max(context, decodes), chunks)
    device = exaggerate(tiny, *rates).progression(batch)[0]
    cost = exaggerate(tiny, *rates, device + ahead)  # the CPU a little slower, or faster
    total = 0
    while total < 120:  # a few progressions, through their kinks
        first, growth, steps = cost.progression(batch)
        assert steps >= 1
        for step in range(min(steps, 40)):
            assert cost.progression(batch)[0] == first + growth * step
            step_forward(batch)
            total += 1


@pytest.mark.parametrize("name", ["llama-3.1-8b", "qwen3-30b-a3b", "smollm2-135m"])
@pytest.mark.parametrize("overlap", [True, False])
@settings(max_examples=25)
@given(
    decodes=st.integers(0, 600),
    each=st.integers(1, 5000),
    chunks=st.lists(st.tuples(st.integers(1, 600), st.integers(0, 9000)), max_size=3),
)
def test_progressions_of_real_models_are_exact(name, overlap, decodes, each, chunks):
    cost = roofline_cost(model(name), H200, host=HostCosts(overlap_scheduling=overlap))
    batch = batch_of(decodes, decodes * each, chunks)
    first, growth, steps = cost.progression(batch)
    for step in range(min(steps, 5)):
        assert cost.progression(batch)[0] == first + growth * step
        step_forward(batch)


def test_a_kink_where_the_gpu_overtakes_the_cpu_ends_the_progression():
    cost = roofline_cost(model("smollm2-135m"), H200)
    batch = batch_of(8, 8 * 100, [])
    host, growth, steps = cost.progression(batch)
    assert (host, growth) == (1_064_000_000, 0)
    assert 1 < steps < batch.horizon
    batch.decode_context_tokens += (steps - 1) * batch.decodes
    assert cost.progression(batch)[0] == host
    batch.decode_context_tokens += batch.decodes
    assert cost.progression(batch)[0] > host
    assert cost.progression(batch)[1] == 8 * cost.context_ps


def test_a_kink_where_prefill_attention_turns_compute_bound_ends_the_progression():
    cost = exaggerate(LLAMA, 0, 4, 40)
    batch = batch_of(0, 0, [(10, 5), (15, 0)])
    _, growth, steps = cost.progression(batch)
    assert growth == 40 * 25
    batch.prefill_context_tokens += steps * 25
    batch.prefill_pairs += steps * 325
    assert cost.progression(batch)[1] == 4 * 325


def test_the_horizon_bounds_the_progression_and_nothing_takes_no_time():
    assert LLAMA.progression(batch_of(4, 4000, [], horizon=7))[2] == 7
    assert LLAMA.progression(batch_of(0, 0, [], horizon=3)) == (0, 0, 3)
    assert LLAMA.explain(batch_of(0, 0, [])) == {}


def test_steps_beyond_the_tables_cost_the_same_way():
    small, large = (LLAMA.progression(batch_of(0, 0, [(n, 0)]))[0] for n in (TABLE - 1, TABLE))
    assert small < large < 1.001 * small
    assert LLAMA.progression(batch_of(TABLE, TABLE, []))[0] > 0


@pytest.mark.parametrize("name", model_cards())
@given(
    st.integers(1, 700),
    st.integers(0, 10**6),
    st.lists(st.tuples(st.integers(1, 2000), st.integers(0, 10**5)), max_size=3),
    st.sampled_from(["decode", "context", "chunk", "before"]),
)
@settings(max_examples=20)
def test_cost_never_falls_when_a_feature_grows(name, decodes, context, chunks, more):
    cost = roofline_cost(model(name), H200)
    before = cost.progression(batch_of(decodes, context, chunks))[0]
    if more == "decode":
        after = cost.progression(batch_of(decodes + 1, context, chunks))[0]
    elif more == "context":
        after = cost.progression(batch_of(decodes, context + 1000, chunks))[0]
    elif more == "chunk":
        after = cost.progression(batch_of(decodes, context, [*chunks, (1, 0)]))[0]
    else:
        longer = [(chunk, start + 500) for chunk, start in chunks]
        after = cost.progression(batch_of(decodes, context, longer))[0]
    assert after >= before


@given(
    st.integers(0, 700), st.integers(1, 4000), chunk_lists, st.booleans(), st.sampled_from([1, 4])
)
@settings(max_examples=60)
def test_the_parts_sum_to_the_step(decodes, each, chunks, overlap, tp):
    host = HostCosts(overlap_scheduling=overlap)
    cost = roofline_cost(model("qwen3-30b-a3b"), H200, tp, "fp8", "fp8", host=host)
    batch = batch_of(decodes, decodes * each, chunks)
    parts = cost.explain(batch)
    assert min(parts.values(), default=0.0) >= 0.0
    assert sum(parts.values()) == pytest.approx(cost.progression(batch)[0] / 1e12, abs=1e-12)


def test_a_smaller_cache_halves_decode_attention():
    full, half = (roofline_cost(LLAMA.shape, H200, kv_dtype=dtype) for dtype in ("bf16", "fp8"))
    assert half.context_ps == pytest.approx(full.context_ps / 2, rel=1e-3)
    assert half.pair_ps == full.pair_ps  # compute stays in 16 bits


def test_tensor_parallelism_divides_work_and_adds_communication():
    shape = model("llama-3.1-70b")
    batch = batch_of(16, 16 * 2000, [])
    one, four = (roofline_cost(shape, H200, tp).explain(batch) for tp in (1, 4))
    assert four["linear layers"] == pytest.approx(one["linear layers"] / 4, rel=1e-3)
    assert four["decode attention"] == pytest.approx(one["decode attention"] / 4, rel=1e-3)
    assert one["all-reduce"] == 0 < four["all-reduce"]
    assert 1 / 4 < sum(four.values()) / sum(one.values()) < 1 / 2
    slow = roofline_cost(shape, gpu("l40s"), 4).explain(batch)
    assert slow["all-reduce"] > 10 * four["all-reduce"]


def test_experts_touched_from_one_token_to_many():
    assert experts_touched(128, 8, 1) == pytest.approx(8)
    assert experts_touched(128, 8, 0) == 0
    assert experts_touched(128, 8, 10**6) == pytest.approx(128)
    touched = experts_touched(8, 2, np.arange(100))
    assert (np.diff(touched) > 0).all()


def test_graph_sizes_are_those_of_a_recorded_engine(shared: Path):
    folder = shared / "ground-truth" / "rtx4090-llama-3.1-8b-vllm"
    sizes = json.loads((folder / "meta.json").read_text())["cudagraph_capture_sizes"]
    assert sorted({captured_size(n) for n in range(1, 513)}) == sizes
    assert all(captured_size(n) == min(s for s in sizes if s >= n) for n in range(1, 513))


def test_all_reduce_formulas():
    nvlink, mesh, pcie = H200, gpu("mi300x"), gpu("l4")
    assert all_reduce_s(10**6, 1, nvlink, 1.0) == 0
    assert all_reduce_s(0, 8, nvlink, 1.0) == pytest.approx(5e-6)  # one-shot
    large = all_reduce_s(10**9, 8, nvlink, 1.0)
    assert large == pytest.approx(2 * 7 / 8 * 10**9 / 450e9, rel=0.01)  # two-shot
    assert all_reduce_s(0, 4, pcie, 1.0) == pytest.approx(6 * 10e-6)
    assert all_reduce_s(10**9, 2, mesh, 1.0) == pytest.approx(1e9 / 64e9, rel=0.01)


def test_the_place_on_the_roofline():
    features = ([64, 0], [64 * 1024, 0], [0, 2048], [0, 2048], [0, 2048 * 2049 // 2], [64, 1])
    flops, moved = LLAMA.roofline.work(*features)
    intensity = flops / moved
    ridge = LLAMA.roofline.peak_flops_per_s / LLAMA.roofline.memory_bytes_per_s
    assert intensity[0] < ridge < intensity[1]  # decodes wait for memory, prefills for compute
    assert flops[1] == pytest.approx(2 * 7.0e9 * 2048, rel=0.05)
    seconds = [
        LLAMA.progression(batch_of(64, 64 * 1024, []))[0] / 1e12,
        LLAMA.progression(batch_of(0, 0, [(2048, 0)]))[0] / 1e12,
    ]
    assert (flops / seconds < LLAMA.roofline.peak_flops_per_s).all()
    assert (moved / seconds < LLAMA.roofline.memory_bytes_per_s).all()


def test_settings_change_what_they_name():
    batch = batch_of(64, 64 * 1024, [])
    slower = roofline_cost(LLAMA.shape, H200, efficiencies=Efficiencies(attention_memory=0.4))
    ratio = slower.explain(batch)["decode attention"] / LLAMA.explain(batch)["decode attention"]
    assert ratio == pytest.approx(2, rel=1e-3)
    summed = roofline_cost(LLAMA.shape, H200, host=HostCosts(overlap_scheduling=False))
    host_ps = 1_000_000_000 + 64 * 8_000_000
    assert summed.progression(batch)[0] == LLAMA.progression(batch)[0] + host_ps
    tiny = model("smollm2-135m")
    graphs, eager = (
        roofline_cost(tiny, H200, host=HostCosts(graph_max_tokens=most)) for most in (512, 0)
    )
    assert graphs.explain(batch)["launches"] == 0 < eager.explain(batch)["launches"]


def test_it_is_a_value():
    LLAMA.progression(batch_of(3, 3000, []))
    again = roofline_cost(model("llama-3.1-8b"), H200)
    assert again == LLAMA == pickle.loads(pickle.dumps(LLAMA))
    assert hash(again) == hash(LLAMA)
    assert again != roofline_cost(model("llama-3.1-8b"), H200, kv_dtype="fp8")


def test_unknown_dtypes_are_refused():
    with pytest.raises(ConfigError, match="weight dtype 'fp4' is unknown; known: bf16"):
        roofline_cost(LLAMA.shape, H200, weight_dtype="fp4")
    with pytest.raises(ConfigError, match="kv dtype 'int2' is unknown"):
        roofline_cost(LLAMA.shape, H200, kv_dtype="int2")
