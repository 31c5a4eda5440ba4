"""How many KV blocks fit: one function, by which engine allocates and simulator predicts."""

from dataclasses import dataclass
from typing import Final

from engine.shapes import ModelShape
from traces.errors import ConfigError

LOGIT_BYTES: Final = 26
"""Bytes a logit takes at the sampler's peak: 2 (16-bit) + 4 (32-bit) + 12 (sorted values and their
64-bit indices) + 8 (probabilities and their running sum), the tensors of vLLM's top-k/top-p."""

OTHER_BYTES: Final = 3 * 2**30 // 10
"""Memory outside PyTorch's allocator: 0.3 GiB; vLLM's logs say 0.20 to 0.33 GiB
(`non_torch_memory` in github.com/vllm-project/vllm issues 14452, 15039 and 15815)."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """Where a GPU's memory goes; every part in bytes, and together `memory_bytes`."""

    memory_bytes: int
    reserved_bytes: int
    """Left alone: the share of memory that is not the engine's."""
    weight_bytes: int
    activation_bytes: int
    graph_bytes: int
    other_bytes: int
    kv_bytes: int
    unused_bytes: int
    """Less than a block."""
    block_bytes: int
    block_tokens: int
    blocks: int

    @property
    def tokens(self) -> int:
        """Tokens of context that the KV cache holds."""
        return self.blocks * self.block_tokens

    def parts(self) -> dict[str, int]:
        """Name of each part to its bytes; their sum is `memory_bytes`."""
        return {
            "reserved": self.reserved_bytes,
            "weights": self.weight_bytes,
            "activation peak": self.activation_bytes,
            "CUDA graphs": self.graph_bytes,
            "other": self.other_bytes,
            "KV cache": self.kv_bytes,
            "unused": self.unused_bytes,
        }


def activation_peak_bytes(
    shape: ModelShape, *, max_batched_tokens: int, max_sequences: int, tp: int = 1
) -> int:
    """Most memory that activations take at once, in bytes on each GPU.

    The larger of the widest layer, tokens x 2 bytes x (2 hidden + 3 intermediate / tp) (residual,
    its norm, gate, up and their product; for experts one such triple for each expert chosen), and
    the sampler, rows x vocabulary x LOGIT_BYTES: every GPU gathers all logits.
    """
    inner = max(
        -(-shape.intermediate // tp),
        -(-shape.experts_per_token * shape.moe_intermediate // tp)
        + -(-shape.shared_intermediate // tp),
    )
    layer = max_batched_tokens * 2 * (2 * shape.hidden + 3 * inner)
    rows = min(max_sequences, max_batched_tokens)
    return max(layer, rows * shape.vocab * LOGIT_BYTES)


def kv_capacity(
    shape: ModelShape,
    memory_bytes: int,
    *,
    tp: int = 1,
    weight_dtype: str = "bf16",
    kv_dtype: str = "bf16",
    block_tokens: int = 16,
    memory_share: float = 0.9,
    max_batched_tokens: int = 2048,
    max_sequences: int = 256,
    graph_bytes: int = 0,
    other_bytes: int = OTHER_BYTES,
) -> Capacity:
    """Number of KV blocks on each GPU, and everything else that takes memory there.

    Arguments:
        shape: the model; every GPU of the `tp` holds its share of weights and KV heads.
        memory_bytes: of one GPU as the driver reports it to programs (`total_memory`).
        tp: GPUs that split the model.
        weight_dtype: see engine.shapes.WEIGHT_DTYPES.
        kv_dtype: see engine.kvformats.KV_DTYPES.
        block_tokens: tokens of a KV block.
        memory_share: part of the memory the engine may take (vLLM's gpu_memory_utilization).
        max_batched_tokens: token budget of a step.
        max_sequences: most sequences in a step.
        graph_bytes: of captured CUDA graphs, where the engine takes them out of its share (vLLM
            does from 0.21 on; before, they came on top).
        other_bytes: memory outside the allocator (libraries, communication buffers).

    Raises:
        ConfigError: when a setting is out of range, or not one block fits: which bytes do not.
    """
    if not 0 < memory_share <= 1:
        raise ConfigError(f"memory_share: must be above 0 and at most 1, got {memory_share}")
    for name, value in (
        ("block_tokens", block_tokens),
        ("max_batched_tokens", max_batched_tokens),
        ("max_sequences", max_sequences),
    ):
        if value < 1:
            raise ConfigError(f"{name}: must be at least 1, got {value}")
    usable = int(memory_bytes * memory_share)
    weights = shape.weight_bytes(weight_dtype, tp)
    activation = activation_peak_bytes(
        shape, max_batched_tokens=max_batched_tokens, max_sequences=max_sequences, tp=tp
    )
    block = shape.kv_block_bytes(kv_dtype, block_tokens, tp)
    left = usable - weights - activation - graph_bytes - other_bytes
    if left < block:
        raise ConfigError(
            f"{shape.name} ({weight_dtype}, tp {tp}) does not fit: weights {_gib(weights)}"
            f" + activation peak {_gib(activation)} + CUDA graphs {_gib(graph_bytes)}"
            f" + other {_gib(other_bytes)} + one block {_gib(block)} exceed {memory_share:g} of"
            f" {_gib(memory_bytes)} by {_gib(block - left)};"
            " use more GPUs (tp), a smaller weight dtype, fewer batched tokens or a larger share"
        )
    blocks = left // block
    return Capacity(
        memory_bytes=memory_bytes,
        reserved_bytes=memory_bytes - usable,
        weight_bytes=weights,
        activation_bytes=activation,
        graph_bytes=graph_bytes,
        other_bytes=other_bytes,
        kv_bytes=blocks * block,
        unused_bytes=left - blocks * block,
        block_bytes=block,
        block_tokens=block_tokens,
        blocks=blocks,
    )


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.2f} GiB"
