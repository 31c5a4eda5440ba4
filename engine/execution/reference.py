"""The operations in plain torch: what a CPU runs, and what the Triton kernels are held against.

Attention gathers the blocks of its sequences out of the pool, decodes them and computes in fp32, or
in fp64 where the queries are fp64. Decodes go many sequences at a time, prefill chunks one by one.
"""

from typing import Final

import torch
from torch import Tensor

from engine.execution.inputs import StepInput
from engine.execution.kvcache import KvPool
from engine.execution.ops import Ops
from engine.execution.places import Chunk, Group, Places
from engine.execution.quantize import CODECS
from engine.kvformats import KV_DTYPES

TILE_TOKENS: Final = 64
"""Tokens of a chunk that look at the past together."""


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See Ops."""
    wide = x.to(_wide(x))
    scale = wide.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
    return (wide * scale).to(x.dtype) * weight


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """See Ops."""
    total = x + residual
    return rms_norm(total, weight, eps), total


def rope(q: Tensor, k: Tensor, positions: Tensor, table: Tensor) -> None:
    """See Ops."""
    cos, sin = table.index_select(0, positions).unsqueeze(1).chunk(2, -1)
    for x in (q, k):
        first, second = x.chunk(2, -1)
        turned = first * cos - second * sin
        second.copy_(second * cos + first * sin)
        first.copy_(turned)


def silu_mul(gate_up: Tensor) -> Tensor:
    """See Ops."""
    gate, up = gate_up.to(_wide(gate_up)).chunk(2, -1)
    return (torch.nn.functional.silu(gate) * up).to(gate_up.dtype)


def append(k: Tensor, v: Tensor, pool: KvPool, layer: int, step: StepInput) -> None:
    """See Ops. Layers are appended to in ascending order; a lower one begins another step."""
    places = pool.step_notes
    if not isinstance(places, Places) or places.step is not step or layer <= places.layer:
        # the same object may hold another step: captured graphs write into it
        places = pool.step_notes = Places.of(step, pool.layout)
    places.layer = layer
    key, value = KV_DTYPES[pool.kv_dtype]
    if pool.tail is None:
        _store(k, key, pool.keys(layer), pool.key_scales(layer), places)
    else:
        _store_by_channel(k, pool, pool.tail[:, layer], layer, places)
    _store(v, value, pool.values(layer), pool.value_scales(layer), places)


def attend(
    q: Tensor, pool: KvPool, layer: int, step: StepInput, scale: float, window: int
) -> Tensor:
    """See Ops."""
    places = pool.step_notes
    if not isinstance(places, Places) or places.step is not step:
        places = pool.step_notes = Places.of(step, pool.layout)
    wide = q.to(_wide(q)) * scale
    out = torch.empty_like(wide)
    for group in places.groups(window):
        out[group.members] = _decode(wide[group.members], pool, layer, group)
    for chunk in places.chunks:
        tokens = slice(chunk.begin, chunk.end)
        out[tokens] = _prefill(wide[tokens], pool, layer, chunk, window)
    return out.to(q.dtype)


OPS: Final = Ops(rms_norm, add_rms_norm, rope, silu_mul, append, attend)


def read_sequence(
    pool: KvPool,
    layer: int,
    table: Tensor,
    row: int,
    context: int,
    *,
    start: int = 0,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """What the pool holds of one sequence, decoded: keys, values [context - start, kv_heads, dim].

    Args:
        pool: The pool.
        layer: Whose keys and values.
        table: [blocks] physical blocks of the sequence in order.
        row: Its row of the step's tables, by which the pool's tail knows it.
        context: Tokens it has.
        start: The first of them to read.
        dtype: To decode to: fp32 or fp64.
    """
    tokens = pool.block_tokens
    first, end = start // tokens, -(-context // tokens)
    blocks = table[first:end].long().unsqueeze(0)
    keys, values = (x[0] for x in _read(pool, layer, blocks, dtype))
    if pool.tail is not None and context % tokens:
        keys[-1] = pool.tail[row, layer]
    inside = slice(start - first * tokens, context - first * tokens)
    return (
        keys.transpose(1, 2).flatten(0, 1)[inside],
        values.transpose(1, 2).flatten(0, 1)[inside],
    )


def _store(
    x: Tensor, encoding: str, elements: Tensor, scales: Tensor | None, places: Places
) -> None:
    """Write x [tokens, kv_heads, dim], encoded token by token."""
    numbers, beside = CODECS[encoding].encode(x)
    elements[places.blocks, :, places.slots] = numbers
    if scales is not None and beside is not None:
        _by_token(scales)[places.blocks, :, places.slots] = beside


def _store_by_channel(k: Tensor, pool: KvPool, tail: Tensor, layer: int, places: Places) -> None:
    """Write k [tokens, kv_heads, dim] to `tail` [rows, kv_heads, block_tokens, dim], and from there
    to the pool what is full."""
    step, tokens, decodes = places.step, pool.block_tokens, places.step.decodes
    k = k.to(tail.dtype)
    rows, blocks = step.rows[:decodes].long(), places.blocks[:decodes]
    tail[rows, :, places.slots[:decodes]] = k[:decodes]
    full = step.context[:decodes] % tokens == 0
    if full.device.type == "cpu":
        rows, blocks = rows[full], blocks[full]
    else:  # who is full is not read back: the others are written to the null block
        blocks = torch.where(full, blocks, 0)
    if len(rows):
        _store_blocks(tail[rows], pool, layer, blocks)
    for chunk in places.chunks:
        held = chunk.first % tokens
        keys = torch.cat((tail[chunk.row, :, :held], k[chunk.begin : chunk.end].transpose(0, 1)), 1)
        whole = keys.shape[1] // tokens
        if whole:
            first = chunk.first // tokens
            blocks = chunk.table[first : first + whole].long()
            filled = keys[:, : whole * tokens].unflatten(1, (whole, tokens)).transpose(0, 1)
            _store_blocks(filled, pool, layer, blocks)
        rest = keys[:, whole * tokens :]
        tail[chunk.row, :, : rest.shape[1]] = rest


def _store_blocks(x: Tensor, pool: KvPool, layer: int, blocks: Tensor) -> None:
    """Write the keys x [blocks, kv_heads, block_tokens, dim] of full blocks."""
    key, _ = KV_DTYPES[pool.kv_dtype]
    numbers, beside = CODECS[key].encode(x)
    scales = pool.key_scales(layer)
    assert scales is not None and beside is not None
    pool.keys(layer)[blocks] = numbers
    scales[blocks] = beside


def _read(pool: KvPool, layer: int, blocks: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Keys and values of `blocks` [sequences, columns], decoded to
    [sequences, columns, kv_heads, block_tokens, dim]."""
    key, value = KV_DTYPES[pool.kv_dtype]
    flat = blocks.flatten()

    def decoded(encoding: str, elements: Tensor, scales: Tensor | None) -> Tensor:
        beside = None if scales is None else scales.index_select(0, flat)
        if beside is not None and encoding != "int4_channel":
            beside = _by_token(beside)
        numbers = elements.index_select(0, flat)
        return CODECS[encoding].decode(numbers, beside, dtype).unflatten(0, blocks.shape)

    return (
        decoded(key, pool.keys(layer), pool.key_scales(layer)),
        decoded(value, pool.values(layer), pool.value_scales(layer)),
    )


