"""A policy that watches another: every call must make sense, and no block be lost or kept twice."""

from typing import Any

from engine.blocks import BlockManager
from engine.eviction import EVICTION
from engine.eviction.protocol import EvictionPolicy
from engine.prefix import Piece

POLICIES = [name for name, policy in EVICTION.items() if not getattr(policy, "needs_future", False)]
"""Those that need nothing but a cache."""
SPECS = [
    *POLICIES,
    "lfu:history=true",
    "ttl:ttl_s=0.0003",
    "ttl:ttl_s=0.02",
    "tool-ttl:ttl_s=0.0003",
    "tool-ttl:ttl_s=0.02",
    "priority:pin=t1+c2:share=0.3",
    "s3fifo:hits=1:small=0.5",
    "slru:segments=2:strict=true",
    "lirs:hir=0.3:strict=true",
    "w-tinylfu:window=0.3:sample=0.1",
    "category:turns=0",
]
"""The same with parameters that matter within a few steps, besides."""


class Audited:
    """Put in the place of a policy that nothing was pushed to yet."""

    def __init__(self, policy: EvictionPolicy) -> None:
        self.policy: Any = policy
        self.sizes: dict[Piece, int] = {}
        self.chosen: Piece | None = None

    @property
    def blocks(self) -> int:
        return sum(self.sizes.values())

    def push(self, piece: Piece) -> None:
        assert piece.refs == 0
        assert not piece.is_open
        assert piece.start < piece.end
        assert piece not in self.sizes
        before = {kept: kept.end for kept in self.sizes} if piece.lost else {}
        self.policy.push(piece)
        grown = [kept for kept, end in before.items() if kept.end > end]
        if grown:  # it joined its like
            (kept,) = grown
            self.sizes[kept] += piece.end - piece.start
        else:
            self.sizes[piece] = piece.end - piece.start
        self.chosen = None

    def remove(self, piece: Piece) -> None:
        assert self.sizes.pop(piece) == piece.end - piece.start
        self.policy.remove(piece)
        self.chosen = None

    def replace(self, piece: Piece, tail: Piece) -> None:
        assert piece.end == tail.start
        assert piece.start < piece.end
        assert tail.start < tail.end
        assert self.sizes.pop(piece) == tail.end - piece.start
        self.policy.replace(piece, tail)
        self.sizes[tail] = tail.end - tail.start
        self.chosen = None

    def victim(self) -> Piece:
        piece = self.policy.victim()
        assert self.policy.victim() is piece
        if not any(hasattr(self.policy, name) for name in ("queued", "begin", "together")):
            # calls that are not seen here may change its mind
            assert self.chosen is None or piece is self.chosen
        assert self.sizes[piece] == piece.end - piece.start > 0
        self.chosen = piece
        return piece

    def evicted(self, piece: Piece, blocks: int) -> None:
        assert 0 < blocks <= self.sizes[piece]
        self.sizes[piece] -= blocks
        assert self.sizes[piece] == piece.end - piece.start
        if not self.sizes[piece]:
            del self.sizes[piece]
            self.chosen = None
        self.policy.evicted(piece, blocks)


def watched(blocks: BlockManager, audit: type[Audited]) -> Any:
    """Put an audit in the place of a fresh pool's policy, to be told of every block that goes."""
    blocks.eviction = audit(blocks.eviction)
    blocks._by_piece = False
    return blocks.eviction
