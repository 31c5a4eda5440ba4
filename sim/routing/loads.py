"""Loads of replicas in an order that costs little to keep: a heap, and bit sets by level."""

from __future__ import annotations

from heapq import heapify, heappop, heappush


class LoadHeap:
    """The least loaded replica at hand; of equals, the one chosen longest ago.

    Loads change at arrivals and ends only. The heap keeps stale entries until they surface, and
    is rebuilt when most of it is stale. The order of ends at one moment makes no difference.
    """

    __slots__ = ("_choices", "_chosen", "_heap", "load")

    def __init__(self, replicas: int) -> None:
        self.load: list[int] = [0] * replicas
        self._chosen: list[int] = list(range(-replicas, 0))
        """When each was chosen last; between two choices its load only falls."""
        self._choices: int = 0
        self._heap: list[tuple[int, int, int]] = [(0, self._chosen[i], i) for i in range(replicas)]

    def choose(self, load: int) -> int:
        """The least loaded replica, which gets `load` more."""
        heap = self._heap
        while not self._counts(heap[0]):
            heappop(heap)
        replica = heap[0][2]
        self._choices += 1
        self._chosen[replica] = self._choices
        self.change(replica, load)
        return replica

    def change(self, replica: int, by: int) -> None:
        """`replica` has `by` more, or less if negative."""
        self.load[replica] += by
        heappush(self._heap, (self.load[replica], self._chosen[replica], replica))
        if len(self._heap) > 8 * len(self.load) + 64:
            self._heap = [(load, self._chosen[i], i) for i, load in enumerate(self.load)]
            heapify(self._heap)

    def _counts(self, entry: tuple[int, int, int]) -> bool:
        load, chosen, replica = entry
        return load == self.load[replica] and chosen == self._chosen[replica]


class Outstanding:
    """Requests under way by replica, and the replicas of each load as a bit set.

    So the least loaded of any group, itself a bit set, is found without a look at each member; of
    equals, it is the next in turn after the one found last.
    """

    __slots__ = ("_at", "_least", "_turn", "load", "total")

    def __init__(self, replicas: int) -> None:
        self.load: list[int] = [0] * replicas
        self.total: int = 0
        self._at: dict[int, int] = {0: (1 << replicas) - 1}
        self._least: int = 0
        self._turn: int = 0

    @property
    def least(self) -> int:
        """The lowest load of all."""
        return self._least

    @property
    def most(self) -> int:
        """The highest load of all; costs the number of different loads."""
        return max(self._at)

    def least_of(self, group: int, most: int = 1 << 60) -> int:
        """The least loaded of the replicas in bit set `group`; -1 if all have more than `most`."""
        at = self._at
        them = at[self._least] & group  # most often there is one of these
        if them:
            return self._in_turn(them) if self._least <= most else -1
        for load in sorted(at):
            if load > most:
                break
            them = at[load] & group
            if them:
                return self._in_turn(them)
        return -1

    def _in_turn(self, them: int) -> int:
        later = them >> self._turn << self._turn
        if later:
            them = later
        replica = (them & -them).bit_length() - 1
        self._turn = replica + 1
        return replica

    def add(self, replica: int) -> None:
        """A request went to `replica`."""
        self.total += 1
        self._move(replica, self.load[replica] + 1)
        while self._least not in self._at:
            self._least += 1

    def take(self, replica: int) -> None:
        """A request of `replica` ended."""
        self.total -= 1
        load = self.load[replica] - 1
        self._move(replica, load)
        if load < self._least:
            self._least = load

    def _move(self, replica: int, load: int) -> None:
        at, bit, before = self._at, 1 << replica, self.load[replica]
        left = at[before] ^ bit
        if left:
            at[before] = left
        else:
            del at[before]
        at[load] = at.get(load, 0) | bit
        self.load[replica] = load
