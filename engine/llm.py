"""The engine's loop on the wall clock: schedule, have it executed, take the output."""

from collections.abc import Callable
from collections.abc import Sequence as Listed
from dataclasses import dataclass
from time import perf_counter_ns, sleep
from typing import Final, Protocol

from engine.batch import Batch
from engine.config import EngineSettings
from engine.content import block_hash, chained_hashes
from engine.metrics import FINISHED as DONE
from engine.metrics import PICOSECONDS, TIMED_OUT, TRUNCATED
from engine.order.chunks import StepTime
from engine.scheduler import Scheduler
from engine.sequence import FINISHED, Sequence
from engine.steps import Record, begin_record, finish_record
from engine.tiers import Tiers
from engine.work import Executor, Flight, Generation, Sampling, Share, Work
from traces.errors import ConfigError
from traces.request import Request

GREEDY: Final = Sampling()


class Clock(Protocol):
    """Time in integer picoseconds since the engine started."""

    def now(self) -> int:
        """The time."""
        ...

    def wait_until(self, time: int) -> None:
        """Return at `time` or, if that has passed, at once."""
        ...


class WallClock:
    """The machine's monotonic clock."""

    def __init__(self) -> None:
        self._start: Final = perf_counter_ns()

    def now(self) -> int:
        """Picoseconds since this clock was made."""
        return (perf_counter_ns() - self._start) * 1000

    def wait_until(self, time: int) -> None:
        """Sleep until `time`."""
        left = time - self.now()
        if left > 0:
            sleep(left / PICOSECONDS)


@dataclass(slots=True)
class _Step:
    """A launched step."""

    batch: Batch
    work: Work
    gives_token: list[bool]
    """For each share, whether it ends with a new token."""
    flight: Flight
    record: Record
    host_ps: int
    """Time the loop spent on it so far."""
    end: int = 0
    """When its output was there."""


