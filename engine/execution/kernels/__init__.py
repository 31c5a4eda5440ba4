"""The operations in Triton: one pass over memory each; see engine.execution.ops."""

import torch
from torch import Tensor

from engine.execution.inputs import StepInput
from engine.execution.kernels.append import append
from engine.execution.kernels.chip import require_kernels
from engine.execution.kernels.decode import attend_decodes
from engine.execution.kernels.elementwise import add_rms_norm, rms_norm, rope, silu_mul
from engine.execution.kernels.prefill import attend_prefills
from engine.execution.kvcache import KvPool
from engine.execution.ops import Ops


def attend(
    q: Tensor, pool: KvPool, layer: int, step: StepInput, scale: float, window: int
) -> Tensor:
    """Causal attention of the step's tokens over the pool; see ops.Ops."""
    require_kernels(q)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if step.decodes:
        attend_decodes(q, out, pool, layer, step, scale, window)
    if step.prefills:
        attend_prefills(q, out, pool, layer, step, scale, window)
    return out


OPS = Ops(
    rms_norm=rms_norm,
    add_rms_norm=add_rms_norm,
    rope=rope,
    silu_mul=silu_mul,
    append=append,
    attend=attend,
)
