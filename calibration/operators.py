"""Step times composed from measured operators: what each kernel took, summed over a model's layers.

A table is interpolated linearly along each axis: with every second grid point left out of the
tables of an RTX 4090, that predicts the missing attention times with a median error of 0.3 to 1.8 %
by axis, against 2.4 to 5.2 % in log space (docs/accuracy.md). Attention is affine in the keys it
reads, which a straight line keeps and a line in log space bends.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from calibration.arithmetic import Arithmetic
from calibration.costs import PICOSECONDS, larger
from engine.batch import Batch

Times = NDArray[np.float64]

SMALL_CHUNK: Final = 16
"""Query tokens that fit one tile of an attention kernel: fewer take as long."""


@dataclass(frozen=True)
class Curve:
    """Seconds at increasing sizes, straight lines between them, the last one beyond."""

    sizes: tuple[int, ...]
    seconds: tuple[float, ...]

    def __call__(self, size: float) -> float:
        """Seconds at `size`; below the least size as at it."""
        if len(self.sizes) == 1 or size <= self.sizes[0]:
            return self.seconds[0]
        at, share = _cell(self.sizes, size)
        return self.seconds[at] + share * (self.seconds[at + 1] - self.seconds[at])


@dataclass(frozen=True)
class AttentionTable:
    """Attention of all layers, seconds, on a grid; contexts are tokens before those computed.

    `prefill` [chunk, context before it] is one prompt's chunk alone, `decode` [decodes, context of
    each] are decodes alone, `mixed` [chunk, context, decodes, context of each] both in one kernel;
    empty where nobody measured it, then the two are added. No entry is missing (see `filled`).
    """

    chunks: tuple[int, ...]
    prefill_contexts: tuple[int, ...]
    decodes: tuple[int, ...]
    decode_contexts: tuple[int, ...]
    prefill: Times
    decode: Times
    mixed: Times

    def decode_knots(self, decodes: int) -> list[float]:
        """Seconds of so many decodes at each of `decode_contexts`."""
        if len(self.decodes) == 1:
            return self.decode[0].tolist()
        at, share = _cell(self.decodes, decodes)
        return (self.decode[at] + share * (self.decode[at + 1] - self.decode[at])).tolist()

    def prefill_s(self, chunk: int, pairs: float) -> float:
        """Seconds of chunks of so many tokens together that attend over so many pairs.

        One chunk without context has chunk (chunk + 1) / 2 pairs; more pairs are read as context
        before it. Several prompts in one step have fewer: at the same number of tokens a kernel
        runs as many tiles, each for a shorter time, so its time is affine in the pairs.
        """
        context = pairs / chunk - (chunk + 1) / 2
        grid = (self.chunks, self.prefill_contexts)
        alone = _interpolated(self.prefill, grid, (max(chunk, SMALL_CHUNK), max(context, 0.0)))
        return self._fewer_pairs(alone, chunk, context)

    def mixed_s(self, chunk: int, pairs: float, decodes: int, context: float) -> float:
        """Seconds of such chunks and decodes (with `context` each, on average) in one step."""
        if self.mixed.size == 0:
            together = _interpolated(
                self.decode, (self.decodes, self.decode_contexts), (decodes, context)
            )
            return self.prefill_s(chunk, pairs) + together
        before = pairs / chunk - (chunk + 1) / 2
        grid = (self.chunks, self.prefill_contexts, self.decodes, self.decode_contexts)
        place = (max(chunk, SMALL_CHUNK), max(before, 0.0), decodes, context)
        return self._fewer_pairs(_interpolated(self.mixed, grid, place), chunk, before)

    def _fewer_pairs(self, seconds: float, chunk: int, context: float) -> float:
        """`seconds` of one chunk, less what several chunks (negative context) do not attend to."""
        if context >= 0:
            return seconds
        floor = float(self.prefill[0, 0])
        return max(seconds + self._context_slope(chunk) * context, min(seconds, floor))

    def _context_slope(self, chunk: int) -> float:
        """Seconds for each token of context before a chunk, at about its own length of context."""
        contexts = self.prefill_contexts
        if len(contexts) == 1:
            return 0.0
        at = min(bisect_right(contexts, max(chunk - 1, 0)), len(contexts) - 1)
        far = contexts[max(at, 1)]
        grid = (self.chunks, contexts)
        near_s = _interpolated(self.prefill, grid, (max(chunk, SMALL_CHUNK), 0.0))
        far_s = _interpolated(self.prefill, grid, (max(chunk, SMALL_CHUNK), far))
        return max(0.0, (far_s - near_s) / far)


@dataclass(frozen=True)
class SkewTable:
    """How much of the way from decodes of the mean length to decodes of the greatest a batch of
    unequal ones goes: time = t(mean) + alpha (t(greatest) - t(mean)).

    Buckets end at their edges, which belong to them; the last one is open.
    """

    decodes: tuple[float, ...]
    shares: tuple[float, ...]
    """Of (mean - least) / (greatest - least) context."""
    longest: tuple[float, ...]
    """Of the greatest context."""
    contexts: tuple[float, ...]
    """Of the context before the prefill chunk."""
    alphas: Mapping[tuple[int, int, int, int, int], float]
    """By tokens of the prefill chunk (0: decodes alone) and the four buckets."""
    otherwise: float

    def alpha(
        self, chunk: int, context: float, decodes: int, least: float, mean: float, greatest: float
    ) -> float:
        """The weight of the longest context."""
        if decodes < 2 or greatest <= least:
            return 0.0
        share = (mean - least) / (greatest - least)
        buckets = (
            _bucket(self.decodes, decodes),
            _bucket(self.shares, share),
            _bucket(self.longest, greatest),
            _bucket(self.contexts, context),
        )
        return self.alphas.get((chunk, *buckets), self.otherwise)


@dataclass(frozen=True)
class OperatorTables:
    """All of a model's operators on one device (one rank of it, with its share of collectives)."""

    tokens: Curve
    """Whatever depends on the tokens of a step alone: linear layers, norms, all-reduce, experts."""
    rows: Curve
    """Output head and sampler, by sequences."""
    attention: AttentionTable
    skew: SkewTable | None = None


