"""What leaves the prefix cache first: a policy is a small object in a dict."""

from __future__ import annotations

from typing import Any, Final

from engine.eviction.belady import Belady
from engine.eviction.chances import Clock, S3Fifo, Sieve
from engine.eviction.classes import ByCategory, RetentionPriority
from engine.eviction.frequency import (
    FlopAware,
    GreedyDualSizeFrequency,
    LeastRecentlyUsedTwice,
)
from engine.eviction.history import least_frequently_used
from engine.eviction.lifetimes import TimeToLive, ToolTimeToLive
from engine.eviction.lirs import LowInterReferenceRecency
from engine.eviction.protocol import CacheView, EvictionPolicy
from engine.eviction.queueaware import QueueInformed
from engine.eviction.queues import FirstComputed, LeastRecentlyFreed
from engine.eviction.segments import AdaptiveReplacement, SegmentedLru, TwoQueues
from engine.eviction.tinylfu import WindowTinyLfu
from engine.named import chosen

EVICTION: Final[dict[str, Any]] = {
    "lru": LeastRecentlyFreed,
    "fifo": FirstComputed,
    "clock": Clock,
    "sieve": Sieve,
    "s3fifo": S3Fifo,
    "lfu": least_frequently_used,
    "lru-2": LeastRecentlyUsedTwice,
    "slru": SegmentedLru,
    "2q": TwoQueues,
    "arc": AdaptiveReplacement,
    "lirs": LowInterReferenceRecency,
    "w-tinylfu": WindowTinyLfu,
    "gdsf": GreedyDualSizeFrequency,
    "flop-aware": FlopAware,
    "ttl": TimeToLive,
    "tool-ttl": ToolTimeToLive,
    "priority": RetentionPriority,
    "category": ByCategory,
    "queue-informed": QueueInformed,
    "belady": Belady,
}
"""By name; each is made with a CacheView, and its parameters are keyword-only arguments."""


def eviction_policy(spec: str, view: CacheView) -> EvictionPolicy:
    """The policy that `spec` names (see engine.named), for the cache in `view`.

    Raises:
        ConfigError: there is none of that name, or a parameter is wrong.
    """
    return chosen("eviction policy", spec, EVICTION)(view)
