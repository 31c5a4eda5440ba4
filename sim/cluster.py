"""Replicas behind a router, fed by a trace on a SimPy clock."""

import gc
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from heapq import heappop, heappush
from typing import Any

from simpy import Environment
from simpy.events import URGENT

from calibration.costs import PICOSECONDS
from engine.eviction.protocol import Future
from engine.metrics import FINISHED, REJECTED, TIMED_OUT, TRUNCATED, UNFINISHED, request_row
from engine.sequence import Sequence
from sim.admission import Admission
from sim.clock import happening, run
from sim.records import Records
from sim.replica import Replica
from sim.routing.protocol import Router
from traces.errors import PolicyError
from traces.request import Request

JUST_AFTER_PS = 1
"""Clients act on answers a moment after them: an answer at the deadline is in time, and what
follows from an answer is seen by the steps after those that begin with it."""


class Cluster:
    """Serves a trace to its end, or to a cut-off; every request ends in exactly one outcome."""

    def __init__(
        self,
        env: Environment,
        router: Router,
        records: Records,
        *,
        admission: Admission | None = None,
        max_queue: int | None = None,
        timeout_ps: int | None = None,
        closed_loop: bool = False,
        end_ps: int | None = None,
        on_arrival: Callable[[int], None] | None = None,
        arrivals_between: int = 1024,
        future: Future | None = None,
    ) -> None:
        """A cluster without replicas yet: append them to `replicas`, then `serve`.

        Args:
            env: the clock, in integer picoseconds.
            router: chooses among `replicas`.
            records: takes a row for each request.
            admission: says who is let in; None: everybody.
            max_queue: requests waiting on a replica beyond which it refuses more.
            timeout_ps: after this long without its last token a request is given up.
            closed_loop: a session's next turn comes `think_s` after the answer before it.
            end_ps: cut-off; None: until all is served.
            on_arrival: told now and then how many have arrived.
            arrivals_between: how many it is told of at once.
            future: told of each request that ended, however it did.
        """
        self._env: Any = env
        self.replicas: list[Replica] = []
        self.refusals: dict[str, int] = {}
        """How many requests were rejected, by reason."""
        self._router: Any = router
        self._records: Records = records
        self._refuse: Any = None if admission is None else admission.refuse
        self._admission_done: Any = getattr(admission, "done", None)
        self._max_queue: int = -1 if max_queue is None else max_queue
        self._timeout_ps: int = -1 if timeout_ps is None else timeout_ps
        self._closed_loop: bool = closed_loop
        self._future: Any = future
        self._end_ps: int = -1 if end_ps is None else end_ps
        self._on_arrival: Any = on_arrival
        self._arrivals_between: int = arrivals_between
        self._source: Iterator[Request] = iter(())
        self._next: Request | None = None
        self._on_arrive: Any = [self._arrive]
        self._arrival: Any = happening(env)
        """Fires when `_next` arrives; used again for each."""
        self._arrivals: int = 0
        self._turns: dict[int, deque[Request]] = {}
        """Closed loop: turns of each session that are still to come."""
        self._thinking: list[tuple[int, int, Request]] = []
        """Closed loop: a heap of (arrival, request id, request) of the turns that come next."""
        self._open: dict[Sequence, int] = {}
        """Requests under way that may time out or be cut off, with their replica."""
        self._tracks_open: bool = timeout_ps is not None or end_ps is not None
        self._names: dict[str, int] = records.metrics.names()
        self._stopped: bool = False

    @property
    def names(self) -> list[str]:
        """Tenants and SLO classes, by the numbers that request rows carry."""
        return list(self._names)

    @property
    def now_ps(self) -> int:
        """The time."""
        now: int = self._env._now
        return now

    def serve(self, requests: Iterable[Request]) -> None:
        """Serve all of `requests`, which come in arrival order."""
        if self._closed_loop:
            requests = self._first_turns(requests)
        self._source = iter(requests)
        if self._end_ps >= 0:
            self._at(self._end_ps, self._stop)
        self._await_next()
        try:
            with _collector_at_rest():
                run(self._env)
        except PolicyError as error:
            raise error.during(f"at {self._time_s():.6f} s") from error.__cause__
        self._close()

    # ---- arrivals

    def _await_next(self) -> None:
        request = next(self._source, None)
        self._next = request
        if request is not None:
            env = self._env
            wait = round(request.arrival_s * PICOSECONDS) - env._now
            event = self._arrival
            event.callbacks = self._on_arrive
            env.schedule(event, URGENT, wait if wait > 0 else 0)

    def _arrive(self, event: Any) -> None:
        request = self._next
        if request is None or self._stopped:
            return
        self._accept(request)
        self._await_next()

    def _accept(self, request: Request) -> None:
        """Route a request that arrives now, or refuse it."""
        self._arrivals += 1
        if self._on_arrival is not None and not self._arrivals % self._arrivals_between:
            self._on_arrival(self._arrivals)
        index: int = self._router.choose(request)
        replica = self.replicas[index]
        scheduler = replica.scheduler
        seq = scheduler.sequence(request, self._env._now)
        refusal = scheduler.refusal(request)
        if not refusal and 0 <= self._max_queue <= scheduler.waiting and scheduler.running:
            refusal = f"the queue holds cluster.max_queue = {self._max_queue} already"
        if not refusal and self._refuse is not None:
            refusal = self._refuse(request, index)
        if refusal:
            self.refusals[refusal] = self.refusals.get(refusal, 0) + 1
            self._end(index, seq, REJECTED, -1)
            return
        if self._tracks_open:
            self._open[seq] = index
            if self._timeout_ps >= 0:
                deadline = seq.arrival + self._timeout_ps
                self._at(deadline + JUST_AFTER_PS, lambda _: self._give_up(seq, deadline))
        replica.submit(seq)

    def _first_turns(self, requests: Iterable[Request]) -> list[Request]:
        """Requests that arrive by the trace's clock; the others wait in `_turns`."""
        first: list[Request] = []
        for request in requests:
            session_id = request.session_id
            if request.turn > 0 and session_id in self._turns:
                self._turns[session_id].append(request)
                continue
            if session_id >= 0:  # even if its first turn here is not turn 0
                self._turns.setdefault(session_id, deque())
            first.append(request)
        return first

    # ---- ends

    def ended(self, replica: Replica, seq: Sequence) -> None:
        """All of a sequence's output is out (called by its replica)."""
        if self._tracks_open and self._open.pop(seq, -1) < 0:
            return  # its client had given up
        outcome = FINISHED if seq.generated == seq.request.output_tokens else TRUNCATED
        self._end(replica.index, seq, outcome, seq.finish)

    def _give_up(self, seq: Sequence, deadline: int) -> None:
        if self._stopped:
            return
        index = self._open.pop(seq, -1)
        if index >= 0:
            replica = self.replicas[index]
            seq.generated = replica.generated_tokens(seq)
            replica.abort(seq)
            self._end(index, seq, TIMED_OUT, deadline)

    def _stop(self, event: Any) -> None:
        """Cut off: no more arrivals, and each replica stops at its next step boundary."""
        self._stopped = True
        for replica in self.replicas:
            replica.stop()

    def _time_s(self) -> float:
        """How far the run is; a replica may be ahead of the clock."""
        latest: int = self._env._now
        for replica in self.replicas:
            latest = max(latest, replica.scheduler.moment.now)
        return latest / PICOSECONDS

    def _close(self) -> None:
        for seq, index in self._open.items():
            seq.generated = self.replicas[index].generated_tokens(seq)
            if seq.queued >= self._end_ps:  # no scheduler was called any more
                seq.queued = -1
            self._end(index, seq, UNFINISHED, -1)
        self._open = {}

    def _end(self, index: int, seq: Sequence, outcome: int, finish: int) -> None:
        request = seq.request
        names = self._names
        tenant = names.setdefault(request.tenant, len(names)) if request.tenant else 0
        slo_class = names.setdefault(request.slo_class, len(names)) if request.slo_class else 0
        row = request_row(seq, index, outcome, finish, tenant, slo_class)
        self._records.request_rows.append(row)
        self._router.done(index, request)
        if self._future is not None:
            self._future.passed(request.request_id)
        if self._admission_done is not None and outcome != REJECTED:
            self._admission_done(index, request)
        if self._closed_loop and request.session_id >= 0:
            self._continue(request.session_id, finish if finish >= 0 else self._env._now)

    def _continue(self, session_id: int, ended: int) -> None:
        """Let the session's next turn arrive a think time after `ended`."""
        turns = self._turns.get(session_id)
        if turns and not self._stopped:
            request = turns.popleft()
            think = round(request.think_s * PICOSECONDS)
            at = max(ended + max(think, JUST_AFTER_PS), self._env._now)
            heappush(self._thinking, (at, request.request_id, request))
            self._at(at, self._resume)

    def _resume(self, event: Any) -> None:
        """Let the next turn arrive that is due now; of several the first of the trace."""
        request = heappop(self._thinking)[2]
        if not self._stopped:
            self._accept(request)

    def _at(self, time: int, call: Callable[[Any], None]) -> None:
        """Call at `time`, before the steps that begin then."""
        env = self._env
        event = happening(env)
        event.callbacks = [call]
        env.schedule(event, URGENT, time - env._now)


@contextmanager
def _collector_at_rest() -> Generator[None]:
    """No garbage collection meanwhile: a run makes no reference cycles, and on a large cluster the
    collector takes 17 to 28 % of the time to walk what is alive (1,024 replicas, docs/log.md)."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
