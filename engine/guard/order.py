"""An order of service of the user's own, held to its contract, and to serving everybody."""

from __future__ import annotations

import inspect
from collections import deque
from functools import partial
from math import isnan
from numbers import Real
from typing import Any, Final

from engine.guard.calls import Calls, missing, shown
from engine.order.discipline import QueueView
from engine.sequence import FINISHED, Sequence
from traces.errors import PolicyError

METHODS: Final = ("add", "first", "remove")
"""What every queue has; see Discipline for what it may have."""

OPTIONAL: Final = ("served", "steady_steps", "outranked")

PASSED_OVER: Final = 10_000
"""So many later requests admitted before one that could run mean that it starves."""


def is_discipline(order: Any) -> bool:
    """Whether an order is a class of queues, rather than a key function."""
    return inspect.isclass(order.func if isinstance(order, partial) else order)


class Patience:
    """Counts, for who has been waiting longest, how many that came later were admitted before.

    Nobody else can have been passed over more often, for who passed over another also passed over
    all that had come before it. A sequence that comes in again, after a preemption, comes anew.
    """

    def __init__(self, calls: Calls, passed_over: int) -> None:
        """See PASSED_OVER."""
        self._calls = calls
        self._passed_over: int = passed_over
        self._waiting: dict[Sequence, int] = {}
        """Who waits, with its ticket: a number of its own in the order of coming."""
        self._line: deque[tuple[int, Sequence]] = deque()
        """All tickets in order; those of who has gone are taken off when they come to the front."""
        self._tickets: int = 0
        self._admissions: int = 0
        self._dropped: int = 0
        """Of the tickets taken off, those of who left without being admitted."""

    def queue(self, seq: Sequence) -> None:
        """`seq` comes in.

        Raises:
            PolicyError: it does so again and again.
        """
        if seq.preemptions > self._passed_over:
            raise self.starves(seq, f"was preempted {seq.preemptions:,} times")
        self._waiting[seq] = self._tickets
        self._line.append((self._tickets, seq))
        self._tickets += 1

    def admit(self, seq: Sequence) -> None:
        """`seq` is admitted.

        Raises:
            PolicyError: somebody else starves.
        """
        del self._waiting[seq]
        self._admissions += 1
        oldest = self._oldest()
        if oldest is None:
            return
        # all tickets before the oldest's have gone: whoever else was admitted came after it
        ticket, waits = oldest
        later = self._admissions - (ticket - self._dropped)
        if later > self._passed_over:
            raise self.starves(waits, f"was passed over by {later:,} that came after it")

    def starves(self, seq: Sequence, said: str) -> PolicyError:
        """The error that says so."""
        request = seq.request.request_id
        return self._calls.broken(f"request {request} {said}: it starves", "", seq)

    def _oldest(self) -> tuple[int, Sequence] | None:
        line, waiting = self._line, self._waiting
        while line:
            ticket, seq = line[0]
            if waiting.get(seq) == ticket:
                if seq.status != FINISHED:
                    return line[0]
                del waiting[seq]  # it was given up
                self._dropped += 1
            line.popleft()
        return None


class GuardedKey:
    """A key function whose keys are tuples of numbers, and under which nobody starves."""

    def __init__(self, calls: Calls, key: Any, passed_over: int) -> None:
        """`key` is called with a sequence as it comes into the queue; see PASSED_OVER.

        Raises:
            PolicyError: here and in every method, when the key function broke its contract.
        """
        self._calls = calls
        self._key: Any = key
        self._patience = Patience(calls, passed_over)

    def __call__(self, seq: Sequence) -> tuple[Any, ...]:
        """The key of a sequence that comes into the queue now."""
        key: Any = self._calls.call("the key", seq, self._key, seq)
        if not isinstance(key, tuple) or not key or not all(map(_is_number, key)):
            raise self._calls.broken(
                f"returned {shown(key)}", "a tuple of numbers, least first", seq
            )
        self._patience.queue(seq)
        return key

    def admitted(self, seq: Sequence) -> None:
        """The sequence, whose key was the least, runs now."""
        self._patience.admit(seq)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isnan(value)


