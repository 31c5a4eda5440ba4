"""A policy by itself: a stream of keys through a cache of blocks that are nothing but keys."""

from __future__ import annotations

from engine.eviction import eviction_policy
from engine.eviction.protocol import CacheView, EvictionPolicy, Future
from engine.prefix import Piece


class KeyStream:
    """A cache of single blocks, filled on demand: no prefixes, no requests, no time.

    This is the cache that the literature on eviction measures, and what its traces can be given to.
    """

    def __init__(
        self,
        spec: str,
        capacity: int,
        *,
        future: Future | None = None,
        competing: bool = False,
    ) -> None:
        """An empty cache.

        Args:
            spec: the policy (see engine.eviction).
            capacity: blocks.
            future: of the keys, for a policy that needs it.
            competing: a new block is ranked before room is made, and may itself be the one to go;
                in a prefix cache a block is in use while room is made for it.

        Raises:
            ConfigError: there is no such policy.
        """
        self.capacity: int = capacity
        self.policy: EvictionPolicy = eviction_policy(spec, CacheView(capacity, future=future))
        self.resident: dict[int, Piece] = {}
        self._begin = getattr(self.policy, "begin", None)
        self._expired = getattr(self.policy, "expired", None)
        self._competing: bool = competing
        self._born: int = 0

    def access(self, key: int) -> bool:
        """Ask for `key`; returns whether it was there. It is afterwards, unless it competed."""
        piece = self.resident.get(key)
        if piece is not None:
            piece.hits += 1
            self.policy.remove(piece)
            self.policy.push(piece)
        else:
            self._fill(key)
        if self._expired is not None:
            while (old := self._expired()) is not None:
                self._evict(old)
        return piece is not None

    def _fill(self, key: int) -> None:
        self._born += 1
        piece = Piece(0, 1, None)
        piece.refs = 0
        piece.key = key
        piece.born = self._born
        if self._begin is not None:
            self._begin(piece)
        if self._competing:
            self._keep(piece)
            self._shrink_to(self.capacity)
        else:
            self._shrink_to(self.capacity - 1)
            self._keep(piece)

    def _keep(self, piece: Piece) -> None:
        self.resident[piece.key] = piece
        self.policy.push(piece)

    def _shrink_to(self, blocks: int) -> None:
        while len(self.resident) > blocks:
            self._evict(self.policy.victim())

    def _evict(self, piece: Piece) -> None:
        del self.resident[piece.key]
        piece.end = piece.start
        self.policy.evicted(piece, 1)
