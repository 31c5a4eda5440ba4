"""The few instructions of Nvidia's assembly that the kernels' conversions consist of, on numpy."""

import re
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

Lanes = NDArray[np.uint32]
"""A register of many threads."""


def run(assembly: str, results: int, arguments: Sequence[Lanes]) -> list[Lanes]:
    """Registers $0 .. of `results` after the assembly has run on `arguments`, which follow them."""
    registers = {f"${results + at}": argument for at, argument in enumerate(arguments)}
    body = assembly.strip().removeprefix("{").removesuffix("}")
    for line in (line.strip() for line in body.split(";")):
        if line and not line.startswith(".reg"):
            name, operands = line.split(None, 1)
            _step(name, _operands(operands), registers)
    return [registers[f"${at}"] for at in range(results)]


def _step(name: str, operands: list[str], registers: dict[str, Lanes]) -> None:
    target, *sources = operands
    if name == "mov.b32" and target.startswith("{"):
        word = _value(sources[0], registers)
        low, high = target.strip("{}").split(",")
        registers[low.strip()], registers[high.strip()] = word & 0xFFFF, word >> 16
    else:
        registers[target] = INSTRUCTIONS[name](*(_value(source, registers) for source in sources))


def _operands(text: str) -> list[str]:
    return [part.strip() for part in re.findall(r"\{[^}]*\}|[^,]+", text)]


def _value(operand: str, registers: dict[str, Lanes]) -> Lanes:
    return registers[operand] if operand in registers else np.uint32(int(operand, 0))


def _permute(a: Lanes, b: Lanes, selector: Lanes) -> Lanes:
    out = np.zeros(np.broadcast(a, b).shape, np.uint32)
    for at in range(4):
        chosen = int(selector) >> 4 * at & 0xF
        assert chosen < 8, "the sign is not copied"
        source = a if chosen < 4 else b
        out |= (source >> np.uint32(8 * (chosen % 4)) & 0xFF).astype(np.uint32) << np.uint32(8 * at)
    return out


def _and_or(a: Lanes, b: Lanes, c: Lanes, table: Lanes) -> Lanes:
    assert table == 0xEA, "(a & b) | c is all that is known"
    return a & b | c


def _pairs(kind: torch.dtype, compute: Callable[..., torch.Tensor]) -> Callable[..., Lanes]:
    """`compute` (in fp64, rounded once) on both halves of registers."""

    def instruction(*registers: Lanes) -> Lanes:
        numbers = [_as(kind, x).double() for x in np.broadcast_arrays(*registers)]
        return _bits(compute(*numbers).to(kind))

    return instruction


def _as(kind: torch.dtype, x: Lanes) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(x).view(np.int16)).view(kind)


def _bits(x: torch.Tensor) -> Lanes:
    return x.view(torch.int16).numpy().view(np.uint32)


def _from_e4m3(x: Lanes) -> Lanes:
    halves = np.ascontiguousarray(x.astype(np.uint16)).view(np.uint8)
    return _bits(torch.from_numpy(halves).view(torch.float8_e4m3fn).to(torch.float16))


def _fp32_from_fp16(x: Lanes) -> Lanes:
    halves = torch.from_numpy(x.astype(np.uint16).view(np.int16)).view(torch.float16)
    return halves.float().numpy().view(np.uint32)


def _bf16_pair(upper: Lanes, lower: Lanes) -> Lanes:
    numbers = np.stack((lower, upper), -1).view(np.float32)
    return _bits(torch.from_numpy(numbers).to(torch.bfloat16))[..., 0]


INSTRUCTIONS: dict[str, Callable[..., Lanes]] = {
    "mov.b32": lambda a: a,
    "xor.b32": lambda a, b: a ^ b,
    "shr.u32": lambda a, b: a >> b,
    "prmt.b32": _permute,
    "lop3.b32": _and_or,
    "sub.f16x2": _pairs(torch.float16, lambda a, b: a - b),
    "fma.rn.f16x2": _pairs(torch.float16, lambda a, b, c: a * b + c),
    "sub.bf16x2": _pairs(torch.bfloat16, lambda a, b: a - b),
    "cvt.rn.f16x2.e4m3x2": _from_e4m3,
    "cvt.f32.f16": _fp32_from_fp16,
    "cvt.rn.bf16x2.f32": _bf16_pair,
}
