import random
from collections.abc import Iterator

import pytest

pytest.importorskip("torch")

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine.execution.inputs import StepInput
from engine.execution.kvcache import KvPool
from engine.execution.places import Places
from engine.execution.reference import OPS, read_sequence
from engine.kvformats import KV_DTYPES, block_layout

CPU = torch.device("cpu")
DEVICES = [CPU, pytest.param(torch.device("cuda"), marks=pytest.mark.gpu)]
HEADS, KV_HEADS, DIM = 6, 2, 64
Shares = tuple[list[tuple[int, int]], list[tuple[int, int, int]]]
"""Of a step: (row, context) of the decodes and (row, context, chunk) of the prefills."""


class Cache:
    """A pool full of NaN, so that what nobody wrote shows, and the tables of some sequences."""

    def __init__(
        self,
        kv_dtype: str,
        contexts: list[int],
        *,
        block_tokens: int = 16,
        kv_heads: int = KV_HEADS,
        layers: int = 2,
        device: torch.device = CPU,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
    ) -> None:
        needed = [-(-context // block_tokens) for context in contexts]
        names = list(range(1, 1 + sum(needed)))
        random.Random(seed).shuffle(names)
        width = max(needed)
        owned = [[names.pop() for _ in range(count)] for count in (0, *needed)]
        tables = [mine + [0] * (width - len(mine)) for mine in owned]
        self.tables = torch.tensor(tables, dtype=torch.int32, device=device)
        layout = block_layout(kv_dtype, layers, kv_heads, DIM, block_tokens)
        rows = len(contexts) + 1
        self.pool = KvPool(layout, 1 + sum(needed), device=device, dtype=dtype, rows=rows)
        self.pool.buffer[1:] = 0xFF
        if self.pool.tail is not None:
            self.pool.tail[1:] = torch.nan
        self.contexts = contexts

    def step(self, shares: Shares, padding: int = 0) -> StepInput:
        """A step of these sequences; `padding` decodes fill it up."""
        decodes = [*shares[0], *[(0, 1)] * padding]
        chunks = [(row, context, 1) for row, context in decodes] + shares[1]
        positions = [at for _, context, chunk in chunks for at in range(context - chunk, context)]
        starts = [0]
        for _, _, chunk in shares[1]:
            starts.append(starts[-1] + chunk)

        def on_device(numbers: list[int]) -> Tensor:
            return torch.tensor(numbers, dtype=torch.int32, device=self.tables.device)

        return StepInput(
            tokens=torch.zeros(len(positions), dtype=torch.int64, device=self.tables.device),
            positions=on_device(positions),
            token_rows=on_device([row for row, _, chunk in chunks for _ in range(chunk)]),
            tables=self.tables,
            rows=on_device([row for row, _, _ in chunks]),
            context=on_device([context for _, context, _ in chunks]),
            starts=on_device(starts),
            decodes=len(decodes),
            max_chunk=max((chunk for _, _, chunk in shares[1]), default=0),
            max_context=max(context for _, context, _ in chunks),
        )

    def append(self, k: list[Tensor], v: list[Tensor], step: StepInput, layer: int = 0) -> None:
        """The step's tokens out of `k` and `v`, whose item `row` is all of a sequence's."""
        where = list(zip(step.token_rows.tolist(), step.positions.tolist(), strict=True))
        OPS.append(
            torch.stack([k[row][at] for row, at in where]),
            torch.stack([v[row][at] for row, at in where]),
            self.pool,
            layer,
            step,
        )

    def fill(self, k: list[Tensor], v: list[Tensor], layer: int = 0) -> None:
        """Everything in one step."""
        prefills = [(row, context, context) for row, context in enumerate(self.contexts, 1)]
        self.append(k, v, self.step(([], prefills)), layer)


def random_kv(contexts: list[int], seed: int, kv_heads: int = KV_HEADS) -> list[Tensor]:
    """Of each row [context, kv_heads, DIM], with outliers in some channels; row 0 is padding's."""
    generator = torch.Generator().manual_seed(seed)
    loud = 1 + 50 * (torch.rand(kv_heads, DIM, generator=generator) < 0.05)
    return [
        torch.randn(context, kv_heads, DIM, generator=generator) * loud
        for context in [1, *contexts]
    ]


def random_schedule(contexts: list[int], chance: random.Random) -> Iterator[Shares]:
    """Steps that compute all tokens in chunks of random sizes, decodes and prefills mixed."""
    computed = dict.fromkeys(range(1, len(contexts) + 1), 0)
    while computed:
        shares: Shares = ([], [])
        for row in chance.sample(sorted(computed), chance.randint(1, len(computed))):
            left = contexts[row - 1] - computed[row]
            chunk = min(left, chance.choice([1, 1, 2, 7, 16, 33, 150]))
            computed[row] += chunk
            if chunk == 1 and chance.random() < 0.8:
                shares[0].append((row, computed[row]))
            else:
                shares[1].append((row, computed[row], chunk))
            if chunk == left:
                del computed[row]
        yield shares


def naive_attention(
    q: Tensor, keys: Tensor, values: Tensor, position: int, scale: float, window: int
) -> Tensor:
    """One token's attention in fp64, head by head: q [heads, dim] -> the same."""
    first = max(0, position - window + 1) if window else 0
    group = q.shape[0] // keys.shape[1]
    out = torch.empty_like(q, dtype=torch.float64)
    for head in range(q.shape[0]):
        k = keys[first : position + 1, head // group].double()
        v = values[first : position + 1, head // group].double()
        out[head] = (k @ q[head].double() * scale).softmax(0) @ v
    return out


def expected_attention(
    cache: Cache, q: Tensor, step: StepInput, layer: int, scale: float, window: int
) -> Tensor:
    """What `attend` is to give, in fp64, from the keys and values the pool holds."""
    contexts = dict(zip(step.rows.tolist(), step.context.tolist(), strict=True))
    read = {
        row: read_sequence(cache.pool, layer, cache.tables[row], row, context, dtype=torch.float64)
        for row, context in contexts.items()
        if row
    }
    where = zip(q, step.token_rows.tolist(), step.positions.tolist(), strict=True)
    return torch.stack(
        [
            naive_attention(each, *read[row], position, scale, window)
            for each, row, position in where
            if row
        ]
    )


def error(out: Tensor, expected: Tensor) -> float:
    return float((out.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    block_tokens=st.sampled_from([1, 5, 16, 32]),
    given_dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_the_pool_does_not_depend_on_how_a_prompt_was_cut(
    kv_dtype: str,
    device: torch.device,
    seed: int,
    block_tokens: int,
    given_dtype: torch.dtype,
    dtype: torch.dtype,
):
    chance = random.Random(seed)
    contexts = [chance.randint(1, 70) for _ in range(3)]
    k, v = ([x.to(device, given_dtype) for x in random_kv(contexts, seed + at)] for at in range(2))

    def filled(steps: Iterator[Shares]) -> Cache:
        cache = Cache(kv_dtype, contexts, block_tokens=block_tokens, device=device, dtype=dtype)
        for shares in steps:
            step = cache.step(shares)
            for layer in range(2):
                cache.append(k, v, step, layer)
        return cache

    def decoded() -> Iterator[Shares]:
        for context in range(1, max(contexts) + 1):
            rows = [row for row, end in enumerate(contexts, 1) if context <= end]
            yield [(row, context) for row in rows], []

    at_once = filled(iter([([], [(row, end, end) for row, end in enumerate(contexts, 1)])]))
    for cache in (filled(decoded()), filled(random_schedule(contexts, chance))):
        assert torch.equal(cache.pool.buffer[1:], at_once.pool.buffer[1:])
        for row, context in enumerate(contexts, 1):
            for layer in range(2):
                for mine, other in zip(
                    read_sequence(cache.pool, layer, cache.tables[row], row, context),
                    read_sequence(at_once.pool, layer, cache.tables[row], row, context),
                    strict=True,
                ):
                    assert torch.equal(mine, other)


MOST_ERROR = {
    "bf16": 2**-8,
    "fp16": 2**-11,
    "fp32": 0,
    "fp8": 2**-4,
    "fp8_token": 2**-4,
    "int8_token": 0.5 / 127 + 1e-6,
    "int4_token": 1 / 15 + 0.002,
    "int4_group": 1 / 15 + 0.002,
    "int4_channel": 1 / 15 + 0.002,
}
"""Relative to the largest of what shares a scale."""


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
def test_what_is_read_is_what_was_written(kv_dtype: str):
    contexts = [53, 16, 7]
    k, v = random_kv(contexts, 1), random_kv(contexts, 2)
    cache = Cache(kv_dtype, contexts)
    cache.fill(k, v, layer=1)
    key, value = KV_DTYPES[kv_dtype]
    for row, context in enumerate(contexts, 1):
        keys, values = read_sequence(cache.pool, 1, cache.tables[row], row, context)
        assert keys.shape == values.shape == (context, KV_HEADS, DIM)
        if key == "int4_channel":
            full = context // 16 * 16
            assert torch.equal(keys[full:], k[row][full:])
            blocks, back = (x[:full].unflatten(0, (-1, 16)) for x in (k[row], keys))
            bound = MOST_ERROR[key] * blocks.abs().amax(1, keepdim=True)
            assert ((back - blocks).abs() <= bound).all()
        else:
            bound = MOST_ERROR[key] * k[row].abs().amax(-1, keepdim=True)
            assert ((keys - k[row]).abs() <= bound).all()
        bound = MOST_ERROR[value] * v[row].abs().amax(-1, keepdim=True)
        assert ((values - v[row]).abs() <= bound).all()
        part, _ = read_sequence(cache.pool, 1, cache.tables[row], row, context, start=5)
        assert torch.equal(part, keys[5:])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    block_tokens=st.sampled_from([8, 16]),
    heads=st.sampled_from([(6, 2), (3, 3), (8, 1)]),
    window=st.sampled_from([0, 0, 1, 2, 15, 16, 17, 40, 1000]),
)
def test_attention_is_that_of_a_dense_one(
    kv_dtype: str,
    device: torch.device,
    seed: int,
    block_tokens: int,
    heads: tuple[int, int],
    window: int,
):
    """Every step of a random schedule: decodes, chunks that start within a block, and padding."""
    chance = random.Random(seed)
    contexts = [chance.randint(1, 150) for _ in range(3)]
    k, v = ([x.to(device) for x in random_kv(contexts, seed + at, heads[1])] for at in range(2))
    cache = Cache(
        kv_dtype, contexts, kv_heads=heads[1], block_tokens=block_tokens, device=device, layers=1
    )
    for shares in random_schedule(contexts, chance):
        step = cache.step(shares, padding=chance.choice([0, 3]))
        cache.append(k, v, step)
        q = torch.randn(len(step.tokens), heads[0], DIM, dtype=torch.float64, device=device)
        real = step.token_rows > 0
        expected = expected_attention(cache, q, step, 0, 0.05, window)
        for dtype, bound in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
            out = OPS.attend(q.to(dtype), cache.pool, 0, step, 0.05, window)
            assert out.dtype == dtype
            assert out.isfinite().all()
            assert error(out[real], expected) < bound


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_round_only_what_goes_in_and_out(dtype: torch.dtype):
    contexts = [300, 75]
    k, v = random_kv(contexts, 3), random_kv(contexts, 4)
    cache = Cache("fp32", contexts, layers=1)
    cache.fill(k, v)
    step = cache.step(([(1, 300)], [(2, 75, 20)]))
    q = torch.randn(21, HEADS, DIM).to(dtype)
    out = OPS.attend(q, cache.pool, 0, step, 0.05, 0)
    expected = expected_attention(cache, q, step, 0, 0.05, 0)
    assert out.dtype == dtype
    assert error(out, expected) < torch.finfo(dtype).eps


@pytest.mark.parametrize("window", [0, 30])
def test_a_decode_does_not_see_its_batch(window: int):
    """Lengths so different that the batch is taken in several groups, and as one."""
    contexts = [1, 900, 16, 17, 460, 3, 1300, 31, 900]
    k, v = random_kv(contexts, 5), random_kv(contexts, 6)
    cache = Cache("fp32", contexts, layers=1)
    cache.fill(k, v)
    q = torch.randn(len(contexts), HEADS, DIM)
    decodes = list(enumerate(contexts, 1))
    step = cache.step((decodes, []))
    together = OPS.attend(q, cache.pool, 0, step, 0.1, window)
    for at, decode in enumerate(decodes):
        alone = OPS.attend(q[at : at + 1], cache.pool, 0, cache.step(([decode], [])), 0.1, window)
        torch.testing.assert_close(together[at : at + 1], alone, rtol=1e-5, atol=1e-5)
    groups = Places.of(step, cache.pool.layout).groups(window)
    assert sorted(torch.cat([group.members for group in groups]).tolist()) == list(range(9))
    assert len(groups) == 1 if window else len(groups) > 1


@pytest.mark.parametrize("window", [0, 1, 16, 18])
def test_decodes_whose_lengths_stay_on_the_device_attend_alike(
    window: int, monkeypatch: pytest.MonkeyPatch
):
    contexts = [1, 200, 16, 17, 33]
    k, v = random_kv(contexts, 7), random_kv(contexts, 8)
    cache = Cache("int4_channel", contexts, layers=1)
    cache.fill(k, v)
    q = torch.randn(len(contexts), HEADS, DIM)
    decodes = list(enumerate(contexts, 1))
    out = OPS.attend(q, cache.pool, 0, cache.step((decodes, [])), 0.1, window)
    monkeypatch.setattr(Places, "_by_length", lambda self, _columns: self._alike(window))
    monkeypatch.setattr("engine.execution.places.DEVICE_ELEMENTS", 2 * 208 * KV_HEADS * DIM)
    again = OPS.attend(q, cache.pool, 0, cache.step((decodes, [])), 0.1, window)
    torch.testing.assert_close(again, out, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
def test_padding_touches_nothing_but_the_null_block(kv_dtype: str):
    contexts = [20, 33]
    k, v = random_kv(contexts, 9), random_kv(contexts, 10)
    plain, padded = (Cache(kv_dtype, contexts, layers=1) for _ in range(2))
    decodes = [(1, 20), (2, 33)]
    q = torch.randn(7, HEADS, DIM)
    out = []
    for cache, padding in ((plain, 0), (padded, 5)):
        cache.append(k, v, cache.step(([], [(1, 19, 19), (2, 32, 32)])))
        step = cache.step((decodes, []), padding)
        cache.append(k, v, step)
        out.append(OPS.attend(q[: 2 + padding], cache.pool, 0, step, 0.1, 0))
    assert torch.equal(plain.pool.buffer[1:], padded.pool.buffer[1:])
    assert padded.pool.buffer[0].any()
    torch.testing.assert_close(out[0], out[1][:2], rtol=1e-6, atol=1e-6)
    assert out[1].isfinite().all()


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
def test_only_blocks_of_the_new_tokens_are_written(kv_dtype: str):
    """Two sequences share full blocks, as prefix caching has them; a third has gone before."""
    contexts = [70, 70, 40]
    k, v = random_kv(contexts, 11), random_kv(contexts, 12)
    k[2][:48], v[2][:48] = k[1][:48], v[1][:48]
    cache = Cache(kv_dtype, contexts)
    cache.fill(k, v)
    cache.tables[2, :3] = cache.tables[1, :3]
    before = cache.pool.buffer.clone()
    for shares in (
        ([], [(2, 55, 7)]),
        ([(2, 56)], []),
        ([(2, 57)], [(1, 70, 22)]),
        ([], [(2, 70, 13)]),
    ):
        step = cache.step(shares)
        for layer in range(2):
            cache.append(v, k, step, layer)
        named = {
            int(cache.tables[row, position // 16])
            for row, position in zip(step.token_rows, step.positions, strict=True)
        }
        others = [block for block in range(1, cache.pool.num_blocks) if block not in named]
        assert torch.equal(cache.pool.buffer[others], before[others])
        before = cache.pool.buffer.clone()


def test_a_step_written_into_the_tensors_of_the_one_before_is_another_step():
    contexts = [40, 50]
    k, v = random_kv(contexts, 13), random_kv(contexts, 14)
    cache, other = (Cache("int4_channel", contexts) for _ in range(2))
    reused = cache.step(([(1, 1), (2, 1)], []))
    q = torch.randn(2, HEADS, DIM)
    for context in range(1, 41):
        fresh = other.step(([(1, context), (2, context)], []))
        for name in ("positions", "context"):
            getattr(reused, name).copy_(getattr(fresh, name))
        for layer in range(2):
            cache.append(k, v, reused, layer)
            other.append(k, v, fresh, layer)
            out = OPS.attend(q, cache.pool, layer, reused, 0.1, 0)
            assert torch.equal(out, OPS.attend(q, other.pool, layer, fresh, 0.1, 0))
    assert torch.equal(cache.pool.buffer, other.pool.buffer)


def test_a_broken_sequence_breaks_no_other():
    """NaN in a sequence's cache stays there, also when another gets its blocks."""
    contexts = [40, 50]
    k, v = random_kv(contexts, 15), random_kv(contexts, 16)
    cache = Cache("fp32", contexts, layers=1)
    cache.fill([k[0], k[1] * torch.nan, k[2]], [v[0], v[1] * torch.nan, v[2]])
    q = torch.randn(2, HEADS, DIM)
    out = OPS.attend(q, cache.pool, 0, cache.step(([(1, 40), (2, 50)], [])), 0.1, 0)
    assert out[0].isnan().all()
    assert out[1].isfinite().all()
    for context in (1, 17):
        cache.append(k, v, cache.step(([], [(1, context, context)])))
        out = OPS.attend(q[:1], cache.pool, 0, cache.step(([(1, context)], [])), 0.1, 0)
        assert out.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_norms_are_those_of_higher_precision(dtype: torch.dtype):
    x = (torch.randn(7, 97, dtype=torch.float64) * 300).to(dtype)
    residual = torch.randn(7, 97).to(dtype)
    weight = (1 + torch.randn(97)).to(dtype)
    bound = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 2**-7}[dtype]

    def expected(of: Tensor) -> Tensor:
        wide = of.double()
        return wide / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()

    out = OPS.rms_norm(x, weight, 1e-5)
    assert out.dtype == dtype
    assert error(out, expected(x)) < bound
    normed, total = OPS.add_rms_norm(x, residual, weight, 1e-5)
    assert torch.equal(total, x + residual)
    assert error(normed, expected(total)) < bound
    zeros = torch.zeros(2, 97, dtype=dtype)
    assert torch.equal(OPS.rms_norm(zeros, weight, 1e-5), zeros)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_rope_turns_halves_against_halves(dtype: torch.dtype):
    """In place, in views of a fused projection, as a product of complex numbers."""
    heads, kv_heads, dim, tokens = 3, 1, 16, 9
    fused = torch.randn(tokens, (heads + 2 * kv_heads) * dim).to(dtype)
    before = fused.clone()
    q = fused[:, : heads * dim].view(tokens, heads, dim)
    k = fused[:, heads * dim : (heads + kv_heads) * dim].view(tokens, kv_heads, dim)
    positions = torch.randint(0, 500, (tokens,), dtype=torch.int32)
    angles = torch.arange(500).unsqueeze(1) * torch.rand(dim // 2)
    table = torch.cat((angles.cos(), angles.sin()), 1)
    OPS.rope(q, k, positions, table)
    turn = torch.complex(*table.double()[positions.long()].unsqueeze(1).chunk(2, -1))
    start = 0
    for x in (q, k):
        old = before[:, start : start + x[0].numel()].view_as(x).double()
        turned = torch.complex(*old.chunk(2, -1)) * turn
        bound = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 2**-8}[dtype]
        assert error(x, torch.cat((turned.real, turned.imag), -1)) < bound
        start += x[0].numel()
    assert torch.equal(fused[:, start:], before[:, start:])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_silu_mul_is_that_of_higher_precision(dtype: torch.dtype):
    gate_up = (torch.randn(5, 2 * 33) * 20).to(dtype)
    gate, up = gate_up.double().chunk(2, -1)
    out = OPS.silu_mul(gate_up)
    assert out.dtype == dtype
    bound = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 2**-8}[dtype]
    assert error(out, gate * up / (1 + (-gate).exp())) < bound
