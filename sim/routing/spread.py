"""Routers that spread requests and look at loads at most, never at content."""

from __future__ import annotations

from typing import Any

import numpy as np

from sim.routing.loads import LoadHeap
from sim.routing.view import FleetView
from traces.errors import ConfigError
from traces.request import Request


class RoundRobin:
    """Each replica in turn.

    Blind to load and content: a long request is followed by its fair share all the same, and the
    turns of a session go from cache to cache.
    """

    def __init__(self, view: FleetView) -> None:
        self._replicas: int = view.replicas
        self._next: int = 0

    def choose(self, request: Request) -> int:
        """The next replica."""
        replica = self._next
        self._next = replica + 1 if replica + 1 < self._replicas else 0
        return replica

    def done(self, replica: int, request: Request) -> None:
        """Nothing to note."""


_DRAWS = 4096


class Draws:
    """Whole numbers below a bound, drawn uniformly in blocks."""

    def __init__(self, below: int, random: np.random.Generator) -> None:
        self._below: int = below
        self._random: Any = random
        self._drawn: list[int] = []

    def next(self) -> int:
        """The next number."""
        if not self._drawn:
            self._drawn = self._random.integers(self._below, size=_DRAWS).tolist()
        return self._drawn.pop()


class Random:
    """A replica drawn uniformly.

    Needs no state that gateways would have to share. Loads differ by about the square root of
    their mean, and content is spread as by turns.
    """

    def __init__(self, view: FleetView) -> None:
        self._draws: Draws = Draws(view.replicas, view.random)

    def choose(self, request: Request) -> int:
        """A replica drawn uniformly."""
        return self._draws.next()

    def done(self, replica: int, request: Request) -> None:
        """Nothing to note."""


class LeastRequests:
    """The fewest outstanding requests; of equals, the one chosen longest ago.

    What gateways call least connections. A request counts the same whether it has a hundred
    tokens or a hundred thousand, and content is not looked at.
    """

    def __init__(self, view: FleetView) -> None:
        self._loads: LoadHeap = LoadHeap(view.replicas)

    def choose(self, request: Request) -> int:
        """The least loaded replica."""
        return self._loads.choose(1)

    def done(self, replica: int, request: Request) -> None:
        """Take the request off."""
        self._loads.change(replica, -1)


class LeastTokens:
    """The fewest prompt tokens of outstanding requests; of equals, the one chosen longest ago.

    Join the shortest queue, by what a router knows: it cannot know the length of answers, so long
    answers pile up unseen. Cached prompts count in full.
    """

    def __init__(self, view: FleetView) -> None:
        self._loads: LoadHeap = LoadHeap(view.replicas)

    def choose(self, request: Request) -> int:
        """The least loaded replica."""
        return self._loads.choose(request.prompt_tokens)

    def done(self, replica: int, request: Request) -> None:
        """Take the request's prompt off."""
        self._loads.change(replica, -request.prompt_tokens)


class LeastKV:
    """The fewest KV blocks in use, as replicas report them; of equals, the next in turn.

    Sees contexts as long as they have become. A queued request holds no block yet; it is counted
    as a mean running one, so a burst does not all go to where the last request ended. A choice
    costs a look at each replica, unless they report only every `refresh_s` seconds; then what comes
    in between goes by old numbers, all of it to the same replica.
    """

    def __init__(self, view: FleetView, *, refresh_s: float = 0.0) -> None:
        self._view: FleetView = view
        if not 0 <= refresh_s < 1e6:
            raise ConfigError(f"router 'least-kv': refresh_s is {refresh_s}; expected 0 or more")
        self._refresh_ps: int = round(refresh_s * 1e12)
        self._next_ps: int = -1
        self._used: list[int] = [0] * view.replicas
        self._turn: int = 0

    def choose(self, request: Request) -> int:
        """The replica with the fewest blocks in use."""
        view = self._view
        if view.now_ps >= self._next_ps:
            self._used = [self._blocks(i) for i in range(view.replicas)]
            self._next_ps = view.now_ps + self._refresh_ps
        used = self._used
        least = min(used)
        try:
            replica = used.index(least, self._turn)
        except ValueError:
            replica = used.index(least)
        self._turn = replica + 1
        return replica

    def _blocks(self, replica: int) -> int:
        view = self._view
        used = view.kv_blocks_used(replica)
        waiting = view.waiting(replica)
        if waiting:
            used += waiting * max(used // max(view.running(replica), 1), 1)
        return used

    def done(self, replica: int, request: Request) -> None:
        """Nothing to note."""


class PowerOfTwo:
    """The one with fewer outstanding requests of two different replicas drawn at random.

    Nearly as even as looking at all of them, at the cost of looking at two. Source: Mitzenmacher,
    The Power of Two Choices in Randomized Load Balancing, IEEE TPDS 2001. Of equals the first
    drawn.
    """

    def __init__(self, view: FleetView) -> None:
        self._first: Draws = Draws(view.replicas, view.random)
        self._second: Draws = Draws(max(view.replicas - 1, 1), view.random)
        self._load: list[int] = [0] * view.replicas

    def choose(self, request: Request) -> int:
        """The better of two; the first drawn if they are equal."""
        one = self._first.next()
        other = self._second.next()
        if len(self._load) > 1 and other >= one:
            other += 1
        replica = other if self._load[other] < self._load[one] else one
        self._load[replica] += 1
        return replica

    def done(self, replica: int, request: Request) -> None:
        """Take the request off."""
        self._load[replica] -= 1


class Weighted:
    """Each replica in turn, as often as its weight says, as evenly in between as can be.

    Smooth weighted round robin, as nginx has it: at every choice each replica gains its weight,
    the one that has gained most is chosen and gives up the sum of all weights. `weights` is one
    whole number a replica, such as 3/1/1; none: all alike, which is round robin. Static: for
    replicas that differ in a known way, and for nothing that happens while they run.
    """

    def __init__(self, view: FleetView, *, weights: str = "") -> None:
        self._weights: Any = np.array(_weights(weights, view.replicas), dtype=np.int64)
        self._sum: int = int(self._weights.sum())
        self._gained: Any = np.zeros(view.replicas, dtype=np.int64)

    def choose(self, request: Request) -> int:
        """The replica that is due; of equals the first."""
        self._gained += self._weights
        replica = int(self._gained.argmax())
        self._gained[replica] -= self._sum
        return replica

    def done(self, replica: int, request: Request) -> None:
        """Nothing to note."""


def _weights(text: str, replicas: int) -> list[int]:
    if not text:
        return [1] * replicas
    parts = text.split("/")
    if len(parts) != replicas or not all(part.isdecimal() for part in parts):
        raise ConfigError(
            f"router 'weighted': weights is '{text}'; expected {replicas} whole numbers, one a"
            f" replica, such as {'/'.join(['1'] * replicas)}"
        )
    weights = [int(part) for part in parts]
    if not any(weights):
        raise ConfigError(f"router 'weighted': weights is '{text}'; expected one above 0 at least")
    return weights
