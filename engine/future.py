"""What a trace is going to ask for: the knowledge behind Belady's bound.

A request *asks for* the blocks of its prompt that it may find in a cache: whole blocks of content
that another request may have, except that of its last token, which is computed in any case. It
asks once, when it is first admitted. Other blocks that it mentions it computes, so that it is no
use to keep them until then.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable
from typing import Any, Final

from engine.named import chosen
from traces.errors import ConfigError, TraceError
from traces.request import Request

NEVER: Final = 1 << 62
"""Rank of a request that does not come."""

WHOLE: Final = 0xFFFF
"""All of the blocks that a hash tells apart."""


class Uses:
    """Which requests ask for which content, in arrays: one pass over a trace, in order.

    Content that only one request mentions is not kept: nobody can hit it. Built once, it may serve
    any number of caches with blocks of one size.
    """

    __slots__ = (
        "_asked",
        "_firsts",
        "_hash_tokens",
        "_hashes",
        "_made",
        "_parts",
        "_places",
        "_ranks",
        "block_tokens",
        "requests",
    )

    def __init__(
        self,
        requests: Iterable[Request],
        block_tokens: int,
        *,
        admitted: Callable[[Request], bool] | None = None,
    ) -> None:
        """Read `requests` to their end.

        Args:
            requests: numbered from 0 in the order in which they come (`request_id`).
            block_tokens: tokens of KV a block holds.
            admitted: whether a request will be admitted at all; None: all will be.

        Raises:
            TraceError: they are not numbered so.
            ConfigError: a hash stands for different numbers of tokens.
        """
        self.block_tokens: int = block_tokens
        self._hash_tokens: int = 0
        self._parts: int = 1
        """Blocks that one hash may tell apart."""
        hashes, ranks, places = array("q"), array("i"), array("i")
        asked, made = array("H"), array("H")
        rank = -1
        for rank, request in enumerate(requests):
            if request.request_id != rank:
                raise TraceError(
                    f"request {request.request_id} comes as number {rank}: what is to come can only"
                    " be known of requests numbered from 0 in the order in which they come"
                )
            if request.hashed_tokens < block_tokens:
                continue
            if admitted is None or admitted(request):
                self._expect(request)
                self._take(request, rank, hashes, ranks, asked, made, places)
        self.requests: int = rank + 1
        self._index(hashes, ranks, asked, made, places)

    def _expect(self, request: Request) -> None:
        if self._hash_tokens == 0:
            self._hash_tokens = request.hash_tokens
            self._parts = -(-request.hash_tokens // self.block_tokens)
        elif request.hash_tokens != self._hash_tokens:
            raise ConfigError(
                f"hash_tokens: {request.hash_tokens} after {self._hash_tokens};"
                " one cache needs one size"
            )

    def _take(
        self,
        request: Request,
        rank: int,
        hashes: array[int],
        ranks: array[int],
        asked: array[int],
        made: array[int],
        places: array[int],
    ) -> None:
        """Note each hash of the request, and how many of its blocks it asks for and leaves."""
        block_tokens, hash_tokens = self.block_tokens, self._hash_tokens
        most = request.prompt_tokens + request.output_tokens - 1
        blocks = min(request.hashed_tokens, most) // block_tokens
        wanted = min(blocks, (request.prompt_tokens - 1) // block_tokens)
        if not blocks:
            return
        if self._parts == 1:
            keyed = [((block + 1) * block_tokens - 1) // hash_tokens for block in range(blocks)]
            hashes.extend(request.hashes[place] for place in keyed)
            asked.extend([WHOLE] * wanted)
            asked.extend([0] * (blocks - wanted))
            made.extend([WHOLE] * blocks)
        else:
            keyed = range((blocks * block_tokens - 1) // hash_tokens + 1)
            hashes.extend(request.hashes[: len(keyed)])
            last = (wanted * block_tokens - 1) // hash_tokens if wanted else 0
            asked.extend([WHOLE] * last)
            asked.append(wanted - self._first_block(last))
            asked.extend([0] * (len(keyed) - last - 1))
            made.extend([WHOLE] * (len(keyed) - 1))
            made.append(blocks - self._first_block(len(keyed) - 1))
        ranks.extend([rank] * len(keyed))
        places.extend(keyed)

    def _first_block(self, place: int) -> int:
        """The first block that hash number `place` of a request tells apart, of several."""
        return place * self._hash_tokens // self.block_tokens

    def _index(
        self,
        hashes: array[int],
        ranks: array[int],
        asked: array[int],
        made: array[int],
        places: array[int],
    ) -> None:
        """Order by content, then by rank."""
        import numpy as np

        of_use = np.frombuffer(hashes, np.int64) if hashes else np.empty(0, np.int64)
        order = np.argsort(of_use, kind="stable")
        _, counts = np.unique(of_use, return_counts=True)
        order = order[np.repeat(counts > 1, counts)]
        shared, first = np.unique(of_use[order], return_index=True)
        firsts = np.append(first, len(order)).astype(np.int32)
        self._hashes: Any = _view(shared)
        self._firsts: Any = _view(firsts)
        self._ranks: Any = _view(_ordered(ranks, order, np.int32))
        self._asked: Any = _view(_ordered(asked, order, np.uint16))
        """By mention: of how many of the hash's blocks, from its first on."""
        self._made: Any = _view(_ordered(made, order, np.uint16))
        """The same; of those that are not asked for it leaves new ones."""
        self._places: Any = None
        """By hash: its number in a request, where blocks do not begin where hashes do."""
        if self._parts > 1 and self._hash_tokens % self.block_tokens:
            self._places = _view(_ordered(places, order, np.int32)[first])

    @property
    def size_bytes(self) -> int:
        """Memory it takes."""
        kept = (
            self._hashes,
            self._firsts,
            self._ranks,
            self._asked,
            self._made,
            self._places,
        )
        return sum(one.nbytes for one in kept if one is not None)

    @property
    def mentions(self) -> int:
        """Times that a request mentions content that another one mentions too."""
        return len(self._ranks)

    def next_use(self, key: int, rank: int, passed: frozenset[int] | set[int]) -> int:
        """The first request from `rank` on, none of `passed`, that asks for the content `key`.

        `key` is what PrefixIndex.key makes of a block. NEVER if there is none, or if another will
        have computed it before. O(log requests).
        """
        hashed, part = divmod(key, self._parts)
        hashes = self._hashes
        row = bisect_left(hashes, hashed)
        if row == len(hashes) or hashes[row] != hashed:
            return NEVER
        if self._places is not None:
            part = (part - self._first_block(self._places[row])) % self._parts
        ranks, asked, made = self._ranks, self._asked, self._made
        end = self._firsts[row + 1]
        for mention in range(bisect_left(ranks, rank, self._firsts[row], end), end):
            if made[mention] > part and ranks[mention] not in passed:
                return ranks[mention] if asked[mention] > part else NEVER
        return NEVER


