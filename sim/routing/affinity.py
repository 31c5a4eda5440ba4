"""Sessions stay where they were: consistent hashing with bounded loads."""

from __future__ import annotations

from bisect import bisect_left

from sim.routing.view import FleetView
from traces.errors import ConfigError
from traces.request import Request

_WORD = (1 << 64) - 1


def scattered(number: int) -> int:
    """A number's place in [0, 2**64): the splitmix64 finaliser (Steele et al., OOPSLA 2014)."""
    word = (number + 0x9E3779B97F4A7C15) & _WORD
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 & _WORD
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB & _WORD
    return word ^ (word >> 31)


class Ring:
    """Points of all replicas on a circle; a key belongs to the first point at or after its own."""

    def __init__(self, replicas: int, points: int) -> None:
        marks = sorted(
            (scattered(scattered(replica) ^ point), replica)
            for replica in range(replicas)
            for point in range(points)
        )
        self._places: list[int] = [place for place, _ in marks]
        self._owners: list[int] = [replica for _, replica in marks]

    def walk(self, key: int, load: list[int], bound: int) -> int:
        """The first replica from `key` on whose load is below `bound`; there is one."""
        owners = self._owners
        at = bisect_left(self._places, scattered(key))
        while True:
            if at >= len(owners):
                at = 0
            replica = owners[at]
            if load[replica] < bound:
                return replica
            at += 1


class SessionAffinity:
    """All turns of a session go to one replica, by its place on a hash ring, unless that is full.

    Consistent hashing with bounded loads: no replica has more than (1 + `excess`) times the mean
    number of outstanding requests, rounded up; what would exceed it goes to the next replica on
    the ring that has room. With n replicas, one more moves about 1/n of the sessions. Source:
    Mirrokni, Thorup and Zadimoghaddam, Consistent Hashing with Bounded Loads, SODA 2018. Requests
    of no session are hashed by themselves. What sessions share with each other (a system prompt)
    is cached everywhere; a few long sessions make loads uneven up to the bound.
    """

    def __init__(self, view: FleetView, *, excess: float = 0.25, points: int = 128) -> None:
        if excess <= 0:
            raise ConfigError(f"router 'session-affinity': excess is {excess}; expected above 0")
        if points < 1:
            raise ConfigError(f"router 'session-affinity': points is {points}; expected 1 or more")
        self._ring: Ring = Ring(view.replicas, points)
        self._share: float = (1 + excess) / view.replicas
        self._load: list[int] = [0] * view.replicas
        self._total: int = 0

    def choose(self, request: Request) -> int:
        """The session's replica, or the next with room."""
        session = request.session_id
        key = 2 * session if session >= 0 else 2 * request.request_id + 1
        self._total += 1
        bound = -int(-self._share * self._total // 1)
        replica = self._ring.walk(key, self._load, bound)
        self._load[replica] += 1
        return replica

    def done(self, replica: int, request: Request) -> None:
        """Take the request off."""
        self._load[replica] -= 1
        self._total -= 1