def _by_token(scales: Tensor) -> Tensor:
    """Scales of blocks with the token's dimension before that of scale and least."""
    return scales if scales.dim() == 3 else scales.transpose(2, 3)


def _decode(q: Tensor, pool: KvPool, layer: int, group: Group) -> Tensor:
    """Attention of one token of each sequence: q [members, heads, dim], scaled -> the same."""
    keys, values = _read(pool, layer, group.blocks, q.dtype)
    each = torch.arange(len(q), device=q.device)
    if pool.tail is not None:
        held = pool.tail[group.rows, layer].to(q.dtype)
        keys[each, group.last] = torch.where(group.partial, held, keys[each, group.last])
    # what an earlier owner left may be NaN, which a weight of 0 does not make 0
    values[each, group.last] = values[each, group.last].masked_fill_(group.unwritten, 0)
    keys, values = (x.transpose(1, 2).flatten(2, 3) for x in (keys, values))
    grouped = q.unflatten(1, (keys.shape[1], -1))
    scores = torch.matmul(grouped, keys.transpose(-1, -2)).masked_fill_(group.hidden, -torch.inf)
    return torch.matmul(scores.softmax(-1), values).flatten(1, 2)


def _prefill(q: Tensor, pool: KvPool, layer: int, chunk: Chunk, window: int) -> Tensor:
    """Attention of a chunk, tile by tile: q [tokens, heads, dim], scaled -> the same."""
    start = max(0, chunk.first - window + 1) if window else 0
    keys, values = (
        x.transpose(0, 1).contiguous()
        for x in read_sequence(
            pool, layer, chunk.table, chunk.row, chunk.context, start=start, dtype=q.dtype
        )
    )
    out = torch.empty_like(q)
    for begin in range(0, len(q), TILE_TOKENS):
        tile = q[begin : begin + TILE_TOKENS]
        first = chunk.first + begin - start
        low = max(0, first - window + 1) if window else 0
        seen = slice(low, first + len(tile))
        out[begin : begin + len(tile)] = _tile(
            tile, keys[:, seen], values[:, seen], first - low, window
        )
    return out


def _tile(q: Tensor, keys: Tensor, values: Tensor, past: int, window: int) -> Tensor:
    """Attention of consecutive tokens: q [tokens, heads, dim], keys and values [kv_heads, past +
    tokens, dim], the last of them the tokens' own."""
    tokens, heads = q.shape[:2]
    kv_heads = len(keys)
    grouped = q.unflatten(1, (kv_heads, -1)).permute(1, 2, 0, 3)
    rows = grouped.flatten(1, 2)
    scores = torch.matmul(rows, keys.transpose(1, 2)).view(kv_heads, -1, tokens, past + tokens)
    each = torch.arange(tokens, device=q.device)
    later = each > each.unsqueeze(1)
    scores[..., past:].masked_fill_(later, -torch.inf)
    if window:
        # only among the first keys is one too far back for some of the tokens and near for others
        distance = past + each.unsqueeze(1) - each
        scores[..., :tokens].masked_fill_(distance >= window, -torch.inf)
    weights = scores.softmax(-1).flatten(1, 2)
    out = torch.matmul(weights, values).unflatten(1, (-1, tokens))
    return out.permute(2, 0, 1, 3).reshape(tokens, heads, -1)


def _wide(x: Tensor) -> torch.dtype:
    """What to compute in: fp32, or fp64 where x is."""
    return torch.promote_types(x.dtype, torch.float32)
