"""How a block of KV cache looks in memory, format by format: bits, scales, byte offsets.

Torch-free: capacity and cost model count these bytes, the engine's pool and kernels lay them out.

A block holds `block_tokens` tokens of every layer and is one run of bytes, so that it moves to
another tier as one copy. Inside it, layer after layer:

    keys          [kv_heads, block_tokens, packed bytes of head_dim elements]
    values        [kv_heads, block_tokens, packed bytes of head_dim elements]
    key scales    by encoding, see `Encoding.scales`
    value scales  by encoding

Two 4-bit elements share a byte: byte j holds channel j in its low half and channel
j + head_dim / 2 in its high half. 4-bit numbers are unsigned: x = number x scale + least.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from traces.errors import ConfigError

Scales = Literal["none", "token", "token_least", "channel_least", "group_least"]

GROUP_CHANNELS: Final = 32
"""Channels of a value vector that share a scale in `int4_group`."""


@dataclass(frozen=True, slots=True)
class Encoding:
    """How the vectors of one kind, keys or values, are written."""

    bits: int
    """Of an element."""
    scales: Scales = "none"
    """What stands beside the elements:

    none           nothing
    token          fp32 scale [kv_heads, block_tokens]; x = number x scale
    token_least    fp16 [kv_heads, 2, block_tokens]: scale, then least, of a head's vector
    channel_least  fp16 [kv_heads, 2, head_dim]: scale, then least, of a channel over the block
    group_least    fp16 [kv_heads, 2, block_tokens, head_dim / 32]: of 32 channels of a vector
    """

    def vector_bytes(self, head_dim: int) -> int:
        """Bytes of the elements of one head's vector of one token."""
        return -(-head_dim * self.bits // 8)

    def scale_bytes(self, head_dim: int, block_tokens: int) -> int:
        """Bytes beside the elements of one head of one block."""
        return {
            "none": 0,
            "token": 4 * block_tokens,
            "token_least": 4 * block_tokens,
            "channel_least": 4 * head_dim,
            "group_least": 4 * block_tokens * -(-head_dim // GROUP_CHANNELS),
        }[self.scales]


ENCODINGS: Final[Mapping[str, Encoding]] = {
    "fp32": Encoding(32),
    "bf16": Encoding(16),
    "fp16": Encoding(16),
    "fp8": Encoding(8),
    "fp8_token": Encoding(8, "token"),
    "int8_token": Encoding(8, "token"),
    "int4_token": Encoding(4, "token_least"),
    "int4_channel": Encoding(4, "channel_least"),
    "int4_group": Encoding(4, "group_least"),
}

KV_DTYPES: Final[Mapping[str, tuple[str, str]]] = {
    "bf16": ("bf16", "bf16"),
    "fp16": ("fp16", "fp16"),
    "fp32": ("fp32", "fp32"),
    "fp8": ("fp8", "fp8"),
    "fp8_token_head": ("fp8_token", "fp8_token"),
    "int8": ("int8_token", "int8_token"),
    "int4": ("int4_token", "int4_token"),
    "int4_channel": ("int4_channel", "int4_group"),
    "k8v4": ("int8_token", "int4_token"),
}
"""Encoding of keys and of values. fp8 is e4m3 with the scale 1, as vLLM's `fp8`; fp8_token_head
and int8 are vLLM's `*_per_token_head`; int4_channel is KIVI's way (keys by channel, values by
token, arXiv 2402.02750): the last, unfilled block of a sequence is kept in 16 bits beside the
pool until it is full."""


@dataclass(frozen=True, slots=True)
class BlockLayout:
    """Where everything is inside a block; all figures in bytes, all offsets inside a layer."""

    kv_dtype: str
    key: Encoding
    value: Encoding
    layers: int
    kv_heads: int
    head_dim: int
    block_tokens: int
    value_offset: int
    key_scale_offset: int
    value_scale_offset: int
    layer_bytes: int
    """From one layer to the next: a multiple of 16, so that vector loads are aligned."""

    @property
    def block_bytes(self) -> int:
        """From one block to the next."""
        return self.layers * self.layer_bytes


def block_layout(
    kv_dtype: str, layers: int, kv_heads: int, head_dim: int, block_tokens: int
) -> BlockLayout:
    """The layout of blocks of `kv_dtype` (a key of KV_DTYPES) on one GPU.

    Raises:
        ConfigError: for an unknown dtype, or a head_dim that a 4-bit format cannot pack.
    """
    if kv_dtype not in KV_DTYPES:
        raise ConfigError(f"kv dtype {kv_dtype!r} is unknown; known: {', '.join(KV_DTYPES)}")
    key, value = (ENCODINGS[name] for name in KV_DTYPES[kv_dtype])
    if (key.bits == 4 or value.bits == 4) and head_dim % (2 * GROUP_CHANNELS):
        raise ConfigError(
            f"kv dtype {kv_dtype}: needs a head_dim that is a multiple of {2 * GROUP_CHANNELS},"
            f" got {head_dim}"
        )
    vectors = kv_heads * block_tokens
    value_offset = _aligned(vectors * key.vector_bytes(head_dim))
    key_scales = value_offset + _aligned(vectors * value.vector_bytes(head_dim))
    value_scales = key_scales + _aligned(kv_heads * key.scale_bytes(head_dim, block_tokens))
    end = value_scales + _aligned(kv_heads * value.scale_bytes(head_dim, block_tokens))
    return BlockLayout(
        kv_dtype=kv_dtype,
        key=key,
        value=value,
        layers=layers,
        kv_heads=kv_heads,
        head_dim=head_dim,
        block_tokens=block_tokens,
        value_offset=value_offset,
        key_scale_offset=key_scales,
        value_scale_offset=value_scales,
        layer_bytes=end,
    )


def _aligned(size_bytes: int) -> int:
    return -(-size_bytes // 16) * 16
