"""Attention of prefill chunks: each token looks at its sequence's past and its chunk before it."""

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
from engine.execution.kernels.layout import pool_format, tail_format, view_in_words
from engine.execution.kvcache import KvPool


class PrefillConfig(NamedTuple):
    """How the kernel is launched; speed follows from it, results do not (but for rounding)."""

    rows: int
    """Of a tile of queries: so many heads of so many tokens."""
    tile_tokens: int
    """Of a tile of keys and values."""
    warps: int
    stages: int
    """Of loads under way."""
    registers: int | None = None
    """Of a thread at most, so that two programs fit on a multiprocessor."""


FLOATS: Final = PrefillConfig(rows=128, tile_tokens=64, warps=8, stages=3)
PACKED: Final = PrefillConfig(rows=128, tile_tokens=32, warps=8, stages=2)
"""Of 8 and 4-bit formats, of heads of 256 channels, and where the pool's numbers are not of the
queries' type."""
EXACT: Final = PrefillConfig(rows=16, tile_tokens=16, warps=4, stages=2)
"""Of fp32 queries, which do not use tensor cores."""


def prefill_config(pool: KvPool, dtype: torch.dtype, group: int) -> PrefillConfig:
    """The launch for a pool and queries of `dtype`, `group` of which share a KV head."""
    config = FLOATS if pool.keys(0).dtype == dtype and pool.layout.head_dim < 256 else PACKED
    if dtype == torch.float32:
        config = EXACT
    return config._replace(rows=max(config.rows, triton.next_power_of_2(group)))


def attend_prefills(
    q: Tensor,
    out: Tensor,
    pool: KvPool,
    layer: int,
    step: StepInput,
    scale: float,
    window: int,
    config: PrefillConfig | None = None,
) -> None:
    """Attention of the step's chunks: the rows of q [tokens, heads, dim] after the decodes' into
    those of `out`; scale and window as in ops.Ops."""
    kv_heads = pool.layout.kv_heads
    group = q.shape[1] // kv_heads
    config = config or prefill_config(pool, q.dtype, group)
    tail = None if pool.tail is None else pool.tail[:, layer]
    numbers = pool_format(pool.layout, q.dtype, q.device)
    tiles = triton.cdiv(step.max_chunk, config.rows // group)
    _prefill_kernel[(tiles, kv_heads, step.prefills)](
        q,
        out,
        *view_in_words(pool, layer),
        tail,
        step.tables,
        step.rows,
        step.context,
        step.starts,
        step.decodes,
        window,
        scale * LOG2_E,
        q.stride(0),
        q.stride(1),
        out.stride(0),
        0 if tail is None else tail.stride(0),
        step.tables.stride(0),
        GROUP=group,
        ROWS=config.rows,
        TOKENS=config.tile_tokens,
        WINDOWED=window > 0,
        FORMAT=numbers,
        TAIL=None if tail is None else tail_format(numbers),
        num_warps=config.warps,
        num_stages=config.stages,
        maxnreg=config.registers,
    )


@triton.jit(do_not_specialize=["decodes", "window", "table_row"])
def _prefill_kernel(
    q,
    out,
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
    starts,
    decodes,
    window,
    scale,
    q_token,
    q_head,
    out_token,
    tail_row,
    table_row,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
    WINDOWED: tl.constexpr,
    FORMAT: tl.constexpr,
    TAIL: tl.constexpr,
):
    """ROWS // GROUP tokens of a chunk, each with the GROUP query heads of one KV head as rows."""
    DIM: tl.constexpr = FORMAT.dim
    POOLED: tl.constexpr = 1 if TAIL is None else FORMAT.block_tokens
    TAIL_TOKENS: tl.constexpr = min(TOKENS, max(16, POOLED))
    ROW_TOKENS: tl.constexpr = ROWS // GROUP
    # the last tokens of a chunk have most to do: they come first
    first_token = (tl.num_programs(0) - 1 - tl.program_id(0)) * ROW_TOKENS
    head = tl.program_id(1)
    number = tl.program_id(2)
    chunk_begin = tl.load(starts + number)
    chunk = tl.load(starts + number + 1) - chunk_begin
    if first_token >= chunk:
        return
    tokens = tl.load(context + decodes + number)
    table_number = tl.load(rows + decodes + number).to(tl.int64)
    table = tables + table_number * table_row
    past = tokens - chunk

    row = tl.arange(0, ROWS)
    row_token = first_token + row // GROUP
    position = past + row_token
    real = (row < ROW_TOKENS * GROUP) & (row_token < chunk)
    row_head = head * GROUP + row % GROUP
    step_token = (decodes + chunk_begin + row_token).to(tl.int64)
    queries = load_queries(q + step_token * q_token + row_head * q_head, real, scale, FORMAT)
    strides = (key_block, key_scale_block, value_block, value_scale_block)
    pool = head_part(keys, key_scales, values, value_scales, strides, head, FORMAT)
    state = begin(ROWS, FORMAT)

    # tokens that some row sees; keys of those before `pooled` are in the pool
    end = past + tl.minimum(first_token + ROW_TOKENS, chunk)
    pooled = tl.minimum(end, tokens // POOLED * POOLED)
    first_masked = 0
    if WINDOWED:
        first_masked = tl.maximum(past + first_token - window + 1, 0) // TOKENS
    else:
        # what the first row sees, all see
        first_masked = tl.minimum(past + first_token + 1, pooled) // TOKENS
        block = load_blocks(table, 0, pooled, TOKENS, FORMAT)
        for tile in range(0, first_masked):
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
                False,
                WINDOWED,
                FORMAT,
            )
            block = next_block
    block = load_blocks(table, first_masked * TOKENS, pooled, TOKENS, FORMAT)
    for tile in range(first_masked, tl.cdiv(pooled, TOKENS)):
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
        for start in range(pooled, end, TAIL_TOKENS):
            state = attend_tile(
                state,
                queries,
                pool,
                table,
                load_blocks(table, start, end, TAIL_TOKENS, TAIL),
                start,
                end,
                position,
                window,
                TAIL_TOKENS,
                True,
                WINDOWED,
                TAIL,
            )
    store(state, out + step_token * out_token + row_head * DIM, real, FORMAT)
