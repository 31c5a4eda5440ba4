"""Preble's global scheduler."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np

from sim.routing.arrays import LongestAgo, lengths, members
from sim.routing.view import FleetView
from traces.errors import ConfigError
from traces.request import Request


class Preble:
    """Exploit a cached prefix that is longer than the rest of the prompt, else explore.

    Exploiting, the least loaded of the replicas with the longest cached prefix is chosen.
    Exploring, the one with the least cost: its load, the work to compute again what would be
    evicted, and the work of the prompt's part it has not cached. Load is all work sent in the last
    `window_s` seconds, prefill by the cost model and decoding at the mean length of answers so far.
    If the chosen replica has more than `rebalance` times the load of the least loaded, that one is
    taken in its place. Source: Srivatsa et al., Preble: Efficient Distributed Prompt Scheduling for
    LLM Serving, ICLR'25 (E2, window of 3 minutes). Ours: the number 2 of `rebalance`; what is
    evicted is as much as the request computes, once a replica has computed as much as its cache
    holds, and is worth what of the prompts of the window was cached; no prefix is copied ahead of
    need. Hurts where load changes faster than the window. Costs a look at each replica.
    """

    def __init__(self, view: FleetView, *, window_s: float = 180.0, rebalance: float = 2.0) -> None:
        if not 0 < window_s < 1e6 or rebalance < 1:
            raise ConfigError(
                f"router 'preble': window_s is {window_s} and rebalance {rebalance}; expected"
                " seconds above 0, and 1 or more"
            )
        self._view: FleetView = view
        self._index: Any = view.index
        self._window_ps: int = round(window_s * 1e12)
        self._rebalance: float = rebalance
        self._sent: deque[tuple[int, int, int, int, int]] = deque()
        """(when it leaves the window, replica, work, prompt tokens, cached tokens)."""
        self._load: Any = np.zeros(view.replicas, dtype=np.int64)
        self._prompts: Any = np.zeros(view.replicas, dtype=np.int64)
        self._cached: Any = np.zeros(view.replicas, dtype=np.int64)
        self._computed: Any = np.zeros(view.replicas, dtype=np.int64)
        """Tokens since the start."""
        self._answers: int = 0
        self._answer_tokens: int = 0
        self._turns: LongestAgo = LongestAgo(view.replicas)

    def choose(self, request: Request) -> int:
        """Exploit or explore."""
        view = self._view
        now = view.now_ps
        self._leave_window(now)
        groups = self._index.match(request)
        best, holders = groups[-1]
        load = self._load
        if 2 * best * view.block_tokens > request.prompt_tokens:
            costs = np.where(members(holders, view.replicas), load, load.max() + 1)
        else:
            costs = load + self._own(request, groups)
        replica = self._turns.least(costs)
        lightest = int(load.argmin())
        if load[replica] > self._rebalance * load[lightest] and load[replica] > self._one(request):
            replica = lightest
        self._note(replica, request, int(lengths(groups, view.replicas)[replica]), now)
        return replica

    def _own(self, request: Request, groups: Any) -> Any:
        """Cost of computing the prompt on each replica, and of what it would evict."""
        view = self._view
        own = np.zeros(view.replicas)
        for blocks, group in groups:
            work = view.prefill_ps(request.prompt_tokens, blocks * view.block_tokens)
            own[members(group, view.replicas)] = work
        full = self._computed >= view.kv_blocks * view.block_tokens
        reused = self._cached / np.maximum(self._prompts, 1)
        return own * (1 + full * reused)

    def _one(self, request: Request) -> int:
        """Work of the whole request; no imbalance is worth a look below it."""
        return self._view.prefill_ps(request.prompt_tokens, 0)

    def _note(self, replica: int, request: Request, blocks: int, now: int) -> None:
        view = self._view
        prompt, cached = request.prompt_tokens, blocks * view.block_tokens
        work = view.prefill_ps(prompt, cached)
        if self._answers:
            work += view.decode_ps(prompt) * self._answer_tokens // self._answers
        self._load[replica] += work
        self._prompts[replica] += prompt
        self._cached[replica] += cached
        self._computed[replica] += prompt - cached
        self._sent.append((now + self._window_ps, replica, work, prompt, cached))

    def _leave_window(self, now: int) -> None:
        sent = self._sent
        while sent and sent[0][0] <= now:
            _, replica, work, prompt, cached = sent.popleft()
            self._load[replica] -= work
            self._prompts[replica] -= prompt
            self._cached[replica] -= cached

    def done(self, replica: int, request: Request) -> None:
        """Learn how long answers are; load leaves with the window."""
        self._answers += 1
        self._answer_tokens += request.output_tokens
