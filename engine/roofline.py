"""What steps computed and moved, and how near that came to what the device can do."""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from engine.config import EngineSettings
from engine.shapes import ModelShape

Numbers = NDArray[np.float64]

WIDTH_BYTES: Final = {"fp32": 4, "bf16": 2, "fp16": 2}
"""Of a weight, by EngineSettings.dtype."""


@dataclass(frozen=True, slots=True)
class Ceilings:
    """The most a device was seen to do, by measurement."""

    flops_per_s: float
    """A large matrix product in the engine's dtype."""
    bytes_per_s: float
    """A large copy within the device's memory, bytes read and bytes written."""


class StepWork:
    """FLOPs and bytes of steps on each GPU, from their records."""

    def __init__(self, shape: ModelShape, settings: EngineSettings) -> None:
        """Work of that model; `settings` with nothing left open."""
        tp = settings.tp
        self._reuse = settings.kv_reuse
        self._token_flops = shape.gemm_flops_per_token(tp)
        self._row_flops = shape.lm_head_flops_per_row(tp)
        self._pair_flops = shape.attention_flops_per_pair(tp)
        self._kv_bytes = shape.kv_bytes_per_token(
            settings.kv_dtype, tp, settings.cache.block_tokens
        )
        # Of an embedding table that is not the output head too, a step reads a few rows only.
        unread = 0 if shape.tied_embeddings else 2 * shape.lm_head_weights(tp)
        width = WIDTH_BYTES[settings.dtype]
        self._weight_bytes = (shape.weight_bytes("bf16", tp) - unread) * width // 2

    def of(self, steps: Any) -> tuple[Numbers, Numbers]:
        """FLOPs and bytes of each row of a table of engine.steps.steps_schema.

        Bytes are those that any implementation has to move: the weights once, the keys and values
        attended to once a sequence, those computed. Activations are left out. Without reuse of the
        KV cache everything is computed anew; the prompts that continue in such a step count as
        one, which is what there is unless long_prefill_token_threshold makes several.
        """
        column = {name: _numbers(steps, name) for name in _READ}
        decodes, prefills = column["num_decode_requests"], column["num_prefill_requests"]
        seen = column["sum_decode_kv_tokens"]
        chunks, before = column["sum_prefill_tokens"], column["sum_prefill_kv_tokens"]
        pairs = seen + column["prefill_pairs"]
        tokens = decodes + chunks
        if not self._reuse:
            squares = decodes * column["var_decode_kv_tokens"] + _ratio(seen**2, decodes)
            pairs = (squares + seen) / 2 + column["prefill_pairs"]
            pairs += (before**2 + before) / 2
            tokens = seen + chunks + before
        rows = decodes + prefills
        flops = tokens * self._token_flops + rows * self._row_flops + pairs * self._pair_flops
        read = np.where(rows > 0, float(self._weight_bytes), 0.0)
        return flops, read + (seen + chunks + before + tokens) * self._kv_bytes


class Roofline:
    """Running totals of steps' work."""

    def __init__(self, work: StepWork | None, ceilings: Ceilings | None) -> None:
        """None: not known."""
        self._work = work
        self._ceilings = ceilings
        self._flops = 0.0
        self._bytes = 0.0
        self._device_s = 0.0
        self._least_s = 0.0
        """What the steps would take at the ceilings."""
        self._memory_bound_s = 0.0
        """Device time of steps that the memory's ceiling limits."""

    def add(self, steps: Any) -> None:
        """Take rows of a table of engine.steps.steps_schema."""
        if self._work is None:
            return
        flops, moved = self._work.of(steps)
        device_s = _numbers(steps, "device_s")
        self._flops += float(flops.sum())
        self._bytes += float(moved.sum())
        self._device_s += float(device_s.sum())
        if self._ceilings is not None:
            compute_s = flops / self._ceilings.flops_per_s
            memory_s = moved / self._ceilings.bytes_per_s
            self._least_s += float(np.maximum(compute_s, memory_s).sum())
            self._memory_bound_s += float(device_s[memory_s > compute_s].sum())

    def summary(self) -> dict[str, Any] | None:
        """The totals, what they are a second of device time, and which shares of the ceilings."""
        if self._work is None or not self._device_s:
            return None
        flops_per_s, bytes_per_s = self._flops / self._device_s, self._bytes / self._device_s
        summary: dict[str, Any] = {
            "flops": self._flops,
            "bytes": self._bytes,
            "flops_per_s": flops_per_s,
            "bytes_per_s": bytes_per_s,
            "ceilings": None,
        }
        if self._ceilings is not None:
            summary["ceilings"] = {
                "flops_per_s": self._ceilings.flops_per_s,
                "bytes_per_s": self._ceilings.bytes_per_s,
                "flops_share": flops_per_s / self._ceilings.flops_per_s,
                "bytes_share": bytes_per_s / self._ceilings.bytes_per_s,
                "roof_share": self._least_s / self._device_s,
                "memory_bound_share": self._memory_bound_s / self._device_s,
            }
        return summary


_READ: Final = (
    "num_decode_requests",
    "num_prefill_requests",
    "sum_decode_kv_tokens",
    "var_decode_kv_tokens",
    "sum_prefill_tokens",
    "sum_prefill_kv_tokens",
    "prefill_pairs",
)


def _numbers(steps: Any, name: str) -> Numbers:
    return steps[name].to_numpy().astype(np.float64)


def _ratio(of: Numbers, to: Numbers) -> Numbers:
    """`of` / `to`, and 0 where `to` is 0."""
    return np.divide(of, to, out=np.zeros_like(of), where=to > 0)
