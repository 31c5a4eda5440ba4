"""Keys and values as the KV formats write them: numbers, and what stands beside them.

Numbers take the element type of the pool (see kvcache.ELEMENTS), their last dimension is packed.
What stands beside them, `beside`, follows the vector it belongs to:

    scales         numbers of x                beside
    none           [..., dim]                  None
    token          [..., dim]                  [...] fp32: scale
    token_least    [..., dim / 2]              [..., 2] fp16: scale, least
    group_least    [..., dim / 2]              [..., 2, dim / 32] fp16
    channel_least  [..., tokens, dim / 2]      [..., 2, dim] fp16; x is all tokens of a block

Every number is the nearest one for the scale as stored, ties to even.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

import torch
from torch import Tensor

from engine.kvformats import GROUP_CHANNELS

INT8_MAX: Final = 127.0
FP8_MAX: Final = 448.0
"""Largest e4m3fn number."""
INT4_MAX: Final = 15
LEAST_SCALE: Final = torch.finfo(torch.float32).tiny
"""A scale in fp32 is no smaller: a vector of zeros divides by it, and it is not rounded itself."""
FP16_MAX: Final = torch.finfo(torch.float16).max


class Codec(NamedTuple):
    """One encoding, there and back."""

    encode: Callable[[Tensor], tuple[Tensor, Tensor | None]]
    """x -> (numbers, beside). Computes in fp32."""
    decode: Callable[[Tensor, Tensor | None, torch.dtype], Tensor]
    """(numbers, beside, dtype) -> x in `dtype`, one of 32 bits or more; may be `numbers` itself."""


def as_is(element: torch.dtype) -> Codec:
    """No scale: x rounded to `element`."""

    def encode(x: Tensor) -> tuple[Tensor, Tensor | None]:
        return x.to(element), None

    def decode(numbers: Tensor, beside: Tensor | None, dtype: torch.dtype) -> Tensor:
        return numbers.to(dtype)

    return Codec(encode, decode)


def encode_fp8(x: Tensor) -> tuple[Tensor, Tensor | None]:
    """e4m3fn bits; beyond 448 saturates."""
    return _e4m3_bits(x.float()), None


def decode_fp8(numbers: Tensor, beside: Tensor | None, dtype: torch.dtype) -> Tensor:
    """e4m3fn bits as they are."""
    return _from_e4m3_bits(numbers, dtype)


def encode_fp8_token(x: Tensor) -> tuple[Tensor, Tensor | None]:
    """The largest of a vector becomes 448."""
    x, scale = _scaled(x, FP8_MAX)
    return _e4m3_bits(x), scale


def decode_fp8_token(numbers: Tensor, beside: Tensor | None, dtype: torch.dtype) -> Tensor:
    """number x scale."""
    assert beside is not None
    return _from_e4m3_bits(numbers, dtype).mul_(beside.unsqueeze(-1))


def encode_int8_token(x: Tensor) -> tuple[Tensor, Tensor | None]:
    """The largest of a vector becomes 127."""
    x, scale = _scaled(x, INT8_MAX)
    return x.round_().to(torch.int8), scale


def decode_int8_token(numbers: Tensor, beside: Tensor | None, dtype: torch.dtype) -> Tensor:
    """number x scale."""
    assert beside is not None
    return numbers.to(dtype).mul_(beside.unsqueeze(-1))


def encode_int4_token(x: Tensor) -> tuple[Tensor, Tensor | None]:
    """16 steps from the least to the largest of a vector."""
    numbers, scale, least = _sixteen_steps(x.float(), -1)
    return _pack(numbers), torch.cat((scale, least), -1)


def decode_int4_token(numbers: Tensor, beside: Tensor | None, dtype: torch.dtype) -> Tensor:
    """number x scale + least."""
    assert beside is not None
    scale, least = beside.to(dtype).split(1, -1)
    return _unpack(numbers, dtype).mul_(scale).add_(least)


def encode_int4_group(x: Tensor) -> tuple[Tensor, Tensor | None]:
    """16 steps from the least to the largest of 32 channels of a vector."""
    numbers, scale, least = _sixteen_steps(x.float().unflatten(-1, (-1, GROUP_CHANNELS)), -1)
    return _pack(numbers.flatten(-2)), torch.stack((scale, least), -3).squeeze(-1)


def decode_int4_group(numbers: Tensor, beside: Tensor | None, dtype: torch.dtype) -> Tensor:
    """number x scale + least."""
    assert beside is not None
    scale, least = beside.to(dtype).unsqueeze(-1).unbind(-3)
    x = _unpack(numbers, dtype)
    x.unflatten(-1, (-1, GROUP_CHANNELS)).mul_(scale).add_(least)
    return x


def encode_int4_channel(x: Tensor) -> tuple[Tensor, Tensor | None]:
    """16 steps from the least to the largest of a channel over the tokens of a block."""
    numbers, scale, least = _sixteen_steps(x.float(), -2)
    return _pack(numbers), torch.cat((scale, least), -2)


def decode_int4_channel(numbers: Tensor, beside: Tensor | None, dtype: torch.dtype) -> Tensor:
    """number x scale + least."""
    assert beside is not None
    scale, least = beside.to(dtype).split(1, -2)
    return _unpack(numbers, dtype).mul_(scale).add_(least)


CODECS: Final = {
    "fp32": as_is(torch.float32),
    "bf16": as_is(torch.bfloat16),
    "fp16": as_is(torch.float16),
    "fp8": Codec(encode_fp8, decode_fp8),
    "fp8_token": Codec(encode_fp8_token, decode_fp8_token),
    "int8_token": Codec(encode_int8_token, decode_int8_token),
    "int4_token": Codec(encode_int4_token, decode_int4_token),
    "int4_channel": Codec(encode_int4_channel, decode_int4_channel),
    "int4_group": Codec(encode_int4_group, decode_int4_group),
}
"""By name in engine.kvformats.ENCODINGS."""


def _scaled(x: Tensor, largest: float) -> tuple[Tensor, Tensor]:
    """x [..., dim] divided by the scale [...] that makes each vector's largest `largest`."""
    x = x.float()
    scale = x.abs().amax(-1).div_(largest).clamp_min_(LEAST_SCALE)
    return x / scale.unsqueeze(-1), scale


