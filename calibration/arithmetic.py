"""What a step computes and moves on each GPU: its place on the roofline, whatever it takes."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calibration.kernels import experts_touched
from engine.shapes import ModelShape, linear_bytes, unquantised_bytes

LOGIT_BYTES: Final = 12
"""A logit is written and read in 16 bits, written in 32 and read once by the sampler."""


@dataclass(frozen=True)
class Arithmetic:
    """A model on one of `tp` GPUs: FLOPs and bytes of its steps, and what the GPU could do."""

    shape: ModelShape
    tp: int
    weight_dtype: str
    kv_dtype: str
    peak_flops_per_s: float
    """Of one GPU, for the weights' dtype."""
    memory_bytes_per_s: float
    """Of one GPU."""

    def work(
        self,
        decodes: ArrayLike,
        decode_context_tokens: ArrayLike,
        prefill_tokens: ArrayLike,
        prefill_context_tokens: ArrayLike,
        prefill_pairs: ArrayLike,
        sequences: ArrayLike,
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """FLOPs and bytes of memory traffic of steps on each GPU: their place on the roofline.

        Arguments are numbers or arrays of one shape (features of Batch); so are the results.
        """
        shape, tp = self.shape, self.tp
        tokens = np.asarray(decodes, dtype=np.float64) + np.asarray(prefill_tokens)
        rows = np.asarray(sequences, dtype=np.float64)
        contexts = np.asarray(decode_context_tokens, dtype=np.float64)
        flops = (
            tokens * shape.gemm_flops_per_token(tp)
            + rows * shape.lm_head_flops_per_row(tp)
            + (contexts + np.asarray(prefill_pairs)) * shape.attention_flops_per_pair(tp)
        )
        width = unquantised_bytes(self.weight_dtype)
        kv_bytes = shape.kv_bytes_per_token(self.kv_dtype, tp)
        moved = (
            np.where(tokens > 0, self.common_bytes, 0.0)
            + (contexts + np.asarray(prefill_context_tokens) + tokens) * kv_bytes
            + tokens * self.elementwise_bytes
            + np.where(rows > 0, float(width * shape.lm_head_weights(tp)), 0.0)
            + rows * shape.vocab / tp * LOGIT_BYTES
        )
        if shape.experts:
            touched = experts_touched(shape.experts, shape.experts_per_token, tokens)
            moved = moved + touched * self.expert_bytes
        return flops, moved

    @property
    def common_bytes(self) -> int:
        """Weights of the linear maps that every token meets."""
        weights = linear_bytes(self.shape.common_weights(self.tp), self.weight_dtype)
        return weights + unquantised_bytes(self.weight_dtype) * self.shape.router_weights

    @property
    def expert_bytes(self) -> int:
        """Weights of one expert in all layers."""
        weights = self.shape.moe_layers * self.shape.expert_weights(self.tp)
        return linear_bytes(weights, self.weight_dtype)

    @property
    def elementwise_bytes(self) -> int:
        """Traffic of norms, rotary embedding and gating for a token, all layers."""
        shape, tp = self.shape, self.tp
        heads = shape.heads_per_gpu(tp) + 2 * shape.kv_heads_per_gpu(tp)
        dense = shape.layers - shape.moe_layers
        chosen = shape.experts_per_token * shape.moe_intermediate + shape.shared_intermediate
        inner = dense * shape.intermediate + shape.moe_layers * chosen
        return unquantised_bytes(self.weight_dtype) * (
            shape.layers * (8 * shape.hidden + 2 * heads * shape.head_dim) + 3 * inner // tp
        )
