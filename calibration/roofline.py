"""Analytic step times: each part of a step by the roofline, before anything is measured.

docs/cost-model.md has every formula and constant with its source.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calibration.costs import PICOSECONDS
from calibration.hardware import Gpu
from calibration.kernels import (
    Efficiencies,
    HostCosts,
    all_reduce_s,
    captured_size,
    experts_touched,
)
from engine.batch import Batch
from engine.shapes import ModelShape, linear_bytes

TABLE: Final = 16_385
"""Entries of the tables of constant parts; larger steps compute theirs each time."""

LOGIT_BYTES: Final = 12
"""A logit is written and read in 16 bits, written in 32 and read once by the sampler."""


@dataclass(frozen=True)
class RooflineCost:
    """Cost model of one replica, from its model's shape and its GPU's data sheet.

    A value: build it with `roofline_cost`. Times that grow along a segment have whole picoseconds
    as coefficients, so that progressions are exact; the rest is rounded once and kept in tables.
    """

    shape: ModelShape
    gpu: Gpu
    tp: int
    weight_dtype: str
    kv_dtype: str
    efficiencies: Efficiencies
    host: HostCosts
    context_ps: int
    """Decode attention: for each token attended to."""
    pair_ps: int
    """Prefill attention's compute: for each pair of tokens."""
    prefill_context_ps: int
    """Prefill attention's memory: for each token of KV read."""
    host_step_ps: int
    host_sequence_ps: int
    overlap: bool
    peak_flops_per_s: float
    """Of one GPU, for the weights' dtype, by the data sheet."""
    memory_bytes_per_s: float
    """Of one GPU, by the data sheet."""
    tokens_table: list[int] = field(compare=False, repr=False)
    rows_table: list[int] = field(compare=False, repr=False)
    decodes_table: list[int] = field(compare=False, repr=False)

    def __reduce__(self) -> tuple[Callable[..., "RooflineCost"], tuple[Any, ...]]:
        settings = (self.shape, self.gpu, self.tp, self.weight_dtype, self.kv_dtype)
        return roofline_cost, (*settings, self.efficiencies, self.host)

    def progression(self, batch: Batch) -> tuple[int, int, int]:
        """See CostModel.progression.

        Kinks: prefill attention turning from memory- to compute-bound or back, and the GPU
        overtaking the CPU where scheduling overlaps.
        """
        decodes = batch.decodes
        chunk = batch.prefill_tokens
        steps = batch.horizon
        if chunk == 0:
            if decodes == 0:
                return 0, 0, steps
            rows = decodes
            fixed = self.decodes_table[decodes] if decodes < TABLE else 0
            if fixed == 0:
                fixed = self._decodes_ps(decodes)
            first = fixed + self.context_ps * batch.decode_context_tokens
            growth = self.context_ps * decodes
        else:
            rows = decodes + len(batch.prefills)
            tokens = decodes + chunk
            fixed = self.tokens_table[tokens] if tokens < TABLE else 0
            if fixed == 0:
                fixed = self._tokens_ps(tokens)
            logits = self.rows_table[rows] if rows < TABLE else 0
            if logits == 0:
                logits = self._rows_ps(rows)
            first = fixed + logits + self.context_ps * batch.decode_context_tokens
            growth = self.context_ps * decodes
            compute = self.pair_ps * batch.prefill_pairs
            compute_growth = self.pair_ps * batch.prefill_pairs_growth
            memory = self.prefill_context_ps * batch.prefill_context_tokens
            memory_growth = self.prefill_context_ps * chunk
            ahead = compute - memory
            overtaken = memory_growth - compute_growth
            if ahead < 0:
                compute, compute_growth = memory, memory_growth
                ahead, overtaken = -ahead, -overtaken
            if overtaken > 0:
                steps = min(steps, ahead // overtaken + 1)
            first += compute
            growth += compute_growth
        host = self.host_step_ps + self.host_sequence_ps * rows
        if not self.overlap:
            return first + host, growth, steps
        if first >= host:
            return first, growth, steps
        if growth > 0:
            steps = min(steps, (host - first) // growth + 1)
        return host, 0, steps

    def explain(self, batch: Batch) -> dict[str, float]:
        """Parts of the batch's next step in seconds; their sum is its duration.

        `host` is the CPU time that the GPU's work does not hide.
        """
        tokens = batch.decodes + batch.prefill_tokens
        if tokens == 0:
            return {}
        rows = batch.sequences
        parts = self.token_parts_ps(tokens)
        parts |= self.row_parts_ps(rows)
        parts["decode attention"] = self.context_ps * batch.decode_context_tokens
        parts["prefill attention"] = (
            max(
                self.pair_ps * batch.prefill_pairs,
                self.prefill_context_ps * batch.prefill_context_tokens,
            )
            if batch.prefill_tokens
            else 0
        )
        host = self.host_step_ps + self.host_sequence_ps * rows
        hidden = sum(parts.values()) if self.overlap else 0
        parts["host"] = max(0, host - hidden)
        return {name: part / PICOSECONDS for name, part in parts.items()}

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
        kv_bytes = shape.kv_bytes_per_token(self.kv_dtype, tp)
        moved = (
            np.where(tokens > 0, self._common_bytes, 0.0)
            + (contexts + np.asarray(prefill_context_tokens) + tokens) * kv_bytes
            + tokens * self._elementwise_bytes
            + np.where(rows > 0, 2.0 * shape.lm_head_weights(tp), 0.0)
            + rows * shape.vocab / tp * LOGIT_BYTES
        )
        if shape.experts:
            touched = experts_touched(shape.experts, shape.experts_per_token, tokens)
            moved = moved + touched * self._expert_bytes
        return flops, moved

    def token_parts_ps(self, tokens: int) -> dict[str, int]:
        """Parts of a step that depend on its number of tokens alone, in picoseconds."""
        shape, tp, host, share = self.shape, self.tp, self.host, self.efficiencies
        graph = tokens <= host.graph_max_tokens
        padded = captured_size(tokens) if graph else tokens
        flops_per_s = self.peak_flops_per_s * share.gemm
        bytes_per_s = self.memory_bytes_per_s * share.memory
        common_flops = 2 * (shape.common_weights(tp) + shape.router_weights) * padded
        experts_s = 0.0
        if shape.experts:
            chosen = shape.experts_per_token
            expert_flops = 2 * shape.moe_layers * chosen * shape.expert_weights(tp) * tokens
            touched = experts_touched(shape.experts, chosen, tokens)
            experts_s = max(touched * self._expert_bytes / bytes_per_s, expert_flops / flops_per_s)
        reduce_s = all_reduce_s(2 * padded * shape.hidden, tp, self.gpu, share.interconnect)
        kernels = shape.layers * host.kernels_per_layer
        parts = {
            "linear layers": max(self._common_bytes / bytes_per_s, common_flops / flops_per_s),
            "experts": experts_s,
            "elementwise": padded * self._elementwise_bytes / bytes_per_s,
            "kv write": tokens * shape.kv_bytes_per_token(self.kv_dtype, tp) / bytes_per_s,
            "all-reduce": 2 * shape.layers * reduce_s,
            "kernel gaps": kernels * host.kernel_gap_s,
        }
        launches = 0.0 if graph else kernels * host.kernel_launch_s
        parts["launches"] = max(0.0, launches - sum(parts.values()))
        return {name: round(part * PICOSECONDS) for name, part in parts.items()}

    def row_parts_ps(self, rows: int) -> dict[str, int]:
        """Parts of a step that depend on its rows of logits alone, in picoseconds."""
        if rows == 0:
            return {"output head": 0}
        shape, tp, share = self.shape, self.tp, self.efficiencies
        bytes_per_s = self.memory_bytes_per_s * share.memory
        flops_per_s = self.gpu.bf16_flops_per_s * share.gemm
        weights_s = 2 * shape.lm_head_weights(tp) / bytes_per_s
        head_s = max(weights_s, shape.lm_head_flops_per_row(tp) * rows / flops_per_s)
        head_s += rows * shape.vocab / tp * LOGIT_BYTES / bytes_per_s
        if tp > 1:
            gathered = 2 * rows * shape.vocab * (tp - 1) / tp
            link = self.gpu.interconnect_bytes_per_s * share.interconnect
            head_s += self.gpu.interconnect_latency_s + gathered / link
        return {"output head": round(head_s * PICOSECONDS)}

    @property
    def _common_bytes(self) -> int:
        weights = linear_bytes(self.shape.common_weights(self.tp), self.weight_dtype)
        return weights + 2 * self.shape.router_weights

    @property
    def _expert_bytes(self) -> int:
        """Of one expert in all layers."""
        weights = self.shape.moe_layers * self.shape.expert_weights(self.tp)
        return linear_bytes(weights, self.weight_dtype)

    @property
    def _elementwise_bytes(self) -> int:
        """Traffic of norms, rotary embedding and gating for a token, all layers, in 16 bits."""
        shape, tp = self.shape, self.tp
        heads = shape.heads_per_gpu(tp) + 2 * shape.kv_heads_per_gpu(tp)
        dense = shape.layers - shape.moe_layers
        chosen = shape.experts_per_token * shape.moe_intermediate + shape.shared_intermediate
        inner = dense * shape.intermediate + shape.moe_layers * chosen
        return 2 * (
            shape.layers * (8 * shape.hidden + 2 * heads * shape.head_dim) + 3 * inner // tp
        )

    def _tokens_ps(self, tokens: int) -> int:
        cost = sum(self.token_parts_ps(tokens).values())
        if tokens < TABLE:
            self.tokens_table[tokens] = cost
        return cost

    def _rows_ps(self, rows: int) -> int:
        cost = sum(self.row_parts_ps(rows).values())
        if rows < TABLE:
            self.rows_table[rows] = cost
        return cost

    def _decodes_ps(self, decodes: int) -> int:
        cost = self._tokens_ps(decodes) + self._rows_ps(decodes)
        if decodes < TABLE:
            self.decodes_table[decodes] = cost
        return cost


def roofline_cost(
    shape: ModelShape,
    gpu: Gpu,
    tp: int = 1,
    weight_dtype: str = "bf16",
    kv_dtype: str = "bf16",
    efficiencies: Efficiencies | None = None,
    host: HostCosts | None = None,
) -> RooflineCost:
    """Build the analytic cost model of `shape` on `tp` GPUs.

    Raises:
        ConfigError: for an unknown dtype, or a `tp` the model cannot be split by.
    """
    share = efficiencies or Efficiencies()
    cpu = host or HostCosts()
    linear_bytes(0, weight_dtype)
    kv_bytes = shape.kv_bytes_per_token(kv_dtype, tp)
    kv_s = kv_bytes / (gpu.memory_bytes_per_s * share.attention_memory)
    pair_s = shape.attention_flops_per_pair(tp) / (gpu.bf16_flops_per_s * share.attention)
    return RooflineCost(
        shape=shape,
        gpu=gpu,
        tp=tp,
        weight_dtype=weight_dtype,
        kv_dtype=kv_dtype,
        efficiencies=share,
        host=cpu,
        context_ps=round(max(kv_s, pair_s) * PICOSECONDS),
        pair_ps=round(pair_s * PICOSECONDS),
        prefill_context_ps=round(kv_s * PICOSECONDS),
        host_step_ps=round(cpu.step_s * PICOSECONDS),
        host_sequence_ps=round(cpu.sequence_s * PICOSECONDS),
        overlap=cpu.overlap_scheduling is not False,
        peak_flops_per_s=gpu.peak_flops_per_s(weight_dtype),
        memory_bytes_per_s=gpu.memory_bytes_per_s,
        tokens_table=[0] * TABLE,
        rows_table=[0] * TABLE,
        decodes_table=[0] * TABLE,
    )
