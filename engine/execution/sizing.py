"""What settings leave open: device, dtypes, kernels, blocks of the pool, limits of a step."""

from typing import Final

import torch

from engine.capacity import activation_peak_bytes, kv_capacity
from engine.config import EngineSettings
from engine.execution.memory import GIB, free_bytes
from engine.kvformats import BlockLayout, block_layout
from engine.shapes import WEIGHT_DTYPES, ModelShape
from traces.errors import ConfigError

DTYPES: Final = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}

MAX_NUM_SEQS: Final = 256
MAX_BATCHED_TOKENS: Final = {"cuda": 8192, "cpu": 2048}
"""Token budget of a step, by device."""


def resolve_device(settings: EngineSettings) -> EngineSettings:
    """`settings` with no `auto` left.

    Raises:
        ConfigError: for what the device has not.
    """
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    device = settings.device
    if device == "auto":
        device = "cuda" if found else "cpu"
    if device == "cuda" and not found:
        raise ConfigError(
            f"device: cuda is asked for, but PyTorch {torch.__version__} finds no CUDA device;"
            " device: cpu runs the same engine"
        )
    if device == "cuda" and settings.tp > found:
        raise ConfigError(f"tp: {settings.tp} GPUs are asked for, there are {found}")
    kernels = settings.kernels
    if kernels == "auto":
        kernels = "triton" if device == "cuda" else "torch"
    if kernels == "triton" and device == "cpu":
        raise ConfigError("kernels: triton needs device: cuda, got cpu; use kernels: torch")
    dtype = settings.dtype
    if dtype == "auto":
        dtype = "bf16" if device == "cuda" else "fp32"
    # The torch operations ask the host where prefills and blocks end: no graph can be made of them.
    graphs = settings.cuda_graphs and kernels == "triton" and settings.kv_reuse
    return settings.model_copy(
        update={
            "device": device,
            "dtype": dtype,
            "kernels": kernels,
            "kv_dtype": dtype if settings.kv_dtype == "auto" else settings.kv_dtype,
            "cuda_graphs": graphs,
        }
    )


def resolve_budget(settings: EngineSettings, shape: ModelShape) -> EngineSettings:
    """`settings` with the limits of a step filled in, as far as memory does not decide them.

    Raises:
        ConfigError: for a max_model_len that the model does not support.
    """
    scheduler = settings.scheduler
    longest = scheduler.max_model_len or shape.max_position
    if longest > shape.max_position:
        raise ConfigError(
            f"scheduler.max_model_len: {shape.name} supports up to {shape.max_position} tokens,"
            f" got {longest}"
        )
    budget = scheduler.max_num_batched_tokens
    if budget is None:
        budget = MAX_BATCHED_TOKENS[settings.device]
        # Without chunks the longest prompt has to fit into one step.
        budget = budget if scheduler.chunked_prefill else max(budget, longest)
    filled = scheduler.model_copy(
        update={
            "max_num_seqs": scheduler.max_num_seqs or MAX_NUM_SEQS,
            "max_num_batched_tokens": budget,
        }
    )
    return settings.model_copy(update={"scheduler": filled})


def resolve_length(settings: EngineSettings, shape: ModelShape, num_blocks: int) -> EngineSettings:
    """`settings` with the pool's blocks and with a max_model_len that they hold.

    Raises:
        ConfigError: when the pool holds less than the max_model_len that is asked for.
    """
    asked, block_tokens = settings.scheduler.max_model_len, settings.cache.block_tokens
    held = (num_blocks - 1) * block_tokens
    if asked is not None and asked > held:
        raise ConfigError(
            f"scheduler.max_model_len: {asked} tokens need {-(-asked // block_tokens)} blocks, the"
            f" pool has {num_blocks - 1} to use, which hold {held} tokens; ask for fewer tokens, or"
            " give the pool more memory"
        )
    longest = min(shape.max_position, held) if asked is None else asked
    filled = settings.scheduler.model_copy(update={"max_model_len": longest})
    return settings.model_copy(update={"scheduler": filled, "num_blocks": num_blocks})


