"""A step as the device half needs it: one vector of 32-bit numbers.

Torch-free. The vector goes to the device in one copy, and to the other processes of a
tensor-parallel engine in one message; what it holds, and where, follows from its first words.
"""

from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from engine.work import Move, Place

Words: TypeAlias = NDArray[np.int32]

SAMPLED: Final = -1
"""Stands among the forced tokens for: none, take the sampled one."""


class Counts(NamedTuple):
    """The first words of a plan's vector."""

    decodes: int
    """Decodes, with those that only fill a captured graph up."""
    padding: int
    """Decodes that only fill up: the last ones, of row 0."""
    prefills: int
    prefill_tokens: int
    max_chunk: int
    max_context: int
    updates: int
    """Blocks that are new in the tables."""
    bucket: int
    """Decodes of the captured graph that can run this step; 0: none can."""
    samples: int
    """1: somebody samples; 0: all take the most likely token."""
    nucleus: int
    """1: somebody samples from the most likely tokens only (top_p below 1)."""
    before: int
    """Copies between tiers that come before the step."""
    after: int
    """Those that come after it."""
    unsettled: int
    """1: the former wait for the step before, see Work.unsettled."""

    @property
    def sequences(self) -> int:
        """Sequences of the step, padding included."""
        return self.decodes + self.prefills


NOTHING: Final = Counts(*(0,) * len(Counts._fields))


class Sections(NamedTuple):
    """Where the parts of a vector stand; `sequences` of each part means decodes, then prefills.

    Those up to `starts` depend on the number of decodes only, as long as nothing prefills: a
    captured graph finds them where it found them when it was captured.
    """

    counts: slice
    rows: slice
    """[sequences]: row of the block tables, from 1."""
    context: slice
    """[sequences]: tokens there are once the step is done."""
    forced: slice
    """[sequences]: the token to take, or SAMPLED."""
    positions: slice
    """[tokens]: of decodes, then of prefill chunks."""
    starts: slice
    """[prefills + 1]: where each chunk begins among the prefill tokens."""
    token_rows: slice
    """[tokens], as `rows`; empty without prefills: then it is `rows`."""
    ids: slice
    """[prefill tokens]: the chunks' tokens. Those of decodes are on the device."""
    last: slice
    """[sequences]: place of the last token of each; empty without prefills: then one each."""
    update_rows: slice
    update_columns: slice
    update_blocks: slice
    """[updates] each: this block now stands there in the tables."""
    seeds: slice
    """[sequences] 64 bits; empty unless somebody samples, like the next two."""
    temperature: slice
    """[sequences] fp32."""
    top_p: slice
    """[sequences] fp32."""
    moves: slice
    """[before + after, 4]: level and slot of source and target. Not for the device."""


def sections(counts: Counts) -> Sections:
    """Where the parts of a vector with these counts stand.

    Each begins at a multiple of 16 bytes: Triton compiles a kernel anew for pointers that do not.
    """
    sequences = counts.sequences
    tokens = counts.decodes + counts.prefill_tokens
    some, sampling = counts.prefills > 0, sequences * counts.samples
    updates = counts.updates
    lengths = (len(counts), sequences, sequences, sequences, tokens, counts.prefills + 1)
    lengths += (tokens * some, counts.prefill_tokens, sequences * some)
    lengths += (updates, updates, updates)
    lengths += (2 * sampling, sampling, sampling, 4 * (counts.before + counts.after))
    parts: list[slice] = []
    start = 0
    for length in lengths:
        parts.append(slice(start, start + length))
        start = (start + length + 3) & ~3
    return Sections(*parts)


@dataclass(frozen=True, slots=True)
class Plan:
    """One step for the device half."""

    vector: Words
    counts: Counts
    sections: Sections

    @classmethod
    def read(cls, vector: Words) -> "Plan":
        """The plan that is written in a vector."""
        counts = Counts(*vector[: len(Counts._fields)].tolist())
        return cls(vector, counts, sections(counts))

    @property
    def device_words(self) -> int:
        """Words of the vector that the device needs: the first ones."""
        return self.sections.moves.start

    def moves(self) -> tuple[list[Move], list[Move]]:
        """Copies between tiers to be made before the step, and those after it."""
        moves = [
            Move(Place(level, slot), Place(to_level, to_slot))
            for level, slot, to_level, to_slot in self.vector[self.sections.moves]
            .reshape(-1, 4)
            .tolist()
        ]
        return moves[: self.counts.before], moves[self.counts.before :]


def idle_decodes(decodes: int) -> Plan:
    """A step of decodes that all only fill up: what a graph is captured with."""
    counts = NOTHING._replace(decodes=decodes, padding=decodes, max_context=1, bucket=decodes)
    plan = _blank(counts)
    plan.vector[plan.sections.context] = 1
    return plan


def idle_prefills(tokens: int, longest: int) -> Plan:
    """A step that prefills `tokens` tokens into the null block, in chunks of up to `longest`."""
    starts = [*range(0, tokens, longest), tokens]
    chunks = np.diff(starts)
    plan = _blank(
        NOTHING._replace(
            prefills=len(chunks),
            prefill_tokens=tokens,
            max_chunk=int(chunks.max()),
            max_context=int(chunks.max()),
        )
    )
    vector, at = plan.vector, plan.sections
    vector[at.context] = chunks
    vector[at.positions] = np.arange(tokens) % longest
    vector[at.starts] = starts
    vector[at.last] = np.array(starts[1:]) - 1
    return plan


def _blank(counts: Counts) -> Plan:
    """Zeros, which is row 0 and the null block; nothing forced."""
    at = sections(counts)
    vector = np.zeros(at.moves.stop, np.int32)
    vector[at.counts] = counts
    vector[at.forced] = SAMPLED
    return Plan(vector, counts, at)
