"""A decoder-only transformer over a paged KV cache: Llama, Mistral, Qwen2, Qwen3."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812 - its customary name
from torch import Tensor

from engine.execution.checkpoint import is_gguf, open_model
from engine.execution.dummy import DummyCheckpoint
from engine.execution.inputs import StepInput
from engine.execution.kvcache import KvPool
from engine.execution.linear import linear
from engine.execution.memory import check_room
from engine.execution.numerics import Numerics, check_family, read_numerics
from engine.execution.ops import Ops
from engine.execution.rope import rope_table
from engine.execution.weights import Layer, Weights, load_weights, weight_bytes
from engine.shapes import ModelShape
from traces.errors import ConfigError


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """One rank's share of a model. Nothing in it reads a tensor back to the host."""

    shape: ModelShape
    numerics: Numerics
    weights: Weights
    rope: Tensor
    """[positions, head_dim] fp32, see engine.execution.rope."""
    ops: Ops
    heads: int
    """Of this rank, as `kv_heads`."""
    kv_heads: int
    tp: int = 1
    group: dist.ProcessGroup | None = None
    """The ranks; None: the default group."""

    def forward(self, step: StepInput, pool: KvPool) -> Tensor:
        """[tokens, hidden] after the final norm; the step's keys and values enter the pool."""
        ops, eps, norms = self.ops, self.numerics.norm_eps, self.weights.norms
        residual = F.embedding(step.tokens, self.weights.embedding)
        x = ops.rms_norm(residual, norms[0], eps)
        for index, layer in enumerate(self.weights.layers):
            x = self._attention(x, index, layer, step, pool)
            x, residual = ops.add_rms_norm(x, residual, layer.mlp_norm, eps)
            x = self._mlp(x, layer)
            x, residual = ops.add_rms_norm(x, residual, norms[index + 1], eps)
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """[n, hidden] -> [n, vocab] fp32, whole on every rank."""
        share = linear(hidden, self.weights.head)
        if self.tp == 1:
            return share.float()
        shares = [torch.empty_like(share) for _ in range(self.tp)]
        dist.all_gather(shares, share, group=self.group)
        return torch.cat(shares, dim=1)[:, : self.shape.vocab].float()

    def _attention(
        self, x: Tensor, index: int, layer: Layer, step: StepInput, pool: KvPool
    ) -> Tensor:
        ops, dim = self.ops, self.shape.head_dim
        qkv = linear(x, layer.qkv, layer.qkv_bias).view(x.shape[0], -1, dim)
        q, k, v = qkv.split((self.heads, self.kv_heads, self.kv_heads), dim=1)
        if layer.q_norm is not None and layer.k_norm is not None:
            q = ops.rms_norm(q, layer.q_norm, self.numerics.norm_eps)
            k = ops.rms_norm(k, layer.k_norm, self.numerics.norm_eps)
        ops.rope(q, k, step.positions, self.rope)
        ops.append(k, v, pool, index, step)
        seen = ops.attend(q, pool, index, step, dim**-0.5, self.numerics.windows[index])
        return self._summed(linear(seen.flatten(1), layer.output, layer.output_bias))

    def _mlp(self, x: Tensor, layer: Layer) -> Tensor:
        inner = self.ops.silu_mul(linear(x, layer.gate_up))
        return self._summed(linear(inner, layer.down))

    def _summed(self, x: Tensor) -> Tensor:
        """The sum over the ranks of what each computed from its heads or inner channels."""
        if self.tp > 1:
            dist.all_reduce(x, group=self.group)
        return x


def load_model(
    path: str | Path,
    *,
    dtype: torch.dtype,
    device: torch.device,
    ops: Ops,
    weights: Literal["load", "dummy"] = "load",
    seed: int = 0,
    rank: int = 0,
    tp: int = 1,
    group: dist.ProcessGroup | None = None,
    max_positions: int | None = None,
) -> Model:
    """The share of `rank` among `tp` of the model at `path`, on `device`.

    Arguments:
        path: a Hugging Face folder, or a .gguf file.
        dtype: of weights and activations.
        ops: what computes between the matrix products.
        weights: dummy: seeded random ones; nothing but the config is read.
        group: of the `tp` processes, of which this is `rank`; None: the default group.
        max_positions: no sequence gets longer; None: what the model supports.

    Raises:
        ConfigError: for a model that is not there, not supported, incomplete or too large.
    """
    path = Path(path)
    files = open_model(path)
    try:
        check_family(files.config)
        name = path.stem if is_gguf(path) else path.resolve().name
        shape = ModelShape.from_hf_config(files.config, name)
        positions = max_positions or shape.max_position
        _check_room(shape, positions, dtype, device, tp)
        numerics = read_numerics(files.config, shape.layers)
        table = rope_table(numerics.rope, shape.head_dim, positions)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    checkpoint = DummyCheckpoint(seed, dtype, device) if weights == "dummy" else files
    return Model(
        shape=shape,
        numerics=numerics,
        weights=load_weights(shape, checkpoint, dtype=dtype, device=device, rank=rank, tp=tp),
        rope=table.to(device),
        ops=ops,
        heads=shape.heads_per_gpu(tp),
        kv_heads=shape.kv_heads_per_gpu(tp),
        tp=tp,
        group=group,
    )


def _check_room(
    shape: ModelShape, positions: int, dtype: torch.dtype, device: torch.device, tp: int
) -> None:
    table = positions * shape.head_dim * torch.float32.itemsize
    check_room("weights and rope table", weight_bytes(shape, dtype, tp) + table, device)
