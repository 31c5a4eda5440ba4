"""Conversions of packed numbers in Nvidia's assembly: several at a time, exactly.

Bits of a whole number are put into the mantissa of a floating point number whose last place counts
as 1 (1024 in fp16, 128 in bf16), which is then subtracted. $0 .. are the results, pairs of 16-bit
numbers, then come the arguments; element by element, everything keeps its order.
"""

import triton.language as tl

INT8_TO_FP16 = tl.constexpr("""{
    .reg .b32 biased, base;
    mov.b32 base, 0x64806480;
    xor.b32 biased, $2, 0x80808080;
    prmt.b32 $0, biased, 0x64646464, 0x4140;
    prmt.b32 $1, biased, 0x64646464, 0x4342;
    sub.f16x2 $0, $0, base;
    sub.f16x2 $1, $1, base;
}""")
"""Four bytes x, as 1024 + (x + 128)."""

INT4_TO_FP16 = tl.constexpr("""{
    .reg .b32 pair, base, sixteenth, back;
    mov.b32 base, 0x64006400;
    mov.b32 sixteenth, 0x2C002C00;
    mov.b32 back, 0xD400D400;
    prmt.b32 pair, $4, 0, 0x4140;
    lop3.b32 $0, pair, 0x000F000F, base, 0xEA;
    lop3.b32 $2, pair, 0x00F000F0, base, 0xEA;
    prmt.b32 pair, $4, 0, 0x4342;
    lop3.b32 $1, pair, 0x000F000F, base, 0xEA;
    lop3.b32 $3, pair, 0x00F000F0, base, 0xEA;
    sub.f16x2 $0, $0, base;
    sub.f16x2 $1, $1, base;
    fma.rn.f16x2 $2, $2, sixteenth, back;
    fma.rn.f16x2 $3, $3, sixteenth, back;
}""")
"""Four bytes: their lower halves, and their upper ones, which count as 16 in 1024 + number x 16."""

INT8_WORDS_TO_BF16 = tl.constexpr("""{
    .reg .b32 pair, negative;
    prmt.b32 pair, $4, $5, 0x0400;
    lop3.b32 $0, pair, 0x007F007F, 0x43004300, 0xEA;
    lop3.b32 negative, pair, 0x00800080, 0x43004300, 0xEA;
    sub.bf16x2 $0, $0, negative;
    prmt.b32 pair, $4, $5, 0x0501;
    lop3.b32 $1, pair, 0x007F007F, 0x43004300, 0xEA;
    lop3.b32 negative, pair, 0x00800080, 0x43004300, 0xEA;
    sub.bf16x2 $1, $1, negative;
    prmt.b32 pair, $4, $5, 0x0602;
    lop3.b32 $2, pair, 0x007F007F, 0x43004300, 0xEA;
    lop3.b32 negative, pair, 0x00800080, 0x43004300, 0xEA;
    sub.bf16x2 $2, $2, negative;
    prmt.b32 pair, $4, $5, 0x0703;
    lop3.b32 $3, pair, 0x007F007F, 0x43004300, 0xEA;
    lop3.b32 negative, pair, 0x00800080, 0x43004300, 0xEA;
    sub.bf16x2 $3, $3, negative;
}""")
"""Two words of four bytes x: seven bits as 128 + bits, less 128, or less 256 where x < 0."""

INT4_WORDS_TO_BF16 = tl.constexpr("""{
    .reg .b32 base, shifted;
    mov.b32 base, 0x43004300;
    lop3.b32 $0, $4, 0x000F000F, base, 0xEA;
    shr.u32 shifted, $4, 4;
    lop3.b32 $1, shifted, 0x000F000F, base, 0xEA;
    shr.u32 shifted, $4, 8;
    lop3.b32 $2, shifted, 0x000F000F, base, 0xEA;
    shr.u32 shifted, $4, 12;
    lop3.b32 $3, shifted, 0x000F000F, base, 0xEA;
    sub.bf16x2 $0, $0, base;
    sub.bf16x2 $1, $1, base;
    sub.bf16x2 $2, $2, base;
    sub.bf16x2 $3, $3, base;
}""")
"""Two words of four numbers of 4 bits."""

FP8_WORDS_TO_FP16 = tl.constexpr("""{
    .reg .b32 low, high;
    .reg .b16 first, second;
    prmt.b32 low, $4, $5, 0x5140;
    prmt.b32 high, $4, $5, 0x7362;
    mov.b32 {first, second}, low;
    cvt.rn.f16x2.e4m3x2 $0, first;
    cvt.rn.f16x2.e4m3x2 $1, second;
    mov.b32 {first, second}, high;
    cvt.rn.f16x2.e4m3x2 $2, first;
    cvt.rn.f16x2.e4m3x2 $3, second;
}""")
"""Two words of four e4m3 numbers."""

FP8_WORDS_TO_BF16 = tl.constexpr("""{
    .reg .b32 low, high, halves;
    .reg .b16 first, second, a, b;
    .reg .f32 x, y;
    prmt.b32 low, $4, $5, 0x5140;
    prmt.b32 high, $4, $5, 0x7362;
    mov.b32 {first, second}, low;
    cvt.rn.f16x2.e4m3x2 halves, first;
    mov.b32 {a, b}, halves;
    cvt.f32.f16 x, a;
    cvt.f32.f16 y, b;
    cvt.rn.bf16x2.f32 $0, y, x;
    cvt.rn.f16x2.e4m3x2 halves, second;
    mov.b32 {a, b}, halves;
    cvt.f32.f16 x, a;
    cvt.f32.f16 y, b;
    cvt.rn.bf16x2.f32 $1, y, x;
    mov.b32 {first, second}, high;
    cvt.rn.f16x2.e4m3x2 halves, first;
    mov.b32 {a, b}, halves;
    cvt.f32.f16 x, a;
    cvt.f32.f16 y, b;
    cvt.rn.bf16x2.f32 $2, y, x;
    cvt.rn.f16x2.e4m3x2 halves, second;
    mov.b32 {a, b}, halves;
    cvt.f32.f16 x, a;
    cvt.f32.f16 y, b;
    cvt.rn.bf16x2.f32 $3, y, x;
}""")
"""The same by way of fp16, which holds them exactly, as bf16 does."""
