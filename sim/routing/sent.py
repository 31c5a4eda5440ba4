"""What a router sent where: its own guess of the replicas' caches."""

from __future__ import annotations

from collections import OrderedDict, deque

from sim.routing.index import Groups
from traces.request import Request


def prompt_units(request: Request) -> int:
    """Hashes that describe some of the prompt."""
    if not request.hashes:
        return 0
    return -(-min(request.hashed_tokens, request.prompt_tokens) // request.hash_tokens)


class SentIndex:
    """For each hash a bit set of the replicas that its content was sent to, in order of use.

    Whole units only: what a router cuts prompts into is its own affair. Of a prompt the end is
    given up before the beginning, so what is left of it is always its beginning.
    """

    __slots__ = ("_all", "_delay_ps", "_holders", "_late", "_most_tokens", "_units", "tokens")

    def __init__(self, replicas: int, most_tokens: int = 0, delay_ps: int = 0) -> None:
        """An empty record.

        Args:
            replicas: how many.
            most_tokens: of each replica; 0: no limit, but see `trim`.
            delay_ps: what is sent enters the record so much later.
        """
        self._all: int = (1 << replicas) - 1
        self._most_tokens: int = most_tokens
        self._delay_ps: int = delay_ps
        self._holders: dict[int, int] = {}
        self._units: list[OrderedDict[int, int]] = [OrderedDict() for _ in range(replicas)]
        """Of each replica, tokens by hash; the one used last is last."""
        self._late: deque[tuple[int, int, Request]] = deque()
        """(when it enters, replica, request)."""
        self.tokens: list[int] = [0] * replicas
        """Of each replica, in its units together."""

    def match(self, request: Request, now_ps: int) -> Groups:
        """All replicas by the tokens of the prompt's beginning that they were sent, ascending."""
        self._enter_late(now_ps)
        found: Groups = []
        alive = self._all
        holders = self._holders
        units = prompt_units(request)
        hash_tokens = request.hash_tokens
        for unit in range(units):
            them = alive & holders.get(request.hashes[unit], 0)
            if them != alive:
                found.append((unit * hash_tokens, alive ^ them))
                alive = them
                if not alive:
                    return found
        found.append((min(units * hash_tokens, request.prompt_tokens), alive))
        return found

    def add(self, replica: int, request: Request, now_ps: int) -> None:
        """`request` was sent to `replica`."""
        if self._delay_ps:
            self._late.append((now_ps + self._delay_ps, replica, request))
        else:
            self._enter(replica, request)

    def _enter_late(self, now_ps: int) -> None:
        late = self._late
        while late and late[0][0] <= now_ps:
            _, replica, request = late.popleft()
            self._enter(replica, request)

    def _enter(self, replica: int, request: Request) -> None:
        units, holders, bit = self._units[replica], self._holders, 1 << replica
        hashes, hash_tokens = request.hashes, request.hash_tokens
        covered = min(request.hashed_tokens, request.prompt_tokens)
        for unit in range(prompt_units(request) - 1, -1, -1):
            content = hashes[unit]
            size = min(hash_tokens, covered - unit * hash_tokens)
            known = units.pop(content, 0)
            if known >= size:
                size = known
            else:
                self.tokens[replica] += size - known
            units[content] = size
            if not known:
                holders[content] = holders.get(content, 0) | bit
        if self._most_tokens:
            self.trim(replica, self._most_tokens)

    def trim(self, replica: int, most_tokens: int) -> None:
        """Give up what `replica` was sent longest ago, down to `most_tokens`."""
        units, holders = self._units[replica], self._holders
        while self.tokens[replica] > most_tokens:
            content, size = units.popitem(last=False)
            self.tokens[replica] -= size
            left = holders[content] & ~(1 << replica)
            if left:
                holders[content] = left
            else:
                del holders[content]
