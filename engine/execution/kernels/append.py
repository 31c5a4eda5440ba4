"""Keys and values of a step into the pool, encoded as they are written."""

import triton
import triton.language as tl
from torch import Tensor

from engine.execution.inputs import StepInput
from engine.execution.kernels.channels import append_channels
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
            append_channels(k, pool, layer, step, prefills=False)
        if step.prefills:
            append_channels(k, pool, layer, step, prefills=True)


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
