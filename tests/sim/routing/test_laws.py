"""What holds of every router, and of what routers see."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration.costs import LinearCost
from engine.config import CacheSettings, SchedulerSettings
from engine.named import parameters
from sim.routing import ROUTERS, router_of
from sim.routing.view import FleetView
from tests.sim.clusters import Setup, crowded_setups, setups
from tests.sim.served import Served, StepByStep
from tests.sim.test_fast_forward import assert_same
from traces.errors import ConfigError
from traces.request import Request

NAMES = sorted(ROUTERS)
LOOKING = (
    "least-kv",
    "llm-d",
    "llm-d:refresh_s=0.0",
    "prefix-exact",
    "predicted-latency",
    "kv-centric",
    "preble:window_s=0.01",
)
"""Routers that look at the replicas, which take many steps at once."""


@settings(deadline=None, max_examples=150)
@given(crowded_setups(), st.sampled_from(NAMES))
def test_every_request_goes_to_a_replica_there_is(setup: Setup, router: str) -> None:
    served = setup.serve(router=router, end_ps=None)
    replicas = served.column("replica")
    assert ((replicas >= 0) & (replicas < setup.replicas)).all()
    assert len(replicas) == len(setup.requests)


@settings(deadline=None, max_examples=100)
@given(crowded_setups(), st.sampled_from(NAMES), st.integers(0, 5))
def test_equal_seeds_give_equal_runs(setup: Setup, router: str, seed: int) -> None:
    one, other = (setup.serve(router=router, seed=seed) for _ in range(2))
    assert np.array_equal(one.rows, other.rows)
    assert np.array_equal(one.segments, other.segments)


@settings(deadline=None, max_examples=200)
@given(crowded_setups(), st.sampled_from(LOOKING))
def test_what_a_router_sees_does_not_depend_on_fast_forward(setup: Setup, router: str) -> None:
    assert_same(setup.serve(router=router), setup.serve(router=router, exact=True))


@settings(deadline=None, max_examples=200)
@given(setups(), st.booleans())
def test_loads_are_as_of_now(setup: Setup, on_boundaries: bool) -> None:
    """At every arrival the reports of all replicas, and what is known of their caches, are those of
    a run step by step."""
    if on_boundaries:
        step_ps = 1_000_000
        setup = replace(setup, cost=LinearCost(step_ps, 0, 0, 0))
        setup = setup.arriving([i * step_ps // 2 for i in range(len(setup.requests))])

    def reports(**how: Any) -> list[Any]:
        seen: list[Any] = []

        def look(served: Served, request: Request) -> None:
            view = served.view
            for i in range(setup.replicas):
                seen.append((view.waiting(i), view.running(i), view.kv_blocks_used(i)))
                seen.append(view.context_tokens(i))
            index: Any = view.index
            seen.append((dict(index._whole), dict(index._partly)))

        setup.serve(router="prefix-exact", at_choice=look, **how)
        return seen

    assert reports() == reports(exact=True)


@pytest.mark.parametrize("exact", [False, True], ids=["fast", "exact"])
def test_what_is_evicted_is_told_with_the_next_admission_or_end(exact: bool) -> None:
    """A long answer takes blocks of a cached prompt one by one; the index is told when it ends,
    whether its steps are taken alone or at once."""
    chain, hashed = (1, 2, 3, 4, 5), 20
    requests = [
        Request(0, 0.0, hashed + 1, 1, chain, 4, hashed),
        Request(1, 0.01, 4, 70),
        Request(2, 0.075, hashed + 1, 1, chain, 4, hashed),
        Request(3, 0.2, hashed + 1, 1, chain, 4, hashed),
    ]
    seen: list[tuple[int, int]] = []

    def look(served: Served, request: Request) -> None:
        evicted = served.cluster.replicas[0].scheduler.blocks.evicted
        seen.append((served.view.index.blocks(0, request), evicted))

    cost = LinearCost(1_000_000_000, 0, 0, 0)
    Served(
        requests,
        StepByStep(cost) if exact else cost,
        num_blocks=21,
        cache=CacheSettings(block_tokens=4),
        scheduler=SchedulerSettings(max_num_seqs=1, async_scheduling=False),
        router="prefix-exact",
        at_choice=look,
    )
    cached = [blocks for blocks, _ in seen]
    assert cached == [0, 0, 5, 5]
    assert (seen[2][1] > 0) == exact  # some of the 5 are gone by then, where steps are taken alone


@settings(deadline=None, max_examples=150)
@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(1, 60)), min_size=1, max_size=20),
    st.sampled_from([1, 7, 16, 1000]),
)
def test_predicted_is_what_comes_where_prefills_are_all_there_is(
    arrivals: list[tuple[int, int]], step_tokens: int
) -> None:
    """One request at a time, answers of one token, synchronous: the prediction is exact."""
    step_ps, cost = 1_000_000, LinearCost(1_000_000, 300_000, 0, 7_000)
    requests: list[Request] = []
    at = 0
    for i, (gap, prompt_tokens) in enumerate(arrivals):
        at += gap * step_ps
        requests.append(Request(i, at / 1e12, prompt_tokens, 1))
    predicted: list[int] = []

    def look(served: Served, request: Request) -> None:
        predicted.append(served.view.predicted_ttft_ps(0, request))

    served = Served(
        requests,
        cost,
        scheduler=SchedulerSettings(
            max_num_seqs=1,
            max_num_batched_tokens=step_tokens,
            max_model_len=1000,
            async_scheduling=False,
        ),
        router="predicted-latency",
        at_choice=look,
    )
    ttfts = served.column("first_token") - served.column("arrival")
    assert predicted == ttfts.tolist()


@settings(deadline=None, max_examples=100)
@given(st.data(), st.integers(1, 6))
def test_approximate_is_exact_while_nothing_is_evicted_and_nobody_waits(
    data: st.DataObject, replicas: int
) -> None:
    """With units of a block, whole prompts described, and each request admitted as it comes."""
    block = 4
    requests: list[Request] = []
    chains: list[tuple[int, ...]] = [()]
    for i in range(data.draw(st.integers(1, 40))):
        chain = data.draw(st.sampled_from(chains))
        more = data.draw(st.integers(1, 4))
        chain += tuple(range(100 * i + 1, 100 * i + 1 + more))
        chains.append(chain)
        tokens = block * len(chain)
        requests.append(Request(i, i * 1e-3, tokens + 1, 5, chain, block, tokens))
    replicas_of = [
        Served(
            requests,
            LinearCost(200_000_000, 0, 0, 0),
            replicas=replicas,
            num_blocks=10_000,
            cache=CacheSettings(block_tokens=block),
            scheduler=SchedulerSettings(max_num_batched_tokens=100_000, async_scheduling=False),
            router=router,
        ).column("replica")
        for router in ("prefix-exact", "prefix-approximate:capacity_tokens=1000000")
    ]
    assert np.array_equal(*replicas_of)


@pytest.mark.parametrize(
    "spec",
    [
        "prefix-exact:excess=-1.0",
        "prefix-exact:least_share=2.0",
        "prefix-approximate:slack=-1",
        "prefix-approximate:delay_s=-1.0",
        "least-kv:refresh_s=-1.0",
        "session-affinity:excess=0.0",
        "session-affinity:points=0",
        "sglang:cache_threshold=1.5",
        "sglang:max_tree_tokens=0",
        "llm-d:prefix=-1.0",
        "llm-d:prefix=0.0:queue=0.0:kv=0.0",
        "preble:window_s=0.0",
        "preble:rebalance=0.5",
        "kv-centric:balancing_threshold=0.5",
        "kv-centric:transfer_gb_s=-1.0",
    ],
)
def test_a_parameter_out_of_range_is_refused(spec: str) -> None:
    parameter = spec.rpartition(":")[2].partition("=")[0]
    with pytest.raises(ConfigError, match=rf"router.*(weights|{parameter}).*; expected|seconds"):
        router_of(spec, FleetView(3, np.random.default_rng(0)))


OWN = """
class Mine:
    '''Always the same. For tests.'''
    def __init__(self, view, *, replica=0):
        self.replica = replica
    def choose(self, request):
        return self.replica
    def done(self, replica, request):
        pass
