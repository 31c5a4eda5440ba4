"""Nothing is lost and nothing appears: requests, tokens, blocks and time are conserved."""

from itertools import pairwise
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration.costs import LinearCost, duration_ps
from engine.blocks import BlockManager
from engine.config import CacheSettings, SchedulerSettings
from engine.metrics import (
    FINISHED,
    OUTCOMES,
    REJECTED,
    REQUEST_COLUMNS,
    TIMED_OUT,
    TRUNCATED,
    UNFINISHED,
)
from sim.records import SEGMENT_COLUMNS
from sim.routing import ROUTERS
from tests.decisions import unreferenced
from tests.sim.clusters import Setup, crowded_setups, setups
from tests.sim.served import Served
from traces.request import Request

Row = dict[str, int]


@settings(deadline=None, max_examples=200)
@given(crowded_setups())
def test_every_request_has_exactly_one_outcome(setup: Setup) -> None:
    served = setup.serve()
    rows = requests_of(served)
    ids = [row["request_id"] for row in rows]
    assert len(set(ids)) == len(ids)
    everyone = {request.request_id for request in setup.requests}
    if setup.end_ps is None:
        assert set(ids) == everyone
    else:
        arrived = {r.request_id for r in setup.requests if r.turn == 0 or not setup.closed_loop}
        arrived -= {r.request_id for r in setup.requests if r.arrival_s * 1e12 >= setup.end_ps}
        assert arrived <= set(ids) <= everyone
    assert sum(served.metrics.outcomes) == served.metrics.total == len(rows)
    refused = sum(served.cluster.refusals.values())
    assert served.metrics.outcomes[REJECTED] == refused


@settings(deadline=None, max_examples=200)
@given(crowded_setups())
def test_an_outcome_says_what_was_served(setup: Setup) -> None:
    limit = setup.scheduler.max_model_len
    assert limit is not None
    for row in requests_of(setup.serve()):
        outcome, asked, made = row["outcome"], row["output_tokens"], row["generated_tokens"]
        arrival, scheduled = row["arrival"], row["scheduled"]
        first, finish = row["first_token"], row["finish"]
        assert OUTCOMES[outcome]
        assert 0 <= row["cached_tokens"] < row["prompt_tokens"]
        if outcome in (FINISHED, TRUNCATED):
            assert made == min(asked, limit - row["prompt_tokens"])
            assert (outcome == FINISHED) == (made == asked)
            assert arrival <= scheduled < first <= finish
            assert (first == finish) == (made == 1)
        elif outcome == REJECTED:
            assert made == 0
            assert scheduled == first == finish == -1
        elif outcome == TIMED_OUT:
            assert setup.timeout_ps is not None
            assert finish == arrival + setup.timeout_ps
            assert made < asked
        else:
            assert outcome == UNFINISHED
            assert setup.end_ps is not None
            assert finish == -1


@settings(deadline=None, max_examples=200)
@given(setups())
def test_tokens_computed_are_those_needed(setup: Setup) -> None:
    """A request computes its prompt, but for what is cached, and all output tokens but the last;
    after a preemption at least what it did not find again.
    """
    served = setup.serve()
    need = np.zeros(setup.replicas, dtype=np.int64)
    preempted = np.zeros(setup.replicas, dtype=np.int64)
    hits = {seq.request.request_id: seq.resumed_cached for seq in served.sequences}
    for row in requests_of(served):
        if row["outcome"] != REJECTED:
            hit = [row["cached_tokens"], *hits[row["request_id"]]][-1]
            need[row["replica"]] += row["prompt_tokens"] - hit + row["generated_tokens"] - 1
            preempted[row["replica"]] += row["preemptions"]
    done = np.zeros(setup.replicas, dtype=np.int64)
    for segment in segments_of(served):
        tokens = segment["prefill_tokens"] + segment["decodes"]
        done[segment["replica"]] += segment["steps"] * tokens
    assert (done >= need).all()
    assert (done == need)[preempted == 0].all()


@settings(deadline=None, max_examples=200)
@given(setups())
def test_gaps_between_tokens_add_up_to_the_answers(setup: Setup) -> None:
    """Inter-token latencies are counted by segment, answers by request: they tell the same."""
    served = setup.serve()
    rows = [row for row in requests_of(served) if row["outcome"] != REJECTED]
    itl = served.metrics.latency["itl_s"]
    assert itl.count == sum(row["generated_tokens"] - 1 for row in rows)
    assert itl.total_ps == sum(row["finish"] - row["first_token"] for row in rows)
    assert (itl.counts >= 0).all()