@dataclass(frozen=True)
class OperatorCost:
    """Cost model of one replica from operator tables.

    A value: build it with `operator_cost`. Decode attention grows along a segment by a whole number
    of picoseconds between two contexts of the grid, so that progressions are exact; a step with a
    prefill chunk, and one whose decodes' lengths matter, is a progression of its own.
    """

    tables: OperatorTables
    graph_sizes: tuple[int, ...]
    step_s: float
    host_step_s: float
    host_sequence_s: float
    overlap: bool
    roofline: Arithmetic | None
    """The work of steps, where the device's ceilings are known."""
    _tokens_ps: dict[int, int] = field(compare=False, repr=False)
    _rows_ps: dict[int, int] = field(compare=False, repr=False)
    _knots_ps: dict[int, tuple[list[int], list[int]]] = field(compare=False, repr=False)

    def __reduce__(self) -> tuple[Callable[..., "OperatorCost"], tuple[Any, ...]]:
        host = (self.host_step_s, self.host_sequence_s, self.overlap, self.roofline)
        return operator_cost, (self.tables, self.graph_sizes, self.step_s, *host)

    def progression(self, batch: Batch) -> tuple[int, int, int]:
        """See CostModel.progression.

        Kinks: contexts of the decode grid, and the GPU overtaking the CPU where scheduling
        overlaps.
        """
        decodes, chunk = batch.decodes, batch.prefill_tokens
        if decodes + chunk == 0:
            return 0, 0, batch.horizon
        first = self._fixed_ps(decodes + chunk, batch.sequences)
        growth, steps = 0, 1
        if chunk:
            first += self._prefill_ps(batch)
        elif self.tables.skew is None:
            attention, growth, steps = self._decode_ps(decodes, batch.decode_context_tokens)
            first += attention
            steps = min(steps, batch.horizon)
        else:
            first += self._attention_ps(batch)
        host = self._host_ps(batch.sequences)
        if not self.overlap:
            return first + host, growth, steps
        return larger(first, growth, host, 0, steps)

    def explain(self, batch: Batch) -> dict[str, float]:
        """Parts of the batch's next step in seconds; their sum is its duration."""
        decodes, chunk = batch.decodes, batch.prefill_tokens
        if decodes + chunk == 0:
            return {}
        head_ps = self._rows(batch.sequences)
        parts = {
            "linear layers": self._fixed_ps(decodes + chunk, batch.sequences) - head_ps,
            "output head": head_ps,
            "attention": self._attention_ps(batch),
        }
        hidden = sum(parts.values()) if self.overlap else 0
        parts["host"] = max(0, self._host_ps(batch.sequences) - hidden)
        return {name: part / PICOSECONDS for name, part in parts.items()}

    def _fixed_ps(self, tokens: int, rows: int) -> int:
        cost = self._tokens_ps.get(tokens)
        if cost is None:
            seconds = self.step_s + self.tables.tokens(self._padded(tokens))
            cost = self._tokens_ps[tokens] = round(seconds * PICOSECONDS)
        return cost + self._rows(rows)

    def _rows(self, rows: int) -> int:
        if rows == 0:
            return 0
        cost = self._rows_ps.get(rows)
        if cost is None:
            cost = self._rows_ps[rows] = round(self.tables.rows(rows) * PICOSECONDS)
        return cost

    def _padded(self, tokens: int) -> int:
        """Tokens that a captured graph computes for so many."""
        sizes = self.graph_sizes
        if not sizes or tokens > sizes[-1]:
            return tokens
        return sizes[bisect_right(sizes, tokens - 1)]

    def _host_ps(self, sequences: int) -> int:
        return round((self.host_step_s + self.host_sequence_s * sequences) * PICOSECONDS)

    def _decode_ps(self, decodes: int, context_tokens: int) -> tuple[int, int, int]:
        """Attention of a decode batch: first step, growth, and steps to the next grid context."""
        knots = self._knots_ps.get(decodes)
        if knots is None:
            knots = self._knots_ps[decodes] = self._knots(decodes)
        values, slopes = knots
        contexts = self.tables.attention.decode_contexts
        before = context_tokens - decodes
        """Tokens before the new ones, of all decodes; grows by `decodes` a step."""
        mean = before // decodes
        if mean < contexts[0]:
            return values[0], 0, -(-(contexts[0] * decodes - before) // decodes)
        at = bisect_right(contexts, mean) - 1
        first = values[at] + slopes[at] * (before - contexts[at] * decodes) // decodes
        if at + 1 == len(contexts):
            return first, slopes[at], 1 << 40
        return first, slopes[at], -(-(contexts[at + 1] * decodes - before) // decodes)

    def _knots(self, decodes: int) -> tuple[list[int], list[int]]:
        """Picoseconds at each context of the grid, and by how much a token more adds from there."""
        contexts = self.tables.attention.decode_contexts
        seconds = self.tables.attention.decode_knots(decodes)
        values = [round(value * PICOSECONDS) for value in seconds]
        slopes = [
            max(0, (values[i + 1] - values[i]) // (contexts[i + 1] - contexts[i]))
            for i in range(len(contexts) - 1)
        ]
        return values, [*slopes, slopes[-1] if slopes else 0]

    def _attention_ps(self, batch: Batch) -> int:
        """Attention of the batch's next step."""
        if batch.prefill_tokens:
            return self._prefill_ps(batch)
        first = self._decode_ps(batch.decodes, batch.decode_context_tokens)[0]
        if self.tables.skew is None:
            return first
        alpha, greatest = self._skew(batch)
        if alpha == 0:
            return first
        longest = self._decode_ps(batch.decodes, batch.decodes * (round(greatest) + 1))[0]
        return first + max(0, round(alpha * (longest - first)))

    def _prefill_ps(self, batch: Batch) -> int:
        attention, chunk = self.tables.attention, batch.prefill_tokens
        if batch.decodes == 0:
            return round(attention.prefill_s(chunk, batch.prefill_pairs) * PICOSECONDS)
        mean = batch.decode_context_tokens / batch.decodes - 1
        seconds = attention.mixed_s(chunk, batch.prefill_pairs, batch.decodes, mean)
        alpha, greatest = self._skew(batch)
        if alpha:
            longest = attention.mixed_s(chunk, batch.prefill_pairs, batch.decodes, greatest)
            seconds += max(0.0, alpha * (longest - seconds))
        return round(seconds * PICOSECONDS)

    def _skew(self, batch: Batch) -> tuple[float, float]:
        """Weight of the longest context among the decodes, and that context."""
        skew, members = self.tables.skew, batch.members
        if skew is None or members is None or batch.decodes < 2 or members.size == 0:
            return 0.0, 0.0
        chunk = batch.prefill_tokens
        before = batch.prefill_context_tokens - chunk
        mean = batch.decode_context_tokens / batch.decodes - 1
        least, greatest = (computed - 1 for computed in members.extremes())
        return skew.alpha(chunk, before, batch.decodes, least, mean, greatest), greatest


def operator_cost(
    tables: OperatorTables,
    graph_sizes: tuple[int, ...] = (),
    step_s: float = 0.0,
    host_step_s: float = 0.0,
    host_sequence_s: float = 0.0,
    overlap: bool = True,
    roofline: Arithmetic | None = None,
) -> OperatorCost:
    """Build the cost model.

    Args:
        tables: operators of the whole model.
        graph_sizes: tokens of the captured graphs, increasing; steps of up to the largest compute
            as many tokens as the next size has.
        step_s: device time of a step that no operator of the tables has.
        host_step_s: CPU time of a step.
        host_sequence_s: the same for each sequence.
        overlap: the CPU prepares a step while the one before runs.
        roofline: the work of steps, where the device's ceilings are known.
    """
    host = (host_step_s, host_sequence_s, overlap)
    return OperatorCost(tables, graph_sizes, step_s, *host, roofline, {}, {}, {})


def filled(times: Times, grid: tuple[tuple[int, ...], ...]) -> Times:
    """A table without gaps: a missing (NaN) entry lies on the line through the two before it.

    Axes are tried from the last but one (decodes) outwards, then the last; what could not be
    measured is at the far end of the grid, where times are straight lines. An entry is no less
    than the one before it on its line.

    Args:
        times: seconds, one axis for each of `grid`.
        grid: sizes along each axis, increasing.

    Raises:
        ValueError: an entry cannot be reached from two measured ones.
    """
    whole = times.copy()
    order = [*range(whole.ndim - 2, -1, -1), whole.ndim - 1]
    for _ in range(whole.ndim):
        for axis in order:
            along, sizes = np.moveaxis(whole, axis, 0), grid[axis]
            for i in range(2, len(along)):
                share = (sizes[i] - sizes[i - 1]) / (sizes[i - 1] - sizes[i - 2])
                line = along[i - 1] + share * (along[i - 1] - along[i - 2])
                gap = np.isnan(along[i]) & ~np.isnan(line)
                along[i][gap] = np.maximum(line, along[i - 1])[gap]
        if not np.isnan(whole).any():
            return whole
    raise ValueError(f"{int(np.isnan(whole).sum())} entries of the grid cannot be filled in")


def _bucket(edges: tuple[float, ...], value: float) -> int:
    """Index of the first edge that is not below `value`; that of the last bucket beyond."""
    return min(bisect_left(edges, value), len(edges) - 1)


def _cell(sizes: tuple[int, ...], size: float) -> tuple[int, float]:
    """Index of the grid cell that holds `size` (the last one beyond) and the share of it before."""
    at = min(max(bisect_right(sizes, size) - 1, 0), len(sizes) - 2)
    return at, max(0.0, (size - sizes[at]) / (sizes[at + 1] - sizes[at]))


def _interpolated(
    times: Times, grid: tuple[tuple[int, ...], ...], place: tuple[float, ...]
) -> float:
    """Multilinear interpolation, one axis after the other."""
    cell = times
    for sizes, size in zip(grid, place, strict=True):
        if len(sizes) == 1:
            cell = cell[0]
            continue
        at, share = _cell(sizes, size)
        cell = cell[at] + share * (cell[at + 1] - cell[at]) if share else cell[at]
    return float(cell)
