"""vLLM's log with a line a step (`vllm serve --enable-logging-iteration-details`).

    Iteration(515): 0 context requests, 0 context tokens, 20 generation requests, 20 generation
    tokens, iteration elapsed time: 10.99 ms

on one line (https://github.com/vllm-project/vllm/pull/31193); later versions name the engine before
it and add `, GPU KV cache usage: 37.1%`. A step's contexts are not in it. Where the usage is, and
the same log says `GPU KV cache size: 41,408 tokens`, the blocks in use say how long contexts are in
steps of one kind.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from calibration.imports.forward_pass import estimated_pairs
from calibration.steps import step_frame
from traces.errors import ConfigError
from traces.rows import open_text

if TYPE_CHECKING:
    import polars as pl

FLAG: Final = "--enable-logging-iteration-details"

CONTEXT_TERMS: Final = ("context_s", "pair_s", "prefill_context_s")
"""Terms of calibration.fitted whose features the lines do not tell."""

SHORTEST_STEP_S: Final = 100e-6
"""No step of a model is over sooner: such a line timed a wait for a step that was done already."""
MOST_WAITS: Final = 0.05
"""Share of such lines beyond which the log times waits, not steps."""
WARMUP_STEPS: Final = 3
"""First steps of an engine, in which kernels are loaded and memory is touched."""
HALF_BLOCK_TOKENS: Final = 8
"""A sequence's last block is half empty on average; vLLM's blocks hold 16 tokens by default."""

_LINE: Final = re.compile(
    r"(?:Engine (?P<engine>\d+): )?Iteration\((?P<iteration>\d+)\): "
    r"(?P<prefills>\d+) context requests, (?P<prefill_tokens>\d+) context tokens, "
    r"(?P<decodes>\d+) generation requests, (?P<decode_tokens>\d+) generation tokens, "
    r"iteration elapsed time: (?P<elapsed_ms>\d+(?:\.\d+)?) ms"
    r"(?:, GPU KV cache usage: (?P<usage>\d+(?:\.\d+)?)%)?"
    r"(?P<encoder>, encoder inputs: [1-9])?"
)
_RANK: Final = re.compile(r"EngineCore_DP(\d+)")
_KV_SIZE: Final = re.compile(r"GPU KV cache size: ([\d,]+) tokens")


@dataclass(frozen=True)
class IterationLog:
    """Measured steps, and what such a log cannot say."""

    steps: pl.DataFrame
    """As calibration.steps has them; features that nobody knows are 0 throughout."""
    unidentified: tuple[str, ...]
    """Terms of calibration.fitted that these steps cannot tell: `without` of `fit_steps`."""
    skipped_lines: int
    """Lines of other content."""


@dataclass(frozen=True, slots=True)
class _Iteration:
    source: str
    prefills: int
    prefill_tokens: int
    decodes: int
    time_s: float
    used_tokens: float | None
    """In blocks of the KV cache that somebody holds."""


def read_iteration_log(path: Path, *, kv_tokens: int | None = None) -> IterationLog:
    """Steps from vLLM's log.

    Contexts: without the KV cache's usage and size they are unknown and left at 0; steps, tokens
    and decodes are then all that such a log identifies. With both, the tokens in use are the
    context of all decodes in a step of decodes alone, and of all chunks in one of chunks alone.
    That is as coarse as the printed 0.1 %, counts a last block as half full on average, and shared
    prefixes once. Steps with both kinds cannot be told apart and are marked as outliers, as are
    warm-up steps.

    The time is that of waiting for the step's output. With asynchronous scheduling the step may be
    done, wholly or partly, when the wait begins: a log in which many waits are over at once is
    refused.

    Args:
        path: the server's log, perhaps gzip-compressed.
        kv_tokens: size of the KV cache in tokens, where the log does not say.

    Raises:
        ConfigError: there is no such line; generation tokens are not one a request (speculative
            decoding); most times are of waits.
    """
    iterations: list[_Iteration] = []
    skipped = 0
    with open_text(path) as file:
        for number, line in enumerate(file, 1):
            if (size := _KV_SIZE.search(line)) and kv_tokens is None:
                kv_tokens = int(size[1].replace(",", ""))
            found = _LINE.search(line)
            if found is None:
                skipped += 1
            elif "(dummy)" not in line:
                iterations.append(_iteration(found, line, kv_tokens, f"{path}:{number}"))
    if not iterations:
        raise ConfigError(
            f"{path}: no line of its {skipped} tells of an iteration; run vLLM with {FLAG}"
        )
    _refuse_waits(iterations, path)
    known = all(iteration.used_tokens is not None for iteration in iterations)
    return IterationLog(_frame(iterations, known), () if known else CONTEXT_TERMS, skipped)


def _iteration(found: re.Match[str], line: str, kv_tokens: int | None, place: str) -> _Iteration:
    decodes, tokens = int(found["decodes"]), int(found["decode_tokens"])
    if tokens != decodes:
        raise ConfigError(
            f"{place}: {tokens} generation tokens of {decodes} requests; expected one each: steps"
            " of speculative decoding are not understood"
        )
    if found["encoder"]:
        raise ConfigError(f"{place}: encoder inputs; expected steps of text alone")
    rank = _RANK.search(line)
    engine = found["engine"] or (rank[1] if rank else "0")
    usage = found["usage"]
    return _Iteration(
        source=f"engine {int(engine)}",
        prefills=int(found["prefills"]),
        prefill_tokens=int(found["prefill_tokens"]),
        decodes=decodes,
        time_s=float(found["elapsed_ms"]) / 1000,
        used_tokens=None if usage is None or not kv_tokens else float(usage) / 100 * kv_tokens,
    )


def _refuse_waits(iterations: list[_Iteration], path: Path) -> None:
    waits = sum(iteration.time_s < SHORTEST_STEP_S for iteration in iterations)
    if waits > MOST_WAITS * len(iterations):
        raise ConfigError(
            f"{path}: {waits} of {len(iterations)} iterations took less than"
            f" {SHORTEST_STEP_S * 1e6:.0f} us: with asynchronous scheduling vLLM times the wait for"
            " a step, not the step; run it with --no-async-scheduling, or record forward-pass"
            " metrics"
        )


def _frame(iterations: list[_Iteration], known: bool) -> pl.DataFrame:
    rows = [_features(iteration, known) for iteration in iterations]
    return step_frame(
        {
            "decodes": [iteration.decodes for iteration in iterations],
            "decode_context_tokens": [row[0] for row in rows],
            "prefills": [iteration.prefills for iteration in iterations],
            "prefill_tokens": [iteration.prefill_tokens for iteration in iterations],
            "prefill_context_tokens": [row[1] for row in rows],
            "prefill_pairs": [row[2] for row in rows],
            "time_s": [iteration.time_s for iteration in iterations],
            "outlier": list(_outliers(iterations, known)),
            "source": [iteration.source for iteration in iterations],
        }
    )


def _features(iteration: _Iteration, known: bool) -> tuple[int, int, int]:
    """Decode context, prefill context and prefill pairs, as far as the blocks in use tell them."""
    if not known or iteration.used_tokens is None or (iteration.decodes and iteration.prefills):
        return 0, 0, 0
    sequences, tokens = iteration.decodes + iteration.prefills, iteration.prefill_tokens
    context = round(iteration.used_tokens) - HALF_BLOCK_TOKENS * sequences
    if iteration.decodes:
        return max(context, iteration.decodes), 0, 0
    context = max(context, tokens)
    return 0, context, estimated_pairs(iteration.prefills, tokens, 0.0, context - tokens)


def _outliers(iterations: list[_Iteration], known: bool) -> Iterable[bool]:
    seen: dict[str, int] = {}
    for iteration in iterations:
        seen[iteration.source] = seen.get(iteration.source, 0) + 1
        mixed = known and iteration.decodes > 0 and iteration.prefills > 0
        early = seen[iteration.source] <= WARMUP_STEPS
        yield mixed or early or iteration.time_s < SHORTEST_STEP_S