def test_a_token_in_flight_at_a_second_preemption_ends_one_gap_and_begins_another() -> None:
    """Asynchronous: the third request is preempted again before its recomputed token is out."""
    served = Served(
        [Request(i, 0.0, 1, 3) for i in range(3)],
        LinearCost(step_ps=1000, prefill_token_ps=0, decode_ps=0, context_token_ps=0),
        num_blocks=6,
        scheduler=SchedulerSettings(
            max_num_seqs=3, max_num_batched_tokens=100, max_model_len=100, async_scheduling=True
        ),
        cache=CacheSettings(block_tokens=1, prefix_caching=False),
    )
    assert served.column("preemptions").tolist() == [0, 1, 2]
    itl = served.metrics.latency["itl_s"]
    assert itl.count == 6
    assert itl.total_ps == (served.column("finish") - served.column("first_token")).sum()


@settings(deadline=None, max_examples=200)
@given(crowded_setups())
def test_segments_of_a_replica_never_overlap(setup: Setup) -> None:
    for segments in by_replica(setup.serve(), setup.replicas):
        for segment in segments:
            length = duration_ps(segment["first_step"], segment["step_growth"], segment["steps"])
            assert segment["end"] - segment["start"] == length
        assert all(one["end"] <= other["start"] for one, other in pairwise(segments))


@settings(deadline=None, max_examples=200)
@given(setups())
def test_a_replica_is_busy_while_and_only_while_a_request_is_there(setup: Setup) -> None:
    served = setup.serve()
    rows = [row for row in requests_of(served) if row["outcome"] != REJECTED]
    for replica, segments in enumerate(by_replica(served, setup.replicas)):
        there = [(row["arrival"], row["finish"]) for row in rows if row["replica"] == replica]
        busy = [(segment["start"], segment["end"]) for segment in segments]
        assert union(busy) == union(there)


@settings(deadline=None, max_examples=200)
@given(crowded_setups())
def test_every_block_comes_back(setup: Setup) -> None:
    served = setup.serve(end_ps=None)
    served.assert_empty()
    for replica in served.cluster.replicas:
        assert_all_free(replica.scheduler.blocks)


@settings(deadline=None, max_examples=50)
@given(crowded_setups(), st.sampled_from(sorted(ROUTERS)))
def test_a_router_is_told_of_every_end(setup: Setup, router: str) -> None:
    served = setup.serve(router=router)
    for loads in loads_of(served):
        assert loads == [0] * setup.replicas


@settings(deadline=None, max_examples=100)
@given(crowded_setups(), st.integers(0, 5))
def test_a_seed_determines_the_run(setup: Setup, seed: int) -> None:
    one, other = setup.serve(seed=seed), setup.serve(seed=seed)
    assert np.array_equal(one.rows, other.rows)
    assert np.array_equal(one.segments, other.segments)


@settings(deadline=None, max_examples=100)
@given(setups(max_replicas=1), st.sampled_from(sorted(ROUTERS)))
def test_with_one_replica_routers_make_no_difference(setup: Setup, router: str) -> None:
    one = setup.serve(router="round-robin")
    assert np.array_equal(setup.serve(router=router).segments, one.segments)
    assert np.array_equal(setup.serve(router=router).rows, one.rows)


def loads_of(served: Served) -> list[list[int]]:
    """All that a router counts up at a choice and down at an end, and the backlog's sums."""
    router: Any = served.router
    loads = getattr(router, "_loads", None)
    found = [getattr(router, "_load", None), getattr(loads, "load", None)]
    backlog = getattr(router, "_backlog", None)
    if backlog is not None:
        found += [backlog._total.tolist(), backlog._first.tolist()]
    if hasattr(router, "_window_ps"):
        found = []  # Preble's load leaves with time, not with ends
    return [each for each in found if each is not None]


def assert_all_free(blocks: BlockManager) -> None:
    """No block is referenced, and each is either without content or in the eviction queue once."""
    queued = unreferenced(blocks.eviction)
    for piece in queued:
        assert piece.refs == 0
        assert not piece.is_open
        assert piece.start < piece.end
    assert len({id(piece) for piece in queued}) == len(queued)
    lengths = sum(piece.end - piece.start for piece in queued)
    assert lengths + blocks._hashless == blocks.free == blocks.usable
    indexed: set[int] = set()
    for key, first in blocks.prefix._index.items():
        while first is not None:
            assert first.indexed
            assert first.key == key
            indexed.add(id(first))
            first = first.later
    assert indexed == {id(piece) for piece in queued if piece.indexed}


def requests_of(served: Served) -> list[Row]:
    return [dict(zip(REQUEST_COLUMNS, row, strict=True)) for row in served.rows.tolist()]


def segments_of(served: Served) -> list[Row]:
    return [dict(zip(SEGMENT_COLUMNS, row, strict=True)) for row in served.segments.tolist()]


def by_replica(served: Served, replicas: int) -> list[list[Row]]:
    segments = segments_of(served)
    return [[s for s in segments if s["replica"] == replica] for replica in range(replicas)]


def union(intervals: list[tuple[int, int]]) -> list[list[int]]:
    """Disjoint intervals that cover the same time; those that touch are one."""
    merged: list[list[int]] = []
    for start, end in sorted(interval for interval in intervals if interval[0] < interval[1]):
        if merged and start <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([start, end])
    return merged
