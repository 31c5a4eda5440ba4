"""Steps of wanted composition, run by the engine's own loop and timed as it times them.

**What is measured.** A step is one call of `LLMEngine.step` with synchronous scheduling: it begins
with `schedule()` and ends when the tokens are taken, finished sequences have left and the next
`schedule()` could be called. `time_s` is that whole call; `device_s` is what the executor says the
step took on the device (CUDA events there, the computation's wall time on a CPU). What is between
them is the host's: scheduling, planning, launching what the device waits for, taking tokens.
Synchronous steps show both, so that a simulator can put them together as it needs to: one after the
other, or side by side where scheduling is asynchronous.

**What is pretended.** A decode of 4,000 tokens of context costs what it costs whether or not those
tokens were ever computed. So the sequences of a designed step come to their contexts without
computing: `Pretender` stands between loop and executor and, while a point is set up, lets only one
token of each sequence through, which gives it its row of the block tables. What is in the cache
before a prefill chunk is a prefix hit on another sequence that pretended too. All blocks are
distinct and lie where the block manager puts them. The KV pool must hold finite numbers (see
engine.execution.filling). Everything else is real: the batch is the scheduler's, blocks are
reserved, tables sent, tokens sampled and hashed. This scheduler has no token budget, so that a
point is set up in two steps; points keep to the engine's by themselves.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from calibration.measuring.design import Point
from engine.config import CacheSettings, EngineSettings, OffloadSettings, SchedulerSettings
from engine.llm import Clock, LLMEngine
from engine.metrics import PICOSECONDS
from engine.sequence import Sequence
from engine.work import Executor, Flight, Generation, Share, StepOutput, Work

ENDLESS: Final = 1 << 20
"""Output tokens of a decode: it goes on until it is aborted."""


@dataclass(frozen=True, slots=True)
class Step:
    """A measured step; the columns of calibration.steps.STEP_FRAME that a measurement knows."""

    decodes: int
    decode_context_tokens: int
    prefills: int
    prefill_tokens: int
    prefill_context_tokens: int
    prefill_pairs: int
    graph_tokens: int
    time_s: float
    device_s: float


class Pretender:
    """An executor (see engine.work) that only seems to run what sets a step up."""

    def __init__(self, executor: Executor) -> None:
        """It pretends from now on."""
        self._executor = executor
        self.num_blocks = executor.num_blocks
        self.block_bytes = executor.block_bytes
        self.vocab = executor.vocab
        self.pretending: bool = True

    def launch(self, work: Work) -> Flight:
        """Run the step, or seem to: then only a first token of who will decode is computed."""
        if not self.pretending:
            return self._executor.launch(work)
        shares = work.decodes + work.prefills
        begun = [
            Share(share.generation, 1, 1)
            for share in work.prefills
            if share.generation.seq.output_limit > 1
        ]
        if begun:
            self._executor.launch(Work(prefills=begun)).wait()
        return _Seeming(len(shares))

    def drop(self, seq: Sequence) -> None:
        """See engine.work.Executor."""
        self._executor.drop(seq)

    def lost(self) -> tuple[int, ...]:
        """See engine.work.Executor."""
        return self._executor.lost()

    def close(self) -> None:
        """See engine.work.Executor."""
        self._executor.close()


class _Seeming:
    """A step that did not run."""

    def __init__(self, sequences: int) -> None:
        self._sequences = sequences

    def wait(self) -> StepOutput:
        """See engine.work.Flight."""
        return StepOutput([0] * self._sequences, 0.0, 0, 0)


class Bench:
    """Where points are set up and measured, one after the other."""

    def __init__(self, executor: Executor, settings: EngineSettings, clock: Clock) -> None:
        """A bench with nothing on it.

        Args:
            executor: its pool holds finite numbers.
            settings: resolved; limits and block size are taken from it, the rest is as it has to
                be to compose steps.
            clock: of the executor's steps.
        """
        self.clock: Final = clock
        self._pretender: Final = Pretender(executor)
        self._engine: Final = LLMEngine(self._pretender, plainly(settings, None), clock=clock)

    def measure(self, point: Point, steps: int, random: np.random.Generator) -> list[Step]:
        """Set a point up and measure it.

        Args:
            point: fits the limits.
            steps: to measure, at most GROWTH_TOKENS less 2; another one runs first and is
                discarded.
            random: draws the tokens; what begins by chance like an earlier prompt, which takes very
                small blocks, has a shorter chunk.

        Raises:
            RuntimeError: the engine composed another step than was asked for.
        """
        prefixes = self._remember(point, random)
        decodes = [
            self._ask(self._words(context - 1, random), ENDLESS) for context in point.contexts()
        ]
        self._pretend()
        measured = [self._step(point, prefixes, random) for _ in range(steps + 1)]
        for generation in decodes:
            self._engine.abort(generation)
        self._pretend()
        return measured[1:]

    def _remember(self, point: Point, random: np.random.Generator) -> list[list[int]]:
        """The tokens before each chunk, put into the prefix cache."""
        if not point.before_tokens:
            return [[] for _ in range(point.prefills)]
        prefixes = [self._words(point.before_tokens, random) for _ in range(point.prefills)]
        for prefix in prefixes:
            self._ask(prefix, 1)
        self._pretend()
        return prefixes

    def _pretend(self) -> None:
        """Step, without computing, until who asked for one token is done and the others decode."""
        engine = self._engine
        self._pretender.pretending = True
        engine.step()
        engine.records.clear()
        engine.token_gaps.clear()
        self._pretender.pretending = False

    def _step(self, point: Point, prefixes: list[list[int]], random: np.random.Generator) -> Step:
        for prefix in prefixes:
            self._ask(prefix + self._words(point.chunk_tokens, random), 1)
        step = timed_step(self._engine, self.clock)
        asked = (point.decodes, point.prefills)
        if step is None or (step.decodes, step.prefills) != asked:
            raise RuntimeError(f"asked for {point}, the engine ran {step}")
        return step

    def _ask(self, prompt: list[int], tokens: int) -> Generation:
        return self._engine.add(prompt, tokens)

    def _words(self, tokens: int, random: np.random.Generator) -> list[int]:
        return random.integers(0, self._pretender.vocab, tokens).tolist()


def plainly(
    settings: EngineSettings, max_tokens: int | None, *, asynchronous: bool = False
) -> EngineSettings:
    """An engine like that of `settings`, without tiers and with the default policies.

    Args:
        settings: resolved.
        max_tokens: budget of a step; None: no limit.
        asynchronous: schedule a step while the one before runs.
    """
    scheduler = SchedulerSettings(
        max_num_seqs=settings.scheduler.max_num_seqs,
        max_num_batched_tokens=max_tokens,
        max_model_len=settings.scheduler.max_model_len,
        async_scheduling=asynchronous,
    )
    cache = CacheSettings(block_tokens=settings.cache.block_tokens)
    plain = {"scheduler": scheduler, "cache": cache, "offload": OffloadSettings()}
    return settings.model_copy(update=plain)


def timed_step(engine: LLMEngine, clock: Clock) -> Step | None:
    """One call of `step`; None if no step's output was taken.

    Asynchronous, the output is that of the step before, and its time counts from the output of the
    one before that (from its own scheduling, if it was the first).
    """
    began = clock.now()
    engine.step()
    took = clock.now() - began
    engine.token_gaps.clear()
    if not engine.records:
        return None
    record = engine.records.pop()
    asynchronous = engine.settings.scheduler.async_scheduling
    time_s = record["wall_time"] if asynchronous else took / PICOSECONDS
    return Step(time_s=time_s, **_columns(record))


def _columns(record: dict[str, Any]) -> dict[str, Any]:
    """Of the engine's record (docs/engine.md), under the step frame's names."""
    prefill_tokens = record["sum_prefill_tokens"]
    return {
        "decodes": record["num_decode_requests"],
        "decode_context_tokens": record["sum_decode_kv_tokens"],
        "prefills": record["num_prefill_requests"],
        "prefill_tokens": prefill_tokens,
        "prefill_context_tokens": record["sum_prefill_kv_tokens"] + prefill_tokens,
        "prefill_pairs": record["prefill_pairs"],
        "graph_tokens": record["graph_bucket"],
        "device_s": record["device_s"],
    }