class LLMEngine:
    """Serves generations with the scheduler core and an executor; one thread drives it.

    `add` generations, call `step` as long as there is `work_left`, and take what it returns. With
    asynchronous scheduling a step is launched before the output of the one before is looked at.
    """

    def __init__(
        self,
        executor: Executor,
        settings: EngineSettings,
        *,
        clock: Clock | None = None,
        step_time: StepTime | None = None,
        context_tokens: int = 0,
    ) -> None:
        """An engine at rest.

        Args:
            executor: runs the steps.
            settings: resolved, as the executor's `settings` are: no limit left open.
            clock: the wall clock if not given.
            step_time: what a step takes, for chunking that looks at it.
            context_tokens: see engine.eviction.protocol.CacheView.
        """
        self.executor: Final = executor
        self.settings: Final = settings
        self.clock: Final[Clock] = clock or WallClock()
        offload = settings.offload
        self.tiers: Final = (
            Tiers(
                offload,
                executor.block_bytes,
                whole_blocks=settings.kv_dtype == "int4_channel",
            )
            if offload.has_room
            else None
        )
        self.scheduler: Final = Scheduler(
            settings.scheduler,
            settings.cache,
            executor.num_blocks,
            named=True,
            executed=True,
            tiers=self.tiers,
            step_time=step_time,
            context_tokens=context_tokens,
        )
        self.records: list[Record] = []
        """One a step, finished as its output is taken; the caller may take them out."""
        self.token_gaps: list[int] = []
        """Picoseconds between consecutive tokens of a request; the caller may take them out."""
        self.steps: int = 0
        """Steps launched."""
        self._asynchronous: Final = settings.scheduler.async_scheduling
        self._block_tokens: Final = settings.cache.block_tokens
        self._added: int = 0
        self._generations: dict[Sequence, Generation] = {}
        self._unseen: list[Sequence] = []
        """Added since the scheduler was last called."""
        self._in_flight: _Step | None = None
        self._leaving: list[Generation] = []
        """Aborted or stopped; they go at the next step boundary."""
        self._dropped: bool = False
        """Some went since the last step was launched."""

    # ---- coming and going

    def add(
        self,
        prompt: Listed[int],
        max_tokens: int,
        *,
        sampling: Sampling = GREEDY,
        stop_tokens: frozenset[int] = frozenset(),
        forced: Listed[int] = (),
        on_token: Callable[[Generation, int], None] | None = None,
        request: Request | None = None,
        arrival: int | None = None,
    ) -> Generation:
        """Queue a prompt.

        Args:
            prompt: token ids.
            max_tokens: most output tokens; the model's limit may leave fewer.
            sampling: how tokens are chosen.
            stop_tokens: token ids that end the output, themselves included.
            forced: output tokens to emit in place of sampled ones.
            on_token: called with each output token as it is known.
            request: of a trace: its number, session, tenant, priority and SLO class are kept.
            arrival: when it came, on the engine's clock; now if not given.

        Raises:
            ConfigError: for a prompt that is empty, not of this vocabulary or too long, and for
                max_tokens below 1.
        """
        self._check(prompt, max_tokens)
        arrived = self.clock.now() if arrival is None else arrival
        template = request or Request(self._added, arrived / PICOSECONDS, 1, 1)
        asked = template._replace(
            prompt_tokens=len(prompt),
            output_tokens=max_tokens,
            hashes=(),
            hash_tokens=self._block_tokens,
            hashed_tokens=0,
        )
        if self.settings.cache.prefix_caching:
            hashes = chained_hashes(prompt, self._block_tokens)
            asked = asked._replace(hashes=hashes, hashed_tokens=len(hashes) * self._block_tokens)
        refusal = self.scheduler.refusal(asked)
        if refusal:
            raise ConfigError(f"prompt of {len(prompt)} tokens: {refusal}")
        seq = self.scheduler.sequence(asked, arrived)
        generation = Generation(seq, list(prompt), sampling, forced, stop_tokens, on_token)
        self._added += 1
        self._generations[seq] = generation
        self.scheduler.moment.now = self.clock.now()
        self.scheduler.add(seq)
        self._unseen.append(seq)
        return generation

    def abort(self, generation: Generation) -> None:
        """Give a generation up at the next step boundary; harmless if it has ended."""
        if generation.outcome < 0:
            generation.outcome = TIMED_OUT
            self._leaving.append(generation)

    @property
    def work_left(self) -> bool:
        """Something runs, waits, or is about to leave."""
        return not self.scheduler.idle or self._in_flight is not None or bool(self._leaving)

    def close(self) -> None:
        """Give back what the executor holds."""
        self.executor.close()

    # ---- the loop

    def step(self) -> list[Generation]:
        """Schedule a step and have it executed; returns the generations that ended.

        Synchronous, the output taken is that of this step; asynchronous, of the one before.
        """
        ended = self._let_go()
        if self.tiers is not None:
            for level in self.executor.lost():
                self.tiers.lose(level)
        called = self.scheduler.moment.now = self.clock.now()
        self._show(called)
        batch = self.scheduler.schedule()
        step = None if batch is None else self._launch(batch, called)
        before, self._in_flight = self._in_flight, None
        if before is not None:
            ended += self._take_output(before)
        if step is not None:
            self._begin(step, called if before is None else before.end)
            self.scheduler.advance(step.batch, 1)
            if self._asynchronous:
                self._in_flight = step
            else:
                ended += self._take_output(step)
        return ended

    def run(self) -> list[Generation]:
        """Step until no work is left; returns the generations that ended, in that order."""
        ended: list[Generation] = []
        while self.work_left:
            ended += self.step()
        return ended

    def _show(self, called: int) -> None:
        """The scheduler, called now, sees what was added since it was called last."""
        for seq in self._unseen:
            if seq.status != FINISHED:  # given up before it was seen
                seq.queued = called
        self._unseen.clear()

    def _launch(self, batch: Batch, called: int) -> _Step:
        """Have a batch executed that `schedule`, called at `called`, has just decided."""
        scheduler_ps = self.clock.now() - called
        for seq in batch.admitted:
            if seq.admitted < 0:
                seq.admitted = called
        for seq in batch.preempted:
            self.executor.drop(seq)
        work = self._work(batch)
        record = begin_record(self.steps, batch, work, self.scheduler)
        record["called_s"] = called / PICOSECONDS
        record["scheduler_s"] = scheduler_ps / PICOSECONDS
        self.steps += 1
        gives_token = [True] * len(work.decodes)
        gives_token += [s.context == s.generation.seq.prefill_end for s in work.prefills]
        flight = self.executor.launch(work)
        return _Step(batch, work, gives_token, flight, record, self.clock.now() - called)

    def _begin(self, step: _Step, start: int) -> None:
        """The device turns to a step: as it is launched, or when it is done with the one before."""
        step.record["start_s"] = start / PICOSECONDS
        for seq in step.batch.admitted:
            if seq.first_scheduled < 0:
                seq.first_scheduled = start

    def _work(self, batch: Batch) -> Work:
        """Who computes what; between schedule and advance."""
        generations = self._generations
        decodes: list[Share] = []
        if batch.decoding:
            epoch = self.scheduler.decodes.epoch
            decodes = [
                Share(generations[seq], seq.base + epoch, 1)
                for seq in self.scheduler.running
                if seq.decoding and seq not in batch.left_out
            ]
        prefills = [Share(generations[seq], seq.base, chunk) for seq, chunk in batch.prefills]
        if self.tiers is None:
            return Work(decodes, prefills)
        before, after = self.tiers.take_moves()
        unsettled = self._dropped or bool(batch.preempted)
        self._dropped = False
        return Work(decodes, prefills, before, after, unsettled)

    def _take_output(self, step: _Step) -> list[Generation]:
        output = step.flight.wait()
        now = step.end = self.scheduler.moment.now = self.clock.now()
        shares = step.work.decodes + step.work.prefills
        for share, token, given in zip(shares, output.tokens, step.gives_token, strict=True):
            if given:
                self._take_token(share.generation, token, now)
        ended = [self._end(seq, now) for seq in self.scheduler.output(step.batch)]
        host_ps = step.host_ps + self.clock.now() - now
        finish_record(step.record, output, now, host_ps)
        self.records.append(step.record)
        return ended

    def _take_token(self, generation: Generation, token: int, now: int) -> None:
        if generation.outcome >= 0:  # it left while the step ran
            return
        seq, tokens = generation.seq, generation.tokens
        tokens.append(token)
        if self.settings.cache.prefix_caching and len(tokens) % self._block_tokens == 0:
            parent = seq.hashes[-1] if seq.hashes else 0
            self.scheduler.learn(seq, block_hash(parent, tokens[-self._block_tokens :]))
        if seq.first_token < 0:
            seq.first_token = now
        else:
            self.token_gaps.append(now - seq.last_token)
        seq.last_token = now
        if token in generation.stop_tokens:
            generation.outcome = DONE
            self._leaving.append(generation)
        if generation.on_token is not None:
            generation.on_token(generation, token)

    def _end(self, seq: Sequence, now: int) -> Generation:
        generation = self._generations.pop(seq)
        if generation.outcome < 0:
            cut = seq.output_limit < seq.request.output_tokens
            generation.outcome = TRUNCATED if cut else DONE
        seq.generated = len(generation.output)
        seq.finish = now
        self.executor.drop(seq)
        return generation

    def _let_go(self) -> list[Generation]:
        """Drop what was aborted or stopped, unless its last token came first."""
        if not self._leaving:
            return []
        now = self.clock.now()
        going = [g for g in self._leaving if g.seq.status != FINISHED]
        self._leaving.clear()
        self._dropped |= bool(going)
        for generation in going:
            self.scheduler.abort(generation.seq)
        return [self._end(generation.seq, now) for generation in going]

    def _check(self, prompt: Listed[int], max_tokens: int) -> None:
        if not prompt:
            raise ConfigError("prompt: is empty; expected at least one token")
        if max_tokens < 1:
            raise ConfigError(f"max_tokens: must be at least 1, got {max_tokens}")
        least, most = min(prompt), max(prompt)
        if least < 0 or most >= self.executor.vocab:
            wrong = least if least < 0 else most
            raise ConfigError(
                f"prompt: token {wrong} is not in the vocabulary of {self.executor.vocab}"
            )
