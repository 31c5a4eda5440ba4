"""Analytic step times: each part of a step by the roofline, before anything is measured.

docs/cost-model.md has every formula and constant with its source.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

from calibration.arithmetic import LOGIT_BYTES, Arithmetic
from calibration.costs import PICOSECONDS, larger
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
            attention, attention_growth, steps = larger(
                self.pair_ps * batch.prefill_pairs,
                self.pair_ps * batch.prefill_pairs_growth,
                self.prefill_context_ps * batch.prefill_context_tokens,
                self.prefill_context_ps * chunk,
                steps,
            )
            first += attention
            growth += attention_growth
        host = self.host_step_ps + self.host_sequence_ps * rows
        if not self.overlap:
            return first + host, growth, steps
        return larger(first, growth, host, 0, steps)

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

    def token_parts_ps(self, tokens: int) -> dict[str, int]:
        """Parts of a step that depend on its number of tokens alone, in picoseconds."""
        shape, tp, host, share = self.shape, self.tp, self.host, self.efficiencies
        work = self.roofline
        graph = tokens <= host.graph_max_tokens
        padded = captured_size(tokens) if graph else tokens
        flops_per_s = work.peak_flops_per_s * share.gemm
        bytes_per_s = self.gpu.memory_bytes_per_s * share.memory
        common_flops = 2 * (shape.common_weights(tp) + shape.router_weights) * padded
        experts_s = 0.0
        if shape.experts:
            chosen = shape.experts_per_token
            expert_flops = 2 * shape.moe_layers * chosen * shape.expert_weights(tp) * tokens
            touched = experts_touched(shape.experts, chosen, tokens)
            experts_s = max(touched * work.expert_bytes / bytes_per_s, expert_flops / flops_per_s)
        reduce_s = all_reduce_s(2 * padded * shape.hidden, tp, self.gpu, share.interconnect)
        kernels = shape.layers * host.kernels_per_layer
        parts = {
            "linear layers": max(work.common_bytes / bytes_per_s, common_flops / flops_per_s),
            "experts": experts_s,
            "elementwise": padded * work.elementwise_bytes / bytes_per_s,
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
        bytes_per_s = self.gpu.memory_bytes_per_s * share.memory
        flops_per_s = self.gpu.bf16_flops_per_s * share.gemm
        weights_s = 2 * shape.lm_head_weights(tp) / bytes_per_s
        head_s = max(weights_s, shape.lm_head_flops_per_row(tp) * rows / flops_per_s)
        head_s += rows * shape.vocab / tp * LOGIT_BYTES / bytes_per_s
        if tp > 1:
            gathered = 2 * rows * shape.vocab * (tp - 1) / tp
            link = self.gpu.interconnect_bytes_per_s * share.interconnect
            head_s += self.gpu.interconnect_latency_s + gathered / link
        return {"output head": round(head_s * PICOSECONDS)}

    @cached_property
    def roofline(self) -> Arithmetic:
        """What steps compute and move, and what the data sheet says of the GPU."""
        return Arithmetic(
            shape=self.shape,
            tp=self.tp,
            weight_dtype=self.weight_dtype,
            kv_dtype=self.kv_dtype,
            peak_flops_per_s=self.gpu.peak_flops_per_s(self.weight_dtype),
            memory_bytes_per_s=self.gpu.memory_bytes_per_s,
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
        tokens_table=[0] * TABLE,
        rows_table=[0] * TABLE,
        decodes_table=[0] * TABLE,
    )