"""


def test_a_router_of_ones_own_has_parameters_too(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(OWN)
    requests = [Request(i, 0.0, 5, 2) for i in range(4)]
    cost = LinearCost(1_000_000, 0, 0, 0)
    served = Served(requests, cost, replicas=3, router=f"{file}:Mine:replica=2")
    assert served.column("replica").tolist() == [2] * 4


@pytest.mark.parametrize("wrong", [3, -1])
def test_a_router_that_names_no_replica_is_stopped(tmp_path: Path, wrong: int) -> None:
    from traces.errors import PolicyError

    file = tmp_path / "wrong.py"
    file.write_text(OWN)
    cost = LinearCost(1_000_000, 0, 0, 0)
    with pytest.raises(PolicyError, match=rf"wrong\.py:Mine.*returned {wrong};.*request 0"):
        spec = f"{file}:Mine:replica={wrong}"
        Served([Request(0, 0.0, 5, 2)], cost, replicas=3, router=spec)


def test_what_was_not_asked_for_in_time_is_refused() -> None:
    """An index kept from the middle of a run on would be wrong."""
    served = Served([Request(0, 0.0, 5, 2)], LinearCost(1_000_000, 0, 0, 0))
    with pytest.raises(ConfigError, match=r"FleetView\.index: .* before the run begins"):
        _ = served.view.index
    with pytest.raises(ConfigError, match=r"FleetView\.backlog: .* before the run begins"):
        _ = served.view.backlog


@pytest.mark.parametrize("page", ["routing.md", "scenario.md"])
def test_the_pages_list_every_router_and_its_parameters(page: str) -> None:
    text = (Path(__file__).parents[3] / "docs" / page).read_text("utf-8")
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    rows = {line.split("`")[1]: line for line in reversed(lines)}  # the first of each name
    for name, router in ROUTERS.items():
        assert name in rows
        if page == "routing.md":
            listed = re.findall(r"`([a-z_]+)`", rows[name].rpartition(" | ")[2])
            assert listed == list(parameters(router)), name
