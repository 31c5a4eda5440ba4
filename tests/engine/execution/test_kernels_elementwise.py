import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from engine.execution.kernels import OPS, chip
from engine.execution.reference import OPS as TORCH
from tests.engine.execution.caches import DEVICE, error
from traces.errors import ConfigError

pytestmark = pytest.mark.usefixtures("poisoned_memory")
ON_GPU = DEVICE.type == "cuda"
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
WIDTHS = [1, 96, 576, 1000, 2048] + [4096, 5120, 14336] * ON_GPU
TOKENS = [1, 5] + [777] * ON_GPU


def bound(dtype: "torch.dtype") -> float:
    """Error of one rounding. The interpreter cuts bf16 off instead: twice as much."""
    return {torch.float32: 1e-6, torch.float16: 5e-4, torch.bfloat16: 8e-3}[dtype]


def wild(*shape: int, dtype: "torch.dtype") -> "torch.Tensor":
    """Random numbers of very different sizes from row to row."""
    x = torch.randn(shape) * 10.0 ** torch.randint(-2, 3, (shape[0], *[1] * (len(shape) - 1)))
    return x.to(DEVICE, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("tokens", TOKENS)
def test_rms_norm(tokens: int, width: int, dtype: "torch.dtype") -> None:
    x, weight = wild(tokens, width, dtype=dtype), wild(1, width, dtype=dtype)[0]
    out = OPS.rms_norm(x, weight, 1e-5)
    assert out.dtype == dtype
    assert error(out, TORCH.rms_norm(x.double(), weight.double(), 1e-5)) < bound(dtype)


def test_rms_norm_of_heads_inside_a_projection() -> None:
    projection = wild(7, 12, 64, dtype=torch.float32)
    before = projection.clone()
    for heads in projection.split((8, 4), dim=1):
        weight = wild(1, 64, dtype=torch.float32)[0]
        expected = TORCH.rms_norm(heads.double(), weight.double(), 1e-6)
        assert error(OPS.rms_norm(heads, weight, 1e-6), expected) < 1e-6
    assert torch.equal(projection, before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", WIDTHS)
def test_add_rms_norm_is_the_norm_of_its_sum(width: int, dtype: "torch.dtype") -> None:
    x, residual = wild(5, width, dtype=dtype), wild(5, width, dtype=dtype)
    weight = wild(1, width, dtype=dtype)[0]
    out, total = OPS.add_rms_norm(x, residual, weight, 1e-5)
    assert error(total, x.double() + residual.double()) < bound(dtype)
    assert torch.equal(out, OPS.rms_norm(total, weight, 1e-5))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(9, 3, 64), (32, 8, 128), (4, 4, 80)])
def test_rope(heads: int, kv_heads: int, dim: int, dtype: "torch.dtype") -> None:
    projection = torch.randn(6, heads + 2 * kv_heads, dim).to(DEVICE, dtype)
    exact = projection.double()
    v = projection[:, heads + kv_heads :].clone()
    angles = torch.rand(50, dim // 2, device=DEVICE) * 100
    table = torch.cat((angles.cos(), angles.sin()), -1)
    positions = torch.tensor([3, 0, 49, 7, 7, 12], dtype=torch.int32, device=DEVICE)
    for ops, x in ((OPS, projection), (TORCH, exact)):
        parts = x.split((heads, kv_heads, kv_heads), dim=1)
        ops.rope(parts[0], parts[1], positions, table.to(x.dtype) if x is exact else table)
    assert error(projection, exact) < bound(dtype)
    assert torch.equal(projection[:, heads + kv_heads :], v)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", WIDTHS)
def test_silu_mul(width: int, dtype: "torch.dtype") -> None:
    x = wild(5, 2 * width, dtype=dtype).clamp(-200, 200)
    out = OPS.silu_mul(x)
    assert out.shape == (5, width)
    assert error(out, TORCH.silu_mul(x.double())) < bound(dtype)


def test_no_tokens() -> None:
    nothing = torch.empty(0, 128, device=DEVICE)
    weight = torch.ones(128, device=DEVICE)
    assert OPS.rms_norm(nothing, weight, 1e-6).shape == (0, 128)
    assert OPS.add_rms_norm(nothing, nothing, weight, 1e-6)[0].shape == (0, 128)
    assert OPS.silu_mul(nothing).shape == (0, 64)


@pytest.mark.skipif(DEVICE.type == "cuda", reason="is about machines without a GPU")
def test_nothing_runs_without_gpu_or_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chip, "INTERPRETED", False)
    with pytest.raises(ConfigError, match="needs a CUDA device, got cpu; kernels: torch runs"):
        OPS.silu_mul(torch.zeros(1, 2))
