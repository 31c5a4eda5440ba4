"""Keys and values of a step into the pool, encoded as they are written."""

import triton
import triton.language as tl
from torch import Tensor

from engine.execution.inputs import StepInput
from engine.execution.kernels.chip import require_kernels
from engine.execution.kernels.codes import (
    e4m3_bits,
    round_even,
    scale_of,
    sixteen_steps,
    step_number,
)
from engine.execution.kernels.layout import pool_format, view
from engine.execution.kvcache import KvPool


def append(k: Tensor, v: Tensor, pool: KvPool, layer: int, step: StepInput) -> None:
    """Write k, v [tokens, kv_heads, dim] (views with any token stride) into the blocks their rows
    name; see ops.Ops."""
    require_kernels(k)
    if not k.shape[0]:
        return
    _append_vectors(k, v, pool, layer, step)
    if pool.tail is not None:
        if step.decodes:
            _append_channels(k, pool, layer, step, prefills=False)
        if step.prefills:
            _append_channels(k, pool, layer, step, prefills=True)


def _append_vectors(k: Tensor, v: Tensor, pool: KvPool, layer: int, step: StepInput) -> None:
    """All that is encoded token by token."""
    tokens, kv_heads, _ = k.shape
    tile = 4 if tokens <= 1024 else 16
    _append_kernel[(triton.cdiv(tokens, tile), kv_heads)](
        k,
        v,
        *view(pool, layer),
        step.tables,
        step.token_rows,
        step.positions,
        tokens,
        k.stride(0),
        k.stride(1),
        v.stride(0),
        v.stride(1),
        step.tables.stride(0),
        TILE=tile,
        FORMAT=pool_format(pool.layout, k.dtype, k.device),
    )


@triton.jit(do_not_specialize=["tokens", "table_row"])
def _append_kernel(
    k,
    v,
    keys,
    key_scales,
    values,
    value_scales,
    key_block,
    key_scale_block,
    value_block,
    value_scale_block,
    tables,
    token_rows,
    positions,
    tokens,
    k_token,
    k_head,
    v_token,
    v_head,
    table_row,
    TILE: tl.constexpr,
    FORMAT: tl.constexpr,
):
    """TILE tokens of one head."""
    KEY: tl.constexpr = FORMAT.keys
    VALUE: tl.constexpr = FORMAT.values
    token = tl.program_id(0) * TILE + tl.arange(0, TILE)
    head = tl.program_id(1)
    inside = token < tokens
    row = tl.load(token_rows + token, mask=inside, other=0).to(tl.int64)
    position = tl.load(positions + token, mask=inside, other=0)
    column = position // FORMAT.block_tokens
    block = tl.load(tables + row * table_row + column, mask=inside, other=0).to(tl.int64)
    slot = position % FORMAT.block_tokens
    token = token.to(tl.int64)
    if KEY.scales != "channel_least":
        x = k + head * k_head + token * k_token
        elements = keys + block * key_block
        offset = block * key_scale_block
        _store_vectors(x, elements, key_scales, offset, head, slot, inside, KEY, FORMAT)
    x = v + head * v_head + token * v_token
    elements = values + block * value_block
    offset = block * value_scale_block
    _store_vectors(x, elements, value_scales, offset, head, slot, inside, VALUE, FORMAT)


