"""Settings that are left open are filled in by what model, device and memory allow."""

import pytest

pytest.importorskip("torch")

import torch

from engine.capacity import kv_capacity
from engine.config import EngineSettings, SchedulerSettings
from engine.execution.executor import load_executor
from engine.execution.kvcache import KvPool
from engine.execution.sizing import DTYPES, resolve_device, tail_bytes
from engine.kvformats import KV_DTYPES, block_layout
from tests.conftest import has_gpu
from tests.engine.execution.driving import model_folder, settings
from traces.errors import ConfigError


def test_nothing_is_left_open(tmp_path):
    asked = EngineSettings(model=model_folder(tmp_path), weights="dummy", device="cpu")
    executor = load_executor(asked)
    found, limits = executor.settings, executor.settings.scheduler
    names = (found.device, found.dtype, found.kv_dtype, found.kernels, found.cuda_graphs)
    assert names == ("cpu", "fp32", "fp32", "torch", False)
    assert found.num_blocks == executor.num_blocks == 2**30 // executor.block_bytes
    assert (limits.max_num_seqs, limits.max_num_batched_tokens) == (256, 2048)
    assert limits.max_model_len == 256, "the model's max_position_embeddings"
    assert executor.vocab == 97
    EngineSettings.model_validate(found.model_dump())


def test_what_is_stated_stays(tmp_path):
    asked = settings(
        tmp_path,
        dtype="bf16",
        kv_dtype="fp8",
        kernels="torch",
        num_blocks=30,
        scheduler={"max_num_seqs": 3, "max_num_batched_tokens": 10, "max_model_len": 80},
    )
    assert load_executor(asked).settings == asked.model_copy(update={"cuda_graphs": False})


def test_a_sequence_is_no_longer_than_the_pool(tmp_path):
    asked = settings(tmp_path, num_blocks=7, scheduler={"max_model_len": None})
    limits = load_executor(asked).settings.scheduler
    assert limits.max_model_len == 6 * asked.cache.block_tokens


def test_without_chunks_the_longest_prompt_fits_into_a_step(tmp_path):
    folder = model_folder(tmp_path, max_position_embeddings=5000)
    asked = EngineSettings(
        model=folder,
        weights="dummy",
        device="cpu",
        scheduler=SchedulerSettings(chunked_prefill=False),
    )
    assert load_executor(asked).settings.scheduler.max_num_batched_tokens == 5000


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kernels": "triton"}, r"kernels: triton needs device: cuda, got cpu"),
        (
            {"scheduler": {"max_model_len": 300}},
            r"scheduler.max_model_len: .* supports up to 256 tokens, got 300",
        ),
        (
            {"num_blocks": 10},
            r"max_model_len: 96 tokens need 24 blocks, the pool has 9 to use, which hold 36",
        ),
        (
            {"num_blocks": None, "cpu_kv_bytes": 3000},
            r"cpu_kv_bytes: must hold at least 2 blocks of 2048 bytes \(4096\), got 3000",
        ),
        ({"kv_dtype": "int4"}, r"kv dtype int4: needs a head_dim that is a multiple of 64, got 16"),
        ({"tp": 3}, r"4 attention heads do not divide by tp 3"),
        ({"num_blocks": 2**40}, r"num_blocks: 1099511627776 blocks of fp32 take .* would fit"),
    ],
)
def test_what_cannot_be_is_refused_by_name(tmp_path, changes, said):
    with pytest.raises(ConfigError, match=said):
        load_executor(settings(tmp_path, **changes))


def test_a_model_that_is_not_there_is_named(tmp_path):
    missing = tmp_path / "nothing"
    asked = settings(tmp_path).model_copy(update={"model": str(missing)})
    with pytest.raises(ConfigError, match=str(missing)):
        load_executor(asked)


@pytest.mark.skipif(has_gpu(), reason="there is a CUDA device")
def test_cuda_is_asked_for_in_vain(tmp_path):
    with pytest.raises(ConfigError, match=r"device: cuda is asked for, but PyTorch .* finds no"):
        load_executor(settings(tmp_path, device="cuda"))


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
def test_the_tail_s_bytes_are_counted(kv_dtype):
    layout = block_layout(kv_dtype, 3, 2, 64, 8)
    pool = KvPool(layout, 4, device=torch.device("cpu"), dtype=torch.bfloat16, rows=5)
    assert pool.bytes == 4 * layout.block_bytes + tail_bytes(layout, 5, torch.bfloat16)


@pytest.mark.gpu
def test_the_pool_takes_what_capacity_says_and_what_is_free(tmp_path):
    changes = {"device": "cuda", "num_blocks": None, "memory_share": 0.2, "cuda_graphs": False}
    asked = settings(tmp_path, **changes)
    executor = load_executor(asked)
    shape, total = executor.runner.model.shape, torch.cuda.get_device_properties(0).total_memory
    predicted = kv_capacity(
        shape,
        total,
        memory_share=0.2,
        block_tokens=asked.cache.block_tokens,
        max_batched_tokens=64,
        max_sequences=6,
    )
    # what libraries take outside PyTorch's allocator differs a little from what capacity assumes
    assert 0.96 * predicted.blocks < executor.num_blocks <= predicted.blocks
    executor.close()
    taken = torch.empty(int(total * 0.9), dtype=torch.uint8, device="cuda")
    crowded = load_executor(asked.model_copy(update={"memory_share": 1.0}))
    assert 2 <= crowded.num_blocks < 0.1 * total / crowded.block_bytes
    crowded.close()
    with pytest.raises(ConfigError, match="no KV cache fits beside its weights"):
        load_executor(asked)
    del taken


@pytest.mark.gpu
def test_a_gpu_s_defaults(tmp_path):
    found = resolve_device(EngineSettings(model=model_folder(tmp_path)))
    names = (found.device, found.dtype, found.kv_dtype, found.kernels, found.cuda_graphs)
    assert names == ("cuda", "bf16", "bf16", "triton", True)
    torch_kernels = resolve_device(found.model_copy(update={"kernels": "torch"}))
    assert not torch_kernels.cuda_graphs
    assert DTYPES[found.dtype] == torch.bfloat16
    too_many = found.model_copy(update={"tp": torch.cuda.device_count() + 1})
    with pytest.raises(ConfigError, match=r"tp: \d+ GPUs are asked for, there are"):
        resolve_device(too_many)
