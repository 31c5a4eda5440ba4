"""Which replica holds which content: an index over all prefix caches, kept by their own events.

Content is known by a trace's hashes (see traces.request). Blocks whose last tokens the same hash
describes make a *unit*: 32 blocks of 16 tokens for hashes of 512. For each unit the index has a
bit set of the replicas that hold all of it; only where a replica holds a part of a unit, or some
block of it twice, are its blocks told apart. A lookup costs the units of the request, however many
replicas there are.
"""

from __future__ import annotations

from typing import Any

from engine.sequence import Sequence
from traces.request import Request

Groups = list[tuple[int, int]]
"""(blocks, bit set of the replicas whose longest cached prefix is that long), ascending."""


class FleetIndex:
    """Counts, for each block of content, how often each replica holds it."""

    __slots__ = ("_all", "_block_tokens", "_copies", "_partly", "_replicas", "_whole")

    def __init__(self, replicas: int, block_tokens: int) -> None:
        self._replicas: int = replicas
        self._block_tokens: int = block_tokens
        self._all: int = (1 << replicas) - 1
        self._whole: dict[int, int] = {}
        """By hash: who holds every block of the unit."""
        self._partly: dict[int, int] = {}
        """By hash: who has an entry in `_copies`."""
        self._copies: dict[int, list[int]] = {}
        """By hash and replica: bit sets of the blocks that are held at least once, twice, ...; only
        where not every block is held once."""

    def __len__(self) -> int:
        """Units that somebody holds, or a part of them."""
        return len(self._whole.keys() | self._partly.keys())

    # ---- events

    def add(
        self, replica: int, hashes: tuple[int, ...], hash_tokens: int, at: int, end: int
    ) -> None:
        """`replica` has blocks [at, end) of the content that `hashes` describe once more."""
        block_tokens = self._block_tokens
        bit = 1 << replica
        while at < end:
            unit = ((at + 1) * block_tokens - 1) // hash_tokens
            first = unit * hash_tokens // block_tokens
            stop = (unit + 1) * hash_tokens // block_tokens
            upto = stop if stop < end else end
            content = hashes[unit]
            if at == first and upto == stop:
                whole = self._whole.get(content, 0)
                if not (whole | self._partly.get(content, 0)) & bit:
                    self._whole[content] = whole | bit
                    at = upto
                    continue
            added = ((1 << (upto - at)) - 1) << (at - first)
            full = (1 << (stop - first)) - 1
            copies = self._copies_of(content, replica, full)
            for i, held in enumerate(copies):
                copies[i] = held | added
                added &= held
            if added:
                copies.append(added)
            self._store(content, replica, full, copies)
            at = upto

    def drop(
        self, replica: int, hashes: tuple[int, ...], hash_tokens: int, at: int, end: int
    ) -> None:
        """`replica` has blocks [at, end) of that content once less."""
        block_tokens = self._block_tokens
        bit = 1 << replica
        while at < end:
            unit = ((at + 1) * block_tokens - 1) // hash_tokens
            first = unit * hash_tokens // block_tokens
            stop = (unit + 1) * hash_tokens // block_tokens
            upto = stop if stop < end else end
            content = hashes[unit]
            if at == first and upto == stop and not self._partly.get(content, 0) & bit:
                self._keep(self._whole, content, self._whole[content] & ~bit)
                at = upto
                continue
            dropped = ((1 << (upto - at)) - 1) << (at - first)
            full = (1 << (stop - first)) - 1
            copies = self._copies_of(content, replica, full)
            for i in range(len(copies) - 1, -1, -1):
                taken = copies[i] & dropped
                copies[i] ^= taken
                dropped ^= taken
            assert not dropped, "a block was dropped that nobody had added"
            while copies and not copies[-1]:
                copies.pop()
            self._store(content, replica, full, copies)
            at = upto

    def _copies_of(self, content: int, replica: int, full: int) -> list[int]:
        if self._partly.get(content, 0) >> replica & 1:
            return self._copies[content * self._replicas + replica]
        return [full] if self._whole.get(content, 0) >> replica & 1 else []

    def _store(self, content: int, replica: int, full: int, copies: list[int]) -> None:
        bit = 1 << replica
        key = content * self._replicas + replica
        whole = self._whole.get(content, 0) & ~bit
        partly = self._partly.get(content, 0) & ~bit
        if copies and copies[0] == full:
            whole |= bit
        if not copies or (len(copies) == 1 and copies[0] == full):
            self._copies.pop(key, None)
        else:
            self._copies[key] = copies
            partly |= bit
        self._keep(self._whole, content, whole)
        self._keep(self._partly, content, partly)

    def _keep(self, holders: dict[int, int], content: int, them: int) -> None:
        if them:
            holders[content] = them
        else:
            holders.pop(content, None)

    # ---- lookups

    def match(self, request: Request) -> Groups:
        """All replicas, by the length of their longest cached prefix of the prompt.

        A token of the prompt at least is left to compute, as in the engine's own lookup.
        """
        found: dict[int, int] = {}
        alive = self._all
        at = 0
        limit = self._limit(request)
        hashes, hash_tokens = request.hashes, request.hash_tokens
        whole, block_tokens = self._whole, self._block_tokens
        while at < limit:
            unit = ((at + 1) * block_tokens - 1) // hash_tokens
            stop = (unit + 1) * hash_tokens // block_tokens
            content = hashes[unit]
            holders = alive & whole.get(content, 0)
            if holders != alive:
                out = alive ^ holders
                partly = self._partly.get(content, 0) & out
                out ^= partly
                if out:
                    found[at] = found.get(at, 0) | out
                while partly:
                    low = partly & -partly
                    partly ^= low
                    reach = min(at + self._leading(content, low.bit_length() - 1), limit)
                    found[reach] = found.get(reach, 0) | low
                alive = holders
                if not alive:
                    return sorted(found.items())
            at = stop
        found[limit] = found.get(limit, 0) | alive
        return sorted(found.items())

    def blocks(self, replica: int, request: Request) -> int:
        """Length of the longest cached prefix of the prompt on one replica."""
        at = 0
        limit = self._limit(request)
        hashes, hash_tokens = request.hashes, request.hash_tokens
        while at < limit:
            unit = ((at + 1) * self._block_tokens - 1) // hash_tokens
            content = hashes[unit]
            if not self._whole.get(content, 0) >> replica & 1:
                if self._partly.get(content, 0) >> replica & 1:
                    at += self._leading(content, replica)
                return min(at, limit)
            at = (unit + 1) * hash_tokens // self._block_tokens
        return limit

    def _limit(self, request: Request) -> int:
        """Blocks of the prompt that a hit may have."""
        if not request.hashes:
            return 0
        return min(request.hashed_tokens, request.prompt_tokens - 1) // self._block_tokens

    def _leading(self, content: int, replica: int) -> int:
        held = self._copies[content * self._replicas + replica][0]
        return ((held + 1) & ~held).bit_length() - 1


