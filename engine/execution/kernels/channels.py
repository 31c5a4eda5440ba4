"""Keys that are encoded channel by channel: when a sequence has filled a block, all of it at once.

Until then they are in the pool's tail, in which each sequence has a row.
"""

import triton
import triton.language as tl
from torch import Tensor

from engine.execution.inputs import StepInput
from engine.execution.kernels.codes import sixteen_steps, step_number
from engine.execution.kvcache import KvPool


def append_channels(
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
