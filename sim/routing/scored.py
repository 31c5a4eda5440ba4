"""llm-d's inference scheduler: a weighted sum of scores."""

from __future__ import annotations

from typing import Any

import numpy as np

from sim.routing.arrays import lengths
from sim.routing.view import FleetView
from traces.errors import ConfigError
from traces.request import Request


class LlmdScorers:
    """The highest weighted sum of scores between 0 and 1; of equals, one drawn at random.

    `prefix`: share of the prompt that the replica has cached (exactly, by its cache events).
    `queue`: 1 for the shortest queue of all, 0 for the longest, in proportion between. `kv`: share
    of KV blocks not in use. Queues and blocks are as of the last report, every `refresh_s` seconds.
    Source: llm-d's inference scheduler and the Gateway API inference extension, whose scorers these
    are (prefix cache, queue, KV cache utilisation) with their default weights 3, 2 and 2 and
    metrics interval of 50 ms; there is no LoRA here to score. Hurts where replicas report late: all
    that comes between two reports sees the same queues, and goes the same way. A cached prefix and
    a short queue weigh the same whatever they are worth in time. Costs a look at each replica.
    """

    def __init__(
        self,
        view: FleetView,
        *,
        prefix: float = 3.0,
        queue: float = 2.0,
        kv: float = 2.0,
        refresh_s: float = 0.05,
    ) -> None:
        if min(prefix, queue, kv) < 0 or not max(prefix, queue, kv):
            raise ConfigError(
                f"router 'llm-d': weights are {prefix}, {queue} and {kv}; expected 0 or more, one"
                " above 0 at least"
            )
        if not 0 <= refresh_s < 1e6:
            raise ConfigError(f"router 'llm-d': refresh_s is {refresh_s}; expected 0 or more")
        self._view: FleetView = view
        self._index: Any = view.index
        self._prefix: float = prefix
        self._queue: float = queue
        self._kv: float = kv
        self._refresh_ps: int = round(refresh_s * 1e12)
        self._next_ps: int = -1
        self._reported: Any = np.zeros(view.replicas)
        """Scores that follow from reports, weighted and added."""

    def choose(self, request: Request) -> int:
        """The replica with the highest score."""
        view = self._view
        if view.now_ps >= self._next_ps:
            self._reported = self._report()
            self._next_ps = view.now_ps + self._refresh_ps
        scores = self._reported
        if self._prefix and request.hashes:
            blocks = lengths(self._index.match(request), view.replicas)
            share = blocks * (view.block_tokens / request.prompt_tokens)
            scores = scores + self._prefix * share
        best = np.flatnonzero(scores == scores.max())
        return int(best[0] if len(best) == 1 else best[view.random.integers(len(best))])

    def _report(self) -> Any:
        view = self._view
        replicas = range(view.replicas)
        queues = np.array([view.waiting(i) for i in replicas], dtype=np.float64)
        used = np.array([view.kv_blocks_used(i) for i in replicas], dtype=np.float64)
        spread = queues.max() - queues.min()
        by_queue = (queues.max() - queues) / spread if spread else np.ones(view.replicas)
        return self._queue * by_queue + self._kv * (1 - used / max(view.kv_blocks, 1))

    def done(self, replica: int, request: Request) -> None:
        """Nothing to note."""
