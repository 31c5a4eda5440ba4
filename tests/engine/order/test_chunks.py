"""How many prompt tokens a step takes on."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration.costs import LinearCost
from engine.batch import Batch
from engine.order.chunks import MOST_TOKENS, FixedChunk, LatencyBounded, StallFree
from tests.engine.order.served import MS, Steps
from traces.errors import ConfigError

COST = LinearCost(step_ps=2 * MS, prefill_token_ps=MS // 10, decode_ps=MS // 20,
                  context_token_ps=MS // 500)  # fmt: skip


def takes(batch: Batch) -> int:
    """With pairs, which make a chunk dearer the later in its prompt it stands."""
    return COST.progression(batch)[0] + batch.prefill_pairs * MS // 20_000


arrivals = st.lists(
    st.tuples(st.integers(1, 200), st.integers(1, 30), st.integers(0, 6)), min_size=1, max_size=12
)


def steps_of(wanted: Any, **settings: Any) -> Any:
    """Runs to the end; yields every step with what decoded before it."""
    it = Steps(step_time=takes, **settings)
    coming = [number for number, (*_, gap) in enumerate(wanted) for _ in range(1 + gap)]
    added = 0
    for tick in range(5000):
        while added < len(wanted) and (tick >= len(coming) or coming[tick] >= added):
            it.add(*wanted[added][:2])
            added += 1
        decoding = it.core.decodes.size
        yield it, decoding, it.step()
        if it.core.idle and added == len(wanted):
            assert sorted(seq.number for seq in it.ended) == [seq.number for seq in it.all]
            return
    raise AssertionError("not done")


def pending(it: Steps) -> bool:
    """Whether a prompt has tokens to compute, before or after admission."""
    return bool(it.core._prefills or it.core.waiting)


@settings(deadline=None, max_examples=60)
@given(arrivals, st.integers(1, 50))
def test_a_fixed_chunk_is_as_large_whoever_decodes(wanted: Any, tokens: int) -> None:
    for it, decoding, batch in steps_of(wanted, chunking=f"fixed:tokens={tokens}"):
        assert batch.decoding == decoding
        taken = sum(chunk for _, chunk in batch.prefills)
        assert taken <= tokens
        if pending(it):
            assert taken == tokens


@settings(deadline=None, max_examples=60)
@given(arrivals, st.integers(1, 50))
def test_stall_free_steps_have_no_more_tokens_than_the_budget_or_the_decodes(
    wanted: Any, tokens: int
) -> None:
    for it, decoding, batch in steps_of(wanted, chunking=f"stall-free:tokens={tokens}"):
        assert batch.decoding == decoding
        assert not batch.left_out
        taken = sum(chunk for _, chunk in batch.prefills)
        assert taken + decoding <= max(tokens, decoding)
        if pending(it):
            assert taken + decoding == max(tokens, decoding)


@settings(deadline=None, max_examples=60)
@given(arrivals, st.integers(1, 8), st.sampled_from([0.001, 0.004, 0.01, 0.05]))
def test_no_step_is_predicted_to_last_longer_than_the_bound_but_at_the_least_chunk(
    wanted: Any, least: int, tbt_s: float
) -> None:
    """And none could take one token more: prompts get what room there is."""
    spec = f"latency-bounded:tbt_s={tbt_s}:least={least}"
    for it, decoding, batch in steps_of(wanted, chunking=spec):
        assert batch.decoding == decoding
        taken = sum(chunk for _, chunk in batch.prefills)
        if taken > least:
            assert takes(batch) <= tbt_s * 1000 * MS
        if pending(it):
            assert taken >= least  # prompts go on
            assert takes(longer(batch)) > tbt_s * 1000 * MS or len(batch.prefills) > 1


def longer(batch: Batch) -> Batch:
    """The same step with a prompt token more."""
    more = Batch()
    more.decodes, more.decode_context_tokens = batch.decodes, batch.decode_context_tokens
    more.prefill_tokens = batch.prefill_tokens + 1
    more.prefill_context_tokens = batch.prefill_context_tokens + 1
    more.prefill_pairs = batch.prefill_pairs + batch.prefill_context_tokens + 1
    return more


@given(
    st.integers(0, 300),
    st.integers(0, 100_000),
    st.integers(0, 5000),
    st.integers(1, 64),
    st.floats(0.001, 0.2),
)
def test_the_budget_is_the_largest_that_keeps_the_bound(
    decodes: int, context: int, prefix: int, least: int, tbt_s: float
) -> None:
    chunk = LatencyBounded(takes, tbt_s=tbt_s, least=least).budget(decodes, context, prefix)
    chunk -= decodes

    def within(tokens: int) -> bool:
        step = Batch()
        step.decodes, step.decode_context_tokens = decodes, context
        step.prefill_tokens, step.prefill_context_tokens = tokens, prefix + tokens
        step.prefill_pairs = sum(prefix + i for i in range(1, tokens + 1))
        return takes(step) <= round(tbt_s * 10**12)

    assert chunk >= least
    assert chunk == least or within(chunk)
    assert not within(chunk + 1)


def test_decodes_go_first_whatever_the_budget() -> None:
    assert StallFree(None, tokens=3).budget(7, 100, 0) == 7
    assert FixedChunk(None, tokens=3).budget(7, 100, 0) == 10


def test_a_step_that_costs_nothing_has_no_bound_to_keep() -> None:
    chunk = LatencyBounded(lambda _: 0).budget(3, 100, 0)
    assert MOST_TOKENS // 2 <= chunk <= MOST_TOKENS + 3


def test_what_a_step_may_have_is_never_more_than_the_engine_has_room_for() -> None:
    for it, _, batch in steps_of([(200, 5, 0)] * 5, chunking="fixed:tokens=100",
                                 max_num_batched_tokens=30):  # fmt: skip
        del it
        assert sum(chunk for _, chunk in batch.prefills) + batch.decoding <= 30


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: FixedChunk(None, tokens=0), "chunking 'fixed': tokens must be at least 1, got 0"),
        (lambda: StallFree(None, tokens=-2), "'stall-free': tokens must be at least 1, got -2"),
        (lambda: LatencyBounded(None), "needs to know what a step takes; expected a profile"),
        (lambda: LatencyBounded(takes, tbt_s=0), "tbt_s must be above 0, got 0"),
        (lambda: LatencyBounded(takes, least=0), "least must be at least 1, got 0"),
    ],
)
def test_what_makes_no_sense_is_refused(make: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        make()
