"""Attention of heads that several programs had a part in."""

from typing import Final

import triton
import triton.language as tl
from torch import Tensor

from engine.execution.inputs import StepInput
from engine.execution.kernels.attention import HIDDEN
from engine.execution.kernels.shares import count_units, find_unit

MERGED: Final = 32
"""Parts that a program reads at a time."""


def merge_parts(
    out: Tensor,
    parts: Tensor,
    sizes: Tensor,
    step: StepInput,
    window: int,
    kv_heads: int,
    tile_tokens: int,
    pooled: int,
    sequences: int,
) -> None:
    """Write to `out` [tokens, heads, dim] what was dealt out among programs.

    Arguments:
        parts: [programs, 2, query heads of a KV head, dim] fp32: attention over a part, of the
            first head that a program shares with others and of the last.
        sizes: [programs, 2, query heads] fp32: log2 of the sum of weights of a part.
        tile_tokens, pooled, sequences: see engine.execution.kernels.shares.
    """
    programs, _, group, dim = parts.shape
    _merge_kernel[(programs - 1, group)](
        parts,
        sizes,
        out,
        step.context,
        step.decodes,
        window,
        programs,
        out.stride(0),
        SEQUENCES=sequences,
        KV_HEADS=kv_heads,
        GROUP=group,
        DIM=dim,
        TOKENS=tile_tokens,
        POOLED=pooled,
        WINDOWED=window > 0,
        MERGED=MERGED,
    )


@triton.jit(do_not_specialize=["sequences", "window", "programs"])
def _merge_kernel(
    parts,
    part_sizes,
    out,
    context,
    sequences,
    window,
    programs,
    out_token,
    SEQUENCES: tl.constexpr,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    TOKENS: tl.constexpr,
    POOLED: tl.constexpr,
    WINDOWED: tl.constexpr,
    MERGED: tl.constexpr,
):
    """What the programs found out about one query head of the KV head that lies across the border
    of two shares. If it lies across several, the first of them is in charge."""
    units = count_units(context, sequences, window, SEQUENCES, KV_HEADS, TOKENS, POOLED, WINDOWED)
    all_units = tl.sum(units, axis=0)
    share = tl.cdiv(all_units, programs)
    before = tl.program_id(0)
    border = (before + 1) * share
    if border >= all_units:
        return
    head, tiles, head_unit = find_unit(units, border, SEQUENCES, KV_HEADS)
    if (head_unit == border) | (head_unit < before * share):
        return
    last = (head_unit + tiles - 1) // share
    query = tl.program_id(1)
    channel = tl.arange(0, DIM)
    most = HIDDEN + tl.zeros([1], tl.float32)
    total = tl.zeros([1], tl.float32)
    merged = tl.zeros([DIM], tl.float32)
    for start in range(before, last + 1, MERGED):
        program = start + tl.arange(0, MERGED)
        there = program <= last
        part = program * 2 + tl.where((program == before) & (head_unit > before * share), 1, 0)
        sizes = tl.load(part_sizes + part * GROUP + query, mask=there, other=HIDDEN)
        new_most = tl.maximum(most, tl.max(sizes, axis=0))
        weights = tl.where(there, tl.exp2(sizes - new_most), 0.0)
        fade = tl.exp2(most - new_most)
        inside = (part * GROUP + query)[:, None] * DIM + channel[None, :]
        found = tl.load(parts + inside, mask=there[:, None], other=0.0)
        merged = merged * fade + tl.sum(weights[:, None] * found, axis=0)
        total = total * fade + tl.sum(weights, axis=0)
        most = new_most
    target = out + (head // KV_HEADS).to(tl.int64) * out_token
    target += (head % KV_HEADS * GROUP + query) * DIM
    tl.store(target + channel, (merged / total).to(out.dtype.element_ty))
