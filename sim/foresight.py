"""The future of a scenario's trace, for an eviction policy that has to know it."""

from __future__ import annotations

from collections.abc import Iterable

from engine.future import KnownFuture, future_of, needs_future
from sim.scenario import Scenario
from traces.errors import ConfigError
from traces.request import Request


def foreseen(
    scenario: Scenario, requests: Iterable[Request]
) -> tuple[Iterable[Request], KnownFuture | None]:
    """The requests to serve, and what they will ask for if `cache.eviction` has to know it.

    A trace is read once ahead; what can be gone through only once is kept in memory. Replicas share
    the future: which of them a request will come to is not known, so that each keeps what any of
    them may be asked for.

    Raises:
        ConfigError: the order of the requests depends on the run.
        TraceError: the trace cannot be read, or is not numbered in its order.
    """
    cache = scenario.cache
    if not needs_future(cache.eviction):
        return requests, None
    if scenario.cluster.closed_loop:
        raise ConfigError(
            f"cache.eviction: {cache.eviction} has to know in which order requests come, and with"
            " cluster.closed_loop that depends on the run; expected cluster.closed_loop: false"
        )
    if iter(requests) is requests:
        requests = tuple(requests)
    return requests, future_of(cache.eviction, requests, cache.block_tokens)
