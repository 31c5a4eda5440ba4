"""A pool full of noise: finite in every format, the same for the same seed."""

import pytest

pytest.importorskip("torch")

import torch

from engine.execution.executor import load_executor
from engine.execution.filling import fill_with_noise
from engine.execution.kvcache import KvPool
from engine.execution.reference import read_sequence
from engine.kvformats import KV_DTYPES, block_layout
from tests.engine.execution.driving import settings


def pool_of(kv_dtype: str) -> KvPool:
    layout = block_layout(kv_dtype, 2, 2, 64, 16)
    return KvPool(layout, 6, device=torch.device("cpu"), dtype=torch.float32, rows=3)


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
def test_keys_and_values_are_finite_and_of_a_usual_size(kv_dtype):
    pool = pool_of(kv_dtype)
    fill_with_noise(pool)
    table = torch.arange(1, 6, dtype=torch.int32)
    for layer in range(2):
        for part in read_sequence(pool, layer, table, 1, 70):
            assert part.isfinite().all()
            assert 0.05 < part.float().std() < 20


@pytest.mark.parametrize("kv_dtype", ["fp32", "int4_channel"])
def test_a_seed_says_all(kv_dtype):
    one, same, other = (pool_of(kv_dtype) for _ in range(3))
    fill_with_noise(one, 1)
    fill_with_noise(same, 1)
    fill_with_noise(other, 2)
    assert torch.equal(one.buffer, same.buffer)
    assert not torch.equal(one.buffer, other.buffer)


def test_an_executor_begins_with_it(tmp_path):
    executor = load_executor(settings(tmp_path), fill_with_noise)
    assert (executor.runner.pool.keys(0) != 0).all()
    executor.close()
