"""Routers: each keeps its promise about whom it chooses, whatever the order of ends."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from sim.router import ROUTERS, LeastLoaded
from traces.request import Request

SURPRISE = 1e-3
"""P-value below which a (seeded) draw would not be believed to be fair."""

events = st.lists(
    st.tuples(st.booleans(), st.integers(1, 2000), st.integers(0, 10**6)), max_size=300
)


def router(name: str, replicas: int, seed: int = 0) -> Any:
    return ROUTERS[name](replicas, np.random.default_rng(seed))


def request(prompt_tokens: int = 1) -> Request:
    return Request(0, 0.0, prompt_tokens, 1)


@given(st.integers(1, 9), st.integers(0, 100))
def test_round_robin_gives_every_replica_its_share(replicas: int, count: int) -> None:
    turns = router("round-robin", replicas)
    chosen = [turns.choose(request()) for _ in range(count)]
    assert chosen == [i % replicas for i in range(count)]


@settings(deadline=None)
@given(st.sampled_from(["least-requests", "least-tokens"]), st.integers(1, 6), events)
def test_the_least_loaded_is_chosen_and_of_equals_the_longest_ago(
    name: str, replicas: int, events: list[tuple[bool, int, int]]
) -> None:
    least = router(name, replicas)
    loads, chosen = [0] * replicas, list(range(-replicas, 0))
    under_way: list[tuple[int, Request]] = []
    for number, (arrives, prompt_tokens, which) in enumerate(events):
        if arrives or not under_way:
            new = request(prompt_tokens)
            replica = least.choose(new)
            assert replica == min(range(replicas), key=lambda i: (loads[i], chosen[i]))
            loads[replica] += 1 if name == "least-requests" else prompt_tokens
            chosen[replica] = number
            under_way.append((replica, new))
        else:
            replica, old = under_way.pop(which % len(under_way))
            loads[replica] -= 1 if name == "least-requests" else old.prompt_tokens
            least.done(replica, old)


@settings(deadline=None)
@given(st.sampled_from(sorted(ROUTERS)), st.integers(1, 6), st.randoms(use_true_random=False))
def test_the_order_of_ends_at_one_moment_makes_no_difference(
    name: str, replicas: int, random: Any
) -> None:
    one, other = router(name, replicas), router(name, replicas)
    requests = [request(random.randint(1, 50)) for _ in range(30)]
    under_way = [(one.choose(r), r) for r in requests]
    assert under_way == [(other.choose(r), r) for r in requests]
    ends = random.sample(under_way, random.randint(0, len(under_way)))
    for replica, ended in ends:
        one.done(replica, ended)
    for replica, ended in random.sample(ends, len(ends)):
        other.done(replica, ended)
    assert [one.choose(r) for r in requests] == [other.choose(r) for r in requests]


def test_an_end_costs_the_least_loaded_heap_no_memory() -> None:
    """The heap is bounded by the replicas, so that choosing costs their logarithm."""
    replicas = 50
    least = LeastLoaded(replicas, lambda request: request.prompt_tokens)
    random = np.random.default_rng(0)
    under_way = [(least.choose(request(5)), request(5)) for _ in range(4 * replicas)]
    for _ in range(20_000):
        at = int(random.integers(len(under_way)))
        least.done(*under_way[at])
        new = request(int(random.integers(1, 1000)))
        under_way[at] = (least.choose(new), new)
        assert len(least._heap) <= 8 * replicas + 64


def test_random_is_uniform_and_independent() -> None:
    replicas, count = 7, 70_000
    random = router("random", replicas)
    chosen = [random.choose(request()) for _ in range(count)]
    assert stats.chisquare(np.bincount(chosen, minlength=replicas)).pvalue > SURPRISE
    pairs = Counter(zip(chosen[::2], chosen[1::2], strict=True))
    table = [pairs[one, other] for one in range(replicas) for other in range(replicas)]
    assert stats.chisquare(table).pvalue > SURPRISE


@pytest.mark.parametrize("replicas", [3, 8])
def test_power_of_two_draws_two_different_replicas_uniformly(replicas: int) -> None:
    """With all loads different, rank r of n is the better of two in n - 1 - r of the n (n - 1) / 2
    pairs; the most loaded never is.
    """
    two = router("power-of-two", replicas)
    count = 20_000
    two._load = list(range(replicas))
    chosen = np.zeros(replicas, dtype=np.int64)
    for _ in range(count):
        replica = two.choose(request())
        chosen[replica] += 1
        two.done(replica, request())
    assert chosen[-1] == 0
    pairs = replicas * (replicas - 1) / 2
    want = count * np.arange(replicas - 1, 0, -1) / pairs
    assert stats.chisquare(chosen[:-1], want).pvalue > SURPRISE


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(0, 10**6), events)
def test_power_of_two_never_takes_the_more_loaded_of_its_draws(
    replicas: int, seed: int, events: list[tuple[bool, int, int]]
) -> None:
    two = router("power-of-two", replicas, seed)
    draws: list[int] = []
    for source in (two._first, two._second):
        source.choose = noted(source.choose, draws)
    loads = [0] * replicas
    under_way: list[int] = []
    for arrives, _, which in events:
        if arrives or not under_way:
            replica = two.choose(request())
            one, other = draws
            draws.clear()
            other += other >= one and replicas > 1
            assert replica in (one, other)
            assert (one == other) == (replicas == 1)
            assert loads[replica] == min(loads[one], loads[other])
            loads[replica] += 1
            under_way.append(replica)
        else:
            replica = under_way.pop(which % len(under_way))
            loads[replica] -= 1
            two.done(replica, request())


@pytest.mark.parametrize("name", sorted(ROUTERS))
def test_a_seed_determines_every_choice(name: str) -> None:
    one, other = router(name, 5, seed=3), router(name, 5, seed=3)
    requests = [request(1 + i % 17) for i in range(200)]
    assert [one.choose(r) for r in requests] == [other.choose(r) for r in requests]


def noted(choose: Any, draws: list[int]) -> Any:
    def choosing(request: Request) -> int:
        draws.append(choose(request))
        return draws[-1]

    return choosing
