"""Routers decide as their sources say: rings, thresholds, scores and predictions by hand."""

from collections import Counter
from math import ceil
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration.costs import LinearCost
from sim.routing import router_of
from sim.routing.affinity import Ring
from sim.routing.backlog import Backlog
from sim.routing.predicted import Transfer
from sim.routing.sent import SentIndex
from sim.routing.view import FleetView
from traces.request import Request

BLOCK = 16
TOKEN_PS = 1000


class Fleet(FleetView):
    """A view with loads and caches as a test states them."""

    def __init__(self, replicas: int, **more: Any) -> None:
        self.time = 0
        self.queues = [0] * replicas
        self.used = [0] * replicas
        super().__init__(
            replicas,
            np.random.default_rng(0),
            clock=lambda: self.time,
            cost=LinearCost(0, TOKEN_PS, 0, 0),
            block_tokens=BLOCK,
            kv_blocks=1000,
            **more,
        )

    def waiting(self, replica: int) -> int:
        return self.queues[replica]

    def kv_blocks_used(self, replica: int) -> int:
        return self.used[replica]

    def cache(self, replica: int, request: Request, blocks: int) -> None:
        self.index.add(replica, request.hashes, BLOCK, 0, blocks)


def prompt(number: int, blocks: int, chain: int = 1) -> Request:
    """A prompt of `blocks` blocks and a token; equal chains have equal content."""
    hashes = tuple(chain * 1000 + i for i in range(blocks))
    return Request(number, 0.0, blocks * BLOCK + 1, 1, hashes, BLOCK, blocks * BLOCK)


# ---- consistent hashing


@settings(deadline=None, max_examples=20)
@given(st.integers(2, 40))
def test_one_more_replica_takes_its_share_of_sessions_and_moves_no_other(replicas: int) -> None:
    before, after = Ring(replicas, 128), Ring(replicas + 1, 128)
    idle = [0] * (replicas + 1)
    keys = range(2000)
    moved = 0
    for key in keys:
        was, now = before.walk(key, idle[:-1], 1), after.walk(key, idle, 1)
        if was != now:
            assert now == replicas
            moved += 1
    share = moved / len(keys)
    assert share == pytest.approx(1 / (replicas + 1), rel=0.45, abs=0.01)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 8),
    st.sampled_from([0.01, 0.25, 1.0]),
    st.lists(st.tuples(st.booleans(), st.integers(-1, 6)), max_size=120),
)
def test_no_replica_exceeds_its_bound(
    replicas: int, excess: float, events: list[tuple[bool, int]]
) -> None:
    router = router_of(f"session-affinity:excess={excess}:points=16", Fleet(replicas))
    loads = [0] * replicas
    under_way: list[tuple[int, Request]] = []
    for number, (arrives, session) in enumerate(events):
        if arrives or not under_way:
            request = Request(number, 0.0, 1, 1, session_id=session)
            replica = router.choose(request)
            loads[replica] += 1
            under_way.append((replica, request))
            assert loads[replica] <= ceil((1 + excess) * len(under_way) / replicas - 1e-9)
        else:
            replica, request = under_way.pop(session % len(under_way))
            loads[replica] -= 1
            router.done(replica, request)


def test_a_session_stays_while_there_is_room() -> None:
    router = router_of("session-affinity", Fleet(7))
    homes: dict[int, int] = {}
    for number in range(500):
        request = Request(number, 0.0, 1, 1, session_id=number % 50)
        replica = router.choose(request)
        router.done(replica, request)
        assert homes.setdefault(number % 50, replica) == replica
    assert len(set(homes.values())) == 7


# ---- what was sent where


def test_the_record_keeps_what_was_used_last_and_beginnings_longest() -> None:
    sent = SentIndex(2, most_tokens=4 * BLOCK)
    one, other = prompt(0, 3, chain=1), prompt(1, 2, chain=2)
    sent.add(0, one, 0)
    sent.add(0, other, 0)
    assert sent.tokens == [4 * BLOCK, 0]
    assert sent.match(one, 0) == [(0, 0b10), (2 * BLOCK, 0b01)]
    assert sent.match(other, 0) == [(0, 0b10), (2 * BLOCK, 0b01)]
    sent.add(0, prompt(2, 1, chain=1), 0)  # renews the first block of `one`
    sent.add(0, prompt(3, 2, chain=3), 0)
    assert sent.match(one, 0) == [(0, 0b10), (BLOCK, 0b01)]


def test_what_was_sent_is_known_a_delay_later() -> None:
    sent = SentIndex(2, delay_ps=100)
    sent.add(1, prompt(0, 2), 50)
    assert sent.match(prompt(1, 2), 149) == [(0, 0b11)]
    assert sent.match(prompt(1, 2), 150) == [(0, 0b01), (2 * BLOCK, 0b10)]


# ---- SGLang


def sglang(replicas: int, **parameters: Any) -> tuple[Any, Fleet]:
    fleet = Fleet(replicas)
    spec = ":".join(["sglang", *(f"{name}={value}" for name, value in parameters.items())])
    return router_of(spec, fleet), fleet


