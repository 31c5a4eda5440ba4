import random

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from engine.execution.inputs import StepInput
from engine.execution.kernels import OPS
from engine.execution.kvcache import KvPool
from engine.execution.reference import OPS as TORCH
from engine.kvformats import KV_DTYPES
from tests.engine.execution.caches import DEVICE, LAYER, Cache, fused
from traces.errors import ConfigError

pytestmark = pytest.mark.usefixtures("poisoned_memory")
CONTEXTS = [1, 16, 40, 33, 50, 19]
"""Of 6 sequences, at the end."""
SHAPES = [(torch.float32, 16), (torch.float16, 32), (torch.bfloat16, 16)]
SHAPES += [(dtype, 64) for dtype, _ in SHAPES] * (DEVICE.type == "cuda")


def shares(
    computed: list[int], chance: random.Random
) -> tuple[list[tuple[int, int]], list[tuple[int, int, int]]]:
    """Decodes and chunks that take some sequences on; those done are left out."""
    decodes: list[tuple[int, int]] = []
    prefills: list[tuple[int, int, int]] = []
    for row in chance.sample(range(1, 7), 4):
        left = CONTEXTS[row - 1] - computed[row - 1]
        chunk = min(left, chance.choice([1, 2, 7, 16, 30, 50]))
        computed[row - 1] += chunk
        if chunk == 1:
            decodes.append((row, computed[row - 1]))
        elif chunk:
            prefills.append((row, computed[row - 1], chunk))
    return decodes, prefills


@pytest.mark.parametrize(("dtype", "block_tokens"), SHAPES)
@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
def test_the_pool_gets_the_bytes_that_torch_writes(
    kv_dtype: str, dtype: "torch.dtype", block_tokens: int
) -> None:
    """All of it, and the tail, after every step: chunks that begin and end inside blocks too."""
    if DEVICE.type == "cpu" and kv_dtype == "bf16" and dtype != torch.bfloat16:
        pytest.skip("the interpreter cuts bf16 off where it should round")
    both = [
        Cache(kv_dtype, CONTEXTS, kv_heads=2, dim=64, block_tokens=block_tokens, dtype=dtype)
        for _ in range(2)
    ]
    chance, computed = random.Random(kv_dtype), [0] * 6
    while computed != CONTEXTS:
        decodes, prefills = shares(computed, chance)
        if not decodes and not prefills:
            continue
        step = both[0].step(decodes, prefills, padding=len(decodes) % 2)
        _, k, v = fused(len(step.positions), 4, 2, 64, dtype)
        for ops, cache in zip((OPS, TORCH), both, strict=True):
            ops.append(k, v, cache.pool, LAYER, step)
        assert torch.equal(both[0].pool.buffer[1:], both[1].pool.buffer[1:])
        check_tails(both[0].pool, both[1].pool, computed)


def check_tails(found: KvPool, expected: KvPool, computed: list[int]) -> None:
    """Where a sequence has a last block that is not full, its keys are the same."""
    if found.tail is None or expected.tail is None:
        return
    for row, tokens in enumerate(computed, 1):
        held = slice(0, tokens % found.block_tokens)
        assert torch.equal(found.tail[row, LAYER, :, held], expected.tail[row, LAYER, :, held])


@pytest.mark.parametrize("kv_dtype", ["int8", "fp8_token_head", "int4", "int4_channel", "k8v4"])
def test_vectors_without_spread(kv_dtype: str) -> None:
    """Zeros, equal numbers and very small ones are written as torch writes them."""
    both = [Cache(kv_dtype, [48], kv_heads=1, dim=64) for _ in range(2)]
    step = both[0].step([], [(1, 48, 48)])
    x = torch.randn(48, 1, 64, device=DEVICE)
    x[:20] = 0
    x[20:35] = -3.75
    x[35:40] *= 1e-30
    x[40:] *= 1e4
    for ops, cache in zip((OPS, TORCH), both, strict=True):
        ops.append(x, -x, cache.pool, LAYER, step)
    assert torch.equal(both[0].pool.buffer[1:], both[1].pool.buffer[1:])


@pytest.mark.parametrize("kv_dtype", ["fp16", "int4_channel"])
def test_only_the_steps_tokens_are_touched(kv_dtype: str) -> None:
    cache = Cache(kv_dtype, [40, 20], kv_heads=2, dim=64, dtype=torch.float16)
    first = cache.step([], [(1, 39, 39), (2, 18, 18)])
    _, k, v = fused(57, 2, 2, 64, torch.float16)
    OPS.append(k, v, cache.pool, LAYER, first)
    before = cache.pool.buffer.clone()
    OPS.append(k[:1], v[:1], cache.pool, LAYER, cache.step([(1, 40)], []))
    assert torch.equal(before[cache.tables[2].long()], cache.pool.buffer[cache.tables[2].long()])
    changed = (before != cache.pool.buffer).nonzero()[:, 0].unique().tolist()
    assert changed == [int(cache.tables[1, 2])]


def test_a_step_without_tokens_writes_nothing() -> None:
    cache = Cache("int4_channel", [16], kv_heads=1, dim=64)
    before = cache.pool.buffer.clone()
    empty = torch.zeros(0, dtype=torch.int32, device=DEVICE)
    nothing = StepInput(
        empty.long(), empty, empty, cache.tables, empty, empty, empty.new_zeros(1), 0, 0, 0
    )
    k = torch.empty(0, 1, 64, device=DEVICE)
    OPS.append(k, k, cache.pool, LAYER, nothing)
    assert torch.equal(before, cache.pool.buffer)


@pytest.mark.parametrize(
    ("kv_dtype", "dim", "block_tokens", "complaint"),
    [("fp16", 96, 16, "head_dim of 16, 32"), ("int4_channel", 64, 24, "a power of two, got 24")],
)
def test_what_the_kernels_have_no_tiles_for(
    kv_dtype: str, dim: int, block_tokens: int, complaint: str
) -> None:
    cache = Cache(kv_dtype, [20], kv_heads=1, dim=dim, block_tokens=block_tokens)
    k = torch.zeros(20, 1, dim, device=DEVICE)
    with pytest.raises(ConfigError, match=complaint):
        OPS.append(k, k, cache.pool, LAYER, cache.step([], [(1, 20, 20)]))
