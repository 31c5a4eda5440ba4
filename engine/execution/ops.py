"""What the model computes with: one set of operations in plain torch, one in Triton."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from engine.execution.inputs import StepInput
from engine.execution.kvcache import KvPool


class Ops(NamedTuple):
    """The operations between the matrix products of a decoder layer.

    Both sets compute the same; tests hold the Triton set against the torch set in higher precision.
    """

    rms_norm: Callable[[Tensor, Tensor, float], Tensor]
    """(x [..., n], weight [n], eps) -> normed x; statistics in fp32."""
    add_rms_norm: Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]
    """(x [tokens, n], residual, weight, eps) -> (norm of their sum, the sum)."""
    rope: Callable[[Tensor, Tensor, Tensor, Tensor], None]
    """(q [tokens, heads, dim], k [tokens, kv_heads, dim], positions, table) rotates q and k in
    place, halves against halves (GPT-NeoX style). table [positions, dim] fp32: cos, then sin, of
    the dim / 2 angles. q and k may be views with any token stride."""
    silu_mul: Callable[[Tensor], Tensor]
    """(gate_up [tokens, 2 n]) -> silu(gate) x up [tokens, n]."""
    append: Callable[[Tensor, Tensor, KvPool, int, StepInput], None]
    """(k, v [tokens, kv_heads, dim], pool, layer, step) writes the step's keys and values into the
    blocks their rows name, encoded as the pool's format says."""
    attend: Callable[[Tensor, KvPool, int, StepInput, float, int], Tensor]
    """(q [tokens, heads, dim], pool, layer, step, scale, window) -> [tokens, heads, dim]: causal
    attention over the pool, to which the step's own keys and values are appended already. A token
    sees itself and the window - 1 tokens before it; window 0: all before."""


def load_ops(name: str) -> Ops:
    """The set called `name`: torch or triton; imported only when asked for."""
    if name == "triton":
        from engine.execution import kernels

        return kernels.OPS
    from engine.execution import reference

    return reference.OPS
