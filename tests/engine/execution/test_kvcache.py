import pytest

pytest.importorskip("torch")

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.execution.kvcache import KvPool
from engine.kvformats import KV_DTYPES, block_layout
from traces.errors import ConfigError

CPU = torch.device("cpu")


def pool_of(kv_dtype: str, *, layers=2, kv_heads=3, head_dim=64, block_tokens=16, blocks=4):
    layout = block_layout(kv_dtype, layers, kv_heads, head_dim, block_tokens)
    return KvPool(layout, blocks, device=CPU, dtype=torch.float32, rows=3)


def views(pool: KvPool):
    for layer in range(pool.layout.layers):
        for of in (pool.keys, pool.values, pool.key_scales, pool.value_scales):
            view = of(layer)
            if view is not None:
                yield view


@settings(max_examples=40, deadline=None)
@given(
    kv_dtype=st.sampled_from(list(KV_DTYPES)),
    layers=st.integers(1, 3),
    kv_heads=st.integers(1, 5),
    head_dim=st.sampled_from([64, 128, 192]),
    block_tokens=st.integers(1, 33),
    blocks=st.integers(2, 5),
)
def test_views_share_no_byte_and_leave_only_padding(
    kv_dtype: str, layers: int, kv_heads: int, head_dim: int, block_tokens: int, blocks: int
):
    pool = pool_of(
        kv_dtype,
        layers=layers,
        kv_heads=kv_heads,
        head_dim=head_dim,
        block_tokens=block_tokens,
        blocks=blocks,
    )
    written = 0
    for view in views(pool):
        before = int((pool.buffer != 0).sum())
        of_bytes = torch.full(view.shape, 0x55, dtype=torch.uint8)
        pattern = of_bytes.repeat_interleave(view.element_size(), -1).view(view.dtype)
        view.copy_(pattern)
        assert int((pool.buffer != 0).sum()) - before == view.nbytes
        assert view.data_ptr() % 16 == 0
        written += view.nbytes
    # at most 15 bytes follow each of a layer's four parts
    assert blocks * pool.layout.block_bytes - written <= blocks * layers * 4 * 15


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
def test_a_block_is_one_run_of_bytes(kv_dtype: str):
    pool = pool_of(kv_dtype)
    for view in views(pool):
        part = view[2].view(torch.uint8)
        part.random_(1, 120)
    others = pool.buffer.clone()
    pool.buffer[3].copy_(pool.buffer[2])
    for view in views(pool):
        assert torch.equal(view[3], view[2])
        assert not view[1].any()
    assert torch.equal(pool.buffer[:3], others[:3])


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
def test_shapes_are_those_of_the_format(kv_dtype: str):
    pool = pool_of(kv_dtype)
    key, value = KV_DTYPES[kv_dtype]
    scales = {
        "token": ((4, 3, 16), torch.float32),
        "token_least": ((4, 3, 2, 16), torch.float16),
        "channel_least": ((4, 3, 2, 64), torch.float16),
        "group_least": ((4, 3, 2, 16, 2), torch.float16),
    }
    for elements, beside, encoding in (
        (pool.keys(1), pool.key_scales(1), pool.layout.key),
        (pool.values(1), pool.value_scales(1), pool.layout.value),
    ):
        assert elements.shape == (4, 3, 16, 32 if encoding.bits == 4 else 64)
        assert elements.element_size() == max(1, encoding.bits // 8)
        if encoding.scales == "none":
            assert beside is None
        else:
            assert beside is not None
            assert (tuple(beside.shape), beside.dtype) == scales[encoding.scales]
    assert (pool.tail is not None) == (key == "int4_channel")
    assert value != "int4_channel"


def test_the_tail_counts():
    plain, by_channel = pool_of("int4"), pool_of("int4_channel")
    assert plain.bytes == plain.buffer.nbytes == 4 * plain.layout.block_bytes
    assert by_channel.tail is not None
    assert by_channel.tail.shape == (3, 2, 3, 16, 64)
    assert by_channel.bytes == by_channel.buffer.nbytes + 4 * 3 * 2 * 3 * 16 * 64


def test_what_does_not_fit_is_said_before_it_is_taken():
    with pytest.raises(ConfigError, match=r"num_blocks: 1000000000 blocks of int8 take .* GiB on"):
        pool_of("int8", blocks=10**9)
    with pytest.raises(ConfigError, match="at least 2"):
        pool_of("int8", blocks=1)
