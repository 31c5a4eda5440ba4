"""One tile of attention: keys and values of a run of tokens, folded into a running softmax."""

import triton
import triton.language as tl

from engine.execution.kernels.codes import (
    from_float,
    from_int4,
    from_words,
    join_halves,
    load_numbers,
)

HIDDEN = tl.constexpr(-1e30)
"""Score of what is not seen: finite, so that no difference of two is NaN."""
LOG2_E = 1.4426950408889634
"""Kernels take scores times this, and powers of 2 for powers of e."""


@triton.jit
def attend_tile(
    state,
    queries,
    pool,
    table,
    block,
    start,
    end,
    position,
    window,
    TOKENS: tl.constexpr,
    MASKED: tl.constexpr,
    WINDOWED: tl.constexpr,
    FORMAT: tl.constexpr,
):
    """Fold tokens `start` to `start + TOKENS` (those before `end`) into the softmax of the queries.

    Arguments:
        state: see `begin`.
        queries: see `load_queries`.
        pool: see `head_part`.
        table: pointer to the sequence's blocks.
        block: [TOKENS] int32: those of the tile's tokens, see `load_blocks`.
        position: [rows] (or [1], of all rows), where MASKED: a row sees tokens up to its position,
            and if WINDOWED only the last `window` of them.
    """
    most, total, extra, sums = state
    _, _, q_scale = queries
    _, _, values, value_scales, strides = pool
    _, _, value_block, value_scale_block = strides
    VALUE: tl.constexpr = FORMAT.values
    PARTS: tl.constexpr = VALUE.parts
    PRECISION: tl.constexpr = "ieee" if VALUE.dot == tl.float32 else "tf32"
    token = start + tl.arange(0, TOKENS)
    inside = token < end
    slot = (token.to(tl.uint32) % FORMAT.block_tokens).to(tl.int32)
    block = block.to(tl.int64)
    scores = _scores(queries, pool, table, block, slot, inside, start, end, TOKENS, FORMAT)
    if MASKED:
        seen = (token[None, :] <= position[:, None]) & inside[None, :]
        if WINDOWED:
            seen = seen & (token[None, :] > position[:, None] - window)
        scores = tl.where(seen, scores, HIDDEN)

    new_most = tl.maximum(most, tl.max(scores, axis=1) * q_scale)
    weights = tl.exp2(scores * q_scale[:, None] - new_most[:, None])
    fade = tl.exp2(most - new_most)
    total = total * fade + tl.sum(weights, axis=1)

    rows = values + block * value_block + slot * (FORMAT.dim // VALUE.parts)
    if VALUE.scales == "group_least":
        beside = value_scales + block * value_scale_block + slot * (FORMAT.dim // 32)
        v = _values_by_group(rows, beside, inside, FORMAT)
    else:
        v = _load_values(rows, inside, MASKED, FORMAT)
    if VALUE.scales == "token" or VALUE.scales == "token_least":
        beside = value_scales + block * value_scale_block + slot
        if VALUE.scales == "token_least":
            least = tl.load(beside + FORMAT.block_tokens, mask=inside, other=0.0).to(tl.float32)
            extra = extra * fade + tl.sum(weights * least[None, :], axis=1)
        weights *= tl.load(beside, mask=inside, other=0.0).to(tl.float32)[None, :]
    weights = weights.to(VALUE.dot)
    new_sums = ()
    for part in tl.static_range(PARTS):
        faded = sums[part] * fade[:, None]
        new_sums += (tl.dot(weights, v[part], faded, input_precision=PRECISION),)
    return (new_most, total, extra, new_sums)


@triton.jit
def _scores(
    queries,
    pool,
    table,
    block,
    slot,
    inside,
    start,
    end,
    TOKENS: tl.constexpr,
    FORMAT: tl.constexpr,
):
    """Queries x keys of the tile's tokens, but for the queries' scale: [rows, TOKENS]."""
    q, q_sum, _ = queries
    keys, key_scales, _, _, strides = pool
    key_block, key_scale_block, _, _ = strides
    KEY: tl.constexpr = FORMAT.keys
    PRECISION: tl.constexpr = "ieee" if KEY.dot == tl.float32 else "tf32"
    if KEY.scales == "channel_least":
        k = _keys_by_channel(pool, table, start, end, TOKENS, FORMAT)
    else:
        k = load_numbers(keys + block * key_block + slot * KEY.row, KEY, FORMAT)
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
    if KEY.scales == "token" or KEY.scales == "token_least":
        beside = key_scales + block * key_scale_block + slot
        scores *= tl.load(beside, mask=inside, other=0.0).to(tl.float32)[None, :]
        if KEY.scales == "token_least":
            place = beside + FORMAT.block_tokens
            least = tl.load(place, mask=inside, other=0.0).to(tl.float32)
            scores += q_sum[:, None] * least[None, :]
    return scores


@triton.jit
def _load_values(rows, inside, MASKED: tl.constexpr, FORMAT: tl.constexpr):
    """Values at pointers `rows` [tokens], ready for a dot but for their scales, in parts.

    MASKED: 0 where not inside. What an earlier owner left may be NaN, which a weight of 0 keeps.
    """
    VALUE: tl.constexpr = FORMAT.values
    WORDS: tl.constexpr = FORMAT.dim // VALUE.parts
    place = rows[:, None] + tl.arange(0, WORDS)[None, :]
    x = tl.load(place, mask=inside[:, None], other=0) if MASKED else tl.load(place)
    if VALUE.kind == "float":
        v = (from_float(x, VALUE),)
    else:
        v = from_words(x, VALUE, FORMAT)
    return v


@triton.jit
def load_blocks(table, start, end, TOKENS: tl.constexpr, FORMAT: tl.constexpr):
    """Blocks of the tokens from `start` on, the null block from `end` on: [TOKENS] int32.

    Loops load them a tile ahead: addresses of keys and values are known when a tile's turn comes.
    """
    token = start + tl.arange(0, TOKENS)
    column = token.to(tl.uint32) // FORMAT.block_tokens
    return tl.load(table + column, mask=token < end, other=0)


@triton.jit
def begin(ROWS: tl.constexpr, FORMAT: tl.constexpr):
    """The softmax of nothing, for ROWS queries:

    most    [rows] fp32: largest score, in powers of two
    total   [rows] fp32: sum of weights
    extra   [rows] fp32: sum of weight x least of 4-bit values, due to every channel
    sums    fp32: of weight x value, in as many parts as values are taken in, see `part_channels`
    """
    zeros = tl.zeros([ROWS], tl.float32)
    PARTS: tl.constexpr = FORMAT.values.parts
    WIDTH: tl.constexpr = FORMAT.dim // PARTS
    parts = ()
    for _ in tl.static_range(PARTS):
        parts += (tl.zeros([ROWS, WIDTH], tl.float32),)
    return (tl.full([ROWS], HIDDEN, tl.float32), zeros, zeros, parts)


@triton.jit
def part_channels(PART: tl.constexpr, FORMAT: tl.constexpr):
    """Channels of a part of the values: all; a half; or every fourth byte, in pairs of 4 bits."""
    PARTS: tl.constexpr = FORMAT.values.parts
    HALF: tl.constexpr = FORMAT.dim // 2
    word = tl.arange(0, FORMAT.dim // PARTS)
    if PARTS < 4:
        channel = PART * HALF + word
    elif FORMAT.values.kind == "int4":
        channel = PART % 2 * HALF + 2 * word + PART // 2
    else:
        channel = 4 * word + PART
    return channel


@triton.jit
def store(state, rows, mask, FORMAT: tl.constexpr):
    """Write the attention that `state` stands for to pointers `rows` [rows] of dim numbers."""
    _, total, extra, sums = state
    PARTS: tl.constexpr = FORMAT.values.parts
    for part in tl.static_range(PARTS):
        out = (sums[part] + extra[:, None]) / total[:, None]
        place = rows[:, None] + part_channels(part, FORMAT)[None, :]
        tl.store(place, out.to(rows.dtype.element_ty), mask=mask[:, None])


@triton.jit
def load_queries(rows, mask, scale, FORMAT: tl.constexpr):
    """(queries [rows, dim] at pointers `rows`, their sums over channels, scales of their scores).

    Sums are there only where keys have a least. Queries that are not of the dot's type are divided
    by a power of two that makes each one's largest number 1 to 2, lest it be too large for fp16.
    """
    DIM: tl.constexpr = FORMAT.dim
    q = tl.load(rows[:, None] + tl.arange(0, DIM)[None, :], mask=mask[:, None], other=0.0)
    scales = tl.full([rows.shape[0]], scale, tl.float32)
    if rows.dtype.element_ty != FORMAT.keys.dot:
        q = q.to(tl.float32)
        # no power below 2**-40: times the score of what is hidden, it must remain large
        largest = tl.maximum(tl.max(tl.abs(q), axis=1), 9.094947017729282e-13)
        power = largest.to(tl.int32, bitcast=True) & 0x7F800000
        scales *= power.to(tl.float32, bitcast=True)
        q *= (0x7F000000 - power).to(tl.float32, bitcast=True)[:, None]
    q = q.to(FORMAT.keys.dot)
    sums = tl.zeros([rows.shape[0]], tl.float32)
    if FORMAT.keys.scales == "token_least":
        sums = tl.sum(q.to(tl.float32), axis=1)
    return (q, sums, scales)


@triton.jit
def head_part(keys, key_scales, values, value_scales, strides, head, FORMAT: tl.constexpr):
    """The pool as one KV head sees it: pointers to its part of block 0, and how many elements
    further on the next block is."""
    keys += head * (FORMAT.block_tokens * FORMAT.keys.row)
    values += head * (FORMAT.block_tokens * FORMAT.dim // FORMAT.values.parts)
    key_scales += head * FORMAT.keys.scale_head
    value_scales += head * FORMAT.values.scale_head
    return (keys, key_scales, values, value_scales, strides)


@triton.jit
def with_tail(pool, tail, row, tail_row, head, FORMAT: tl.constexpr):
    """The same, with keys from the tail, in which a sequence has one row and no blocks."""
    _, key_scales, values, value_scales, strides = pool
    _, _, value_block, value_scale_block = strides
    held = tail + row * tail_row + head * (FORMAT.block_tokens * FORMAT.dim)
    return (held, key_scales, values, value_scales, (0, 0, value_block, value_scale_block))


@triton.jit
def _keys_by_channel(pool, table, start, end, TOKENS: tl.constexpr, FORMAT: tl.constexpr):
    """Keys in 4 bits, with a scale and least for each channel of a block: [TOKENS, dim]."""
    keys, scales, _, _, strides = pool
    key_block, scale_block, _, _ = strides
    KEY: tl.constexpr = FORMAT.keys
    BLOCK_TOKENS: tl.constexpr = FORMAT.block_tokens
    HALF: tl.constexpr = FORMAT.dim // 2
    ROWS: tl.constexpr = BLOCK_TOKENS if BLOCK_TOKENS < TOKENS else TOKENS
    BLOCKS: tl.constexpr = TOKENS // ROWS
    column = start // BLOCK_TOKENS + tl.arange(0, BLOCKS)
    block = tl.load(table + column, mask=column * BLOCK_TOKENS < end, other=0).to(tl.int64)
    block = block[:, None, None]
    slot = (start % BLOCK_TOKENS + tl.arange(0, ROWS))[None, :, None]
    channel = tl.arange(0, HALF)[None, None, :]
    low, high = from_int4(tl.load(keys + block * key_block + slot * HALF + channel), KEY, FORMAT)
    beside = scales + block * scale_block + channel
    low = low * tl.load(beside).to(KEY.dot) + tl.load(beside + 2 * HALF).to(KEY.dot)
    high = high * tl.load(beside + HALF).to(KEY.dot) + tl.load(beside + 3 * HALF).to(KEY.dot)
    return join_halves(tl.reshape(low, (TOKENS, HALF)), tl.reshape(high, (TOKENS, HALF)))


@triton.jit
def _values_by_group(rows, scales, inside, FORMAT: tl.constexpr):
    """Values in 4 bits, with a scale and least for 32 channels, at pointers `rows` and `scales`
    [tokens]: ready for a dot, in two halves."""
    VALUE: tl.constexpr = FORMAT.values
    HALF: tl.constexpr = FORMAT.dim // 2
    GROUPS: tl.constexpr = HALF // 32
    LEAST: tl.constexpr = FORMAT.block_tokens * 2 * GROUPS
    group = tl.arange(0, GROUPS)[None, :, None]
    channel = group * 32 + tl.arange(0, 32)[None, None, :]
    mask = inside[:, None, None]
    low, high = from_int4(tl.load(rows[:, None, None] + channel, mask=mask, other=0), VALUE, FORMAT)
    beside = scales[:, None, None] + group
    low = _scaled(low, beside, mask, LEAST)
    high = _scaled(high, beside + GROUPS, mask, LEAST)
    return tl.reshape(low, (rows.shape[0], HALF)), tl.reshape(high, (rows.shape[0], HALF))


@triton.jit
def _scaled(number, beside, mask, LEAST: tl.constexpr):
    """number x scale + least: the scale stands at `beside`, the least LEAST further on."""
    scale = tl.load(beside, mask=mask, other=0.0)
    least = tl.load(beside + LEAST, mask=mask, other=0.0)
    return number * scale.to(number.dtype) + least.to(number.dtype)
