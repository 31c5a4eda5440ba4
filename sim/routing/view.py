"""What a router may know of the replicas it sends requests to.

Some of it every gateway knows: what it sent where, and which answers have begun and ended. Some is
what replicas report: their queue, their memory, the content of their caches. All of it is as of
now, whatever the replicas' segments are at.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np

from calibration.costs import CostModel, duration_ps
from engine.batch import Batch
from engine.sequence import Sequence
from sim.routing.backlog import Backlog
from sim.routing.index import CacheListener, FleetIndex
from sim.routing.protocol import Router
from traces.errors import ConfigError
from traces.request import Request


class FleetView:
    """The replicas of a cluster, seen from its router or its door."""

    def __init__(
        self,
        replicas: int,
        random: np.random.Generator,
        *,
        clock: Callable[[], int] | None = None,
        cost: CostModel | None = None,
        block_tokens: int = 16,
        kv_blocks: int = 0,
        kv_block_bytes: int = 0,
        step_tokens: int | None = None,
    ) -> None:
        """A view of replicas that are to be built: `attach` them.

        Args:
            replicas: how many.
            random: for whoever draws.
            clock: the time, in picoseconds; None: it stands at 0.
            cost: what a step takes, for predictions.
            block_tokens: tokens of a KV block.
            kv_blocks: usable blocks of a replica.
            kv_block_bytes: of a block, on all GPUs of a replica together.
            step_tokens: most tokens of a step; None: no limit.
        """
        self.replicas = replicas
        self.random = random
        self.block_tokens = block_tokens
        self.kv_blocks = kv_blocks
        self.kv_block_bytes = kv_block_bytes
        self._clock = clock
        self._cost = cost
        self._step_tokens = step_tokens
        self._fleet: list[Any] = []
        self._index: FleetIndex | None = None
        self._backlog: Backlog | None = None

    @property
    def now_ps(self) -> int:
        """The time."""
        return 0 if self._clock is None else self._clock()

    # ---- what replicas report

    def waiting(self, replica: int) -> int:
        """Requests in its queue, preempted ones included."""
        return self._fleet[replica].scheduler.waiting if self._fleet else 0

    def running(self, replica: int) -> int:
        """Requests that it computes."""
        return len(self._fleet[replica].scheduler.running) if self._fleet else 0

    def kv_blocks_used(self, replica: int) -> int:
        """Blocks that its running requests hold; cached blocks that nobody holds are free."""
        return self._fleet[replica].kv_blocks_used() if self._fleet else 0

    def context_tokens(self, replica: int) -> int:
        """Tokens in the contexts of its decoding requests, in all."""
        return self._fleet[replica].context_tokens() if self._fleet else 0

    @property
    def index(self) -> FleetIndex:
        """Whose prefix cache holds what.

        Raises:
            ConfigError: nobody asked for it before the replicas were attached.
        """
        if self._index is None:
            self._only_before("index")
            self._index = FleetIndex(self.replicas, self.block_tokens)
        return self._index

    # ---- what the gateway knows and foresees

    @property
    def backlog(self) -> Backlog:
        """Prefill work that was sent and has not been answered; what is sent is noted by the router
        that `watching` returns.

        Raises:
            ConfigError: nobody asked for it before the replicas were attached.
        """
        if self._backlog is None:
            self._only_before("backlog")
            _ = self.index
            self._backlog = Backlog(self.replicas)
        return self._backlog

    def prefill_ps(self, tokens: int, cached_tokens: int) -> int:
        """Time that a replica with nothing else to do takes for tokens [cached_tokens, tokens).

        Raises:
            ConfigError: nobody told what a step takes.
        """
        if self._cost is None:
            raise ConfigError("router: predicts times, but there is no cost model to do it with")
        total, at = 0, cached_tokens
        budget = self._step_tokens or tokens
        while at < tokens:
            chunk = min(budget, tokens - at)
            batch = Batch()
            batch.prefills = ((_SOMEBODY, chunk),)
            batch.prefill_tokens = chunk
            batch.prefill_context_tokens = at + chunk
            batch.prefill_pairs = chunk * at + chunk * (chunk + 1) // 2
            batch.prefill_pairs_growth = chunk * chunk
            batch.horizon = (tokens - at) // chunk
            first, growth, steps = self._cost.progression(batch)
            steps = min(steps, batch.horizon)
            total += duration_ps(first, growth, steps)
            at += chunk * steps
        return total

    def decode_ps(self, context_tokens: int) -> int:
        """Time of a token of an answer after `context_tokens`, its share of a step of 32 alike.

        Raises:
            ConfigError: nobody told what a step takes.
        """
        if self._cost is None:
            raise ConfigError("router: predicts times, but there is no cost model to do it with")
        batch = Batch()
        batch.decodes = batch.decoding = _ALIKE
        batch.decode_context_tokens = _ALIKE * context_tokens
        first, _, _ = self._cost.progression(batch)
        return first // _ALIKE

    def uncached_ps(self, replica: int, request: Request) -> int:
        """Time that `replica` takes for what it has not cached of the prompt."""
        cached = self.index.blocks(replica, request) * self.block_tokens
        return self.prefill_ps(request.prompt_tokens, cached)

    def predicted_ttft_ps(self, replica: int, request: Request) -> int:
        """When the first token of `request` will be out if it goes, or just went, to `replica`:
        the prefill work before it and its own. What decoding takes beside it is left out."""
        backlog = self.backlog
        before = backlog.wait_ps(replica, self.now_ps, besides=request.request_id)
        return before + self.uncached_ps(replica, request)

    # ---- wiring

    def watching(self, router: Router) -> Router:
        """`router`, or one that does the same and keeps the backlog if anybody asked for it."""
        return router if self._backlog is None else _Watching(router, self, self._backlog)

    def attach(self, fleet: list[Any]) -> None:
        """Look at these replicas (sim.replica.Replica) from now on, before they serve anything."""
        self._fleet = fleet
        for number, replica in enumerate(fleet):
            if self._index is not None:
                replica.scheduler.blocks.listener = CacheListener(self._index, number)
            if self._backlog is not None:
                replica.on_first_token = self._answered

    def _only_before(self, what: str) -> None:
        if self._fleet:
            raise ConfigError(
                f"FleetView.{what}: is kept only if asked for before the run begins, such as in a"
                " router's __init__"
            )

    def _answered(self, replica: Any, seq: Sequence) -> None:
        assert self._backlog is not None
        self._backlog.take(replica.index, seq.request.request_id, seq.first_token)


_ALIKE: Final = 32
_SOMEBODY: Any = None
"""Stands for a sequence in a batch of which only the size matters."""


class _Watching:
    """A router whose requests are noted in the backlog."""

    def __init__(self, router: Router, view: FleetView, backlog: Backlog) -> None:
        self._router = router
        self._view = view
        self._backlog = backlog

    def choose(self, request: Request) -> int:
        """See Router.choose."""
        replica = self._router.choose(request)
        view = self._view
        work = view.uncached_ps(replica, request)
        self._backlog.add(replica, request.request_id, work, view.now_ps)
        return replica

    def done(self, replica: int, request: Request) -> None:
        """See Router.done."""
        self._backlog.take(replica, request.request_id, self._view.now_ps)
        self._router.done(replica, request)
