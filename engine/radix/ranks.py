"""What leaves the radix tree first.

A rank is a function of an evictable leaf: the leaf with the least rank goes first, of equals the
one that was accessed longest ago. It may read the node only, so that it changes with the node.
The definitions are those of SGLang 0.5.23, whose server offers lru, lfu, slru, priority and tlru.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final

from engine.radix.node import Node

Rank = int | float | tuple[int | float, ...]


def least_recently_used(node: Node) -> int:
    """Last accessed longest ago."""
    return node.accessed


def most_recently_used(node: Node) -> int:
    """Last accessed most recently."""
    return -node.accessed


def least_frequently_used(node: Node) -> tuple[int, int]:
    """Inserted through by the fewest requests, then least recently used."""
    return (node.hits, node.accessed)


def segmented(node: Node, *, protected_hits: int = 2) -> tuple[int, int]:
    """Least recently used, but what `protected_hits` requests inserted goes after all else."""
    return (int(node.hits >= protected_hits), node.accessed)


def first_created(node: Node) -> int:
    """First in, first out."""
    return node.created


def last_created(node: Node) -> int:
    """First in, last out."""
    return -node.created


def least_important(node: Node) -> tuple[int, int]:
    """Of the lowest priority, then least recently used."""
    return (node.priority, node.accessed)


def tail_optimized(
    node: Node, *, threshold: int = 0, next_prompt_estimate: int = 0
) -> tuple[int, int]:
    """T-LRU: the tail that a conversation can lose goes first, then least recently used.

    Zhang et al., Tail-Optimized Caching for LLM Inference, arXiv:2510.15152. A conversation of
    `history` tokens whose next prompt adds `next_prompt_estimate` stays within its TTFT budget if
    no more than `threshold` tokens have to be computed; a node is safe to evict if the tokens
    above it already suffice for that. Counts are of tokens (the paper's are of blocks).
    """
    needed = max(node.history + next_prompt_estimate - threshold, 0)
    return (-1 if node.start >= needed else 0, node.accessed)


RANKS: dict[str, Callable[..., Rank]] = {
    "lru": least_recently_used,
    "lfu": least_frequently_used,
    "slru": segmented,
    "fifo": first_created,
    "mru": most_recently_used,
    "filo": last_created,
    "priority": least_important,
    "tlru": tail_optimized,
}

UNIFIED_ONLY: Final[frozenset[str]] = frozenset({"tlru"})
"""Ranks that SGLang's RadixCache cannot compute: it keeps no history."""


def needs_unified(rank: Callable[..., Any]) -> bool:
    """Whether only the unified tree knows this rank."""
    function = rank.func if isinstance(rank, partial) else rank
    return any(RANKS[name] is function for name in UNIFIED_ONLY)
