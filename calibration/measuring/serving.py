"""A short served workload: steps as traffic composes them, to judge a fit by.

A closed loop: so many users, each of whom asks anew when the answer before is complete. Lengths are
lognormal. Nothing is pretended: prompts are computed, tokens sampled, blocks run out.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np

from calibration.measuring.measure import Step, timed_step
from engine.config import EngineSettings
from engine.llm import Clock, LLMEngine
from engine.metrics import PICOSECONDS
from engine.work import Executor, Generation

LENGTH_SIGMA: Final = 0.8
"""Of the logarithm of lengths."""


class Workload(NamedTuple):
    """What comes."""

    users: int
    prompt_tokens: int
    """Median."""
    answer_tokens: int
    """Median."""


def serve(
    executor: Executor,
    settings: EngineSettings,
    clock: Clock,
    workload: Workload,
    seconds: float,
    random: np.random.Generator,
    tell: Callable[[], None] | None = None,
) -> list[Step]:
    """Serve for some seconds and a step; returns the steps in order.

    Args:
        executor: at rest.
        settings: resolved; see calibration.measuring.measure.plainly.
        clock: of the executor's steps.
        workload: who asks for what.
        seconds: after which nothing more is begun.
        random: draws lengths and tokens.
        tell: called after each step.
    """
    engine = LLMEngine(executor, settings, clock=clock)
    until = clock.now() + round(seconds * PICOSECONDS)
    asking: list[Generation] = []
    steps: list[Step] = []
    while clock.now() < until:
        asking = [one for one in asking if one.outcome < 0]
        while len(asking) < workload.users:
            asking.append(_ask(engine, workload, random))
        step = timed_step(engine, clock)
        if step is not None:
            steps.append(step)
        if tell is not None:
            tell()
    for generation in asking:
        engine.abort(generation)
    engine.run()
    return steps


def _ask(engine: LLMEngine, workload: Workload, random: np.random.Generator) -> Generation:
    longest = engine.settings.scheduler.max_model_len
    blocks = engine.executor.num_blocks - 1
    assert longest is not None
    longest = min(longest, blocks * engine.settings.cache.block_tokens)
    prompt = min(_length(workload.prompt_tokens, random), longest - 1)
    tokens: list[int] = random.integers(0, engine.executor.vocab, prompt).tolist()
    return engine.add(tokens, min(_length(workload.answer_tokens, random), longest - prompt))


def _length(median: int, random: np.random.Generator) -> int:
    return max(1, round(median * float(np.exp(LENGTH_SIGMA * random.standard_normal()))))
