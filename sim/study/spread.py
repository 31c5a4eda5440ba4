"""Which of several caches a request goes to, where there is no time and so no load: a function in
a dict."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from sim.study.caches import Cache
from traces.request import Request

Spread = Callable[[Request], int]


def in_turn(caches: Sequence[Cache], random: np.random.Generator) -> Spread:
    """Each cache in turn, whatever it holds."""
    served = -1

    def choose(request: Request) -> int:
        nonlocal served
        served = (served + 1) % len(caches)
        return served

    return choose


def at_random(caches: Sequence[Cache], random: np.random.Generator) -> Spread:
    """A cache at random."""
    return lambda request: int(random.integers(len(caches)))


def longest_match(caches: Sequence[Cache], random: np.random.Generator) -> Spread:
    """The cache that holds most of the prompt; of equals the first.

    Blind to load: what begins like everything else gathers in one cache.
    """

    def choose(request: Request) -> int:
        held = [cache.holds(request) for cache in caches]
        return held.index(max(held))

    return choose


def better_of_two(caches: Sequence[Cache], random: np.random.Generator) -> Spread:
    """Of two caches drawn at random the one that holds more; of equals the one drawn first.

    Spreads the load almost as evenly as drawing one, and finds most of what is popular.
    """

    def choose(request: Request) -> int:
        one = int(random.integers(len(caches)))
        if len(caches) == 1:
            return one
        other = int(random.integers(len(caches) - 1))
        other += other >= one
        return other if caches[other].holds(request) > caches[one].holds(request) else one

    return choose


def by_session(caches: Sequence[Cache], random: np.random.Generator) -> Spread:
    """The same cache for all requests of a session; without sessions, in turn."""
    turn = in_turn(caches, random)
    places: dict[int, int] = {}

    def choose(request: Request) -> int:
        if request.session_id < 0:
            return turn(request)
        place = places.get(request.session_id)
        if place is None:
            place = places[request.session_id] = turn(request)
        return place

    return choose


SPREADS: dict[str, Callable[[Sequence[Cache], np.random.Generator], Spread]] = {
    "round-robin": in_turn,
    "random": at_random,
    "longest-match": longest_match,
    "better-of-two": better_of_two,
    "session": by_session,
}
"""By name; each is made with the caches, which may hold more from one request to the next."""
