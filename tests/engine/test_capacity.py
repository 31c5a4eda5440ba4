"""Capacity: the parts fill the memory, and settings move blocks the way they should."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.hardware import gpu, model
from engine.capacity import kv_capacity
from engine.kvformats import KV_DTYPES
from engine.shapes import WEIGHT_DTYPES
from traces.errors import ConfigError

LLAMA = model("llama-3.1-8b")
H100 = gpu("h100").memory_bytes
B200 = gpu("b200").memory_bytes
"""Holds the largest of the models below in 32 bits."""


@given(
    st.sampled_from(["llama-3.1-8b", "qwen3-30b-a3b", "qwen2.5-7b", "smollm2-135m"]),
    st.sampled_from(sorted(WEIGHT_DTYPES)),
    st.sampled_from(sorted(KV_DTYPES)),
    st.sampled_from([1, 16, 64]),
    st.floats(0.85, 1.0),
    st.integers(1, 16_384),
    st.integers(0, 2**30),
)
def test_parts_fill_the_memory(name, weights, kv, block_tokens, share, tokens, graphs):
    capacity = kv_capacity(
        model(name),
        B200,
        weight_dtype=weights,
        kv_dtype=kv,
        block_tokens=block_tokens,
        memory_share=share,
        max_batched_tokens=tokens,
        graph_bytes=graphs,
    )
    assert sum(capacity.parts().values()) == B200
    assert min(capacity.parts().values()) >= 0
    assert capacity.kv_bytes == capacity.blocks * capacity.block_bytes
    assert capacity.unused_bytes < capacity.block_bytes
    assert capacity.tokens == capacity.blocks * block_tokens


def test_an_8_bit_cache_about_doubles_the_blocks():
    blocks = {dtype: kv_capacity(LLAMA, H100, kv_dtype=dtype).blocks for dtype in KV_DTYPES}
    assert blocks["fp8"] == pytest.approx(2 * blocks["bf16"], abs=1)
    assert blocks["int8"] == pytest.approx(2 * blocks["bf16"] / 1.03125, rel=1e-3)
    assert blocks["int4"] > 1.8 * blocks["int8"]


def test_more_of_anything_else_leaves_fewer_blocks():
    blocks = kv_capacity(LLAMA, H100).blocks
    assert kv_capacity(LLAMA, H100, memory_share=0.8).blocks < blocks
    assert kv_capacity(LLAMA, H100, max_sequences=1024).blocks < blocks
    assert kv_capacity(LLAMA, H100, max_batched_tokens=65_536).blocks < blocks
    assert kv_capacity(LLAMA, H100, graph_bytes=2**30).blocks < blocks
    assert kv_capacity(LLAMA, H100, weight_dtype="fp8").blocks > blocks
    assert kv_capacity(LLAMA, H100, tp=2).blocks > 2 * blocks
    assert kv_capacity(LLAMA, H100, block_tokens=32).blocks == blocks // 2


def test_what_does_not_fit_is_named():
    with pytest.raises(ConfigError, match=r"llama-3\.1-70b .* does not fit: weights 131\.42 GiB"):
        kv_capacity(model("llama-3.1-70b"), H100)
    with pytest.raises(ConfigError, match=r"memory_share: must be above 0 and at most 1, got 1\.5"):
        kv_capacity(LLAMA, H100, memory_share=1.5)
    with pytest.raises(ConfigError, match="block_tokens: must be at least 1, got 0"):
        kv_capacity(LLAMA, H100, block_tokens=0)


def test_close_to_the_blocks_of_a_real_run(shared: Path):
    """vLLM 0.19 on an RTX 4090; nothing in the formula was fitted to it."""
    folder = shared / "ground-truth" / "rtx4090-llama-3.1-8b-vllm"
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    settings, cache = meta["engine_kwargs"], meta["kv_cache"]
    capacity = kv_capacity(
        LLAMA,
        meta["hardware"]["device_total_memory_bytes"],
        block_tokens=cache["block_size"],
        memory_share=cache["gpu_memory_utilization"],
        max_batched_tokens=settings["max_num_batched_tokens"],
        max_sequences=settings["max_num_seqs"],
    )
    assert capacity.blocks == pytest.approx(cache["num_gpu_blocks"], rel=0.015)