class CacheListener:
    """Tells a fleet's index what becomes of one replica's cache (see BlockManager.listener).

    What is evicted is told with the replica's next admission or end of a request: between them a
    simulated replica takes many steps at once, and what a router sees must not depend on that.
    """

    __slots__ = ("_evicted", "_index", "_replica")

    def __init__(self, index: FleetIndex, replica: int) -> None:
        self._index: FleetIndex = index
        self._replica: int = replica
        self._evicted: list[tuple[Sequence, int, int]] = []

    def begun(self, seq: Sequence, start: int) -> None:
        """`seq` was admitted and is to compute its blocks from `start` on."""
        self._tell()
        if start < seq.shared_blocks:
            hash_tokens = seq.request.hash_tokens
            self._index.add(self._replica, seq.hashes, hash_tokens, start, seq.shared_blocks)

    def released(self, seq: Sequence, end: int) -> None:
        """`seq` gave its blocks back; those past `end` were not computed, or are not kept."""
        self._tell()
        if end < seq.shared_blocks:
            hash_tokens = seq.request.hash_tokens
            self._index.drop(self._replica, seq.hashes, hash_tokens, end, seq.shared_blocks)

    def evicted(self, piece: Any, blocks: int) -> None:
        """`piece` lost its last `blocks` blocks."""
        owner = piece.owner
        if owner is not None and piece.end < owner.shared_blocks:
            self._evicted.append((owner, piece.end, piece.end + blocks))

    def _tell(self) -> None:
        for owner, start, end in self._evicted:
            if end > owner.shared_blocks:
                end = owner.shared_blocks
            hash_tokens = owner.request.hash_tokens
            self._index.drop(self._replica, owner.hashes, hash_tokens, start, end)
        self._evicted = []
