"""Routers that foresee when the first token will be out."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from sim.routing.arrays import LongestAgo, lengths, members
from sim.routing.view import FleetView
from traces.errors import ConfigError
from traces.request import Request


class PredictedLatency:
    """The earliest predicted first token; of equals, the one chosen longest ago.

    The prediction: the prefill work that was sent to a replica and is not answered yet, and the
    request's own prompt less what the replica has cached, both by the cost model. It so weighs a
    cached prefix against a queue in the same coin. What decoding takes beside prefills is not in
    it, nor what may be evicted meanwhile; where answers are long and prompts short it sees little.
    The idea is that of predicted-latency scheduling in llm-d, which learns its predictor online,
    and of the cache-aware step of Mooncake's Conductor (Qin et al., FAST'25, algorithm 1).
    """

    def __init__(self, view: FleetView) -> None:
        self._view: FleetView = view
        self._backlog: Any = view.backlog
        self._index: Any = view.index
        self._turns: LongestAgo = LongestAgo(view.replicas)

    def choose(self, request: Request) -> int:
        """The replica with the least predicted TTFT."""
        view = self._view
        ttfts = self._backlog.waits_ps(view.now_ps)
        for blocks, group in self._index.match(request):
            own = view.prefill_ps(request.prompt_tokens, blocks * view.block_tokens)
            ttfts[members(group, view.replicas)] += own
        return self._turns.least(ttfts)

    def done(self, replica: int, request: Request) -> None:
        """Nothing to note: the backlog is told."""


class Transfer(NamedTuple):
    """KV blocks to be copied from one replica to another before a prefill."""

    source: int
    target: int
    start: int
    """First block of the request's prompt to copy."""
    end: int


class KVCentric:
    """Mooncake's Conductor: the earliest first token, with the best prefix fetched if that pays.

    On each replica the prompt is either computed from its own cached prefix, or, where the longest
    prefix of all is at least `balancing_threshold` times as long, from that one, copied at
    `transfer_gb_s` GB/s; predicted times are the queue's, the copy's and the prefill's. The copy
    also puts hot prefixes on more replicas. Source: Qin et al., Mooncake, FAST'25, algorithm 1
    (`kvcache_balancing_threshold`; the paper gives no number, 2 is ours; 100 GB/s are its nodes'
    800 Gbit/s). Replicas here cannot copy KV from each other yet: the copy enters the prediction
    and is left in `transfer`, but the chosen replica computes anew what it would have fetched,
    which spreads hot prefixes as well, for more than was predicted. `transfer_gb_s` 0: never copy.
    """

    def __init__(
        self, view: FleetView, *, balancing_threshold: float = 2.0, transfer_gb_s: float = 100.0
    ) -> None:
        if balancing_threshold < 1 or transfer_gb_s < 0:
            raise ConfigError(
                f"router 'kv-centric': balancing_threshold is {balancing_threshold} and"
                f" transfer_gb_s {transfer_gb_s}; expected 1 or more, and 0 or more"
            )
        self._view: FleetView = view
        self._backlog: Any = view.backlog
        self._index: Any = view.index
        self._threshold: float = balancing_threshold
        self._copies: bool = transfer_gb_s > 0
        self._block_ps: float = view.kv_block_bytes / transfer_gb_s * 1e3 if transfer_gb_s else 0.0
        self._turns: LongestAgo = LongestAgo(view.replicas)
        self.transfer: Transfer | None = None
        """What should be copied for the request that was routed last."""

    def choose(self, request: Request) -> int:
        """The replica with the least predicted TTFT, the copy included."""
        view = self._view
        waits = self._backlog.waits_ps(view.now_ps)
        groups = self._index.match(request)
        best, holders = groups[-1]
        ttfts = waits.copy()
        for blocks, group in groups:
            cached, copy_ps = blocks, 0
            if self._fetches(blocks, best):
                cached, copy_ps = best, round((best - blocks) * self._block_ps)
            own = view.prefill_ps(request.prompt_tokens, cached * view.block_tokens)
            ttfts[members(group, view.replicas)] += own + copy_ps
        replica = self._turns.least(ttfts)
        self.transfer = None
        held = int(lengths(groups, view.replicas)[replica])
        if self._fetches(held, best):
            among = np.flatnonzero(members(holders, view.replicas))
            source = int(among[waits[among].argmin()])
            self.transfer = Transfer(source, replica, held, best)
        return replica

    def _fetches(self, blocks: int, best: int) -> bool:
        return self._copies and best > blocks and best >= self._threshold * blocks

    def done(self, replica: int, request: Request) -> None:
        """Nothing to note: the backlog is told."""
