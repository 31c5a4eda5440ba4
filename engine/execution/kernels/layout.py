"""A pool's format as the kernels are compiled for it."""

from dataclasses import dataclass, replace
from functools import cache
from typing import Final, Literal, NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from engine.execution.kernels.chip import chip, dot_dtype
from engine.execution.kvcache import KvPool
from engine.kvformats import KV_DTYPES, BlockLayout, Encoding, Scales
from traces.errors import ConfigError

DIMS: Final = (16, 32, 64, 128, 256)
"""Head dims that fill the tiles."""

Kind = Literal["float", "fp8", "int8", "int4"]
"""What a number of the pool is."""


@dataclass(frozen=True, slots=True)
class Vectors:
    """How the keys, or the values, of a pool are written."""

    kind: Kind
    scales: Scales
    row: int
    """Elements from one token's vector to the next."""
    scale_head: int
    """Scales from one head to the next."""
    dot: tl.dtype
    """What its matrix product takes."""
    parts: int
    """Matrix products that a tile of values takes: one; one for each half of the channels; or one
    for each number of a word, where tensor cores need pairs of tokens and not of channels."""


@dataclass(frozen=True, slots=True)
class Format:
    """All that a kernel is compiled for; in the kernels a compile-time constant, where nothing may
    be called `value` or `type`."""

    keys: Vectors
    values: Vectors
    block_tokens: int
    dim: int
    native: bool
    """The device converts e4m3 itself, and packed numbers by instructions of its own."""


class View(NamedTuple):
    """A layer of the pool: its tensors, and how many elements further on the next block is."""

    keys: Tensor
    key_scales: Tensor
    """Without scales the keys again, and likewise below."""
    values: Tensor
    value_scales: Tensor
    key_block: int
    key_scale_block: int
    value_block: int
    value_scale_block: int


def view(pool: KvPool, layer: int) -> View:
    """What the kernels are given of the pool, in this order."""
    keys, values = pool.keys(layer), pool.values(layer)
    key_scales, value_scales = pool.key_scales(layer), pool.value_scales(layer)
    return _view(
        keys,
        keys if key_scales is None else key_scales,
        values,
        values if value_scales is None else value_scales,
    )


def view_in_words(pool: KvPool, layer: int) -> View:
    """The same for attention, which takes values in four parts word by word."""
    found = view(pool, layer)
    if _parts(pool.layout.value) < 4:
        return found
    word = torch.int16 if pool.layout.value.bits == 4 else torch.int32
    return _view(found.keys, found.key_scales, found.values.view(word), found.value_scales)


def _view(*tensors: Tensor) -> View:
    keys, key_scales, values, value_scales = tensors
    return View(keys, key_scales, values, value_scales, *(tensor.stride(0) for tensor in tensors))


@cache
def pool_format(layout: BlockLayout, dtype: torch.dtype, device: torch.device) -> Format:
    """The format of a pool laid out so, for computing in `dtype` on `device`.

    Raises:
        ConfigError: for a head_dim or block_tokens that the kernels have no tiles for.
    """
    dim, tokens = layout.head_dim, layout.block_tokens
    if dim not in DIMS:
        raise ConfigError(
            f"kernels: triton needs a head_dim of {', '.join(map(str, DIMS))}, got {dim};"
            " kernels: torch takes any"
        )
    if layout.key.scales == "channel_least" and tokens & (tokens - 1):
        raise ConfigError(
            f"kernels: triton with kv dtype {layout.kv_dtype} needs block_tokens that are a power"
            f" of two, got {tokens}; kernels: torch takes any"
        )
    key, value = KV_DTYPES[layout.kv_dtype]
    return Format(
        keys=_vectors(key, layout.key, layout, _key_dtype(layout.key, dtype)),
        values=_vectors(value, layout.value, layout, _value_dtype(layout.value, dtype)),
        block_tokens=tokens,
        dim=dim,
        native=chip(device).native,
    )


def tail_format(pool: Format) -> Format:
    """The format of a sequence's last block while its keys are in the tail beside the pool."""
    keys = Vectors("float", "none", pool.dim, 0, pool.keys.dot, 1)
    return replace(pool, keys=keys)


def _key_dtype(encoding: Encoding, dtype: torch.dtype) -> torch.dtype:
    """Packed numbers are exact in fp16, and quickly converted to it."""
    return torch.float16 if encoding.bits < 16 and dtype == torch.bfloat16 else dtype


def _value_dtype(encoding: Encoding, dtype: torch.dtype) -> torch.dtype:
    """Likewise; but a weight times the scale of a value may be too small or too large for fp16."""
    if encoding.scales in ("token", "token_least") and dtype == torch.float16:
        return torch.bfloat16
    return dtype if encoding.scales in ("token", "token_least") else _key_dtype(encoding, dtype)


def _vectors(name: str, encoding: Encoding, layout: BlockLayout, dtype: torch.dtype) -> Vectors:
    dim, scales = layout.head_dim, encoding.scales
    kinds: dict[int, Kind] = {4: "int4", 8: "int8" if name.startswith("int8") else "fp8"}
    scale_bytes = 4 if scales == "token" else 2
    return Vectors(
        kind=kinds.get(encoding.bits, "float"),
        scales=scales,
        row=dim // 2 if encoding.bits == 4 else dim,
        scale_head=encoding.scale_bytes(dim, layout.block_tokens) // scale_bytes,
        dot=dot_dtype(dtype),
        parts=_parts(encoding),
    )


def _parts(encoding: Encoding) -> int:
    if encoding.bits >= 16:
        return 1
    return 2 if encoding.scales == "group_least" else 4
