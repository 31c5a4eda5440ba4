"""What leaves the prefix cache first: a policy is a small object in a dict."""

from __future__ import annotations

from typing import Any, Final

from engine.eviction.protocol import CacheView, EvictionPolicy
from engine.eviction.queues import FirstComputed, LeastRecentlyFreed
from engine.named import chosen

EVICTION: Final[dict[str, Any]] = {
    "lru": LeastRecentlyFreed,
    "fifo": FirstComputed,
}
"""By name; each is made with a CacheView, and its parameters are keyword-only arguments."""


def eviction_policy(spec: str, view: CacheView) -> EvictionPolicy:
    """The policy that `spec` names (see engine.named), for the cache in `view`.

    Raises:
        ConfigError: there is none of that name, or a parameter is wrong.
    """
    return chosen("eviction policy", spec, EVICTION)(view)
