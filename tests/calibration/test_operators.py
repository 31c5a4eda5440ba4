"""Step costs composed from operator tables: exact progressions, and what the tables say."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.costs import PICOSECONDS
from calibration.operators import (
    AttentionTable,
    Curve,
    OperatorCost,
    OperatorTables,
    SkewTable,
    filled,
    operator_cost,
)
from engine.decoding import DecodeSet
from engine.sequence import Sequence
from tests.calibration.test_roofline import batch_of, step_forward
from traces.request import Request

CHUNKS = (16, 64, 256)
CONTEXTS = (0, 16, 64, 256)
COUNTS = (1, 4, 16)
LENGTHS = (16, 64, 256)


def attention(mixed: bool = True) -> AttentionTable:
    """A made-up GPU: times grow with pairs and with keys read, with a floor; ps are exaggerated."""
    prefill = np.array([[1e-6 + 3e-9 * c * (h + (c + 1) / 2) for h in CONTEXTS] for c in CHUNKS])
    decode = np.array([[2e-6 + 7e-9 * n * k**1.1 for k in LENGTHS] for n in COUNTS])
    both = prefill[:, :, None, None] + 2 * decode[None, None]
    return AttentionTable(
        CHUNKS,
        CONTEXTS,
        COUNTS,
        LENGTHS,
        prefill,
        decode,
        both if mixed else np.empty(0),
    )


def tables(mixed: bool = True) -> OperatorTables:
    return OperatorTables(
        tokens=Curve((1, 8, 32, 256), (1e-4, 1.1e-4, 1.6e-4, 9e-4)),
        rows=Curve((1, 16), (1e-5, 4e-5)),
        attention=attention(mixed),
    )


COST = operator_cost(tables())
SLOW_HOST = operator_cost(tables(), (1, 2, 4, 8, 16, 32), 1e-6, 1.3e-4, 1e-7)
ALONE = operator_cost(tables(), host_step_s=1e-4, overlap=False)


def seconds(cost: OperatorCost, *step: object) -> float:
    return cost.progression(batch_of(*step))[0] / PICOSECONDS


@given(
    st.sampled_from((COST, SLOW_HOST, ALONE)),
    st.integers(1, 40),
    st.integers(0, 20_000),
    st.integers(1, 400),
)
def test_a_progression_is_what_its_steps_are_one_by_one(cost, decodes, context, horizon):
    batch = batch_of(decodes, decodes + context, [], horizon)
    first, growth, steps = cost.progression(batch)
    assert 1 <= steps <= horizon
    for step in range(min(steps, 300)):
        assert cost.progression(batch)[0] == first + step * growth
        step_forward(batch)


@given(st.integers(1, 40), st.integers(1, 20_000))
def test_longer_contexts_never_cost_less(decodes, context):
    assert seconds(COST, decodes, decodes + context, []) <= seconds(
        COST, decodes, decodes + context + 1, []
    )


def test_at_the_grid_the_tables_own_times_are_returned():
    for n, count in enumerate(COUNTS):
        for k, length in enumerate(LENGTHS):
            step = seconds(COST, count, count * (length + 1), [])
            table = tables()
            expected = table.tokens(count) + table.rows(count) + table.attention.decode[n, k]
            assert step == pytest.approx(expected, rel=1e-9)
    for c, chunk in enumerate(CHUNKS):
        for h, before in enumerate(CONTEXTS):
            expected = tables().tokens(chunk) + tables().rows(1) + attention().prefill[c, h]
            assert seconds(COST, 0, 0, [(chunk, before)]) == pytest.approx(expected, rel=1e-9)
            both = attention().mixed[c, h, 1, 2]
            expected = tables().tokens(chunk + 4) + tables().rows(5) + both
            step = seconds(COST, 4, 4 * 257, [(chunk, before)])
            assert step == pytest.approx(expected, rel=1e-9)


def test_without_a_mixed_table_the_two_kernels_are_added():
    cost = operator_cost(tables(mixed=False))
    fixed = tables().tokens(68) + tables().rows(5)
    expected = fixed + attention().prefill[1, 2] + attention().decode[1, 2]
    assert seconds(cost, 4, 4 * 257, [(64, 64)]) == pytest.approx(expected, rel=1e-9)


@given(st.lists(st.tuples(st.integers(16, 80), st.integers(0, 120)), min_size=2, max_size=4))
def test_several_chunks_cost_what_their_pairs_do(chunks):
    """The made-up kernel is affine in pairs, so that its exact time is known for any chunks."""
    tokens = sum(chunk for chunk, _ in chunks)
    pairs = sum(c * before + c * (c + 1) / 2 for c, before in chunks)
    table = AttentionTable(
        (16, tokens),
        CONTEXTS,
        COUNTS,
        LENGTHS,
        np.array([[1e-6 + 3e-9 * c * (h + (c + 1) / 2) for h in CONTEXTS] for c in (16, tokens)]),
        attention().decode,
        np.empty(0),
    )
    assert table.prefill_s(tokens, pairs) == pytest.approx(1e-6 + 3e-9 * pairs, rel=1e-6)


def test_steps_within_graphs_compute_the_next_captured_size():
    graphs = operator_cost(tables(), (1, 2, 4, 8, 16, 32))
    for decodes, padded in ((1, 1), (3, 4), (9, 16), (17, 32), (33, 33)):
        linear = graphs.explain(batch_of(decodes, 20 * decodes, []))["linear layers"]
        assert linear == pytest.approx(tables().tokens(padded))


def test_the_host_hides_behind_the_device_only_where_scheduling_overlaps():
    step = batch_of(4, 400, [])
    device = seconds(COST, 4, 400, [])
    for host_s in (device / 2, device * 2):
        overlapped = operator_cost(tables(), host_step_s=host_s)
        alone = operator_cost(tables(), host_step_s=host_s, overlap=False)
        assert overlapped.progression(step)[0] == pytest.approx(max(device, host_s) * 1e12)
        assert alone.progression(step)[0] == pytest.approx((device + host_s) * 1e12)
        for cost in (overlapped, alone):
            assert sum(cost.explain(step).values()) == pytest.approx(
                cost.progression(step)[0] / 1e12
            )


def test_a_gap_in_a_table_goes_on_from_what_was_measured():
    sizes = ((1, 2, 4, 8), (16, 64, 256))
    whole = np.array([[1.0 + n * k for k in sizes[1]] for n in sizes[0]])
    gaps = whole.copy()
    gaps[3, 1:] = gaps[2, 2] = np.nan
    assert filled(gaps, sizes) == pytest.approx(whole)
    gaps[:, 1:] = np.nan
    with pytest.raises(ValueError, match="cannot be filled in"):
        filled(gaps, sizes)


def test_an_empty_step_costs_nothing_and_a_cost_can_be_pickled():
    assert COST.progression(batch_of(0, 0, [], 3)) == (0, 0, 3)
    assert COST.explain(batch_of(0, 0, [])) == {}
    again = pickle.loads(pickle.dumps(SLOW_HOST))
    step = batch_of(7, 700, [(30, 10)])
    assert again.progression(step) == SLOW_HOST.progression(step)


def ragged(*computed: int) -> DecodeSet:
    """Decodes that have computed so many tokens each, the new one included."""
    members = DecodeSet(16)
    for number, tokens in enumerate(computed):
        seq = Sequence(Request(number, 0.0, 1, 1), number, 0)
        seq.base, seq.admission = tokens, number
        members.join(seq, 1000)
    return members


@pytest.mark.parametrize("chunks", [[], [(16, 0)]])
def test_unequal_decodes_lie_between_the_mean_length_and_the_longest(chunks):
    lengths = (17, 33, 65, 241)
    step = batch_of(4, sum(lengths), chunks)
    step.members = ragged(*lengths)
    mean, longest = seconds(COST, 4, sum(lengths), chunks), seconds(COST, 4, 4 * 241, chunks)
    for alpha in (0.0, 0.25, 1.0):
        bucket = (chunks[0][0] if chunks else 0, 1, 1, 0, 0)
        skew = SkewTable((2, 8), (0.25, 0.5, 1), (256, 4096), (0, 9), {bucket: alpha}, 7.0)
        cost = operator_cost(replace(tables(), skew=skew))
        time, growth, steps = cost.progression(step)
        assert time / PICOSECONDS == pytest.approx(mean + alpha * (longest - mean))
        assert (growth, steps) == (0, 1)
        assert sum(cost.explain(step).values()) == pytest.approx(time / PICOSECONDS)


def test_equal_decodes_have_no_skew():
    skew = SkewTable((8,), (1,), (4096,), (0,), {}, 1.0)
    step = batch_of(3, 300, [])
    step.members = ragged(100, 100, 100)
    assert operator_cost(replace(tables(), skew=skew)).progression(step)[0] == pytest.approx(
        COST.progression(step)[0]
    )
