"""Policies of a user's own are held to their contracts; kvcast's run as they are."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final

from engine.guard.calls import CALL_S, Calls
from engine.guard.door import GuardedAdmission, GuardedRouter
from engine.guard.eviction import GuardedEviction
from engine.guard.functions import GuardedChunking, guarded_answer, guarded_victim
from engine.guard.order import PASSED_OVER, GuardedKey, GuardedQueue, is_discipline

GUARDS: Final[dict[str, Callable[..., Any]]] = {
    "victim": guarded_victim,
    "chunking": GuardedChunking,
    "eviction policy": GuardedEviction,
    "router": GuardedRouter,
    "admission": GuardedAdmission,
}
"""By kind, as `chosen` is told it: called with Calls, the user's function or class, and then what a
policy of this kind is made or called with. Orders have two guards: GuardedKey and GuardedQueue."""


def guarded(
    kind: str,
    spec: str,
    policy: Callable[..., Any],
    *,
    call_s: float = CALL_S,
    passed_over: int = PASSED_OVER,
) -> Callable[..., Any]:
    """`policy`, called as before, but what breaks its contract ends the run with a PolicyError.

    Args:
        kind: as `chosen` is told it; of a kind without a contract only exceptions and endless
            loops are noticed.
        spec: names the policy in errors.
        policy: a function or class of the user's own.
        call_s: a call that takes longer is stopped (see Calls).
        passed_over: so many later admissions pass over a request before it counts as starved.
    """
    calls = Calls(kind, spec, call_s)
    if kind == "order":
        if is_discipline(policy):
            return partial(GuardedQueue, calls, policy, passed_over)
        return GuardedKey(calls, policy, passed_over)
    return partial(GUARDS.get(kind, guarded_answer), calls, policy)
