"""SGLang's cache-aware router."""

from __future__ import annotations

from sim.routing.loads import Outstanding
from sim.routing.sent import SentIndex, prompt_units
from sim.routing.view import FleetView
from traces.errors import ConfigError
from traces.request import Request


class SglangCacheAware:
    """SGLang's router: follow the prefix while loads are even, else the shortest queue.

    Loads are uneven when the most outstanding requests of a replica exceed the fewest by more than
    `balance_abs_threshold` and are more than `balance_rel_threshold` times as many; then the least
    loaded is chosen. Otherwise, if more than `cache_threshold` of the prompt was sent to some
    replica before, the one that was sent most of it; else the one with the smallest tree, which
    has most room. The trees are the router's own record of prompts, one a replica; every
    `eviction_interval_s` they are cut back to `max_tree_tokens`, least recently used leaves first.
    Source: SGLang v0.4 (sgl-router 0.1, December 2024), names and defaults as there; its trees hold
    characters, 2**24 of them, which are taken as a quarter as many tokens here. Of replicas with
    equal matches the least loaded is chosen. Hurts where a prefix is shared by all: it is a match
    of little more than the threshold that sends everything to one replica, until loads are uneven.
    """

    def __init__(
        self,
        view: FleetView,
        *,
        cache_threshold: float = 0.5,
        balance_abs_threshold: int = 32,
        balance_rel_threshold: float = 1.0001,
        eviction_interval_s: float = 60.0,
        max_tree_tokens: int = 2**22,
    ) -> None:
        if not 0 <= cache_threshold <= 1:
            raise ConfigError(
                f"router 'sglang': cache_threshold is {cache_threshold}; expected 0 to 1"
            )
        if eviction_interval_s <= 0 or max_tree_tokens < 1:
            raise ConfigError(
                f"router 'sglang': eviction_interval_s is {eviction_interval_s} and max_tree_tokens"
                f" {max_tree_tokens}; expected both above 0"
            )
        self._view: FleetView = view
        self._all: int = (1 << view.replicas) - 1
        self._loads: Outstanding = Outstanding(view.replicas)
        self._sent: SentIndex = SentIndex(view.replicas)
        self._threshold: float = cache_threshold
        self._abs: int = balance_abs_threshold
        self._rel: float = balance_rel_threshold
        self._interval_ps: int = round(eviction_interval_s * 1e12)
        self._next_eviction_ps: int = self._interval_ps
        self._max_tree: int = max_tree_tokens

    def choose(self, request: Request) -> int:
        """The replica, whose tree gets the prompt in any case."""
        now = self._view.now_ps
        if now >= self._next_eviction_ps:
            for replica in range(self._view.replicas):
                self._sent.trim(replica, self._max_tree)
            self._next_eviction_ps = now - now % self._interval_ps + self._interval_ps
        replica = self._chosen(request, now)
        self._loads.add(replica)
        self._sent.add(replica, request, now)
        return replica

    def _chosen(self, request: Request, now: int) -> int:
        loads = self._loads
        least, most = loads.least, loads.most
        if most - least > self._abs and most > self._rel * least:
            return loads.least_of(self._all)
        matched, group = self._sent.match(request, now)[-1]
        if prompt_units(request) and matched > self._threshold * request.prompt_tokens:
            return loads.least_of(group)
        sizes = self._sent.tokens
        smallest = min(sizes)
        group = sum(1 << i for i, size in enumerate(sizes) if size == smallest)
        return loads.least_of(group)

    def done(self, replica: int, request: Request) -> None:
        """Take the request off."""
        self._loads.take(replica)
