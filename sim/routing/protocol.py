"""What a router is asked and told."""

from __future__ import annotations

from typing import Protocol

from traces.request import Request


class Router(Protocol):
    """Chooses a replica for each request and is told when requests come to an end."""

    def choose(self, request: Request) -> int:
        """The replica for `request`, which goes there at once."""
        ...

    def done(self, replica: int, request: Request) -> None:
        """`request` ended on `replica`, one way or another."""
        ...
