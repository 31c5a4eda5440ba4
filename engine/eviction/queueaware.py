"""What those who wait will ask for is spared."""

from __future__ import annotations

from typing import Final

from engine.eviction.divided import Queues
from engine.eviction.protocol import CacheView
from engine.prefix import Piece, PrefixIndex
from engine.sequence import Sequence


class QueueInformed(Queues):
    """LRU, but what a queued request begins with goes only if nothing else is left.

    The queue tells the near future for certain: evicting what its requests will hit is work done
    twice. Without a queue this is LRU; and where the queue wants more than the cache holds, it
    keeps what all want and churns through the rest.

    A piece is looked at when it would be evicted: if its first block is wanted, it is set aside
    until nobody wants it any more. O(hashes of the prompt) for a request queued.

    Source: the idea is CachedAttention's look-ahead eviction (Gao et al., "Cost-efficient large
    language model serving for multi-turn conversations with CachedAttention", USENIX ATC 2024),
    there for the tiers below the GPU.
    """

    __slots__ = ("_aside", "_asked", "_partly", "_prefix", "_wanted")

    PLAIN: Final = 0
    WANTED: Final = 1

    def __init__(self, view: CacheView) -> None:
        super().__init__(2)
        self._prefix: PrefixIndex | None = view.prefix
        self._wanted: dict[int, int] = {}
        """By content hash, how many queued requests have all of it in their prompt."""
        self._partly: dict[int, list[int]] = {}
        """By content hash, up to which block those have it whose prompt may end in it."""
        self._asked: dict[Sequence, tuple[int, int]] = {}
        """How many leading hashes and blocks of a queued request count."""
        self._aside: dict[int, list[Piece]] = {}
        """Wanted pieces found, by the hash of their first block."""

    def queued(self, seq: Sequence) -> None:
        """`seq` waits: its prompt is wanted."""
        if self._prefix is None:
            return
        known = seq.prompt_tokens + seq.generated
        count, blocks = self._prefix.hashes_of(seq, known), self._prefix.blocks_of(known)
        self._asked[seq] = (count, blocks)
        wanted = self._wanted
        for block_hash in seq.hashes[: max(count - 1, 0)]:
            wanted[block_hash] = wanted.get(block_hash, 0) + 1
        for block_hash in _last(seq, count):
            self._partly.setdefault(block_hash, []).append(blocks)
        self._chosen = None

    def unqueued(self, seq: Sequence) -> None:
        """`seq` does not wait any more."""
        if seq not in self._asked:
            return
        count, blocks = self._asked.pop(seq)
        wanted, partly = self._wanted, self._partly
        for block_hash in seq.hashes[: max(count - 1, 0)]:
            wanted[block_hash] -= 1
            if not wanted[block_hash]:
                del wanted[block_hash]
                self._look_again(block_hash)
        for block_hash in _last(seq, count):
            partly[block_hash].remove(blocks)
            if not partly[block_hash]:
                del partly[block_hash]
            self._look_again(block_hash)
        self._chosen = None

    def push(self, piece: Piece) -> None:
        """Queue `piece` as used now."""
        self.join(piece, self.PLAIN)

    def replace(self, piece: Piece, tail: Piece) -> None:
        """Put `tail` where `piece` stands; whether it is wanted is seen anew."""
        super().replace(piece, tail)
        if tail.segment == self.WANTED:
            self._put_back(tail)

    def choose(self) -> Piece:
        """The least recently used that nobody waits for, if there is one."""
        plain, aside = self._queues
        while len(plain):
            piece = plain.least()
            block_hash = self._hash(piece)
            if not self._is_wanted(block_hash, piece.start):
                return piece
            plain.discard(piece)
            piece.segment = self.WANTED
            aside.add(piece, 0.0, piece.place)
            self._aside.setdefault(block_hash, []).append(piece)
        return aside.least()

    def _is_wanted(self, block_hash: int, block: int) -> bool:
        if block_hash in self._wanted:
            return True
        return any(end > block for end in self._partly.get(block_hash, ()))

    def _look_again(self, block_hash: int) -> None:
        """Fewer want what begins with this content: it has its place by use again."""
        aside = self._queues[self.WANTED]
        for piece in self._aside.pop(block_hash, ()):
            if piece in aside:
                self._put_back(piece)

    def _put_back(self, piece: Piece) -> None:
        self._queues[self.WANTED].discard(piece)
        piece.segment = self.PLAIN
        self.rejoin(piece)

    def _hash(self, piece: Piece) -> int:
        owner = piece.owner
        if self._prefix is None or owner is None:
            return -1
        if piece.start >= owner.shared_blocks:
            return _private(owner)
        return self._prefix.hash_at(owner, piece.start)


def _last(seq: Sequence, count: int) -> tuple[int, ...]:
    """The last of its `count` hashes that cover its prompt, and what only it has."""
    return (*seq.hashes[max(count - 1, 0) : count], _private(seq))


def _private(seq: Sequence) -> int:
    """Stands for all content that only `seq` has."""
    return -2 - seq.number
