"""Which steps to measure: probes that find out how far the budget reaches, a space-filling set.

What is chosen after that is chosen by what has been measured: calibration.measuring.experiment.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from math import ceil, exp, log
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

GROWTH_TOKENS: Final = 48
"""Room that a decode is left to grow by while its point is set up and measured."""

SPREAD: Final = 0.9
"""Ragged contexts lie evenly between (1 - this) and (1 + this) times their mean."""

MOST_CHUNKS: Final = 8
"""Prefill chunks of a step: more of them are rare, and their sums differ little."""

FACTOR: Final = 4
"""From one rung of a ladder to the next."""

LEAST_CONTEXT: Final = 16
LEAST_CHUNK: Final = 8
"""Smaller ones cost as much as these."""

FIRST_CONTEXT: Final = 32
SOME_DECODES: Final = 8
"""Of each step on the ladder of contexts."""


class Features(NamedTuple):
    """What a step's cost depends on, under the names of calibration.steps.STEP_FRAME."""

    decodes: int
    decode_context_tokens: int
    prefills: int
    prefill_tokens: int
    prefill_context_tokens: int
    prefill_pairs: int
    graph_tokens: int


@dataclass(frozen=True, slots=True)
class Limits:
    """What the engine can be asked for in one step."""

    max_sequences: int
    max_tokens: int
    """Tokens computed in a step."""
    max_context_tokens: int
    """Of one sequence, prompt and output."""
    pool_blocks: int
    """That can be used."""
    block_tokens: int
    graph_sizes: tuple[int, ...] = ()
    """Decodes that graphs are captured for, ascending."""

    def graph(self, decodes: int, prefills: int) -> int:
        """Size of the captured graph that runs such a step; 0: none does."""
        if prefills or not decodes:
            return 0
        return next((size for size in self.graph_sizes if size >= decodes), 0)


