"""How the work of decodes is dealt out among programs: on the device, whatever the contexts are.

A *unit* is a tile of tokens of one KV head of one sequence. Units are numbered sequence by
sequence, head by head, tile by tile, and every program takes an equal share of consecutive ones.
The number of programs follows from shapes alone, which is what a captured graph needs. A head that
lies in one share is finished by its program; of the others, parts go to a workspace and are merged.

    SEQUENCES   a power of two, no less than there are
    TOKENS      of a tile
    POOLED      keys are in the pool that many tokens at a time; the rest is in the tail
    WINDOWED    only the last `window` tokens count
"""

import triton
import triton.language as tl


@triton.jit
def tile_range(tokens, window, TOKENS: tl.constexpr, POOLED: tl.constexpr, WINDOWED: tl.constexpr):
    """(first, end) of the tiles that decodes with so many `tokens` visit, at least one.

    Keys of the last tokens % POOLED are not in the pool: whoever has the last tile adds them.
    """
    first = tokens * 0
    if WINDOWED:
        first = tl.maximum(tokens - window, 0) // TOKENS
    return first, tl.maximum(tl.cdiv(tokens // POOLED * POOLED, TOKENS), first + 1)


@triton.jit
def count_units(
    context,
    sequences,
    window,
    SEQUENCES: tl.constexpr,
    KV_HEADS: tl.constexpr,
    TOKENS: tl.constexpr,
    POOLED: tl.constexpr,
    WINDOWED: tl.constexpr,
):
    """Units of each sequence: [SEQUENCES], 0 beyond the last one."""
    number = tl.arange(0, SEQUENCES)
    there = number < sequences
    tokens = tl.load(context + number, mask=there, other=0)
    first, end = tile_range(tokens, window, TOKENS, POOLED, WINDOWED)
    return tl.where(there, end - first, 0) * KV_HEADS


@triton.jit
def find_unit(units, unit, SEQUENCES: tl.constexpr, KV_HEADS: tl.constexpr):
    """(head, tiles, first) of the KV head that `unit` is of: heads are counted through all
    sequences; it has `tiles` units, from unit `first` on."""
    ends = tl.cumsum(units, axis=0)
    past = ends <= unit
    sequence = tl.sum(past.to(tl.int32), axis=0)
    before = tl.sum(tl.where(past, units, 0), axis=0)
    tiles = tl.sum(tl.where(tl.arange(0, SEQUENCES) == sequence, units, 0), axis=0) // KV_HEADS
    head = (unit - before) // tiles
    return sequence * KV_HEADS + head, tiles, before + head * tiles
