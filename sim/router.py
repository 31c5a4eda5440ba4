"""Which replica a request goes to. A router is a small object in a dict; each costs O(log n)."""

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import Protocol

import numpy as np

from traces.request import Request


class Router(Protocol):
    """Chooses a replica for each request and is told when requests come to an end."""

    def choose(self, request: Request) -> int:
        """The replica for `request`, which goes there at once."""
        ...

    def done(self, replica: int, request: Request) -> None:
        """`request` ended on `replica`, one way or another."""
        ...


class RoundRobin:
    """Each replica in turn. Blind to load: a long request is followed by its fair share all the
    same."""

    def __init__(self, replicas: int, random: np.random.Generator) -> None:
        self._replicas = replicas
        self._next = 0

    def choose(self, request: Request) -> int:
        """The next replica."""
        replica = self._next
        self._next = replica + 1 if replica + 1 < self._replicas else 0
        return replica

    def done(self, replica: int, request: Request) -> None:
        """Nothing to note."""


class Random:
    """A replica at random. Loads differ by about the square root of their mean."""

    _BLOCK = 4096

    def __init__(self, replicas: int, random: np.random.Generator) -> None:
        self._replicas = replicas
        self._random = random
        self._drawn: list[int] = []

    def choose(self, request: Request) -> int:
        """A replica drawn uniformly."""
        if not self._drawn:
            self._drawn = self._random.integers(self._replicas, size=self._BLOCK).tolist()
        return self._drawn.pop()

    def done(self, replica: int, request: Request) -> None:
        """Nothing to note."""


def _one(request: Request) -> int:
    return 1


def _prompt_tokens(request: Request) -> int:
    return request.prompt_tokens


class LeastLoaded:
    """The replica with the least outstanding load; of equals, the one chosen longest ago.

    Loads change at arrivals and ends only. The heap keeps stale entries until they surface, and
    is rebuilt when most of it is stale. The order of ends at one moment makes no difference.
    """

    def __init__(self, replicas: int, weigh: Callable[[Request], int]) -> None:
        """`weigh` gives the load of a request, at least 1."""
        self._weigh = weigh
        self._load = [0] * replicas
        self._chosen = list(range(-replicas, 0))
        """When each was chosen last; between two choices its load only falls."""
        self._choices = 0
        self._heap = [(0, self._chosen[i], i) for i in range(replicas)]

    def choose(self, request: Request) -> int:
        """The least loaded replica."""
        heap = self._heap
        while not self._counts(heap[0]):
            heappop(heap)
        replica = heap[0][2]
        self._choices += 1
        self._chosen[replica] = self._choices
        self._change(replica, self._weigh(request))
        return replica

    def done(self, replica: int, request: Request) -> None:
        """Take the request's load off."""
        self._change(replica, -self._weigh(request))

    def _counts(self, entry: tuple[int, int, int]) -> bool:
        load, chosen, replica = entry
        return load == self._load[replica] and chosen == self._chosen[replica]

    def _change(self, replica: int, by: int) -> None:
        self._load[replica] += by
        heappush(self._heap, (self._load[replica], self._chosen[replica], replica))
        if len(self._heap) > 8 * len(self._load) + 64:
            self._heap = [(load, self._chosen[i], i) for i, load in enumerate(self._load)]
            heapify(self._heap)


class PowerOfTwo:
    """The less loaded, by requests, of two different replicas drawn at random.

    Source: Mitzenmacher, The Power of Two Choices in Randomized Load Balancing, 2001.
    """

    def __init__(self, replicas: int, random: np.random.Generator) -> None:
        self._first = Random(replicas, random)
        self._second = Random(max(replicas - 1, 1), random)
        self._load = [0] * replicas

    def choose(self, request: Request) -> int:
        """The better of two; the first drawn if they are equal."""
        one = self._first.choose(request)
        other = self._second.choose(request)
        if len(self._load) > 1 and other >= one:
            other += 1
        replica = other if self._load[other] < self._load[one] else one
        self._load[replica] += 1
        return replica

    def done(self, replica: int, request: Request) -> None:
        """Take the request's load off."""
        self._load[replica] -= 1


ROUTERS: dict[str, Callable[[int, np.random.Generator], Router]] = {
    "round-robin": RoundRobin,
    "random": Random,
    "least-requests": lambda replicas, _: LeastLoaded(replicas, _one),
    "least-tokens": lambda replicas, _: LeastLoaded(replicas, _prompt_tokens),
    "power-of-two": PowerOfTwo,
}
"""least-requests: fewest outstanding requests. least-tokens: join the shortest queue, by the
prompt tokens of outstanding requests (what a router knows; it cannot know output lengths)."""