class Point(NamedTuple):
    """A step to be measured."""

    decodes: int = 0
    context_tokens: int = 0
    """Mean of the decodes' contexts."""
    spread: float = 0.0
    """How ragged they are: see SPREAD; 0: all alike."""
    prefills: int = 0
    chunk_tokens: int = 0
    """Of each chunk."""
    before_tokens: int = 0
    """In the cache before each chunk: whole blocks."""

    def contexts(self) -> list[int]:
        """Tokens that each decode attends to: the mean, evenly spread."""
        if self.decodes == 0:
            return []
        if self.decodes == 1:
            return [self.context_tokens]
        shares = np.linspace(-self.spread, self.spread, self.decodes)
        return [max(2, round(self.context_tokens * (1 + float(share)))) for share in shares]

    def features(self, limits: Limits) -> Features:
        """What its step's cost depends on; a measured step's differ by some tokens of context."""
        n, chunk, before = self.prefills, self.chunk_tokens, self.before_tokens
        return Features(
            decodes=self.decodes,
            decode_context_tokens=self.decodes * self.context_tokens,
            prefills=n,
            prefill_tokens=n * chunk,
            prefill_context_tokens=n * (before + chunk),
            prefill_pairs=n * (chunk * before + chunk * (chunk + 1) // 2),
            graph_tokens=limits.graph(self.decodes, n),
        )

    def prompt_tokens(self) -> int:
        """Tokens of all the prompts that its set-up makes."""
        prefills = self.prefills * (self.before_tokens + self.chunk_tokens)
        return self.decodes * self.context_tokens + prefills

    def longest_tokens(self) -> int:
        """The longest context that it comes to, its room to grow included."""
        decode = ceil(self.context_tokens * (1 + self.spread)) + GROWTH_TOKENS
        return max(decode * (self.decodes > 0), self.before_tokens + self.chunk_tokens + 1)

    def most_blocks(self, block_tokens: int) -> int:
        """Blocks that its decodes hold at most."""
        return self.decodes * (2 + (self.context_tokens + GROWTH_TOKENS) // block_tokens)

    def fits(self, limits: Limits) -> bool:
        """Whether the engine can run it."""
        # what is before a chunk was put there by another sequence: its last token has a block
        of_prefill = 2 + (self.before_tokens + self.chunk_tokens) // limits.block_tokens
        blocks = self.most_blocks(limits.block_tokens) + self.prefills * of_prefill
        return (
            0 < self.decodes + self.prefills <= limits.max_sequences
            and self.decodes + self.prefills * self.chunk_tokens <= limits.max_tokens
            and self.longest_tokens() <= limits.max_context_tokens
            and blocks <= limits.pool_blocks
        )


Ladder = tuple[Point, ...]
"""Points of which each costs a few times what the one before does."""


def ladders(limits: Limits) -> tuple[Ladder, ...]:
    """From small to large along each axis: prefill tokens, decodes, context, cached context."""
    decodes = [Point(decodes=n, context_tokens=FIRST_CONTEXT) for n in _rungs(1, limits)]
    chunks = [_chunks(tokens, limits) for tokens in _rungs(LEAST_CHUNK, limits)]
    contexts: list[Point] = []
    cached: list[Point] = []
    for tokens in _rungs(FIRST_CONTEXT * FACTOR, limits):
        widest = [
            Point(decodes=n, context_tokens=tokens)
            for n in range(min(SOME_DECODES, limits.max_sequences), 0, -1)
        ]
        contexts += [point for point in widest if point.fits(limits)][:1]
        before = tokens // limits.block_tokens * limits.block_tokens
        cached.append(Point(prefills=1, chunk_tokens=2 * LEAST_CHUNK, before_tokens=before))
    return tuple(
        tuple(point for point in ladder if point.fits(limits))
        for ladder in (chunks, decodes, contexts, cached)
    )


def in_turns(several: tuple[Ladder, ...]) -> Iterator[tuple[int, Point]]:
    """All first rungs, then all second ones, ...: which ladder each is of, and the rung."""
    for rungs in zip_longest(*several):
        for number, point in enumerate(rungs):
            if point is not None:
                yield number, point


def graph_edges(limits: Limits) -> list[Point]:
    """Steps that fill a captured graph, and those that just need the next one."""
    sizes = limits.graph_sizes
    edges = {edge for size in sizes for edge in (size, size + 1) if edge <= sizes[-1]}
    points = [Point(decodes=edge, context_tokens=FIRST_CONTEXT * FACTOR) for edge in sorted(edges)]
    return [point for point in points if point.fits(limits)]


def space_filling(limits: Limits, count: int, random: np.random.Generator) -> list[Point]:
    """At most `count` points: a Latin hypercube in logarithms, of decodes, prefills and both.

    Points that do not fit are left out, and so is a second one of its like.
    """
    axes = _hypercube(count, 6, random)
    kinds = random.permutation(count) % 4
    points: dict[Point, None] = {}
    for (a, b, c, d, e, f), kind in zip(axes.tolist(), kinds.tolist(), strict=True):
        point = Point()
        if kind != 1:
            point = _decodes(a, b, SPREAD * (c > 0.5), limits)
        if kind != 0:
            point = _with_prefills(point, d, e, f, limits)
        if point.fits(limits):
            points[point] = None
    return list(points)


def _decodes(a: float, b: float, spread: float, limits: Limits) -> Point:
    """`a` and `b`, from 0 to 1, say how many and how long."""
    most = min(limits.max_sequences, limits.max_tokens)
    decodes = _between(a, 1, most)
    room = (limits.pool_blocks // decodes - 2) * limits.block_tokens - GROWTH_TOKENS
    longest = min(room, int((limits.max_context_tokens - GROWTH_TOKENS) / (1 + spread)) - 1)
    return Point(decodes, _between(b, LEAST_CONTEXT, longest), spread)


def _with_prefills(point: Point, a: float, b: float, c: float, limits: Limits) -> Point:
    """`point` with chunks beside its decodes; a third of them are first chunks of a prompt."""
    most = min(limits.max_sequences - point.decodes, MOST_CHUNKS)
    tokens = limits.max_tokens - point.decodes
    if most < 1 or tokens < 1:
        return point
    prefills = _between(a, 1, min(most, tokens))
    chunk = max(1, _between(b, min(prefills * LEAST_CHUNK, tokens), tokens) // prefills)
    chunk = min(chunk, limits.max_context_tokens - 1)
    held = sum(
        ceil((context + GROWTH_TOKENS) / limits.block_tokens) for context in point.contexts()
    )
    room = (limits.pool_blocks - held) // prefills * limits.block_tokens
    room = min(room - 2 * limits.block_tokens, limits.max_context_tokens - 1) - chunk
    before = 0
    if c > 1 / 3 and room >= limits.block_tokens:
        before = _between((c - 1 / 3) * 1.5, limits.block_tokens, room)
    return point._replace(
        prefills=prefills,
        chunk_tokens=chunk,
        before_tokens=before // limits.block_tokens * limits.block_tokens,
    )


def _chunks(tokens: int, limits: Limits) -> Point:
    """So many prefill tokens in as few chunks as the longest prompt allows."""
    prefills = ceil(tokens / (limits.max_context_tokens - 1))
    return Point(prefills=prefills, chunk_tokens=tokens // prefills)


def _rungs(first: int, limits: Limits) -> list[int]:
    """`first`, and on in steps of FACTOR; the limits of a step and of a context among them."""
    most = max(limits.max_sequences, limits.max_tokens, limits.max_context_tokens)
    rungs = {limits.max_sequences, limits.max_tokens, limits.max_context_tokens - GROWTH_TOKENS}
    rung = first
    while rung <= most:
        rungs.add(rung)
        rung *= FACTOR
    return sorted(rung for rung in rungs if rung >= first)


def _between(share: float, least: int, most: int) -> int:
    """The number at `share` of the way from `least` to `most` in logarithms."""
    if most <= least:
        return max(1, most)
    return round(exp(log(least) + share * (log(most) - log(least))))


def _hypercube(count: int, axes: int, random: np.random.Generator) -> NDArray[np.float64]:
    """[count, axes] in 0..1: along each axis, one point in each of `count` equal parts.

    McKay, Beckman, Conover, A Comparison of Three Methods for Selecting Values of Input Variables,
    Technometrics 21(2), 1979.
    """
    ranks = np.stack([random.permutation(count) for _ in range(axes)], axis=1)
    return (ranks + random.random((count, axes))) / max(count, 1)
