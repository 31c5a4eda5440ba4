"""Routers that spread load: each keeps its promise about whom it chooses."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from calibration.costs import LinearCost
from sim.routing import ROUTERS, router_of
from sim.routing.loads import LoadHeap, Outstanding
from sim.routing.view import FleetView
from traces.errors import ConfigError
from traces.request import Request

SURPRISE = 1e-3
"""P-value below which a (seeded) draw would not be believed to be fair."""

events = st.lists(
    st.tuples(st.booleans(), st.integers(1, 2000), st.integers(0, 10**6)), max_size=300
)


def router(name: str, replicas: int, seed: int = 0) -> Any:
    cost = LinearCost(1_000_000, 1_000, 0, 10)
    return router_of(name, FleetView(replicas, np.random.default_rng(seed), cost=cost))


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
    least: Any = LoadHeap(replicas)
    random = np.random.default_rng(0)
    under_way = [(least.choose(5), 5) for _ in range(4 * replicas)]
    for _ in range(20_000):
        at = int(random.integers(len(under_way)))
        replica, load = under_way[at]
        least.change(replica, -load)
        load = int(random.integers(1, 1000))
        under_way[at] = (least.choose(load), load)
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
        source.next = noted(source.next, draws)
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


@given(st.lists(st.integers(0, 5), min_size=1, max_size=6), st.integers(1, 4))
def test_weights_are_kept_to_over_every_round(weights: list[int], rounds: int) -> None:
    """Over a sum of weights each replica is chosen as often as its weight says, from the start;
    in between none is ahead of its share by one or more."""
    if not any(weights):
        weights[0] = 1
    spec = "weighted:weights=" + "/".join(map(str, weights))
    due, total = router(spec, len(weights)), sum(weights)
    counts = [0] * len(weights)
    for number in range(rounds * total):
        counts[due.choose(request())] += 1
        for count, weight in zip(counts, weights, strict=True):
            assert abs(count - (number + 1) * weight / total) < len(weights)
    assert counts == [rounds * weight for weight in weights]


def test_smooth_weights_come_as_nginx_documents_them() -> None:
    """5/1/1 gives a a b a c a a: the published example of the algorithm."""
    due = router("weighted:weights=5/1/1", 3)
    assert "".join("abc"[due.choose(request())] for _ in range(7)) == "aabacaa"


@pytest.mark.parametrize("weights", ["1/2", "1/x/2", "0/0/0", "1/-1/3"])
def test_weights_that_do_not_fit_are_refused(weights: str) -> None:
    with pytest.raises(ConfigError, match="router 'weighted': weights is"):
        router(f"weighted:weights={weights}", 3)


@settings(deadline=None)
@given(st.integers(1, 9), events, st.data())
def test_the_least_loaded_of_a_group_is_found_without_a_look_at_all(
    replicas: int, events: list[tuple[bool, int, int]], data: st.DataObject
) -> None:
    loads = Outstanding(replicas)
    under_way: list[int] = []
    for arrives, _, which in events[:60]:
        if not arrives and under_way:
            loads.take(under_way.pop(which % len(under_way)))
            continue
        group = data.draw(st.integers(1, 2**replicas - 1))
        most = data.draw(st.sampled_from([0, 1, 2, 3, 1000]))
        members = [i for i in range(replicas) if group >> i & 1 and loads.load[i] <= most]
        replica = loads.least_of(group, most)
        if not members:
            assert replica == -1
            continue
        assert replica in members
        assert loads.load[replica] == min(loads.load[i] for i in members)
        loads.add(replica)
        under_way.append(replica)
        assert loads.least == min(loads.load) and loads.most == max(loads.load)
        assert loads.total == sum(loads.load) == len(under_way)


def noted(choose: Any, draws: list[int]) -> Any:
    def choosing() -> int:
        draws.append(choose())
        return draws[-1]

    return choosing