@triton.jit
def _store_vectors(
    x,
    elements,
    scales,
    scale_offset,
    head,
    slot,
    inside,
    VECTORS: tl.constexpr,
    FORMAT: tl.constexpr,
):
    """Encode the vectors at pointers x [tokens] into a slot of the blocks at `elements` [tokens],
    which have their scales `scale_offset` [tokens] beyond `scales`."""
    BLOCK_TOKENS: tl.constexpr = FORMAT.block_tokens
    HALF: tl.constexpr = FORMAT.dim // 2
    elements += head * (BLOCK_TOKENS * VECTORS.row) + slot * VECTORS.row
    scale_offset += head * VECTORS.scale_head
    if VECTORS.scales == "group_least":
        _store_groups(x, elements, scales + scale_offset, slot, inside, FORMAT)
    else:
        channel = tl.arange(0, HALF)[None, :]
        mask = inside[:, None]
        place = elements[:, None] + channel
        low = tl.load(x[:, None] + channel, mask=mask, other=0.0)
        high = tl.load(x[:, None] + HALF + channel, mask=mask, other=0.0)
        if VECTORS.kind == "float":
            _store_pair(place, low, high, mask, HALF)
        elif VECTORS.kind == "int4":
            low = low.to(tl.float32)
            high = high.to(tl.float32)
            least = tl.min(tl.minimum(low, high), axis=1)
            most = tl.max(tl.maximum(low, high), axis=1)
            scale, least = sixteen_steps(least, most)
            low = step_number(low, scale[:, None], least[:, None])
            high = step_number(high, scale[:, None], least[:, None])
            tl.store(place, low | (high << 4), mask=mask)
            beside = scales + scale_offset + slot
            tl.store(beside, scale, mask=inside)
            tl.store(beside + BLOCK_TOKENS, least, mask=inside)
        else:
            low = low.to(tl.float32)
            high = high.to(tl.float32)
            if VECTORS.scales == "token":
                largest = tl.max(tl.maximum(tl.abs(low), tl.abs(high)), axis=1)
                scale = scale_of(largest, 448.0 if VECTORS.kind == "fp8" else 127.0)
                tl.store(scales + scale_offset + slot, scale, mask=inside)
                low = tl.div_rn(low, tl.broadcast_to(scale[:, None], low.shape))
                high = tl.div_rn(high, tl.broadcast_to(scale[:, None], high.shape))
            if VECTORS.kind == "fp8":
                _store_pair(place, e4m3_bits(low), e4m3_bits(high), mask, HALF)
            else:
                _store_pair(place, round_even(low), round_even(high), mask, HALF)


@triton.jit
def _store_pair(place, low, high, mask, HALF: tl.constexpr):
    tl.store(place, low.to(place.dtype.element_ty), mask=mask)
    tl.store(place + HALF, high.to(place.dtype.element_ty), mask=mask)


@triton.jit
def _store_groups(x, elements, scales, slot, inside, FORMAT: tl.constexpr):
    """As _store_vectors, in 4 bits with a scale for 32 channels; a half has GROUPS of them."""
    HALF: tl.constexpr = FORMAT.dim // 2
    GROUPS: tl.constexpr = HALF // 32
    LEAST: tl.constexpr = FORMAT.block_tokens * 2 * GROUPS
    group = tl.arange(0, GROUPS)
    channel = group[None, :, None] * 32 + tl.arange(0, 32)[None, None, :]
    mask = inside[:, None, None]
    beside = scales[:, None] + slot[:, None] * (2 * GROUPS) + group[None, :]
    low = tl.load(x[:, None, None] + channel, mask=mask, other=0.0).to(tl.float32)
    high = tl.load(x[:, None, None] + HALF + channel, mask=mask, other=0.0).to(tl.float32)
    low = _store_group(low, beside, inside, LEAST)
    high = _store_group(high, beside + GROUPS, inside, LEAST)
    tl.store(elements[:, None, None] + channel, low | (high << 4), mask=mask)


@triton.jit
def _store_group(x, beside, inside, LEAST: tl.constexpr):
    """Numbers of x [tokens, groups, 32]; scales to `beside`, least ones LEAST further on."""
    scale, least = sixteen_steps(tl.min(x, axis=2), tl.max(x, axis=2))
    tl.store(beside, scale, mask=inside[:, None])
    tl.store(beside + LEAST, least, mask=inside[:, None])
    return step_number(x, scale[:, :, None], least[:, :, None])


def _append_channels(
    k: Tensor, pool: KvPool, layer: int, step: StepInput, *, prefills: bool
) -> None:
    """Keys by channel, of the step's prefills or of its decodes."""
    keys, scales, tail = pool.keys(layer), pool.key_scales(layer), pool.tail
    assert scales is not None and tail is not None
    sequences = step.prefills if prefills else step.decodes
    # a chunk that begins inside a block reaches into one more
    blocks = triton.cdiv(step.max_chunk - 1, pool.block_tokens) + 1 if prefills else 1
    _append_channels_kernel[(sequences, blocks, k.shape[1])](
        k,
        keys,
        scales,
        tail[:, layer],
        step.tables,
        step.rows,
        step.context,
        step.starts,
        step.decodes if prefills else 0,
        k.stride(0),
        k.stride(1),
        keys.stride(0),
        scales.stride(0),
        tail.stride(0),
        step.tables.stride(0),
        CHUNKS=prefills,
        BLOCK_TOKENS=pool.block_tokens,
        DIM=pool.layout.head_dim,
        num_warps=4 if pool.block_tokens * pool.layout.head_dim <= 8192 else 8,
    )


