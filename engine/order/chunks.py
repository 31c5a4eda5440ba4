"""How many prompt tokens a step takes on beside its decodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from engine.batch import Batch
from engine.order.stated import check_above_0, check_at_least
from traces.errors import ConfigError

StepTime = Callable[[Batch], int]
"""Picoseconds that a step with these sums takes."""


class Chunking(Protocol):
    """Says how many tokens the next step may have."""

    varies: bool
    """Whether the answer changes while the same sequences decode."""

    def budget(self, decodes: int, context_tokens: int, prefix_tokens: int) -> int:
        """Tokens of a step, decodes included.

        Args:
            decodes: sequences that decode.
            context_tokens: what they attend to, in sum.
            prefix_tokens: computed tokens of the prompt that goes on; 0 if none does.
        """
        ...


class FixedChunk:
    """So many prompt tokens a step, however many requests decode.

    Simple, and a prompt takes the same number of steps whatever the load; but steps grow longer
    with the batch, so time between tokens is not bounded.
    """

    varies = False

    def __init__(self, step_time: StepTime | None, *, tokens: int = 512) -> None:
        check_at_least("chunking 'fixed'", "tokens", tokens, 1)
        self._tokens: Final = tokens

    def budget(self, decodes: int, context_tokens: int, prefix_tokens: int) -> int:
        """Decodes, and the chunk on top."""
        return decodes + self._tokens


class StallFree:
    """So many tokens a step in all: decodes first, prompts take what is left.

    No decode waits for a prompt, and a step's tokens are bounded; with many decodes prompts get
    little and TTFT grows. Source: Agrawal et al., Taming Throughput-Latency Tradeoff in LLM
    Inference with Sarathi-Serve, OSDI'24; vLLM's chunked prefill is the same with
    max_num_batched_tokens.
    """

    varies = False

    def __init__(self, step_time: StepTime | None, *, tokens: int = 512) -> None:
        check_at_least("chunking 'stall-free'", "tokens", tokens, 1)
        self._tokens: Final = tokens

    def budget(self, decodes: int, context_tokens: int, prefix_tokens: int) -> int:
        """The budget, or at least what the decodes need."""
        return max(self._tokens, decodes)


class LatencyBounded:
    """As many prompt tokens as keep the step within a time between tokens, by the cost model.

    Uses what room a step has: large chunks while few decode, small ones under load. The bound is
    only as good as the prediction, which takes a new prompt to begin at its first token: what it
    hits in the prefix cache is not foreseen. At least `least` tokens are taken on, so that prompts
    go on even where decodes alone take longer than `tbt_s`.
    """

    varies = True

    def __init__(self, step_time: StepTime | None, *, tbt_s: float = 0.05, least: int = 16) -> None:
        if step_time is None:
            raise ConfigError(
                "chunking 'latency-bounded': needs to know what a step takes; expected a profile"
            )
        check_above_0("chunking 'latency-bounded'", "tbt_s", tbt_s)
        check_at_least("chunking 'latency-bounded'", "least", least, 1)
        self._step_time: Final = step_time
        self._limit_ps: Final = round(tbt_s * 10**12)
        self._least: Final = least

    def budget(self, decodes: int, context_tokens: int, prefix_tokens: int) -> int:
        """The largest that is predicted to keep the bound, found by bisection."""
        fits, fails = self._least, 2 * self._least
        while fails < MOST_TOKENS and self._fits(decodes, context_tokens, prefix_tokens, fails):
            fits, fails = fails, 2 * fails
        while fails - fits > 1:
            middle = (fits + fails) // 2
            if self._fits(decodes, context_tokens, prefix_tokens, middle):
                fits = middle
            else:
                fails = middle
        return decodes + fits

    def _fits(self, decodes: int, context_tokens: int, prefix_tokens: int, chunk: int) -> bool:
        step = Batch()
        step.decodes = step.decoding = decodes
        step.decode_context_tokens = context_tokens
        step.prefill_tokens = chunk
        step.prefill_context_tokens = prefix_tokens + chunk
        step.prefill_pairs = chunk * prefix_tokens + chunk * (chunk + 1) // 2
        return self._step_time(step) <= self._limit_ps


MOST_TOKENS: Final = 1 << 20
