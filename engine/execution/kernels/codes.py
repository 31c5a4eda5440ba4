"""Numbers of the KV formats in registers: decoded for a dot, encoded from fp32.

Encoding rounds as engine.execution.quantize does, to the last bit.
"""

import triton
import triton.language as tl

from engine.execution.kernels.ptx import (
    FP8_WORDS_TO_BF16,
    FP8_WORDS_TO_FP16,
    INT4_TO_FP16,
    INT4_WORDS_TO_BF16,
    INT8_TO_FP16,
    INT8_WORDS_TO_BF16,
)


@triton.jit
def load_numbers(rows, VECTORS: tl.constexpr, FORMAT: tl.constexpr):
    """Keys [tokens, dim] at pointers `rows` [tokens], ready for a dot but for their scales."""
    DIM: tl.constexpr = FORMAT.dim
    if VECTORS.kind == "int4":
        low, high = from_int4(
            tl.load(rows[:, None] + tl.arange(0, DIM // 2)[None, :]), VECTORS, FORMAT
        )
        x = join_halves(low, high)
    else:
        x = tl.load(rows[:, None] + tl.arange(0, DIM)[None, :])
        x = from_float(x, VECTORS) if VECTORS.kind == "float" else from_8_bits(x, VECTORS, FORMAT)
    return x


@triton.jit
def join_halves(low, high):
    """[tokens, n] of the lower and of the upper channels -> [tokens, 2 n]."""
    x = tl.permute(tl.join(low, high), (0, 2, 1))
    return tl.reshape(x, (low.shape[0], 2 * low.shape[1]))


@triton.jit
def from_float(x, VECTORS: tl.constexpr):
    """Numbers for a dot; in fp16 those that are too large become its largest."""
    if VECTORS.dot == tl.float16 and x.dtype != tl.float16:
        x = tl.clamp(x.to(tl.float32), -65504.0, 65504.0)
    return x.to(VECTORS.dot)


@triton.jit
def from_8_bits(x, VECTORS: tl.constexpr, FORMAT: tl.constexpr):
    """Numbers of int8, or of e4m3fn bits (uint8), for a dot."""
    if VECTORS.kind == "int8":
        if FORMAT.native and VECTORS.dot == tl.float16:
            x = tl.inline_asm_elementwise(
                INT8_TO_FP16, "=&r,=&r,r", [x], dtype=tl.float16, is_pure=True, pack=4
            )
    elif FORMAT.native:
        x = x.to(tl.float8e4nv, bitcast=True)
    else:
        # fp16 has exponent and mantissa 7 bits further left, and an exponent's bias larger by 8
        wide = x.to(tl.uint16)
        halves = ((wide & 0x7F) << 7) | ((wide & 0x80) << 8)
        x = halves.to(tl.float16, bitcast=True).to(tl.float32) * 256.0
    return x.to(VECTORS.dot)


@triton.jit
def from_int4(x, VECTORS: tl.constexpr, FORMAT: tl.constexpr):
    """Numbers 0..15 of the lower and of the upper halves of bytes, for a dot."""
    if FORMAT.native and VECTORS.dot == tl.float16:
        low, high = tl.inline_asm_elementwise(
            INT4_TO_FP16,
            "=&r,=&r,=&r,=&r,r",
            [x],
            dtype=(tl.float16, tl.float16),
            is_pure=True,
            pack=4,
        )
    else:
        low = (x & 15).to(VECTORS.dot)
        high = (x >> 4).to(VECTORS.dot)
    return low, high


@triton.jit
def from_words(x, VECTORS: tl.constexpr, FORMAT: tl.constexpr):
    """The four numbers of each word, for a dot: bytes of int32 or 4 bits of int16, lowest first.

    So tensor cores get pairs of tokens without loads of single bytes.
    """
    if FORMAT.native and VECTORS.dot == tl.float16:
        a, b, c, d = tl.inline_asm_elementwise(
            FP8_WORDS_TO_FP16,
            "=&r,=&r,=&r,=&r,r,r",
            [x],
            dtype=(tl.float16, tl.float16, tl.float16, tl.float16),
            is_pure=True,
            pack=2,
        )
    elif FORMAT.native and VECTORS.dot == tl.bfloat16:
        if VECTORS.kind == "fp8":
            ASM: tl.constexpr = FP8_WORDS_TO_BF16
        elif VECTORS.kind == "int8":
            ASM: tl.constexpr = INT8_WORDS_TO_BF16
        else:
            ASM: tl.constexpr = INT4_WORDS_TO_BF16
        a, b, c, d = tl.inline_asm_elementwise(
            ASM,
            # two of the shorter words are one argument
            "=&r,=&r,=&r,=&r,r" if VECTORS.kind == "int4" else "=&r,=&r,=&r,=&r,r,r",
            [x],
            dtype=(tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16),
            is_pure=True,
            pack=2,
        )
    else:
        BITS: tl.constexpr = 4 if VECTORS.kind == "int4" else 8
        a = _number(x, VECTORS, FORMAT)
        b = _number(x >> BITS, VECTORS, FORMAT)
        c = _number(x >> (2 * BITS), VECTORS, FORMAT)
        d = _number(x >> (3 * BITS), VECTORS, FORMAT)
    return (a, b, c, d)


@triton.jit
def _number(x, VECTORS: tl.constexpr, FORMAT: tl.constexpr):
    """The lowest number of each word, for a dot."""
    if VECTORS.kind == "int4":
        x = (x & 15).to(VECTORS.dot)
    elif VECTORS.kind == "int8":
        x = ((x << 24) >> 24).to(VECTORS.dot)
    else:
        x = from_8_bits((x & 255).to(tl.uint8), VECTORS, FORMAT)
    return x


@triton.jit
def e4m3_bits(x):
    """fp32 -> bits of the nearest e4m3fn, ties to even, saturating at 448, as uint8."""
    size = tl.minimum(tl.abs(x), 448.0)
    bits = size.to(tl.uint32, bitcast=True)
    # a carry out of the mantissa's three bits moves the exponent on, as it should
    normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20) - (120 << 3)
    subnormal = round_even(size * 512.0).to(tl.uint32)
    number = tl.where(size < 0.015625, subnormal, normal)
    number = tl.where(x != x, 0x7F, number)
    sign = (x.to(tl.uint32, bitcast=True) >> 24) & 0x80
    return (number | sign).to(tl.uint8)


@triton.jit
def round_even(x):
    """The nearest whole number, ties to even, of |x| < 2**22: the sum has no room for less."""
    return (x + 12582912.0) - 12582912.0


@triton.jit
def scale_of(largest, LARGEST_NUMBER: tl.constexpr):
    """fp32 scale that makes `largest` the largest number; of zeros the least normal one."""
    scale = tl.div_rn(largest, tl.full(largest.shape, LARGEST_NUMBER, tl.float32))
    return tl.maximum(scale, 1.1754943508222875e-38)


@triton.jit
def sixteen_steps(least, most):
    """Scale and least in fp16 of 16 steps from `least` to `most` (fp32, any shape)."""
    span = tl.div_rn(most - least, tl.full(least.shape, 15.0, tl.float32))
    scale = tl.minimum(span, 65504.0).to(tl.float16)
    return scale, tl.minimum(tl.maximum(least, -65504.0), 65504.0).to(tl.float16)


@triton.jit
def step_number(x, scale, least):
    """The 0..15 nearest to x for a scale and least as stored, in fp16 (broadcast to x)."""
    step = tl.where(scale > 0, scale.to(tl.float32), float("inf"))
    number = tl.div_rn(x - least.to(tl.float32), tl.broadcast_to(step, x.shape))
    return round_even(tl.minimum(tl.maximum(number, 0.0), 15.0)).to(tl.uint8)
