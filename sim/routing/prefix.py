"""Routers that follow the content of caches: known exactly, or guessed from what was sent."""

from __future__ import annotations

from math import ceil

from sim.routing.index import FleetIndex, Groups
from sim.routing.loads import Outstanding
from sim.routing.sent import SentIndex
from sim.routing.view import FleetView
from traces.errors import ConfigError
from traces.request import Request


def most_allowed(loads: Outstanding, replicas: int, excess: float, slack: int) -> int:
    """Load up to which a replica is given one more request: it then has no more than (1 + `excess`)
    times the mean, rounded up, and `slack` more. The least loaded is always within."""
    return ceil((1 + excess) * (loads.total + 1) / replicas) - 1 + slack


def check_bounds(router: str, excess: float, slack: int, least_share: float) -> None:
    """Raise ConfigError for bounds that make no sense."""
    if not 0 <= least_share <= 1:
        raise ConfigError(f"router '{router}': least_share is {least_share}; expected 0 to 1")
    if excess < 0:
        raise ConfigError(f"router '{router}': excess is {excess}; expected 0 or more")
    if slack < 0:
        raise ConfigError(f"router '{router}': slack is {slack}; expected 0 or more")


def best_within(groups: Groups, worth: float, loads: Outstanding, most: int) -> int:
    """Of the longest matches that are `worth` it, the least loaded replica with a load of `most`
    at most; the least loaded of all if there is none."""
    everybody = 0
    for length, group in reversed(groups):
        everybody |= group
        if length < worth:
            continue
        replica = loads.least_of(group, most)
        if replica >= 0:
            return replica
    return loads.least_of(everybody)


class PrefixExact:
    """The longest cached prefix among replicas that are not overloaded; of equals the least loaded.

    Knows all caches, as replicas that publish their cache events allow (vLLM's KV events, NVIDIA
    Dynamo, llm-d's precise prefix scorer). A block counts from the admission of the request that
    computes it until it is evicted, which a replica tells with its next admission or end of a
    request. A replica with more than (1 + `excess`) times the mean of outstanding requests and
    `slack` more is passed over, so a prefix that everybody has in common spreads under load. Hurts
    where a short prefix is common to many: to save little, requests crowd up to that bound on those
    that have it, unless only matches of `least_share` of the prompt are followed. Where many come
    at once with the same prefix, nobody has it until the first of them is admitted.
    """

    def __init__(
        self, view: FleetView, *, excess: float = 0.25, slack: int = 2, least_share: float = 0.0
    ) -> None:
        check_bounds("prefix-exact", excess, slack, least_share)
        self._index: FleetIndex = view.index
        self._block_tokens: int = view.block_tokens
        self._replicas: int = view.replicas
        self._excess: float = excess
        self._slack: int = slack
        self._least_share: float = least_share
        self._loads: Outstanding = Outstanding(view.replicas)

    def choose(self, request: Request) -> int:
        """The best replica within bounds."""
        loads = self._loads
        most = most_allowed(loads, self._replicas, self._excess, self._slack)
        groups = self._index.match(request)
        worth = self._least_share * request.prompt_tokens / self._block_tokens
        replica = best_within(groups, worth, loads, most)
        loads.add(replica)
        return replica

    def done(self, replica: int, request: Request) -> None:
        """Take the request off."""
        self._loads.take(replica)


class PrefixApproximate:
    """As `prefix-exact`, but by the router's own record of what it sent where.

    Needs nothing from the replicas (SGLang's router, the Gateway API inference extension). The
    record of a replica keeps the `capacity_tokens` used last (0: as many as its KV cache has), and
    takes in what was sent `delay_s` later: routers that share a record, or serve from several
    processes, see each other late. It knows nothing of evictions, refusals and answers, so it is
    too hopeful where caches are smaller than the record, and blind where they are larger. `excess`,
    `slack` and `least_share` are as there.
    """

    def __init__(
        self,
        view: FleetView,
        *,
        capacity_tokens: int = 0,
        delay_s: float = 0.0,
        excess: float = 0.25,
        slack: int = 2,
        least_share: float = 0.0,
    ) -> None:
        check_bounds("prefix-approximate", excess, slack, least_share)
        if capacity_tokens < 0 or not 0 <= delay_s < 1e6:
            raise ConfigError(
                f"router 'prefix-approximate': capacity_tokens is {capacity_tokens} and delay_s"
                f" {delay_s}; expected 0 or more"
            )
        self._view: FleetView = view
        capacity = capacity_tokens or view.kv_blocks * view.block_tokens
        self._sent: SentIndex = SentIndex(view.replicas, capacity, round(delay_s * 1e12))
        self._excess: float = excess
        self._slack: int = slack
        self._least_share: float = least_share
        self._loads: Outstanding = Outstanding(view.replicas)

    def choose(self, request: Request) -> int:
        """The replica that was sent most of the prompt, within bounds."""
        loads = self._loads
        now = self._view.now_ps
        most = most_allowed(loads, self._view.replicas, self._excess, self._slack)
        groups = self._sent.match(request, now)
        worth = self._least_share * request.prompt_tokens
        replica = best_within(groups, worth, loads, most)
        loads.add(replica)
        self._sent.add(replica, request, now)
        return replica

    def done(self, replica: int, request: Request) -> None:
        """Take the request off."""
        self._loads.take(replica)