class GuardedQueue:
    """A Discipline that passes everything on, and knows itself who waits, and for how long."""

    def __init__(self, calls: Calls, make: Any, passed_over: int, view: QueueView) -> None:
        """The queue that `make`, a class of disciplines, makes of `view`; see PASSED_OVER.

        Raises:
            PolicyError: here and in every method, when the order broke its contract, or a request
                starves.
        """
        self._calls = calls
        self._queue: Any = calls.call("making it", None, make, view)
        lacking = missing(self._queue, METHODS)
        if lacking:
            raise calls.broken(
                f"has no {lacking[0]}()", f"the methods {', '.join(METHODS)} of Discipline"
            )
        self._patience = Patience(calls, passed_over)
        self._passed_over: int = passed_over
        self._waiting: dict[Sequence, None] = {}
        self._running: Any = view.running
        self._idle: int = 0
        """Times that it was asked in a row while nothing ran, and nothing came of it."""
        self._displaced: int = 0
        """Requests that had to give way since the last one ended."""
        for name in OPTIONAL:
            if callable(getattr(self._queue, name, None)):
                setattr(self, name, getattr(self, f"_{name}"))
        self._told: dict[str, Any] = {
            name: getattr(self._queue, name)
            for name in ("admitted", "ended")
            if callable(getattr(self._queue, name, None))
        }

    def add(self, seq: Sequence, again: bool) -> None:
        """See Discipline."""
        self._patience.queue(seq)
        self._waiting[seq] = None
        self._idle = 0
        self._calls.call("add()", seq, self._queue.add, seq, again)

    def first(self) -> Sequence:
        """See Discipline; somebody who waits."""
        seq: Any = self._calls.call("first()", None, self._queue.first)
        if not isinstance(seq, Sequence) or seq not in self._waiting:
            raise self._calls.broken(
                f"first() returned {shown(seq)}",
                f"one of the {len(self._waiting)} sequences that wait",
                next(iter(self._waiting), None),
            )
        if not self._running:
            self._idle += 1
            if self._idle > self._passed_over:
                said = "is not admitted although nothing else runs"
                raise self._patience.starves(seq, said)
        return seq

    def remove(self, seq: Sequence) -> None:
        """See Discipline."""
        del self._waiting[seq]
        self._calls.call("remove()", seq, self._queue.remove, seq)

    def admitted(self, seq: Sequence) -> None:
        """See Discipline; the guard counts whom it passes over."""
        self._idle = 0
        if "admitted" in self._told:
            self._calls.call("admitted()", seq, self._told["admitted"], seq)
        self._patience.admit(seq)

    def ended(self, seq: Sequence) -> None:
        """See Discipline."""
        self._displaced = 0
        if "ended" in self._told:
            self._calls.call("ended()", seq, self._told["ended"], seq)

    def _served(self, batch: Any, steps: int) -> None:
        self._calls.call("served()", None, self._queue.served, batch, steps)

    def _steady_steps(self, batch: Any) -> int:
        steps: Any = self._calls.call("steady_steps()", None, self._queue.steady_steps, batch)
        if not isinstance(steps, int) or steps < 1:
            raise self._calls.broken(
                f"steady_steps() returned {shown(steps)}", "a whole number of at least 1"
            )
        return steps

    def _outranked(self, running: Any) -> Sequence | None:
        seq: Any = self._calls.call("outranked()", None, self._queue.outranked, running)
        if seq is None:
            return None
        if not isinstance(seq, Sequence) or seq not in running:
            raise self._calls.broken(
                f"outranked() returned {shown(seq)}", "None, or one of those that run"
            )
        self._displaced += 1
        if self._displaced > self._passed_over:
            raise self._patience.starves(
                seq, f"is the {self._displaced:,}th to give way, and none ended"
            )
        return seq