def layout_of(settings: EngineSettings, shape: ModelShape) -> BlockLayout:
    """How a block of one of the `tp` pools looks in memory.

    Raises:
        ConfigError: for a kv_dtype that cannot hold the model's heads.
    """
    return block_layout(
        settings.kv_dtype,
        shape.layers,
        shape.kv_heads_per_gpu(settings.tp),
        shape.head_dim,
        settings.cache.block_tokens,
    )


def blocks_that_fit(
    settings: EngineSettings, shape: ModelShape, layout: BlockLayout, device: torch.device
) -> int:
    """Blocks of the pool, the null block included, once the weights are loaded.

    Raises:
        ConfigError: when not even two fit.
    """
    if settings.num_blocks is not None:
        return settings.num_blocks
    if device.type == "cpu":
        return _blocks_within_setting(settings, layout)
    return _blocks_within_gpu(settings, shape, layout, device)


def _blocks_within_setting(settings: EngineSettings, layout: BlockLayout) -> int:
    blocks = settings.cpu_kv_bytes // layout.block_bytes
    if blocks < 2:
        raise ConfigError(
            f"cpu_kv_bytes: must hold at least 2 blocks of {layout.block_bytes} bytes"
            f" ({2 * layout.block_bytes}), got {settings.cpu_kv_bytes}"
        )
    return blocks


def _blocks_within_gpu(
    settings: EngineSettings, shape: ModelShape, layout: BlockLayout, device: torch.device
) -> int:
    """The least of what the model's shape and what the device's free memory leave room for."""
    scheduler = settings.scheduler
    tokens, sequences = scheduler.max_num_batched_tokens, scheduler.max_num_seqs
    assert tokens is not None and sequences is not None
    total = torch.cuda.get_device_properties(device).total_memory
    capacity = kv_capacity(
        shape,
        total,
        tp=settings.tp,
        weight_dtype=settings.dtype if settings.dtype in WEIGHT_DTYPES else "bf16",
        kv_dtype=settings.kv_dtype,
        block_tokens=settings.cache.block_tokens,
        memory_share=settings.memory_share,
        max_batched_tokens=tokens,
        max_sequences=sequences,
    )
    torch.cuda.empty_cache()
    free = free_bytes(device) or 0
    tail = tail_bytes(layout, sequences + 1, DTYPES[settings.dtype])
    width = DTYPES[settings.dtype].itemsize
    peak = (
        width
        // 2
        * activation_peak_bytes(
            shape, max_batched_tokens=tokens, max_sequences=sequences, tp=settings.tp
        )
    )
    left = free - capacity.reserved_bytes - peak - tail
    blocks = min(capacity.blocks - -(-tail // layout.block_bytes), left // layout.block_bytes)
    if blocks < 2:
        raise ConfigError(
            f"{shape.name}: no KV cache fits beside its weights: {free / GIB:.2f} GiB are free on"
            f" {device}, less activation peak {peak / GIB:.2f} GiB, reserved"
            f" {capacity.reserved_bytes / GIB:.2f} GiB and unfilled blocks {tail / GIB:.2f} GiB,"
            f" which is room for {max(0, blocks)} blocks of {layout.block_bytes} bytes; use more"
            " GPUs (tp), fewer batched tokens, fewer sequences or a larger memory_share"
        )
    return blocks


def tail_bytes(layout: BlockLayout, rows: int, dtype: torch.dtype) -> int:
    """Bytes of the pool's tail: the unfilled blocks' keys where they are encoded by channel."""
    if layout.key.scales != "channel_least":
        return 0
    keys = layout.layers * layout.kv_heads * layout.block_tokens * layout.head_dim
    return rows * keys * dtype.itemsize
