"""Victims, chunkings and functions of other kinds of the user's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from engine.guard.calls import Calls, missing, shown


def guarded_answer(calls: Calls, policy: Callable[..., Any], *args: Any) -> Any:
    """What `policy` says, whatever that is."""
    return calls.call("the call", args[0] if args else None, policy, *args)


def guarded_victim(calls: Calls, victim: Callable[..., Any], running: Any, *others: Any) -> Any:
    """Whom `victim` names; it must be one of those that run."""
    seq = calls.call("the call", None, victim, running, *others)
    try:
        known = seq in running
    except TypeError:  # unhashable
        known = False
    if not known:
        first = next(iter(running), None)
        raise calls.broken(
            f"returned {shown(seq)}", f"one of the {len(running)} sequences that run", first
        )
    return seq


class GuardedChunking:
    """Passes everything on to the chunking; a step must have a token at least."""

    def __init__(self, calls: Calls, make: Callable[..., Any], *args: Any) -> None:
        """The chunking that `make` makes of `args`.

        Raises:
            PolicyError: here and in `budget`, when it broke its contract.
        """
        self._calls = calls
        self._chunking: Any = calls.call("making it", None, make, *args)
        if missing(self._chunking, ("budget",)):
            raise calls.broken("has no budget()", "the method budget of Chunking")
        varies: Any = getattr(self._chunking, "varies", None)
        if not isinstance(varies, bool):
            raise calls.broken(f"has varies = {shown(varies)}", "true or false")
        self.varies: bool = varies

    def budget(self, decodes: int, context_tokens: int, prefix_tokens: int) -> int:
        """See Chunking."""
        arguments = (decodes, context_tokens, prefix_tokens)
        tokens: Any = self._calls.call("budget()", None, self._chunking.budget, *arguments)
        if not isinstance(tokens, int) or tokens < 1:
            raise self._calls.broken(
                f"budget() returned {shown(tokens)}", "a whole number of tokens, at least 1"
            )
        return tokens
