"""A replay whose eviction knows the trace."""

from typing import Any

import pytest

from sim.replay import replay
from sim.scenario import scenario_of
from traces.errors import ConfigError
from traces.reader import open_trace
from traces.request import Request


def loop(contents: int, rounds: int) -> list[Request]:
    """The same prompts over and over, one at a time: what LRU is worst at."""
    return [
        Request(number, 10.0 * number, 65, 1, (1000 + number % contents,), 64, 64)
        for number in range(contents * rounds)
    ]


def served(requests: Any, eviction: str, **settings: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "cache": {"eviction": eviction, "block_tokens": 16},
        "memory": {"num_blocks": 18},
        **settings,
    }
    return replay(scenario_of(values), requests, keep_requests=False, keep_segments=False).summary


def test_it_hits_what_is_worth_keeping():
    requests = loop(contents=8, rounds=10)
    blind, knowing = (served(requests, name)["cache"]["hit_tokens"] for name in ("lru", "belady"))
    # 17 blocks, of which a request at work takes 5: the others can hold 3 prompts of 4 blocks
    assert knowing <= 4 * 9 * 64
    assert knowing >= 3 * 9 * 64
    assert knowing > 2 * blind


def test_what_is_gone_through_once_is_kept():
    requests = loop(contents=4, rounds=5)
    assert served(iter(requests), "belady") == served(requests, "belady")


def test_several_replicas_and_clients_that_give_up():
    requests = list(open_trace("sample:chat"))[:300]
    crowded = [one._replace(arrival_s=one.arrival_s / 50) for one in requests]
    summary = served(
        crowded,
        "belady",
        cluster={"replicas": 2, "request_timeout_s": 2.0, "max_queue": 5},
        memory={"num_blocks": 400},
    )
    counted = summary["requests"]
    assert counted["total"] == len(requests)
    assert counted["timed_out"] + counted["rejected"] > 0


def test_an_order_that_depends_on_the_run_is_refused():
    with pytest.raises(ConfigError, match=r"cluster\.closed_loop: false"):
        served(loop(2, 2), "belady", cluster={"closed_loop": True})
