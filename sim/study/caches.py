"""A prefix cache that serves one request after the other, and counts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Protocol

from engine.blocks import BlockManager
from engine.decoding import DecodeSet
from engine.eviction import eviction_policy
from engine.eviction.protocol import Future
from engine.metrics import PICOSECONDS
from engine.moment import Moment
from engine.named import chosen
from engine.sequence import FINISHED, Sequence
from traces.errors import ConfigError
from traces.request import Request

UNBOUNDED: Final = 1 << 60
"""Blocks of a cache that nothing ever leaves."""


class Cache(Protocol):
    """Serves requests one by one; a request is over before the next one comes."""

    def holds(self, request: Request) -> int:
        """Tokens of the prompt that it would hit now; nothing changes."""
        ...

    def serve(self, request: Request) -> int | None:
        """Hit what there is, keep what comes of it; returns tokens of the prompt that were hit.

        None: it does not fit into the whole cache and is served past it, which leaves no trace.
        """
        ...


class BlockCache:
    """The engine's own block manager and eviction, without its scheduler.

    A request takes the blocks of all its tokens at once: of the prompt, and of its answer as far
    as others may have it too (or, with `answers`, whole but for the last token). It hits as the
    engine does: whole blocks, and not the last token of the prompt.
    """

    def __init__(
        self,
        capacity_tokens: int | None,
        block_tokens: int,
        eviction: str,
        *,
        context_tokens: int = 0,
        future: Future | None = None,
        answers: bool = False,
        largest_tokens: int | None = None,
    ) -> None:
        """An empty cache.

        Args:
            capacity_tokens: room, of which whole blocks are used; None: without limit.
            block_tokens: tokens a block holds.
            eviction: a policy (see engine.eviction).
            context_tokens: see engine.eviction.protocol.CacheView.
            future: of the requests, for a policy that needs it; it is told of each.
            answers: keep answers that nobody can hit too, as they are kept by an engine.
            largest_tokens: larger requests are served past it, as if it had no more room; None: as
                large as it is.

        Raises:
            ConfigError: no such policy, or room for less than a block.
        """
        usable = UNBOUNDED if capacity_tokens is None else capacity_tokens // block_tokens
        if usable < 1:
            raise ConfigError(
                f"capacity of {capacity_tokens} tokens: holds no block of {block_tokens};"
                f" expected {block_tokens} or more"
            )
        self._block_tokens = block_tokens
        self._answers = answers
        largest = capacity_tokens if largest_tokens is None else largest_tokens
        self._largest_blocks = UNBOUNDED if largest is None else largest // block_tokens
        self._future = future
        self._moment = Moment()
        self._served = 0
        self.blocks: Final = BlockManager(
            usable,
            block_tokens,
            DecodeSet(block_tokens),
            lambda view: eviction_policy(eviction, view),
            moment=self._moment,
            context_tokens=context_tokens,
            future=future,
        )

    def holds(self, request: Request) -> int:
        """See Cache."""
        seq = self._sequence(request)
        return self.blocks.match(seq, request.prompt_tokens).blocks * self._block_tokens

    def serve(self, request: Request) -> int | None:
        """See Cache."""
        blocks = self.blocks
        self._moment.now = round(request.arrival_s * PICOSECONDS)
        seq = self._sequence(request)
        tokens = tokens_left(request, self._answers)
        if not self.fits(request):
            if self._future is not None:
                self._future.passed(request.request_id)
            return None
        hit = blocks.match(seq, request.prompt_tokens)
        if not blocks.admit(seq, hit, tokens, tokens, 0):
            raise AssertionError("a cache at rest has no room for a request that fits")
        seq.base = seq.prefill_end = tokens
        seq.status = FINISHED
        blocks.release(seq, tokens, tokens)
        return hit.blocks * self._block_tokens

    def fits(self, request: Request) -> bool:
        """Whether the request is not larger than the whole cache."""
        return self.blocks.blocks_for(tokens_left(request, self._answers)) <= self._largest_blocks

    def _sequence(self, request: Request) -> Sequence:
        self._served += 1
        seq = Sequence(request, self._served, self._moment.now)
        if request.hashed_tokens:
            self.blocks.prefix.expect_hashes(request.hash_tokens)
            seq.shared_blocks = request.hashed_tokens // self._block_tokens
        return seq


class TreeCache:
    """SGLang's radix tree (see engine.radix)."""

    def __init__(
        self, capacity_tokens: int | None, page_tokens: int, rank: str, *, answers: bool = False
    ) -> None:
        """An empty cache; `rank` names one of engine.radix.ranks.RANKS, others as in BlockCache.

        Raises:
            ConfigError: no such rank, or room for less than a page.
        """
        from engine.radix.cache import RadixCache
        from engine.radix.ranks import RANKS

        room = UNBOUNDED if capacity_tokens is None else capacity_tokens
        self._answers = answers
        self._tree = RadixCache(room, page_tokens, chosen("radix rank", rank, RANKS))

    def holds(self, request: Request) -> int:
        """Not known: a look into the tree changes it."""
        raise ConfigError(
            "index: radix: its caches cannot be asked what they hold; expected a router that does"
            " not ask, such as round-robin"
        )

    def serve(self, request: Request) -> int | None:
        """See Cache."""
        rejected = self._tree.rejected
        hit_tokens = self._tree.serve(request, self._answers)
        return None if self._tree.rejected > rejected else hit_tokens


