"""All replicas at once, as arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from sim.routing.index import Groups


def members(group: int, replicas: int) -> Any:
    """A bit set as an array of truths, one a replica."""
    raw = np.frombuffer(group.to_bytes((replicas + 7) // 8, "little"), dtype=np.uint8)
    return np.unpackbits(raw, count=replicas, bitorder="little").view(np.bool_)


def lengths(groups: Groups, replicas: int) -> Any:
    """For each replica the length of its match."""
    found = np.zeros(replicas, dtype=np.int64)
    for length, group in groups:
        if length:
            found[members(group, replicas)] = length
    return found


class LongestAgo:
    """Takes turns among equals: the one chosen longest ago is next."""

    def __init__(self, replicas: int) -> None:
        self._chosen: Any = np.arange(-replicas, 0, dtype=np.int64)
        self._choices: int = 0

    def least(self, costs: Any) -> int:
        """Where `costs` is least."""
        equals = np.flatnonzero(costs == costs.min())
        replica = int(equals[self._chosen[equals].argmin()])
        self._chosen[replica] = self._choices
        self._choices += 1
        return replica
