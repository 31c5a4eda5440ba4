import random

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.execution.kernels import OPS
from engine.execution.kernels.decode import DecodeConfig, attend_decodes, decode_programs
from engine.execution.kernels.prefill import PrefillConfig, attend_prefills
from engine.execution.reference import OPS as TORCH
from engine.kvformats import KV_DTYPES
from tests.engine.execution.caches import DEVICE, LAYER, Cache, dense_attention, error, fused

pytestmark = pytest.mark.usefixtures("poisoned_memory")
F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
LIMITS = {F32: 3e-6, F16: 3e-3, BF16: 8e-3}
"""Errors of the arithmetic. Of fp16: weights times the scales of values are bf16."""
ON_GPU = DEVICE.type == "cuda"
LLAMA, SMALL, SINGLE, SHARED = (32, 8, 128), (9, 3, 64), (4, 4, 64), (6, 1, 128)
TINY = (6, 2, 64)
"""Query heads, KV heads and their channels."""
DECODES = [(1, 33), (2, 1), (3, 50), (4, 16)]
PREFILLS = [(5, 21, 21), (6, 43, 7), (7, 40, 18), (8, 19, 1)]
"""Rows, contexts and chunks: blocks begun and full, chunks from the middle of one, of one token."""
FORMATS = [(kv_dtype, F32, 0) for kv_dtype in KV_DTYPES]
FORMATS += [(kv_dtype, F16, 20) for kv_dtype in KV_DTYPES]
FORMATS += [(kv_dtype, BF16, 20) for kv_dtype in ("bf16", "fp32", "fp8", "int8", "int4_channel")]
SHAPES = [(LLAMA, 16, "int4"), (SMALL, 64, "int4_channel"), (SINGLE, 32, "fp16")]
SHAPES += [(SHARED, 16, "int4_channel"), (SHARED, 32, "k8v4"), (SMALL, 24, "int8")]
SHAPES += [(SMALL, 1, "fp8")]
if ON_GPU:
    every = [LLAMA, SMALL, SINGLE, SHARED, (16, 4, 256), (40, 1, 128)]
    SHAPES += [(heads, tokens, kv) for heads in every for tokens in (16, 64) for kv in KV_DTYPES]
    FORMATS += [(kv, dtype, 50) for kv in KV_DTYPES for dtype in (F32, F16, BF16)]


def filled(kv_dtype: str, heads: tuple[int, int, int], dtype: "torch.dtype", bt: int = 16) -> Cache:
    """A pool with all that comes before DECODES and PREFILLS, and with their own tokens."""
    _, kv_heads, dim = heads
    contexts = [context for _, context in DECODES] + [context for _, context, _ in PREFILLS]
    cache = Cache(kv_dtype, contexts, kv_heads=kv_heads, dim=dim, block_tokens=bt, dtype=dtype)
    past = [(row, context - 1, context - 1) for row, context in DECODES if context > 1]
    past += [(row, context - chunk, context - chunk) for row, context, chunk in PREFILLS]
    before = cache.step([], [share for share in past if share[1]])
    for step in (before, cache.step(DECODES, PREFILLS)):
        _, k, v = fused(len(step.positions), heads[0], kv_heads, dim, dtype)
        TORCH.append(k, v, cache.pool, LAYER, step)
    return cache


def queries(cache: Cache, tokens: int, heads: int, dtype: "torch.dtype") -> "torch.Tensor":
    """A view of what a projection gives, whose scores are of moderate size."""
    layout = cache.pool.layout
    return fused(tokens, heads, layout.kv_heads, layout.head_dim, dtype)[0]


@pytest.mark.parametrize(("kv_dtype", "dtype", "window"), FORMATS)
def test_decodes_and_chunks_see_what_the_pool_holds(
    kv_dtype: str, dtype: "torch.dtype", window: int
) -> None:
    heads = TINY
    cache = filled(kv_dtype, heads, dtype)
    step = cache.step(DECODES, PREFILLS)
    q = queries(cache, len(step.positions), heads[0], dtype)
    scale = heads[2] ** -0.5
    out = OPS.attend(q, cache.pool, LAYER, step, scale, window)
    assert out.dtype == dtype
    assert error(out, dense_attention(q, cache.pool, step, scale, window)) < LIMITS[dtype]
    same = TORCH.attend(q.double(), cache.pool, LAYER, step, scale, window)
    assert error(out, same) < LIMITS[dtype]


@pytest.mark.parametrize(("heads", "block_tokens", "kv_dtype"), SHAPES)
def test_heads_and_blocks_of_any_shape(
    heads: tuple[int, int, int], block_tokens: int, kv_dtype: str
) -> None:
    cache = filled(kv_dtype, heads, F16, block_tokens)
    step = cache.step(DECODES[:3], PREFILLS[1:3])
    q = queries(cache, len(step.positions), heads[0], F16)
    out = OPS.attend(q, cache.pool, LAYER, step, 0.1, 0)
    assert error(out, dense_attention(q, cache.pool, step, 0.1, 0)) < LIMITS[F16]


@pytest.mark.parametrize("kv_dtype", ["fp8_token_head", "k8v4"])
@pytest.mark.parametrize(("dtype", "size"), [(F16, 1e-2), (BF16, 1e6)])
def test_sizes_far_from_one(kv_dtype: str, dtype: "torch.dtype", size: float) -> None:
    """What does not fit into fp16 on the way to the result: queries, and values times weights."""
    cache = Cache(kv_dtype, [40, 60], kv_heads=2, dim=64, dtype=dtype)
    step = cache.step([], [(1, 40, 40), (2, 60, 60)])
    q, k, v = fused(100, 4, 2, 64, dtype)
    q *= size
    v *= 1e-3 if kv_dtype == "k8v4" else size  # 4-bit formats have scales in fp16
    TORCH.append(k, v, cache.pool, LAYER, step)
    scale = 0.1 / size
    mixed = cache.step([(1, 40)], [(2, 60, 20)])
    out = OPS.attend(q[:21], cache.pool, LAYER, mixed, scale, 0)
    assert error(out, dense_attention(q[:21], cache.pool, mixed, scale, 0)) < LIMITS[dtype]