def tokens_left(request: Request, answers: bool) -> int:
    """Tokens whose keys and values a request leaves: see BlockCache."""
    most = request.prompt_tokens + request.output_tokens - 1
    if answers:
        return most
    return max(request.prompt_tokens, min(request.hashed_tokens, most))


@dataclass(slots=True)
class Tally:
    """What came of requests; counts, but for `shares` and the two works."""

    requests: int = 0
    with_hit: int = 0
    """Requests that hit anything."""
    bypassed: int = 0
    """Requests larger than the whole cache."""
    prompt_tokens: int = 0
    hit_tokens: int = 0
    prompt_blocks: int = 0
    """Whole blocks of prompts."""
    hit_blocks: int = 0
    shares: float = 0.0
    """Sum over requests: hit tokens by prompt tokens."""
    work: float = 0.0
    """To compute all prompts, in tokens without context."""
    work_left: float = 0.0
    """To compute what was not hit."""

    def add(
        self, request: Request, hit_tokens: int | None, block_tokens: int, context_tokens: int
    ) -> None:
        """Count a request; `context_tokens`: see CacheView."""
        tokens = request.prompt_tokens
        self.requests += 1
        self.prompt_tokens += tokens
        self.prompt_blocks += tokens // block_tokens
        work = float(tokens)
        saved = 0.0
        if context_tokens:
            work += tokens * tokens / (2 * context_tokens)
        if hit_tokens is None:
            self.bypassed += 1
        elif hit_tokens:
            self.with_hit += 1
            self.hit_tokens += hit_tokens
            self.hit_blocks += hit_tokens // block_tokens
            self.shares += hit_tokens / tokens
            saved = float(hit_tokens)
            if context_tokens:
                saved += hit_tokens * hit_tokens / (2 * context_tokens)
        self.work += work
        self.work_left += work - saved

    def ratios(self) -> dict[str, float]:
        """Shares of hits: by token, request and block, and of work that is left; 0 of nothing."""
        return {
            "token_hit_ratio": _ratio(self.hit_tokens, self.prompt_tokens),
            "mean_request_hit_ratio": _ratio(self.shares, self.requests),
            "request_hit_ratio": _ratio(self.with_hit, self.requests),
            "block_hit_ratio": _ratio(self.hit_blocks, self.prompt_blocks),
            "prefill_work_left": _ratio(self.work_left, self.work),
        }


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


@dataclass(slots=True)
class Tallies:
    """Of all requests, and by tenant where the trace names any."""

    total: Tally = field(default_factory=Tally)
    tenants: dict[str, Tally] = field(default_factory=dict[str, Tally])

    def add(
        self, request: Request, hit_tokens: int | None, block_tokens: int, context_tokens: int
    ) -> None:
        """Count a request."""
        self.total.add(request, hit_tokens, block_tokens, context_tokens)
        if request.tenant:
            tenant = self.tenants.get(request.tenant)
            if tenant is None:
                tenant = self.tenants[request.tenant] = Tally()
            tenant.add(request, hit_tokens, block_tokens, context_tokens)
