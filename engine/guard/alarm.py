"""The process's alarm, which ends a call that takes too long."""

from __future__ import annotations

import atexit
import signal
import threading
from time import monotonic
from typing import Any, Final

TICK_S: Final = 0.25
"""How often it looks; a deadline is kept so exactly."""

AT_ONCE_S: Final = 1e-6


class TooLong(BaseException):
    """Ends a call at its deadline; no `except Exception` of the policy's swallows it."""


class Alarm:
    """Rings every TICK_S from a call on until a tick without one; then all is as it was before.

    Setting an alarm for each call would take longer than most calls. An alarm that somebody else
    has set in the process rings all the same, late by a tick at most.
    """

    __slots__ = (
        "_before",
        "_calls",
        "_handler",
        "_others_due_s",
        "_rang_s",
        "_seen",
        "_set",
        "until_s",
    )

    def __init__(self) -> None:
        self.until_s: float = 0.0
        """Deadline of the call that runs, on the monotonic clock; 0.0: none runs."""
        self._set: bool = False
        self._calls: int = 0
        self._seen: int = 0
        """Calls at the last ring."""
        self._handler: Any = None
        self._before: tuple[float, float] = (0.0, 0.0)
        self._others_due_s: float = 0.0
        self._rang_s: float = 0.0

    def begin(self, call_s: float) -> None:
        """A call begins that may take `call_s`; none runs yet."""
        now = monotonic()
        if not self._set or now > self._rang_s + 2 * TICK_S:  # or somebody has taken the alarm
            self._begin_to_ring(now)
        self._calls += 1
        self.until_s = now + call_s

    def end(self) -> None:
        """The call is over."""
        self.until_s = 0.0

    def stop(self) -> None:
        """Ring no more; whoever's alarm this was has it back."""
        if not self._set:
            return
        self._set = False
        atexit.unregister(self.stop)
        if signal.getsignal(signal.SIGALRM) != self._ring:
            return  # whoever has taken it keeps it
        left_s, interval_s = self._before
        if left_s:
            left_s = max(self._others_due_s - monotonic(), AT_ONCE_S)
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, self._handler)
        signal.setitimer(signal.ITIMER_REAL, left_s, interval_s)

    def _begin_to_ring(self, now_s: float) -> None:
        handler = signal.signal(signal.SIGALRM, self._ring)
        if handler != self._ring:
            self._handler = handler
        left_s, interval_s = signal.setitimer(signal.ITIMER_REAL, TICK_S, TICK_S)
        if (handler, interval_s) == (self._ring, TICK_S):  # it is only late
            left_s, interval_s = self._before
        else:
            self._others_due_s = now_s + left_s
        self._before = (left_s, interval_s)
        self._rang_s = now_s
        self._set = True
        # ringing while the interpreter shuts down, when handlers have gone, would kill the process
        atexit.register(self.stop)

    def _ring(self, number: int, frame: Any) -> None:
        now = self._rang_s = monotonic()
        if self._before[0] and now >= self._others_due_s:
            self.stop()
        elif self.until_s:
            if now >= self.until_s:
                raise TooLong
        elif self._calls == self._seen:
            self.stop()
        self._seen = self._calls


ALARM: Final = Alarm()
"""There is one a process."""


def can_ring() -> bool:
    """Whether this thread can be woken: the main thread, where there are such alarms."""
    return threading.get_ident() == MAIN_THREAD and hasattr(signal, "setitimer")


MAIN_THREAD: Final = threading.main_thread().ident