def test_queries_of_zeros_see_the_mean() -> None:
    cache = filled("int8", TINY, F16)
    step = cache.step(DECODES, PREFILLS)
    q = torch.zeros(len(step.positions), 6, 64, dtype=F16, device=DEVICE)
    out = OPS.attend(q, cache.pool, LAYER, step, 0.1, 12)
    assert error(out, dense_attention(q, cache.pool, step, 0.1, 12)) < LIMITS[F16]


@pytest.mark.parametrize("kv_dtype", ["fp32", "int4_channel"])
def test_padding_changes_nothing(kv_dtype: str) -> None:
    cache = filled(kv_dtype, TINY, F32)
    cache.pool.buffer[0] = 0xFF  # padding writes and reads the null block
    steps = [cache.step(DECODES, [], padding=padding, max_context=500) for padding in (0, 4)]
    q = queries(cache, 8, 6, F32)
    found = [OPS.attend(q[: step.decodes], cache.pool, LAYER, step, 0.1, 0)[:4] for step in steps]
    assert error(found[1], found[0]) < LIMITS[F32]


@settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(st.integers(1, 150), min_size=1, max_size=5),
    st.integers(1, 9),
    st.sampled_from([16, 32, 64]),
    st.sampled_from([0, 30]),
    st.sampled_from(["fp32", "int4_channel"]),
)
def test_how_decodes_are_dealt_out_changes_nothing(
    contexts: list[int], programs: int, tile: int, window: int, kv_dtype: str
) -> None:
    """A program alone, or several with parts of heads, ends of them, or nothing to do."""
    cache = Cache(kv_dtype, contexts, kv_heads=2, dim=64)
    everything = [(row, context, context) for row, context in enumerate(contexts, 1)]
    _, k, v = fused(sum(contexts), 4, 2, 64, F32)
    TORCH.append(k, v, cache.pool, LAYER, cache.step([], everything))
    step = cache.step(list(enumerate(contexts, 1)), [])
    q = queries(cache, len(contexts), 4, F32)
    out = torch.full(q.shape, torch.nan, device=DEVICE)
    config = DecodeConfig(tile_tokens=tile, warps=4, stages=2, programs=programs)
    attend_decodes(q, out, cache.pool, LAYER, step, 0.1, window, config)
    assert error(out, dense_attention(q, cache.pool, step, 0.1, window)) < LIMITS[F32]


@pytest.mark.parametrize(("rows", "tile"), [(16, 32), (32, 16), (64, 64)])
@pytest.mark.parametrize("kv_dtype", ["fp32", "int4_channel"])
def test_how_chunks_are_tiled_changes_nothing(kv_dtype: str, rows: int, tile: int) -> None:
    cache = filled(kv_dtype, TINY, F32)
    step = cache.step([], PREFILLS)
    q = queries(cache, len(step.positions), 6, F32)
    for window in (0, 25):
        out = torch.full(q.shape, torch.nan, device=DEVICE)
        config = PrefillConfig(rows=rows, tile_tokens=tile, warps=4, stages=2)
        attend_prefills(q, out, cache.pool, LAYER, step, 0.1, window, config)
        assert error(out, dense_attention(q, cache.pool, step, 0.1, window)) < LIMITS[F32]


def test_programs_follow_from_shapes() -> None:
    """As many as fit at once, but no more than there can be tiles of heads."""
    config = DecodeConfig(tile_tokens=64, warps=4, stages=3, programs=3)
    assert decode_programs(config, 132, sequences=64, kv_heads=8, max_context=4096) == 396
    assert decode_programs(config, 132, sequences=1, kv_heads=8, max_context=200) == 32
    assert decode_programs(config, 132, sequences=1, kv_heads=1, max_context=1) == 1


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [F16, BF16])
@pytest.mark.parametrize("heads", [LLAMA, SMALL, SINGLE, SHARED, (16, 4, 256)])
@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
def test_large_steps(kv_dtype: str, heads: tuple[int, int, int], dtype: "torch.dtype") -> None:
    chance = random.Random(kv_dtype)
    contexts = [chance.choice([1, 17, 300, 1024, 5000, 9000]) for _ in range(12)]
    cache = Cache(kv_dtype, contexts, kv_heads=heads[1], dim=heads[2], dtype=dtype)
    everything = [(row, context, context) for row, context in enumerate(contexts, 1)]
    _, k, v = fused(sum(contexts), heads[0], heads[1], heads[2], dtype)
    OPS.append(k, v, cache.pool, LAYER, cache.step([], everything))
    chunks = [(row, at, chance.randint(1, min(at, 700))) for row, at, _ in everything[8:]]
    step = cache.step([(row, at) for row, at, _ in everything[:8]], chunks, max_context=40000)
    q = queries(cache, len(step.positions), heads[0], dtype)
    scale = heads[2] ** -0.5
    for window in (0, 512):
        out = OPS.attend(q, cache.pool, LAYER, step, scale, window)
        same = TORCH.attend(q.double(), cache.pool, LAYER, step, scale, window)
        assert error(out, same) < LIMITS[dtype]