@triton.jit(do_not_specialize=["before", "table_row"])
def _append_channels_kernel(
    k,
    keys,
    scales,
    tail,
    tables,
    rows,
    context,
    starts,
    before,
    k_token,
    k_head,
    key_block,
    scale_block,
    tail_row,
    table_row,
    CHUNKS: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    DIM: tl.constexpr,
):
    """One block of one head that a sequence's new tokens reach into.

    Full: encoded into the pool, from the tail and the new keys. The program of the chunk's first
    block also brings the tail up to date, after it has read it: nobody else may.
    """
    number = tl.program_id(0)
    head = tl.program_id(2)
    end = tl.load(context + before + number)
    row = tl.load(rows + before + number).to(tl.int64)
    begin = before + number
    chunk = 1
    if CHUNKS:
        begin = before + tl.load(starts + number)
        chunk = tl.load(starts + number + 1) - tl.load(starts + number)
    first = end - chunk
    column = first // BLOCK_TOKENS + tl.program_id(1)
    slot = tl.arange(0, BLOCK_TOKENS)
    channel = tl.arange(0, DIM // 2)
    held = tail + row * tail_row + head * (BLOCK_TOKENS * DIM)
    held = held + slot[:, None] * DIM + channel[None, :]
    # where the sequence's token at position 0 would stand
    new = k + head * k_head + (begin - first).to(tl.int64) * k_token + channel[None, :]
    if (column + 1) * BLOCK_TOKENS <= end:
        block = tl.load(tables + row * table_row + column).to(tl.int64)
        position = column * BLOCK_TOKENS + slot
        _store_block(
            new + position.to(tl.int64)[:, None] * k_token,
            held,
            position[:, None] >= first,
            keys + block * key_block + head * (BLOCK_TOKENS * DIM // 2),
            scales + block * scale_block + head * (2 * DIM),
            BLOCK_TOKENS,
            DIM,
        )
    if tl.program_id(1) == 0:
        tl.debug_barrier()
        position = end // BLOCK_TOKENS * BLOCK_TOKENS + slot
        fresh = ((position >= first) & (position < end))[:, None]
        source = new + position.to(tl.int64)[:, None] * k_token
        dtype: tl.constexpr = tail.dtype.element_ty
        tl.store(held, tl.load(source, mask=fresh, other=0.0).to(dtype), mask=fresh)
        high = tl.load(source + DIM // 2, mask=fresh, other=0.0)
        tl.store(held + DIM // 2, high.to(dtype), mask=fresh)


@triton.jit
def _store_block(
    new, held, is_new, elements, scales, BLOCK_TOKENS: tl.constexpr, DIM: tl.constexpr
):
    """Encode a block, whose vectors are at pointers `new` where `is_new`, else at `held`."""
    HALF: tl.constexpr = DIM // 2
    slot = tl.arange(0, BLOCK_TOKENS)
    channel = tl.arange(0, HALF)
    low = _store_channels(_either(new, held, is_new), scales + channel, DIM)
    high = _store_channels(_either(new + HALF, held + HALF, is_new), scales + HALF + channel, DIM)
    tl.store(elements + slot[:, None] * HALF + channel[None, :], low | (high << 4))


@triton.jit
def _either(new, held, is_new):
    fresh = tl.load(new, mask=is_new, other=0.0).to(tl.float32)
    return tl.where(is_new, fresh, tl.load(held, mask=is_new == 0, other=0.0).to(tl.float32))


@triton.jit
def _store_channels(x, place, LEAST: tl.constexpr):
    """Numbers of x [tokens, channels]; scales to `place`, least ones LEAST further on."""
    scale, least = sixteen_steps(tl.min(x, axis=0), tl.max(x, axis=0))
    tl.store(place, scale)
    tl.store(place + LEAST, least)
    return step_number(x, scale[None, :], least[None, :])
