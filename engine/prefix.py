"""The prefix cache's index: which cached blocks a sequence begins with.

Content is known by chained hashes (see traces.request): the hash of a block's last token stands
for everything before it, so two pieces that agree on one block agree on all blocks before, and
the index needs a piece's first block only. How much of an open piece is registered, for others to
hit, follows from its owner's progress.
"""

from __future__ import annotations

from typing import Final

from engine.decoding import DecodeSet
from engine.sequence import Sequence
from traces.errors import ConfigError


class Piece:
    """A run of blocks [start, end) of one request, referenced by `refs` sequences."""

    __slots__ = (
        "after",
        "before",
        "born",
        "end",
        "hits",
        "indexed",
        "is_open",
        "key",
        "later",
        "lost",
        "names",
        "owner",
        "place",
        "rank",
        "refs",
        "right",
        "segment",
        "start",
    )

    def __init__(self, start: int, end: int, owner: Sequence | None) -> None:
        self.start: int = start
        self.end: int = end
        """While open: maintained only if its owner is contested, else derived from its progress."""
        self.owner: Sequence | None = owner
        """The sequence that computed it."""
        self.lost: bool = False
        """Nobody can hit it any more, it only has a place in the eviction order."""
        self.refs: int = 1
        self.is_open: bool = False
        """Its owner is still computing at its end."""
        self.indexed: bool = False
        self.key: int = -1
        """Of its first block's content, if others may have it: its place in the index."""
        self.later: Piece | None = None
        """The next copy of its first block's content."""
        self.right: Piece | None = None
        """What was split off its end: sequences that held both reach it from here."""
        self.born: int = 0
        """When it was begun, as a rank among its like."""
        self.hits: int = 0
        """Times that others hit it."""
        self.rank: float = 0.0
        """The eviction policy's own."""
        self.segment: int = -1
        """The eviction policy's own; negative: it has not kept the piece yet."""
        self.place: int = 0
        """The eviction policy's own."""
        self.before: Piece | None = None
        """Neighbour in the eviction order."""
        self.after: Piece | None = None
        self.names: list[int] = []
        """Physical blocks, where they are named and the piece is closed."""

    def __repr__(self) -> str:
        return f"Piece({self.start}, {self.end}, {self.owner}, refs={self.refs})"


class Hit:
    """What a prefix lookup found; it changes nothing by itself."""

    __slots__ = ("below", "blocks", "copied", "evictable", "pieces", "rival")

    def __init__(self) -> None:
        self.pieces: list[Piece] = []
        """Pieces from block 0 on; of the last one perhaps only the beginning."""
        self.blocks: int = 0
        """Blocks hit."""
        self.evictable: int = 0
        """Blocks hit that nobody references now."""
        self.rival: Sequence | None = None
        """A running sequence that is about to compute the block after the hit."""
        self.copied: bool = False
        """The block after the hit is cached too, but must be computed all the same."""
        self.below: tuple[int, ...] = ()
        """Keys of the blocks after the hit that a tier below the GPU holds."""


NO_HIT: Final = Hit()

BLOCK_BITS: Final = 24
"""A sequence has fewer than 2 to the power of this many blocks."""


