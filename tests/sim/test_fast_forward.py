"""Taking many equal steps at once changes nothing: not a time, not a count, not a decision."""

from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration.costs import LinearCost
from engine.config import CacheSettings, SchedulerSettings
from sim.records import SEGMENT_COLUMNS
from tests.sim.clusters import Setup, crowded_setups, setups
from tests.sim.served import Served
from traces.request import Request

AT = {name: i for i, name in enumerate(SEGMENT_COLUMNS)}
CONSTANT = ("decodes", "prefill_sequences", "prefill_tokens", "streams")
LAST_STEP = ("running", "waiting", "kv_blocks_used")
UNKNOWN = -1


@settings(deadline=None, max_examples=250)
@given(setups())
def test_fast_forward_changes_nothing(setup: Setup) -> None:
    assert_same(setup.serve(), setup.serve(exact=True))


@settings(deadline=None, max_examples=80)
@given(setups(), st.data())
def test_arrivals_may_fall_on_step_boundaries(setup: Setup, data: st.DataObject) -> None:
    steps = per_step(setup.serve(exact=True))
    moments = sorted({0, *(row[1] for row in steps), *(row[2] for row in steps)})
    count = len(setup.requests)
    times = data.draw(st.lists(st.sampled_from(moments), min_size=count, max_size=count))
    setup = setup.arriving(times)
    assert_same(setup.serve(), setup.serve(exact=True))


@settings(deadline=None, max_examples=100)
@given(setups(), st.data())
def test_replicas_may_step_at_the_same_moments(setup: Setup, data: st.DataObject) -> None:
    step_ps = 1_000_000
    count = len(setup.requests)
    times = data.draw(st.lists(st.integers(0, 40), min_size=count, max_size=count))
    setup = replace(setup, cost=LinearCost(step_ps, 0, 0, 0))
    setup = setup.arriving([time * step_ps for time in times])
    assert_same(setup.serve(), setup.serve(exact=True))


@settings(deadline=None, max_examples=200)
@given(crowded_setups())
def test_clients_that_give_up_or_wait_for_answers_change_nothing(setup: Setup) -> None:
    assert_same(setup.serve(), setup.serve(exact=True))


def test_a_token_that_comes_just_after_the_deadline_does_not_count() -> None:
    step_ps = 1_000_000_000
    turns = (Request(i, 0.0, 1, 1, session_id=0, turn=i, priority=i) for i in range(11))
    setup = Setup(
        requests=(*turns, Request(11, 0.002, 1, 4, priority=11)),
        cost=LinearCost(step_ps, 0, 0, 0),
        scheduler=SchedulerSettings(
            max_num_seqs=1, max_num_batched_tokens=5, max_model_len=1_000_000
        ),
        cache=CacheSettings(block_tokens=1, prefix_caching=False),
        num_blocks=6,
        replicas=1,
        closed_loop=True,
        timeout_ps=3 * step_ps,
    )
    fast, exact = setup.serve(), setup.serve(exact=True)
    assert_same(fast, exact)
    assert fast.column("generated_tokens")[-1] == 2


@settings(deadline=None, max_examples=200)
@given(crowded_setups(), st.data())
def test_clients_may_act_on_step_boundaries(setup: Setup, data: st.DataObject) -> None:
    step_ps = 1_000_000_000
    count = len(setup.requests)
    boundary = st.integers(0, 30).map(lambda steps: steps * step_ps)
    times = data.draw(st.lists(boundary, min_size=count, max_size=count))
    setup = replace(
        setup,
        cost=LinearCost(step_ps, 0, 0, 0),
        timeout_ps=data.draw(st.none() | boundary.filter(bool)),
        end_ps=data.draw(st.none() | boundary.filter(bool)),
    )
    setup = setup.arriving(times)
    assert_same(setup.serve(), setup.serve(exact=True))


def assert_same(fast: Served, exact: Served) -> None:
    """Everything that a run tells, apart from how its steps are grouped, is the same."""
    assert fast.rows.tolist() == exact.rows.tolist()
    assert resumptions(fast) == resumptions(exact)
    assert fast.cluster.refusals == exact.cluster.refusals
    for one, other in zip(fast.cluster.replicas, exact.cluster.replicas, strict=True):
        assert one.scheduler.blocks.evicted == other.scheduler.blocks.evicted
        assert one.scheduler.blocks.copies == other.scheduler.blocks.copies
    assert_same_steps(fast, exact)
    assert_same_totals(fast, exact)
    if fast.cluster._end_ps < 0:
        fast.assert_empty()
        exact.assert_empty()


def assert_same_steps(fast: Served, exact: Served) -> None:
    left, right = per_step(fast), per_step(exact)
    for one, other in zip(left, right, strict=False):
        known = [(a, b) for a, b in zip(one, other, strict=True) if UNKNOWN not in (a, b)]
        assert [a for a, _ in known] == [b for _, b in known]
    assert len(left) == len(right)


def assert_same_totals(fast: Served, exact: Served) -> None:
    for total in ("steps", "busy_ps", "peak_blocks", "most_tokens", "most_sequences"):
        assert getattr(fast.records, total) == getattr(exact.records, total), total
    assert fast.records.last_end_ps == exact.records.last_end_ps
    for name, histogram in fast.metrics.latency.items():
        other = exact.metrics.latency[name]
        assert (histogram.count, histogram.total_ps) == (other.count, other.total_ps), name
        assert (histogram.min_ps, histogram.max_ps) == (other.min_ps, other.max_ps), name
        assert np.array_equal(histogram.counts, other.counts), name


def resumptions(served: Served) -> dict[int, list[int]]:
    return {seq.request.request_id: seq.resumed_cached for seq in served.sequences}


def per_step(served: Served) -> list[tuple[Any, ...]]:
    """Each step of each replica: its times and what it ran, by replica and start.

    UNKNOWN where a segment does not tell: how many run and wait before its last step, and the
    prefill pairs after the first of several chunks' steps.
    """
    steps: list[tuple[Any, ...]] = []
    for row in served.segments.tolist():
        segment = dict(zip(SEGMENT_COLUMNS, row, strict=True))
        end = segment["start"]
        for step in range(segment["steps"]):
            start = end
            end += segment["first_step"] + step * segment["step_growth"]
            last = step == segment["steps"] - 1
            pairs = segment["prefill_pairs"] + step * segment["prefill_tokens"] ** 2
            steps.append(
                (
                    segment["replica"],
                    start,
                    end,
                    segment["decode_context_tokens"] + step * segment["decodes"],
                    segment["prefill_context_tokens"] + step * segment["prefill_tokens"],
                    pairs if step == 0 or segment["prefill_sequences"] <= 1 else UNKNOWN,
                    segment["preempted"] if step == 0 else 0,
                    *(segment[name] for name in CONSTANT),
                    *(segment[name] if last else UNKNOWN for name in LAST_STEP),
                )
            )
        assert end == segment["end"]
    steps.sort(key=lambda step: step[:3])
    return steps
