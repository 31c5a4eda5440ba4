"""Attention of decodes: one token of each sequence looks at everything before it.

Reading keys and values is all that counts, so it is dealt out evenly; see `shares`.
"""

from typing import Final, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.execution.inputs import StepInput
from engine.execution.kernels.attention import (
    LOG2_E,
    attend_tile,
    begin,
    head_part,
    load_blocks,
    load_queries,
    store,
    with_tail,
)
from engine.execution.kernels.chip import chip
from engine.execution.kernels.layout import pool_format, tail_format, view_in_words
from engine.execution.kernels.merge import merge_parts
from engine.execution.kernels.shares import count_units, find_unit, tile_range
from engine.execution.kvcache import KvPool
from engine.kvformats import BlockLayout


class DecodeConfig(NamedTuple):
    """How the kernel is launched; speed follows from it, results do not (but for rounding)."""

    tile_tokens: int
    warps: int
    stages: int
    """Of loads under way."""
    programs: int
    """At once on a multiprocessor."""
    registers: int | None = None
    """Of a thread at most, so that as many programs fit."""


FLOATS: Final = {
    64: DecodeConfig(tile_tokens=64, warps=2, stages=3, programs=6, registers=168),
    128: DecodeConfig(tile_tokens=64, warps=4, stages=3, programs=3, registers=168),
    256: DecodeConfig(tile_tokens=32, warps=4, stages=3, programs=3, registers=168),
}
"""By channels of a head, at least so many."""
PACKED: Final = FLOATS | {
    128: DecodeConfig(tile_tokens=128, warps=4, stages=3, programs=3, registers=168),
}
"""The same of 8 and 4-bit formats."""
WIDE: Final = DecodeConfig(tile_tokens=32, warps=8, stages=2, programs=1)
"""Where more than 16 query heads share a KV head."""
EXACT: Final = DecodeConfig(tile_tokens=16, warps=8, stages=2, programs=2)
"""Of fp32 queries, which do not use tensor cores."""


def decode_config(layout: BlockLayout, dtype: torch.dtype, group: int) -> DecodeConfig:
    """The launch for a pool's format and queries of `dtype`, `group` of which share a KV head."""
    if dtype == torch.float32:
        return EXACT
    if group > 16:
        return WIDE
    configs = FLOATS if layout.key.bits >= 16 else PACKED
    return configs[min(256, max(64, layout.head_dim))]


def _rows(group: int) -> int:
    """Rows of a tile of queries: matrix products take at least 16."""
    return max(16, triton.next_power_of_2(group))


def decode_programs(
    config: DecodeConfig, multiprocessors: int, sequences: int, kv_heads: int, max_context: int
) -> int:
    """Programs among which the units are dealt out: no more than there can be units."""
    units = sequences * kv_heads * triton.cdiv(max_context, config.tile_tokens)
    return min(multiprocessors * config.programs, units)


def attend_decodes(
    q: Tensor,
    out: Tensor,
    pool: KvPool,
    layer: int,
    step: StepInput,
    scale: float,
    window: int,
    config: DecodeConfig | None = None,
) -> None:
    """Attention of the step's decodes: the first rows of q [tokens, heads, dim] into those of
    `out`; scale and window as in ops.Ops."""
    kv_heads, dim = pool.layout.kv_heads, pool.layout.head_dim
    group = q.shape[1] // kv_heads
    config = config or decode_config(pool.layout, q.dtype, group)
    sms = chip(q.device).multiprocessors
    programs = decode_programs(config, sms, step.decodes, kv_heads, step.max_context)
    # a program has at most two heads that it shares with others: its first and its last
    parts = torch.empty((programs, 2, group, dim), dtype=torch.float32, device=q.device)
    sizes = torch.empty((programs, 2, group), dtype=torch.float32, device=q.device)
    tail = None if pool.tail is None else pool.tail[:, layer]
    numbers = pool_format(pool.layout, q.dtype, q.device)
    # few numbers of sequences to compile for
    sequences = max(256, triton.next_power_of_2(step.decodes))
    pooled = 1 if tail is None else pool.block_tokens
    _decode_kernel[(programs,)](
        q,
        out,
        parts,
        sizes,
        *view_in_words(pool, layer),
        tail,
        step.tables,
        step.rows,
        step.context,
        step.decodes,
        window,
        scale * LOG2_E,
        q.stride(0),
        q.stride(1),
        out.stride(0),
        0 if tail is None else tail.stride(0),
        step.tables.stride(0),
        SEQUENCES=sequences,
        KV_HEADS=kv_heads,
        GROUP=group,
        ROWS=_rows(group),
        TOKENS=config.tile_tokens,
        WINDOWED=window > 0,
        FORMAT=numbers,
        TAIL=None if tail is None else tail_format(numbers),
        num_warps=config.warps,
        num_stages=config.stages,
        maxnreg=config.registers,
    )
    if programs > 1:
        merge_parts(
            out, parts, sizes, step, window, kv_heads, config.tile_tokens, pooled, sequences
        )