def _e4m3_bits(x: Tensor) -> Tensor:
    # not every version of the cast saturates: NaN may come of what is too large
    return x.clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn).view(torch.uint8)


def _from_e4m3_bits(bits: Tensor, dtype: torch.dtype) -> Tensor:
    """All numbers exactly; the code of NaN becomes 480.

    An fp16 has its exponent and mantissa 7 bits further left and an exponent's bias that is larger
    by 8. On CPUs this is ten times faster than the cast, which is not vectorised.
    """
    sign_extended = bits.view(torch.int8).to(torch.int16)
    halves = sign_extended.bitwise_left_shift_(7).bitwise_and_(~0x4000).view(torch.float16)
    return halves.to(dtype).mul_(256)


def _sixteen_steps(x: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers 0..15 of x, and scale and least over `dim`, which they keep with size 1."""
    low, high = x.amin(dim, keepdim=True), x.amax(dim, keepdim=True)
    scale = ((high - low) / INT4_MAX).clamp_max_(FP16_MAX).half()
    least = low.clamp(-FP16_MAX, FP16_MAX).half()
    # a spread too small for fp16, or none: all numbers 0
    step = torch.where(scale > 0, scale.float(), torch.inf)
    numbers = ((x - least.float()) / step).round_().clamp_(0, INT4_MAX)
    return numbers.to(torch.uint8), scale, least


def _pack(numbers: Tensor) -> Tensor:
    low, high = numbers.chunk(2, -1)
    return low | (high << 4)


def _unpack(packed: Tensor, dtype: torch.dtype) -> Tensor:
    half = packed.shape[-1]
    x = torch.empty((*packed.shape[:-1], 2 * half), dtype=dtype, device=packed.device)
    x[..., :half] = packed & 15
    x[..., half:] = packed >> 4
    return x