def test_sglang_follows_a_match_above_the_threshold_and_else_the_smallest_tree() -> None:
    router, _ = sglang(3)
    home = router.choose(prompt(0, 10, chain=1))
    assert router.choose(prompt(1, 4, chain=2)) != home
    # 10 of 19 blocks: more than half
    assert router.choose(prompt(2, 10, chain=1)) == home
    longer = prompt(3, 19, chain=1)
    assert router.choose(longer) == home
    # 4 of 12 blocks: the third replica has nothing yet
    chosen = {router.choose(prompt(4, 12, chain=2))}
    assert chosen.isdisjoint({home, 1}) and len(chosen) == 1


def test_sglang_balances_when_both_thresholds_are_exceeded() -> None:
    for ours, others, balances in [
        (3, 0, False),  # not more than 3 more
        (4, 0, True),
        (8, 4, False),  # not more than twice as many
        (9, 4, True),
        (9, 5, False),
    ]:
        router, _ = sglang(2, balance_abs_threshold=3, balance_rel_threshold=2.0)
        home = router.choose(prompt(0, 4))
        for _ in range(ours - 1):
            router._loads.add(home)
        for _ in range(others):
            router._loads.add(1 - home)
        assert (router.choose(prompt(1, 4)) != home) == balances


def test_sglang_cuts_its_trees_back_at_intervals_only() -> None:
    router, fleet = sglang(2, max_tree_tokens=2 * BLOCK, eviction_interval_s=1.0)
    home = router.choose(prompt(0, 8))
    assert router._sent.tokens[home] == 8 * BLOCK
    fleet.time = 10**12 - 1
    router.choose(prompt(1, 1, chain=1))
    assert router._sent.tokens[home] == 8 * BLOCK
    fleet.time = 10**12
    router.choose(prompt(2, 1, chain=9))
    assert router._sent.tokens[home] == 2 * BLOCK


# ---- llm-d


def test_llm_d_weighs_prefix_queue_and_memory() -> None:
    fleet = Fleet(3)
    request = prompt(0, 10)
    fleet.cache(0, request, 10)
    fleet.queues = [8, 4, 0]
    fleet.used = [0, 500, 1000]
    share = 10 * BLOCK / request.prompt_tokens
    for prefix, queue, kv, best in [(3, 2, 2, 0), (0, 1, 0, 2), (0, 0, 1, 0), (1, 4, 3.9, 1)]:
        scores = [
            prefix * share * (i == 0)
            + queue * (8 - fleet.queues[i]) / 8
            + kv * (1 - fleet.used[i] / 1000)
            for i in range(3)
        ]
        assert scores.index(max(scores)) == best or (prefix, queue) == (1, 4)
        spec = f"llm-d:prefix={float(prefix)}:queue={float(queue)}:kv={float(kv)}"
        assert router_of(spec, fleet).choose(request) == scores.index(max(scores))


def test_llm_d_sees_reports_and_not_what_came_after() -> None:
    fleet = Fleet(2)
    router = router_of("llm-d:refresh_s=1.0", fleet)
    fleet.queues = [5, 0]
    assert router.choose(prompt(0, 2)) == 1
    fleet.queues = [0, 5]
    fleet.time = 10**12 - 1
    assert router.choose(prompt(1, 2)) == 1
    fleet.time = 10**12
    assert router.choose(prompt(2, 2)) == 0


def test_llm_d_draws_among_equals() -> None:
    router = router_of("llm-d", Fleet(4))
    counts = Counter(router.choose(prompt(i, 2)) for i in range(400))
    assert set(counts) == {0, 1, 2, 3} and min(counts.values()) > 60


# ---- prefix and load


def test_the_longest_prefix_is_followed_up_to_the_bound_of_load() -> None:
    fleet = Fleet(4)
    router = router_of("prefix-exact:excess=0.0:slack=2", fleet)
    fleet.cache(1, prompt(0, 8), 8)
    fleet.cache(2, prompt(0, 8), 3)
    # the mean, rounded up, and two more: 3 of the first 4 requests, 4 of the first 8
    chosen = [router.choose(prompt(i, 8)) for i in range(9)]
    assert chosen[:8] == [1, 1, 1, 2, 1, 2, 2, 2]
    assert chosen[8] == 1  # 9 requests: 3 and two more


def test_a_short_prefix_may_be_left_alone() -> None:
    fleet = Fleet(3)
    fleet.cache(2, prompt(0, 8), 3)
    assert router_of("prefix-exact", fleet).choose(prompt(0, 8)) == 2
    assert router_of("prefix-exact:least_share=0.5", fleet).choose(prompt(0, 8)) == 0


# ---- predictions


