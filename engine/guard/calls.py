"""Calls of a policy that is not kvcast's own: what goes wrong in one is said in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from engine.guard.alarm import ALARM, TooLong, can_ring
from traces.errors import KvcastError, PolicyError

CALL_S: Final = 10.0
"""A call that takes longer is stopped: every policy of kvcast's answers within microseconds."""


class Calls:
    """Calls a policy within a deadline; its exceptions become PolicyErrors."""

    __slots__ = ("_call_s", "_spec", "kind")

    def __init__(self, kind: str, spec: str, call_s: float = CALL_S) -> None:
        """`kind` and `spec` name the policy in errors; `call_s` is a call's deadline.

        The deadline is an alarm of the process (SIGALRM, see engine.guard.alarm). It is kept in the
        main thread of systems that have one; elsewhere a call may take for ever, as may a single
        call into C.
        """
        self.kind: str = kind
        self._spec: str = spec
        self._call_s: float = call_s

    def call(self, what: str, about: object, function: Callable[..., Any], *args: Any) -> Any:
        """`function(*args)`.

        Args:
            what: the call, in errors, such as "victim()".
            about: the request, sequence or piece it was about; None: none.
            function: of the policy.
            args: for it.

        Raises:
            PolicyError: it raised an exception, or was not done in time.
        """
        if ALARM.until_s or not can_ring():  # within another call its deadline holds
            return self._answer(what, about, function, *args)
        ALARM.begin(self._call_s)
        try:
            return self._answer(what, about, function, *args)
        except TooLong:
            raise self.broken(
                f"{what} was not done after {self._call_s:g} s", "an answer at once", about
            ) from None
        finally:
            ALARM.end()

    def _answer(self, what: str, about: object, function: Callable[..., Any], *args: Any) -> Any:
        try:
            return function(*args)
        except KvcastError:
            raise
        except (Exception, SystemExit) as error:
            said = " ".join(str(error).split())
            said = f"{type(error).__name__}: {said}" if said else type(error).__name__
            line = self._line(error.__traceback__)
            raise self.broken(f"{what} raised {said}{line}", "", about) from error

    def broken(self, said: str, expected: str, about: object = None) -> PolicyError:
        """The error that says how the policy broke its contract; for the caller to raise."""
        message = f"{self.kind} '{self._spec}': {said}"
        if expected:
            message += f"; expected {expected}"
        concerned = _request_of(about)
        return PolicyError(f"{message}, at {concerned}" if concerned else message)

    def _line(self, traceback: TracebackType | None) -> str:
        """Where in the user's file it happened."""
        file = str(Path(self._spec.partition(":")[0]).resolve())
        found = ""
        while traceback is not None:
            if traceback.tb_frame.f_code.co_filename == file:
                found = f" in line {traceback.tb_lineno}"
            traceback = traceback.tb_next
        return found


def _request_of(about: object) -> str:
    """The request that a request, sequence or piece belongs to."""
    for way in ((), ("request",), ("owner", "request")):
        found: Any = about
        for name in way:
            found = getattr(found, name, None)
        number = getattr(found, "request_id", None)
        if number is not None:
            return f"request {number}"
    return ""


def shown(value: object) -> str:
    """A value a policy returned, short enough for an error."""
    try:
        text = " ".join(repr(value).split())
    except Exception:
        text = f"a {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."


def missing(policy: Any, methods: tuple[str, ...]) -> list[str]:
    """The methods of a contract that `policy` lacks."""
    return [name for name in methods if not callable(getattr(policy, name, None))]
