import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

import numpy as np
import triton
import triton.language as tl

from engine.execution.kernels import ptx
from engine.execution.kernels.codes import e4m3_bits, round_even, sixteen_steps, step_number
from tests.engine.execution.caches import DEVICE
from tests.engine.execution.ptx import run

BYTES = np.arange(256, dtype=np.uint8)
E4M3 = torch.from_numpy(BYTES).view(torch.float8_e4m3fn).double().numpy()
INT8 = BYTES.view(np.int8).astype(np.float64)
HALVES = (BYTES & 15, BYTES >> 4)


@triton.jit
def _encode(x, out, size: tl.constexpr, how: tl.constexpr):
    at = tl.program_id(0) * size + tl.arange(0, size)
    numbers = tl.load(x + at)
    tl.store(out + at, e4m3_bits(numbers) if how == "fp8" else round_even(numbers))


def encoded(x: "torch.Tensor", how: str, dtype: "torch.dtype") -> "torch.Tensor":
    out = torch.empty(x.shape, dtype=dtype, device=DEVICE)
    _encode[(x.numel() // 1024,)](x.to(DEVICE), out, size=1024, how=how)
    return out.cpu()


def test_all_bf16_become_the_e4m3_that_torch_takes() -> None:
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    x = every.float()
    expected = x.clamp(-448, 448).to(torch.float8_e4m3fn).view(torch.uint8)
    found = encoded(x, "fp8", torch.uint8)
    nan = x.isnan()
    assert torch.equal(found[~nan], expected[~nan])
    assert (found[nan] & 0x7F == 0x7F).all()


def test_ties_between_e4m3_go_to_the_even_one() -> None:
    numbers = torch.from_numpy(np.unique(E4M3[np.isfinite(E4M3)]))
    middle = (numbers[1:] + numbers[:-1]) / 2
    around = torch.cat([middle, middle * (1 - 1e-6), middle * (1 + 1e-6)]).float()
    x = torch.zeros(1024)
    x[: len(around)] = around
    expected = x.clamp(-448, 448).to(torch.float8_e4m3fn).view(torch.uint8)
    assert torch.equal(encoded(x, "fp8", torch.uint8), expected)


def test_rounding() -> None:
    x = torch.cat([torch.arange(-256, 256) / 2, torch.randn(512) * 1000])
    assert torch.equal(encoded(x, "round", torch.float32), x.round())


@triton.jit
def _sixteen(x, out, scales, rows: tl.constexpr, width: tl.constexpr):
    row = tl.arange(0, rows)
    place = row[:, None] * width + tl.arange(0, width)[None, :]
    vectors = tl.load(x + place)
    scale, least = sixteen_steps(tl.min(vectors, axis=1), tl.max(vectors, axis=1))
    number = step_number(vectors, scale[:, None], least[:, None])
    decoded = number.to(tl.float32) * scale.to(tl.float32)[:, None] + least.to(tl.float32)[:, None]
    tl.store(scales + row, scale.to(tl.float32))
    tl.store(out + place, decoded)


def test_sixteen_steps_are_never_further_than_half_a_step() -> None:
    """Nor where all numbers are equal, or too close together or too large for fp16."""
    slope = torch.linspace(-1, 1, 32)
    x = torch.stack(
        [torch.zeros(32), torch.full((32,), -7.3), 1e-12 * slope, 3e5 * slope, 2 + 1e-3 * slope]
        + [torch.randn(32) * 10.0**power for power in (-3, 0, 3)]
    ).to(DEVICE)
    out, scales = torch.empty_like(x), torch.empty(8, device=DEVICE)
    _sixteen[(1,)](x, out, scales, rows=8, width=32)
    near = 0.5 * scales[:, None] + 2**-10 * x.abs() + 1e-7
    assert ((out - x.clamp(min=-65504)).abs() <= near).all()
    assert (scales <= 1.001 * (x.amax(1) - x.amin(1)) / 15 + 1e-7).all()


def halves(registers: list["np.ndarray"], dtype: "torch.dtype") -> list["np.ndarray"]:
    """The numbers in registers of two each: [registers][threads, 2]."""
    views = (torch.from_numpy(np.ascontiguousarray(x).view(np.int16)) for x in registers)
    return [x.view(dtype).double().numpy().reshape(-1, 2) for x in views]


def test_four_bytes_of_int8() -> None:
    packed = np.random.permutation(np.tile(BYTES, 16)).reshape(-1, 4)
    found = halves(run(ptx.INT8_TO_FP16.value, 2, [packed.view(np.uint32)[:, 0]]), torch.float16)
    assert np.array_equal(np.concatenate(found, -1), INT8[packed])


def test_four_bytes_of_int4() -> None:
    packed = np.random.permutation(np.tile(BYTES, 16)).reshape(-1, 4)
    found = halves(run(ptx.INT4_TO_FP16.value, 4, [packed.view(np.uint32)[:, 0]]), torch.float16)
    assert np.array_equal(np.concatenate(found[:2], -1), HALVES[0][packed])
    assert np.array_equal(np.concatenate(found[2:], -1), HALVES[1][packed])


@pytest.mark.parametrize(
    ("assembly", "dtype", "numbers"),
    [
        (ptx.INT8_WORDS_TO_BF16, torch.bfloat16, INT8),
        (ptx.FP8_WORDS_TO_BF16, torch.bfloat16, E4M3),
        (ptx.FP8_WORDS_TO_FP16, torch.float16, E4M3),
    ],
)
def test_words_of_bytes(
    assembly: "tl.constexpr", dtype: "torch.dtype", numbers: "np.ndarray"
) -> None:
    """A register of results holds the same byte of both words."""
    packed = np.random.permutation(np.tile(BYTES, 16)).reshape(-1, 2, 4)
    words = packed.view(np.uint32)
    found = halves(run(assembly.value, 4, [words[:, 0, 0], words[:, 1, 0]]), dtype)
    assert np.array_equal(np.stack(found, -1), numbers[packed], equal_nan=True)


def test_words_of_int4() -> None:
    packed = np.random.permutation(np.tile(BYTES, 16)).reshape(-1, 2, 2)
    words = packed.reshape(-1, 4).view(np.uint32)[:, 0]
    found = halves(run(ptx.INT4_WORDS_TO_BF16.value, 4, [words]), torch.bfloat16)
    expected = np.stack((packed & 15, packed >> 4), -1).reshape(-1, 2, 4)
    assert np.array_equal(np.stack(found, -1), expected)
