"""One engine instance on a simulated clock.

The loops below are LLMEngine.step with other means: schedule, let time pass, take the output.
A segment is a batch and the steps it runs for; an arrival may cut it at an earlier step boundary.
"""

from collections.abc import Callable
from heapq import heappush
from typing import Any, Final

from simpy import Environment
from simpy.events import NORMAL

from calibration.costs import CostModel, duration_ps, steps_to_cover
from engine.batch import Batch
from engine.moment import Moment
from engine.scheduler import Scheduler
from engine.sequence import FINISHED, RUNNING, WAITING, Sequence
from sim.clock import agenda, happening
from sim.records import Records
from traces.errors import ConfigError

FRUITLESS_STEPS: Final = 100_000
"""So many steps with preemptions and no finished request are no bad luck, but a deadlock."""


class Replica:
    """Serves sequences with the engine's scheduler; a cost model stands for the GPU.

    Call `submit` and `abort` from SimPy events of URGENT priority: what arrives at the very time
    a step ends is seen by the next.
    """

    __slots__ = (
        "_add_segment",
        "_asynchronous",
        "_at",
        "_batch",
        "_busy_until",
        "_callbacks",
        "_cost",
        "_doomed",
        "_env",
        "_event",
        "_first",
        "_fruitless",
        "_growth",
        "_ids",
        "_in_flight",
        "_interrupted",
        "_late",
        "_moment",
        "_on_end",
        "_pending",
        "_prefill_first",
        "_queued",
        "_records",
        "_spare",
        "_start",
        "_steps",
        "_stopped",
        "index",
        "on_first_token",
        "scheduler",
    )

    def __init__(
        self,
        env: Environment,
        index: int,
        scheduler: Scheduler,
        cost: CostModel,
        records: Records,
        on_end: Callable[["Replica", Sequence], None],
    ) -> None:
        """A replica at rest.

        Args:
            env: the clock, in integer picoseconds.
            index: its number in the cluster.
            scheduler: its own.
            cost: how long a step takes.
            records: where segments go.
            on_end: told of each sequence when its last token is out (`Sequence.finish`).
        """
        self._env: Any = env
        self._pending, self._ids = agenda(env)
        self.index: int = index
        self.scheduler: Scheduler = scheduler
        self._cost: Any = cost
        self._at: Any = getattr(cost, "at", None)
        """Told when a step is scheduled and when the device is free, if its cost depends on it."""
        self._queued: Any = getattr(cost, "queued", None)
        """Told when a sequence is queued, which may make copies begin."""
        self._records: Records = records
        self._add_segment: Any = records.segment_rows.append
        self._on_end: Any = on_end
        self.on_first_token: Any = None
        """Told of each sequence when its first token is out; None: nobody is."""
        self._moment: Moment = scheduler.moment
        self._asynchronous: bool = scheduler.settings.async_scheduling
        self._callbacks: Any = [self._wake_late if self._asynchronous else self._wake]
        """SimPy takes the list off a fired event, but leaves it as it is."""
        self._spare: Any = None
        """A wake-up that has fired, to be used again."""
        self._event: Any = None
        """The pending wake-up; others of this replica are stale."""
        self._batch: Batch | None = None
        """What runs, or, asynchronous, was scheduled last and not advanced."""
        self._in_flight: Batch | None = None
        """Asynchronous: the batch before, whose output is to come."""
        self._start: int = 0
        self._first: int = 0
        self._growth: int = 0
        self._steps: int = 0
        self._busy_until: int = 0
        """When the device is done with all it was given."""
        self._doomed: list[Sequence] = []
        """Aborted sequences, to be dropped at the next step boundary."""
        self._late: dict[Sequence, int] = {}
        """Decodes that missed a step: when their last token came out."""
        self._fruitless: int = 0
        """Steps with preemptions since the last request finished."""
        self._interrupted: bool = False
        self._stopped: bool = False
        self._prefill_first: bool = scheduler.settings.prefill_first

    # ---- from outside

    def submit(self, seq: Sequence) -> None:
        """Queue a sequence that arrives now."""
        seq.queued = self._next_call()
        self._moment.now = self._env._now
        matters = self.scheduler.add(seq)
        if self._queued is not None:
            self._queued(self._env._now)
        if self._batch is None:
            if self._event is None:
                self._wake_at(self._env._now)
        elif matters and self._steps > 1:
            self._cut()

    def abort(self, seq: Sequence) -> None:
        """Drop a sequence at the next step boundary."""
        if seq.queued >= self._env._now:  # the scheduler will not have seen it
            seq.queued = -1
        self._doomed.append(seq)
        self._interrupted = True
        if self._batch is not None and self._steps > 1:
            self._cut()

    def stop(self) -> None:
        """Finish the step that runs and schedule no other."""
        self._stopped = True
        if self._batch is not None and self._steps > 1:
            self._cut()

    def generated_tokens(self, seq: Sequence) -> int:
        """Output tokens of an unfinished sequence that were out before now; O(1)."""
        decodes = self.scheduler.decodes
        if not seq.decoding:
            # past its known tokens: its last token is in flight
            in_flight = seq.status == RUNNING and seq.base > seq.prefill_end
            return seq.output_limit - 1 if in_flight else seq.generated
        scheduled = seq.output_limit - (seq.finish_epoch - decodes.epoch)
        if self._in_flight is not None:
            scheduled -= 1
        if self._batch is None or self._batch.decoding == 0:
            return scheduled
        elapsed = self._env._now - self._start
        done = 0  # steps of the segment; the epoch counts its first one
        if elapsed > self._first:
            done = steps_to_cover(self._first, self._growth, elapsed) - 1
        return scheduled - 1 + min(done, self._steps)

    def kv_blocks_used(self) -> int:
        """Blocks that sequences hold by now, those of a running segment's later steps included."""
        blocks = self.scheduler.blocks
        used = blocks.usable - blocks.free
        batch = self._batch
        if batch is None:
            return used
        more = self._steps_more()
        if batch.decoding:
            used += self.scheduler.decodes.blocks_due(more)
        for seq, chunk in batch.prefills:
            used += blocks.growth(seq.base, chunk * more)
        return used

    def context_tokens(self) -> int:
        """Tokens that the decoding sequences have computed by now, in all."""
        batch, decodes = self._batch, self.scheduler.decodes
        more = self._steps_more() if batch is not None and batch.decoding else 0
        return decodes.context_tokens + decodes.size * more

    def _steps_more(self) -> int:
        """Steps of the running segment, beyond its first, that are scheduled by now."""
        elapsed = self._env._now - self._start
        if elapsed <= 0 or self._steps == 1:
            return 0
        steps = steps_to_cover(self._first, self._growth, elapsed)
        if self._asynchronous:
            steps += 1
        return min(steps, self._steps) - 1

    # ---- synchronous: schedule, run, output

    def _wake(self, event: Any) -> None:
        if event is not self._event:
            return
        self._event = None
        self._spare = event
        scheduler = self.scheduler
        now = self._env._now
        while True:
            self._moment.now = now
            batch = self._batch
            if batch is not None:
                scheduler.advance(batch, self._steps)
                self._record(batch, now)
                if batch.exhausted or batch.completed:
                    self._take_output(batch, now)
            if self._interrupted:
                self._interrupt()
            batch = self._batch = None if self._stopped else scheduler.schedule()
            if batch is None:
                return
            self._begin(batch, now, now)
            now = self._busy_until
            if not self._passes(now):
                return

    # ---- asynchronous: schedule the next batch when the last step of this one begins

    def _wake_late(self, event: Any) -> None:
        if event is not self._event:
            return
        self._event = None
        self._spare = event
        scheduler = self.scheduler
        now = self._env._now
        while True:
            batch = self._batch
            in_flight = self._in_flight
            if in_flight is not None:
                its_end = self._busy_until if batch is None else self._start
                if now < its_end:
                    if not self._passes(its_end):
                        return
                    now = its_end
                self._moment.now = now
                self._take_output(in_flight, now)
                self._in_flight = None
            if batch is not None:
                last_step = self._start + duration_ps(self._first, self._growth, self._steps - 1)
                if now < last_step:
                    if not self._passes(last_step):
                        return
                    now = last_step
                self._moment.now = now
                scheduler.advance(batch, self._steps)
                self._record(batch, self._busy_until)
                self._in_flight = batch
            if self._interrupted:
                self._interrupt()
            batch = self._batch = None if self._stopped else scheduler.schedule()
            if batch is not None:
                self._begin(batch, now, max(now, self._busy_until))
                # from rest two batches are scheduled: what comes between them, the second has seen
                if self._in_flight is None and not self._passes(now):
                    return
            elif self._in_flight is None:
                return

    # ---- both

    def _passes(self, time: int) -> bool:
        """Whether nothing else in the simulation happens before `time`, so that the replica may go
        on as if it were then; if something may, wake up then."""
        if not self._pending or time < self._pending[0][0]:
            return True
        self._wake_at(time)
        return False

    def _interrupt(self) -> None:
        """Drop what was aborted, now that a step boundary is reached."""
        for seq in self._doomed:
            if seq.status != FINISHED:
                self.scheduler.abort(seq)
        self._doomed = []
        self._interrupted = False

    def _next_call(self) -> int:
        """When the scheduler is called next, now or later, however far the segment was foreseen."""
        now: int = self._env._now
        if self._batch is None:
            return now if self._in_flight is None else self._busy_until
        elapsed = now - self._start
        if elapsed > 0:
            steps = steps_to_cover(self._first, self._growth, elapsed)
        else:  # asynchronous: what was scheduled last has yet to begin
            steps = 0 if self._asynchronous else 1
        return self._start + duration_ps(self._first, self._growth, steps)

    def _begin(self, batch: Batch, called: int, start: int) -> None:
        """Start a segment at `start` that was scheduled at `called`."""
        if self._at is not None:
            self._at(called, start)
        first, growth, steps = self._cost.progression(batch)
        if batch.horizon < steps:
            steps = batch.horizon
        self._start = start
        self._first = first
        self._growth = growth
        self._steps = steps
        # duration_ps, written out for speed
        self._busy_until = start + steps * first + growth * (steps * (steps - 1) // 2)
        if batch.admitted:
            for seq in batch.admitted:
                if seq.first_scheduled < 0:
                    seq.admitted = called
                    seq.first_scheduled = start
        if batch.preempted:
            self._preempting()
            for seq in batch.preempted:
                if seq.last_token < 0 and seq.generated:
                    seq.last_token = start

    def _preempting(self) -> None:
        """Notice when sequences preempt each other for ever."""
        self._fruitless += 1
        if self._fruitless > FRUITLESS_STEPS:
            raise ConfigError(
                f"replica {self.index}: {FRUITLESS_STEPS:,} steps with preemptions and no request"
                f" finished: {self.scheduler.blocks.usable} KV blocks are too few for these"
                " settings; expected more blocks, or scheduler.reserve_full_sequence: true"
            )

    def _cut(self) -> None:
        """Let the running segment end at the first boundary at which news of now are seen."""
        elapsed = self._env._now - self._start
        if elapsed <= 0:
            steps = 1
        else:
            steps = steps_to_cover(self._first, self._growth, elapsed)
            if self._asynchronous:
                steps += 1
        if steps >= self._steps:
            return
        self._steps = steps
        self._busy_until = self._start + duration_ps(self._first, self._growth, steps)
        if not self._asynchronous:
            self._wake_at(self._busy_until)
        elif self._in_flight is None:
            self._wake_at(self._start + duration_ps(self._first, self._growth, steps - 1))

    def _take_output(self, batch: Batch, now: int) -> None:
        finished = self.scheduler.output(batch)
        for seq in batch.completed:
            if seq.first_token < 0:
                seq.first_token = now
                if self.on_first_token is not None:
                    self.on_first_token(self, seq)
            elif seq.last_token >= 0:
                self._records.gap(now - seq.last_token, 1)
                # preempted again while this token was in flight: the next gap begins here
                seq.last_token = now if seq.status == WAITING else -1
        if finished:
            self._fruitless = 0
        for seq in finished:
            seq.finish = now
            self._on_end(self, seq)

    def _record(self, batch: Batch, end: int) -> None:
        scheduler = self.scheduler
        if self._late or batch.left_out or self._prefill_first:
            self._account_late(batch)
        self._add_segment(
            (
                self.index,
                self._start,
                end,
                self._steps,
                self._first,
                self._growth,
                batch.decodes,
                batch.decode_context_tokens,
                len(batch.prefills),
                batch.prefill_tokens,
                batch.prefill_context_tokens,
                batch.prefill_pairs,
                len(scheduler.running),
                scheduler.queue.size,
                scheduler.blocks.usable - scheduler.blocks.free,
                len(batch.preempted),
                batch.decoding,
            )
        )

    def _account_late(self, batch: Batch) -> None:
        """Correct the gaps between tokens that are longer than the step that closes them."""
        late, start = self._late, self._start
        for seq in batch.preempted:
            seq.last_token = late.pop(seq, seq.last_token)
        if batch.decoding:
            for seq, since in list(late.items()):
                if seq in batch.left_out:
                    continue
                del late[seq]
                if seq.status != FINISHED:
                    self._records.gap(start + self._first - since, 1)
                    self._records.gap(self._first, -1)
            for seq in batch.left_out:
                late.setdefault(seq, start)
        elif batch.prefills:
            for seq in self.scheduler.running:
                if seq.decoding and seq not in batch.completed:
                    late.setdefault(seq, start)

    def _wake_at(self, time: int) -> None:
        """Set the one pending wake-up; one that was pending is stale and will be ignored."""
        event = happening(self._env) if self._spare is None else self._spare
        self._spare = None
        event.callbacks = self._callbacks
        self._event = event
        heappush(self._pending, (time, NORMAL, next(self._ids), event))