@triton.jit(do_not_specialize=["sequences", "window", "table_row"])
def _decode_kernel(
    q,
    out,
    parts,
    part_sizes,
    keys,
    key_scales,
    values,
    value_scales,
    key_block,
    key_scale_block,
    value_block,
    value_scale_block,
    tail,
    tables,
    rows,
    context,
    sequences,
    window,
    scale,
    q_token,
    q_head,
    out_token,
    tail_row,
    table_row,
    SEQUENCES: tl.constexpr,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
    WINDOWED: tl.constexpr,
    FORMAT: tl.constexpr,
    TAIL: tl.constexpr,
):
    """A program's share of the units; ROWS are the GROUP query heads of a KV head, filled up."""
    DIM: tl.constexpr = FORMAT.dim
    POOLED: tl.constexpr = 1 if TAIL is None else FORMAT.block_tokens
    TAIL_TOKENS: tl.constexpr = min(TOKENS, max(16, POOLED))
    units = count_units(context, sequences, window, SEQUENCES, KV_HEADS, TOKENS, POOLED, WINDOWED)
    all_units = tl.sum(units, axis=0)
    share = tl.cdiv(all_units, tl.num_programs(0))
    program = tl.program_id(0)
    first_unit = program * share
    if first_unit >= all_units:
        return
    end_unit = tl.minimum(first_unit + share, all_units)
    first_head, _, head_unit = find_unit(units, first_unit, SEQUENCES, KV_HEADS)
    last_head, _, _ = find_unit(units, end_unit - 1, SEQUENCES, KV_HEADS)
    strides = (key_block, key_scale_block, value_block, value_scale_block)
    row = tl.arange(0, ROWS)
    real = row < GROUP
    for counted in range(first_head, last_head + 1):
        sequence = counted // KV_HEADS
        head = counted % KV_HEADS
        tokens = tl.load(context + sequence)
        table_number = tl.load(rows + sequence).to(tl.int64)
        table = tables + table_number * table_row
        first_tile, end_tile = tile_range(tokens, window, TOKENS, POOLED, WINDOWED)
        tiles = end_tile - first_tile
        from_tile = first_tile + tl.maximum(first_unit - head_unit, 0)
        to_tile = first_tile + tl.minimum(end_unit - head_unit, tiles)
        pooled = tokens // POOLED * POOLED

        pool = head_part(keys, key_scales, values, value_scales, strides, head, FORMAT)
        q_row = q + sequence.to(tl.int64) * q_token + (head * GROUP + row) * q_head
        queries = load_queries(q_row, real, scale, FORMAT)
        position = tl.full([1], 0, tl.int32) + (tokens - 1)
        state = begin(ROWS, FORMAT)
        block = load_blocks(table, from_tile * TOKENS, pooled, TOKENS, FORMAT)
        for tile in range(from_tile, tl.minimum(to_tile, tl.cdiv(pooled, TOKENS))):
            next_block = load_blocks(table, (tile + 1) * TOKENS, pooled, TOKENS, FORMAT)
            state = attend_tile(
                state,
                queries,
                pool,
                table,
                block,
                tile * TOKENS,
                pooled,
                position,
                window,
                TOKENS,
                True,
                WINDOWED,
                FORMAT,
            )
            block = next_block
        if TAIL is not None:
            pool = with_tail(pool, tail, table_number, tail_row, head, FORMAT)
            tail_end = tl.where(to_tile == end_tile, tokens, pooled)
            for start in range(pooled, tail_end, TAIL_TOKENS):
                state = attend_tile(
                    state,
                    queries,
                    pool,
                    table,
                    load_blocks(table, start, tokens, TAIL_TOKENS, TAIL),
                    start,
                    tokens,
                    position,
                    window,
                    TAIL_TOKENS,
                    True,
                    WINDOWED,
                    TAIL,
                )

        if to_tile - from_tile == tiles:
            out_row = out + sequence.to(tl.int64) * out_token + (head * GROUP + row) * DIM
            store(state, out_row, real, FORMAT)
        else:
            # slot 0 is for a head that began before this share, or with it
            part = program * 2 + tl.where(head_unit > first_unit, 1, 0)
            store(state, parts + (part * GROUP + row) * DIM, real, FORMAT)
            size = state[0] + tl.log2(state[1])
            tl.store(part_sizes + part * GROUP + row, size, mask=real)
        head_unit += tiles