def _view(values: Any) -> memoryview:
    """The array as bisect reads it fastest."""
    return memoryview(values)


def _ordered(values: array[int], order: Any, dtype: Any) -> Any:
    import numpy as np

    return np.frombuffer(values, dtype)[order] if values else np.empty(0, dtype)


class KnownFuture:
    """What is yet to come of a trace, for one cache or for several that share its requests.

    A request is to come until it is `passed`: admitted to whichever cache, or gone for good.
    Requests may pass in any order. One that was preempted and comes again is not foreseen.
    """

    __slots__ = ("_early", "_rank", "_uses")

    def __init__(self, uses: Uses) -> None:
        self._uses: Uses = uses
        self._rank: int = 0
        self._early: set[int] = set()
        """Those after `_rank` that have passed."""

    def begins(self) -> int:
        """All requests before this one have passed."""
        return self._rank

    def next_use(self, key: int) -> int:
        """Rank of the next request to come that asks for the content `key`; NEVER without one."""
        return self._uses.next_use(key, self._rank, self._early)

    def passed(self, rank: int) -> None:
        """Request `rank` will not ask any more; said twice, it is as if said once."""
        if rank > self._rank:
            self._early.add(rank)
        elif rank == self._rank:
            rank += 1
            early = self._early
            while rank in early:
                early.remove(rank)
                rank += 1
            self._rank = rank


def needs_future(spec: str) -> bool:
    """Whether the eviction policy that `spec` names works only with a future.

    It says so by an attribute `needs_future`.
    """
    from engine.eviction import EVICTION

    policy = chosen("eviction policy", spec, EVICTION)
    return bool(getattr(getattr(policy, "func", policy), "needs_future", False))


def future_of(spec: str, requests: Iterable[Request], block_tokens: int) -> KnownFuture | None:
    """The future that the policy `spec` needs, from a pass over `requests`; None if it needs none.

    Raises:
        TraceError, ConfigError: see Uses.
    """
    return KnownFuture(Uses(requests, block_tokens)) if needs_future(spec) else None
