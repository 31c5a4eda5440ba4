"""Routers and admission policies of the user's own: what happens at a cluster's door."""

from __future__ import annotations

from operator import index
from typing import Any

from engine.guard.calls import Calls, missing, shown
from traces.request import Request


class GuardedRouter:
    """Passes everything on to the router; its choice must be a replica that exists."""

    def __init__(self, calls: Calls, make: Any, view: Any) -> None:
        """The router that `make` makes of a view of `view.replicas` replicas.

        Raises:
            PolicyError: here and in every method, when the router broke its contract.
        """
        self._calls = calls
        self._router: Any = calls.call("making it", None, make, view)
        self._replicas: int = view.replicas
        lacking = missing(self._router, ("choose", "done"))
        if lacking:
            raise calls.broken(f"has no {lacking[0]}()", "the methods choose, done of Router")

    def choose(self, request: Request) -> int:
        """See Router."""
        chosen: Any = self._calls.call("choose()", request, self._router.choose, request)
        try:
            replica = -1 if isinstance(chosen, bool) else index(chosen)
        except TypeError:
            replica = -1
        if not 0 <= replica < self._replicas:
            raise self._calls.broken(
                f"choose() returned {shown(chosen)}",
                f"a replica, 0 to {self._replicas - 1}",
                request,
            )
        return replica

    def done(self, replica: int, request: Request) -> None:
        """See Router."""
        self._calls.call("done()", request, self._router.done, replica, request)


class GuardedAdmission:
    """Passes everything on to the policy; its answer must be a reason or an empty string."""

    def __init__(self, calls: Calls, make: Any, view: Any) -> None:
        """The policy that `make` makes of `view`.

        Raises:
            PolicyError: here and in every method, when the policy broke its contract.
        """
        self._calls = calls
        self._policy: Any = calls.call("making it", None, make, view)
        if missing(self._policy, ("refuse",)):
            raise calls.broken("has no refuse()", "the method refuse of Admission")
        if callable(getattr(self._policy, "done", None)):
            self.done = self._done

    def refuse(self, request: Request, replica: int) -> str:
        """See Admission."""
        reason: Any = self._calls.call("refuse()", request, self._policy.refuse, request, replica)
        if not isinstance(reason, str):
            raise self._calls.broken(
                f"refuse() returned {shown(reason)}",
                "why the request is refused, or an empty string",
                request,
            )
        return reason

    def _done(self, replica: int, request: Request) -> None:
        self._calls.call("done()", request, self._policy.done, replica, request)