@given(
    st.lists(st.tuples(st.sampled_from(["add", "take", "wait"]), st.integers(1, 50)), max_size=60)
)
def test_the_backlog_shrinks_with_time_down_to_what_has_not_begun(
    events: list[tuple[str, int]],
) -> None:
    backlog, now = Backlog(2), 0
    open_works: list[tuple[int, int]] = []
    since = 0
    for number, (event, amount) in enumerate(events):
        if event == "add":
            backlog.add(1, number, amount, now)
            if not open_works:
                since = now
            open_works.append((number, amount))
        elif event == "take" and open_works:
            at = amount % len(open_works)
            request_id, _ = open_works.pop(at)
            backlog.take(1, request_id, now)
            backlog.take(1, request_id, now)
            if at == 0:
                since = now
        else:
            now += amount
        first = open_works[0][1] if open_works else 0
        want = sum(work for _, work in open_works) - min(first, now - since if open_works else 0)
        assert backlog.waits_ps(now).tolist() == [0, want]
        assert backlog.wait_ps(1, now) == want


def test_a_cached_prefix_is_worth_the_queue_it_saves() -> None:
    fleet = Fleet(2)
    router = router_of("predicted-latency", fleet)
    request = prompt(9, 10)
    fleet.cache(0, request, 10)
    saved = 10 * BLOCK * TOKEN_PS
    fleet.backlog.add(0, 1, saved - 1, 0)
    assert router.choose(request) == 0
    fleet.backlog.add(0, 2, 2, 0)
    assert router.choose(request) == 1
    fleet.time = 2  # some of the first is done by now
    assert router.choose(request) == 0


def test_the_conductor_fetches_what_is_long_enough_to_pay() -> None:
    request = prompt(9, 10)
    for threshold, gb_s, chosen, transfer in [
        (2.0, 100.0, 1, Transfer(0, 1, 2, 10)),
        (6.0, 100.0, 2, None),  # 10 blocks are not 6 times 2, but nothing is 6 times nothing
        (2.0, 0.0, 1, None),
    ]:
        fleet = Fleet(3, kv_block_bytes=BLOCK)
        spec = f"kv-centric:balancing_threshold={threshold}:transfer_gb_s={gb_s}"
        router: Any = router_of(spec, fleet)
        fleet.cache(0, request, 10)
        fleet.cache(1, request, 2)
        fleet.backlog.add(0, 1, 10**9, 0)
        fleet.backlog.add(2, 2, 40 * TOKEN_PS if threshold < 6 else 0, 0)
        assert router.choose(request) == chosen
        if threshold < 6:
            assert router.transfer == transfer


def test_preble_exploits_a_prefix_longer_than_the_rest_and_else_explores() -> None:
    fleet = Fleet(3)
    router: Any = router_of("preble:rebalance=1000.0", fleet)
    fleet.cache(2, prompt(0, 20), 6)
    router._load[:] = [0, 50 * TOKEN_PS, 60 * TOKEN_PS]
    assert router.choose(prompt(0, 10)) == 2  # 6 of 10 blocks
    # 6 of 20: replica 0 has all 321 tokens to compute, replica 2 less work than that in all
    router._load[:] = [200 * TOKEN_PS, 500 * TOKEN_PS, 60 * TOKEN_PS]
    assert router.choose(prompt(1, 20)) == 2
    router._load[:] = [0, 500 * TOKEN_PS, 160 * TOKEN_PS]
    assert router.choose(prompt(2, 20)) == 0


def test_preble_forgets_load_with_its_window() -> None:
    fleet = Fleet(2)
    router: Any = router_of("preble:window_s=1.0", fleet)
    router.choose(prompt(0, 10))
    assert router._load.sum() == 161 * TOKEN_PS
    fleet.time = 10**12
    router._leave_window(fleet.time)
    assert router._load.sum() == router._prompts.sum() == router._cached.sum() == 0


def test_preble_relieves_a_replica_that_has_several_times_the_load() -> None:
    fleet = Fleet(2)
    router: Any = router_of("preble:rebalance=3.0", fleet)
    fleet.cache(1, prompt(0, 10), 10)
    router._load[:] = [100 * TOKEN_PS, 290 * TOKEN_PS]
    assert router.choose(prompt(0, 10)) == 1
    router._load[:] = [100 * TOKEN_PS, 310 * TOKEN_PS]
    assert router.choose(prompt(1, 10)) == 0


def test_a_copy_that_takes_longer_than_the_queue_is_not_worth_it() -> None:
    """8 blocks of 32 MB at 100 GB/s take 2.56 ms; the holder's queue 1 ms."""
    fleet = Fleet(2, kv_block_bytes=32_000_000)
    router: Any = router_of("kv-centric", fleet)
    fleet.cache(0, prompt(9, 10), 10)
    fleet.cache(1, prompt(9, 10), 2)
    fleet.backlog.add(0, 1, 10**9, 0)
    assert router.choose(prompt(9, 10)) == 0 and router.transfer is None
    fleet.backlog.add(0, 2, 2 * 10**9, 0)
    assert router.choose(prompt(9, 10)) == 1 and router.transfer == Transfer(0, 1, 2, 10)