class PrefixIndex:
    """Finds cached pieces by content, and knows how far each is registered."""

    __slots__ = (
        "_block_tokens",
        "_decodes",
        "_hash_tokens",
        "_index",
        "_lag",
        "_parts",
        "_starts",
    )

    def __init__(self, block_tokens: int, decodes: DecodeSet, lag: int) -> None:
        """An empty index over blocks of `block_tokens` tokens.

        Args:
            block_tokens: tokens of KV a block holds.
            decodes: knows how far decoding sequences are.
            lag: tokens of a decoding sequence that are scheduled but not known (asynchronous: 1).
        """
        self._block_tokens: int = block_tokens
        self._decodes: DecodeSet = decodes
        self._lag: int = lag
        self._hash_tokens: int = 0
        self._parts: int = 0
        """Blocks that one hash may tell apart."""
        self._index: dict[int, Piece] = {}
        self._starts: dict[int, int] | None = None
        """How many keys of the index are of blocks that each hash covers; None: not counted."""

    def count_starts(self) -> None:
        """Make `next_start` fast; called before anything is indexed."""
        self._starts = {}

    def registered_tokens(self, seq: Sequence) -> int:
        """Tokens of `seq` that are scheduled and known, which is what others may hit."""
        computed = self._decodes.computed(seq)
        if computed <= seq.prefill_end or not self._lag or seq.ahead:
            return computed
        return max(seq.prefill_end, computed - self._lag)

    def expect_hashes(self, hash_tokens: int) -> None:
        """Learn for how many tokens a request's hash stands: for all requests the same."""
        if self._hash_tokens == 0:
            self._hash_tokens = hash_tokens
            self._parts = -(-hash_tokens // self._block_tokens)
        elif hash_tokens != self._hash_tokens:
            raise ConfigError(
                f"hash_tokens: {hash_tokens} after {self._hash_tokens}; one cache needs one size"
            )

    def walk(self, seq: Sequence, limit: int) -> Hit:
        """The longest cached prefix of `seq`, at most `limit` blocks."""
        hit = Hit()
        at = 0
        shared = seq.shared_blocks
        block_tokens, hash_tokens, parts = self._block_tokens, self._hash_tokens, self._parts
        while True:
            if at < shared:
                # `key`, written out for speed
                covering = seq.hashes[((at + 1) * block_tokens - 1) // hash_tokens]
                first = self._index.get(covering * parts + at % parts)
                piece = first
                while piece is not None and self.end_of(piece) <= at:
                    piece = piece.later
                if piece is None:
                    if first is not None and first.owner is not seq:
                        hit.rival = first.owner
                    break
            else:
                piece = self.find_kept(seq, at)
                if piece is None:
                    break
            if at >= limit:
                hit.copied = True
                break
            end = self.end_of(piece)
            stop = end
            owner = piece.owner
            assert owner is not None
            if owner is not seq:
                stop = self._common(owner, seq, at, end)
            reach = stop
            if stop > limit:
                stop = limit
            hit.pieces.append(piece)
            if piece.refs == 0:
                hit.evictable += stop - at
            at = stop
            if reach > stop:
                hit.copied = True
                break
            if piece.is_open and stop == end and owner is not seq and self._agree(owner, seq, at):
                hit.rival = owner
        hit.blocks = at
        return hit

    def reach(self, seq: Sequence, at: int, stop: int) -> int:
        """End, at most `stop`, of the cached blocks of `seq` from block `at` on.

        Nobody but `seq` has the block before `at`: who has block `at` begins a piece with it.
        """
        while at < stop:
            if at < seq.shared_blocks:
                piece = self._index.get(self.key(seq, at))
                while piece is not None and self.end_of(piece) <= at:
                    piece = piece.later
            else:
                piece = self.find_kept(seq, at)
            if piece is None:
                break
            owner, end = piece.owner, self.end_of(piece)
            assert owner is not None
            at = end if owner is seq else self._common(owner, seq, at, end)
        return min(at, stop)

    def next_start(self, seq: Sequence, at: int, stop: int) -> int:
        """The first block of `seq` from block `at` on with which a cached piece begins; `stop` if
        none before does. Looks at hashes where it can, rather than at blocks."""
        shared = min(stop, seq.shared_blocks)
        starts, index, hash_tokens = self._starts, self._index, self._hash_tokens
        block = at
        while block < shared:
            last = ((block + 1) * self._block_tokens - 1) // hash_tokens
            beyond = min((last + 1) * hash_tokens // self._block_tokens, shared)
            if starts is None or seq.hashes[last] in starts:
                base = seq.hashes[last] * self._parts
                for one in range(block, beyond):
                    if base + one % self._parts in index:
                        return one
            block = beyond
        return min(
            (piece.start for piece in seq.kept if piece.end > piece.start >= at), default=stop
        )

    def content(self, seq: Sequence, block: int) -> int:
        """Names the content of block `block` of `seq`: its key, or a number that only `seq` has."""
        if block < seq.shared_blocks:
            return self.key(seq, block)
        return -2 - (seq.number << BLOCK_BITS) - block

    def key(self, seq: Sequence, block: int) -> int:
        """Under which a piece that begins with block `block` of `seq` is indexed."""
        block_tokens = self._block_tokens
        last = ((block + 1) * block_tokens - 1) // self._hash_tokens
        return seq.hashes[last] * self._parts + block % self._parts

    def hash_at(self, seq: Sequence, block: int) -> int:
        """The hash that covers block `block` of `seq`."""
        return seq.hashes[((block + 1) * self._block_tokens - 1) // self._hash_tokens]

    def hashes_of(self, seq: Sequence, tokens: int) -> int:
        """How many hashes cover the shared blocks among the first `tokens` tokens of `seq`."""
        blocks = min(tokens // self._block_tokens, seq.shared_blocks)
        if blocks == 0:
            return 0
        return (blocks * self._block_tokens - 1) // self._hash_tokens + 1

    def blocks_of(self, tokens: int) -> int:
        """Full blocks that so many tokens fill."""
        return tokens // self._block_tokens

    def oldest(self, key: int) -> Piece | None:
        """The oldest piece that begins with the content `key`; `later` leads to the others."""
        return self._index.get(key)

    def find_kept(self, seq: Sequence, block: int) -> Piece | None:
        """The oldest piece that begins with block `block`, which only `seq` itself can have."""
        for piece in seq.kept:
            if piece.start == block and piece.end > block:
                return piece
        return None

    def end_of(self, piece: Piece) -> int:
        """First block past what is registered of `piece`."""
        if not piece.is_open:
            return piece.end
        owner = piece.owner
        assert owner is not None
        if owner.contested_until:
            return piece.end
        return max(piece.start, self.registered_tokens(owner) // self._block_tokens)

    def _agree(self, one: Sequence, other: Sequence, block: int) -> bool:
        """Whether both have the same content up to the end of `block`."""
        if block >= one.shared_blocks or block >= other.shared_blocks:
            return False
        last = ((block + 1) * self._block_tokens - 1) // self._hash_tokens
        return one.hashes[last] == other.hashes[last]

    def _common(self, one: Sequence, other: Sequence, low: int, high: int) -> int:
        """First block at which they differ, in [low + 1, high]; they agree on block `low`."""
        high = min(high, one.shared_blocks, other.shared_blocks)
        if self._agree(one, other, high - 1):
            return high
        high -= 1
        while high - low > 1:
            middle = (low + high) // 2
            if self._agree(one, other, middle):
                low = middle
            else:
                high = middle
        return high

    def insert(self, piece: Piece, key: int, oldest: bool = False) -> None:
        """Index `piece` behind the copies of its first block's content, or before them."""
        piece.key = key
        piece.indexed = True
        first = self._index.get(key)
        if first is None or oldest:
            piece.later = first
            self._index[key] = piece
            if first is None and self._starts is not None:
                covering = key // self._parts
                self._starts[covering] = self._starts.get(covering, 0) + 1
            return
        while first.later is not None:
            first = first.later
        first.later = piece
        piece.later = None

    def drop(self, piece: Piece) -> None:
        """Take `piece` out of the index, if it is there."""
        if not piece.indexed:
            return
        piece.indexed = False
        key = piece.key
        first = self._index[key]
        if first is piece:
            if piece.later is None:
                del self._index[key]
                if self._starts is not None:
                    self._count_down(key // self._parts)
            else:
                self._index[key] = piece.later
        else:
            while first.later is not piece:
                assert first.later is not None
                first = first.later
            first.later = piece.later
        piece.later = None

    def _count_down(self, covering: int) -> None:
        assert self._starts is not None
        left = self._starts[covering] - 1
        if left:
            self._starts[covering] = left
        else:
            del self._starts[covering]
