"""What an eviction policy is told, asked, and may look at."""

from __future__ import annotations

from typing import Protocol

from engine.moment import Moment
from engine.prefix import Piece, PrefixIndex


class EvictionPolicy(Protocol):
    """Keeps the pieces nobody references and says which to shrink next, always from its tail.

    A policy keeps what it knows of a piece in `Piece.rank` and `Piece.segment`, which a split
    copies, or in dicts of its own. It may have more methods, which are called if it has them:

    - `begin(piece)`: a request is about to compute `piece`, whose first block has the content
      `piece.key`; called before room is made for it.
    - `hit(piece, seq)`: `seq` hit `piece`, whether it was referenced or not; `remove` or `replace`
      came before.
    - `queued(seq)`, `unqueued(seq)`: a request came into the queue; it left it, to run or for good.
    - `together(piece) -> int`: of the victim, how many of the last blocks go before it is asked for
      a victim again, if that many are needed; without it all of them.
    - `expired() -> Piece | None`: a piece that nobody may hit any more, to be given up now; asked
      when a request is first looked up, until it is None.

    And it may have attributes that save work where they are True. `leaf_first` promises that a
    piece never goes before another that continues it, as in LRU order: nothing is left behind that
    must be searched for. `by_piece`: `evicted` need only be called when a piece is empty.
    """

    def push(self, piece: Piece) -> None:
        """`piece` lost its last reference; `piece.hits` tells how often it was hit so far."""
        ...

    def remove(self, piece: Piece) -> None:
        """`piece` was hit."""
        ...

    def replace(self, piece: Piece, tail: Piece) -> None:
        """`tail` was split off `piece`, which is about to be hit; it takes the place of it."""
        ...

    def victim(self) -> Piece:
        """The piece to evict from; there is one. Asked again, it is the same until it is empty or
        another method was called."""
        ...

    def evicted(self, piece: Piece, blocks: int) -> None:
        """The victim lost its last `blocks` blocks; it has gone if it is empty now."""
        ...


class Future(Protocol):
    """Knows the trace to its end, for the bound that no real policy reaches."""

    def next_use(self, key: int) -> int:
        """Rank, in arrival order, of the next request that will ask for the content `key`; a
        number above all ranks if there is none."""
        ...

    def passed(self, rank: int) -> None:
        """Request `rank` was admitted, or will not be: it asks for nothing any more."""
        ...

    def begins(self) -> int:
        """All requests of a lesser rank have passed."""
        ...


class CacheView:
    """What a policy may know of the cache it serves."""

    __slots__ = ("block_tokens", "capacity", "context_tokens", "future", "moment", "prefix")

    def __init__(
        self,
        capacity: int,
        block_tokens: int = 1,
        *,
        prefix: PrefixIndex | None = None,
        moment: Moment | None = None,
        context_tokens: int = 0,
        future: Future | None = None,
    ) -> None:
        """A view of a cache of `capacity` blocks.

        Args:
            capacity: blocks.
            block_tokens: tokens of KV a block holds.
            prefix: tells content apart; None: a piece is a block, its content is `Piece.key`.
            moment: the time.
            context_tokens: so many tokens of context cost as much to attend to as everything else
                that a token costs; 0: unknown, taken as without limit.
            future: of the trace that is served, if it is known.
        """
        self.capacity: int = capacity
        self.block_tokens: int = block_tokens
        self.prefix: PrefixIndex | None = prefix
        self.moment: Moment = moment or Moment()
        self.context_tokens: int = context_tokens
        self.future: Future | None = future

    def key(self, piece: Piece, block: int) -> int:
        """The content of block number `block` of `piece`; another request may have it, or not."""
        if self.prefix is None:
            return piece.key
        assert piece.owner is not None
        return self.prefix.content(piece.owner, block)

    def recompute_tokens(self, start: int, end: int) -> float:
        """Work to compute blocks [start, end) anew, in tokens without context."""
        first, last = start * self.block_tokens, end * self.block_tokens
        work = float(last - first)
        if self.context_tokens:
            work += (last * last - first * first) / (2 * self.context_tokens)
        return work
