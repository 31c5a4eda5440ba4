import pytest

pytest.importorskip("torch")

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.execution.kvcache import ELEMENTS
from engine.execution.quantize import CODECS
from engine.kvformats import ENCODINGS, GROUP_CHANNELS

DIM, TOKENS = 64, 16
FP16_STEP = 2.0**-11
"""Relative error of rounding to fp16; below 2**-14 it is absolute, 2**-25."""


def vectors(seed: int) -> torch.Tensor:
    """[kinds, TOKENS, DIM] fp64 of fp32 numbers: what caches hold, and what they should survive."""
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(12, TOKENS, DIM, generator=generator)
    normal[1] *= 1e4
    normal[2] *= 1e-6
    normal[3] *= 1e-20
    normal[4] *= 1e-41  # subnormal in fp32
    normal[5, :, 3] *= 300  # a channel of outliers, as keys have them
    normal[6, 5, 40] = 6e4  # one outlier
    normal[7] = 0
    normal[8] = normal[8, 0, 0]  # constant
    normal[9] = normal[9].abs() + 1000  # far from 0
    normal[10] = -normal[10].abs()
    normal[11] = normal[11].round() * 0.25  # many equal ones
    return normal.double()


def there_and_back(name: str, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    numbers, beside = CODECS[name].encode(x)
    back = CODECS[name].decode(numbers, beside, torch.float64)
    assert back.dtype == torch.float64
    return back, None if beside is None else beside.double()


seeds = given(st.integers(0, 2**32))
few = settings(max_examples=15, deadline=None)


@few
@seeds
def test_floats_are_rounded_once(seed: int):
    x = vectors(seed)
    for name, element in (
        ("fp32", torch.float32),
        ("bf16", torch.bfloat16),
        ("fp16", torch.float16),
    ):
        back, beside = there_and_back(name, x)
        assert beside is None
        assert torch.equal(back, x.to(element).double())


@few
@seeds
def test_int8_errs_by_half_a_step(seed: int):
    x = vectors(seed)
    back, scale = there_and_back("int8_token", x)
    assert scale is not None
    assert ((back - x).abs() <= scale.unsqueeze(-1) * (0.5 + 1e-5)).all()
    largest = x.abs().amax(-1)
    assert (scale <= largest / 127 * (1 + 1e-6) + 1.2e-38).all()


@few
@seeds
def test_fp8_errs_by_half_a_step_of_its_exponent(seed: int):
    x = vectors(seed)
    back, _ = there_and_back("fp8", x)
    kept = x.clamp(-448, 448)
    assert ((back - kept).abs() <= torch.maximum(kept.abs() * 2**-4, torch.tensor(2.0**-10))).all()
    assert (back[x.abs() > 448].abs() == 448).all()


@few
@seeds
def test_fp8_with_scale_errs_by_half_a_step_of_the_scaled(seed: int):
    x = vectors(seed)
    back, scale = there_and_back("fp8_token", x)
    assert scale is not None
    scale = scale.unsqueeze(-1)
    bound = torch.maximum(x.abs() * 2**-4, scale * 2**-10) * (1 + 1e-5)
    assert ((back - x).abs() <= bound).all()
    assert ((back / scale).abs() <= 448 + 1e-9).all()


def sixteenths(x: torch.Tensor, dim: int) -> torch.Tensor:
    """Most that 4 bits may err in x, of which `dim` shares scale and least."""
    low, high = x.amin(dim, keepdim=True), x.amax(dim, keepdim=True)
    step = (high - low) / 15
    rounded_step = step * FP16_STEP + 2**-25
    rounded_least = low.abs() * FP16_STEP + 2**-25
    return step / 2 + 15.5 * rounded_step + rounded_least + x.abs() * 1e-6


@few
@seeds
@pytest.mark.parametrize(
    ("name", "dim"), [("int4_token", -1), ("int4_channel", -2), ("int4_group", -1)]
)
def test_four_bits_err_by_half_a_step_and_the_rounding_of_its_ends(name: str, dim: int, seed: int):
    x = vectors(seed)
    back, _ = there_and_back(name, x)
    if name == "int4_group":
        x, back = (y.unflatten(-1, (-1, GROUP_CHANNELS)) for y in (x, back))
    assert ((back - x).abs() <= sixteenths(x, dim)).all()


@few
@seeds
def test_more_scales_err_less(seed: int):
    x = vectors(seed)[5]
    beside_outliers = torch.arange(DIM) != 3

    def error(name: str) -> float:
        back, _ = there_and_back(name, x)
        return float((back - x)[:, beside_outliers].square().mean())

    assert error("int8_token") < error("int4_token")
    assert error("int4_channel") < error("int4_group") < error("int4_token")


@pytest.mark.parametrize("name", CODECS)
def test_a_vector_does_not_depend_on_its_neighbours(name: str):
    x = vectors(5)
    together, _ = there_and_back(name, x)
    if name == "int4_channel":  # its unit is a block of tokens
        apart = torch.stack([there_and_back(name, block)[0] for block in x])
    else:
        apart = torch.stack([there_and_back(name, vector)[0] for vector in x.flatten(0, 1)])
    assert torch.equal(together, apart.view_as(together))


@pytest.mark.parametrize("name", CODECS)
def test_numbers_are_as_many_bytes_as_the_format_says(name: str):
    x = vectors(6)
    numbers, beside = CODECS[name].encode(x)
    encoding = ENCODINGS[name]
    assert numbers.dtype == ELEMENTS[name]
    assert numbers[0].nbytes == TOKENS * encoding.vector_bytes(DIM)
    beside_bytes = 0 if beside is None else beside[0].nbytes
    assert beside_bytes == encoding.scale_bytes(DIM, TOKENS)


def test_e4m3_codes_are_torchs():
    codes = torch.arange(256, dtype=torch.uint8)
    finite = (codes & 0x7F) != 0x7F
    for dtype in (torch.float32, torch.float64):
        numbers = CODECS["fp8"].decode(codes, None, dtype)
        expected = codes.view(torch.float8_e4m3fn).to(dtype)
        assert torch.equal(numbers[finite], expected[finite])
        assert (numbers[~finite].abs() == 480).all()


def test_e4m3_takes_the_nearest_number_of_all_bf16():
    x = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.bfloat16).float()
    x = x[x.isfinite()]
    codes, _ = CODECS["fp8"].encode(x)
    numbers = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).double()
    numbers = numbers[numbers.isfinite()].sort().values
    at = torch.searchsorted(numbers, x.double()).clamp(1, len(numbers) - 1)
    nearest = torch.minimum((x - numbers[at]).abs(), (x - numbers[at - 1]).abs())
    back = CODECS["fp8"].decode(codes, None, torch.float64)
    assert torch.equal((back - x).abs(), nearest)


def test_a_byte_holds_a_channel_and_the_one_half_a_vector_on():
    x = torch.zeros(DIM)
    x[0], x[5], x[5 + DIM // 2] = 15, 3, 12
    numbers, beside = CODECS["int4_token"].encode(x)
    assert beside is not None
    assert beside.tolist() == [1, 0]
    assert numbers[5] == 3 + 12 * 16
    assert numbers[0] == 15
    assert numbers[1] == 0


@pytest.mark.parametrize("name", ["fp8_token", "int8_token", "int4_token", "int4_group"])
def test_not_a_number_stays_in_its_vector(name: str):
    x = vectors(7)[0]
    clean, _ = there_and_back(name, x)
    x[3, 10] = torch.nan
    back, _ = there_and_back(name, x)
    others = [at for at in range(TOKENS) if at != 3]
    assert torch.equal(back[others], clean[others])
    assert back[3, 10].isnan()
