"""A model's weights on one device: allocated once, fused and sharded, then filled as they stream.

Projections that read the same input are one matrix (q, k, v; gate, up). Of `tp` ranks each holds
its heads and its share of the inner channels and of the vocabulary; what does not divide is
padded with zeros, which add nothing.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from engine.execution.linear import packed
from engine.execution.memory import out_of_memory
from engine.shapes import ModelShape
from traces.errors import ConfigError


@dataclass(slots=True, eq=False)
class Layer:
    """One decoder layer's weights; matrices are [out, in], for engine.execution.linear."""

    qkv: Tensor
    """[(heads + 2 kv_heads) head_dim, hidden]"""
    qkv_bias: Tensor | None
    q_norm: Tensor | None
    """[head_dim], as `k_norm`."""
    k_norm: Tensor | None
    output: Tensor
    """[hidden, heads head_dim]"""
    output_bias: Tensor | None
    """On rank 0 only."""
    gate_up: Tensor
    """[2 inner, hidden]"""
    down: Tensor
    """[hidden, inner]"""
    mlp_norm: Tensor
    """[hidden]"""


@dataclass(slots=True, eq=False)
class Weights:
    """All weights of a rank."""

    embedding: Tensor
    """[vocab, hidden], then rows of zeros where `tp` does not divide the vocabulary."""
    layers: list[Layer]
    norms: list[Tensor]
    """[hidden] each: the one before every layer's attention, then the final one."""
    head: Tensor
    """[vocab / tp rounded up, hidden]; rows of `embedding` where the two are tied."""


Share = tuple[slice, ...]
"""What to cut out of a whole tensor, dimension by dimension."""


class Stored(NamedTuple):
    """A whole tensor where it is stored."""

    name: str
    shape: tuple[int, ...]
    cut: Callable[[Share], Tensor]
    """Reads a share of it."""


class Part(NamedTuple):
    """A tensor that the model wants, and where this rank's share of it goes."""

    name: str
    shape: tuple[int, ...]
    """Of the whole tensor."""
    share: Share
    target: Tensor


class Checkpoint(Protocol):
    """Where weights come from; tensors have the names that Hugging Face gives them."""

    def tensors(self, wanted: Mapping[str, Part]) -> Iterator[Stored]:
        """All tensors there are, in the order they are stored; wanted ones, if it makes them."""
        ...

    def place(self, name: str) -> str:
        """Where the tensor is, or ought to be."""
        ...


def load_weights(
    shape: ModelShape,
    checkpoint: Checkpoint,
    *,
    dtype: torch.dtype,
    device: torch.device,
    rank: int = 0,
    tp: int = 1,
) -> Weights:
    """The share of `rank` among `tp`, cast to `dtype`; beside it, one tensor is held at a time.

    Raises:
        ConfigError: when memory runs out, or a tensor is missing or of another shape than the
            model's config says.
    """
    try:
        weights = _loaded(_Allocation(shape, rank, tp, dtype, device), checkpoint)
    except torch.OutOfMemoryError as error:
        raise out_of_memory(
            f"{shape.name}: its weights", weight_bytes(shape, dtype, tp), device
        ) from error
    _pack(weights)
    return weights


def weight_bytes(shape: ModelShape, dtype: torch.dtype, tp: int = 1) -> int:
    """Bytes that the weights of one of `tp` ranks take."""
    embedding_of_others = (tp - 1) * shape.lm_head_weights(tp)
    return (shape.weight_bytes("bf16", tp) // 2 + embedding_of_others) * dtype.itemsize


def _loaded(allocation: "_Allocation", checkpoint: Checkpoint) -> Weights:
    weights = allocation.weights()
    missing = {part.name: part for part in allocation.parts}
    for stored in checkpoint.tensors(dict(missing)):
        part = missing.pop(stored.name, None)
        if part is None:
            _check_ignorable(stored.name, checkpoint)
            continue
        if stored.shape != part.shape:
            raise ConfigError(
                f"{checkpoint.place(part.name)}: tensor {part.name} has shape"
                f" {list(stored.shape)}; the model's config asks for {list(part.shape)}"
            )
        if part.target.numel():
            part.target.copy_(stored.cut(part.share))
    if missing:
        first, *others = missing
        more = f" (and {len(others)} more)" if others else ""
        raise ConfigError(f"{checkpoint.place(first)}: tensor {first} is missing{more}")
    return weights


def _pack(weights: Weights) -> None:
    """One matrix after the other, so that no second copy of all is held.

    A head tied to the embedding becomes a copy of its own where packing is more than nothing.
    """
    for layer in weights.layers:
        layer.qkv, layer.output = packed(layer.qkv), packed(layer.output)
        layer.gate_up, layer.down = packed(layer.gate_up), packed(layer.down)
    weights.head = packed(weights.head)


def _check_ignorable(name: str, checkpoint: Checkpoint) -> None:
    """A layer's weights must not be left out: the model would run, and talk nonsense."""
    if name.startswith(("model.layers.", "blk.")) and not name.endswith("rotary_emb.inv_freq"):
        raise ConfigError(
            f"{checkpoint.place(name)}: tensor {name} has no place in the model that its config"
            " describes"
        )


class _Allocation:
    """A rank's tensors, not yet filled, and what is wanted for them."""

    def __init__(
        self, shape: ModelShape, rank: int, tp: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.shape = shape
        self.rank, self.tp = rank, tp
        self.dtype, self.device = dtype, device
        self.heads, self.kv_heads = shape.heads_per_gpu(tp), shape.kv_heads_per_gpu(tp)
        self.inner = -(-shape.intermediate // tp)
        self.parts: list[Part] = []

    def weights(self) -> Weights:
        shape = self.shape
        rows, table = -(-shape.vocab // self.tp), (shape.vocab, shape.hidden)
        embedding = self._empty(rows * self.tp, shape.hidden)
        self._want("model.embed_tokens.weight", table, embedding)
        if shape.tied_embeddings:
            head = embedding[self.rank * rows : (self.rank + 1) * rows]
        else:
            head = self._empty(rows, shape.hidden)
            self._want("lm_head.weight", table, head, start=self.rank * rows)
        prefixes = [f"model.layers.{index}." for index in range(shape.layers)]
        layers = [self._layer(prefix) for prefix in prefixes]
        before = [f"{prefix}input_layernorm.weight" for prefix in prefixes]
        norms = [self._vector(name, shape.hidden) for name in (*before, "model.norm.weight")]
        return Weights(embedding, layers, norms, head)

    def _layer(self, prefix: str) -> Layer:
        shape, attention = self.shape, f"{prefix}self_attn."
        gate_up, down = self._mlp(f"{prefix}mlp.")
        normed = shape.qk_norm
        return Layer(
            qkv=self._qkv(attention, "weight", (shape.hidden,)),
            qkv_bias=self._qkv(attention, "bias", ()) if shape.qkv_bias else None,
            q_norm=self._vector(f"{attention}q_norm.weight", shape.head_dim) if normed else None,
            k_norm=self._vector(f"{attention}k_norm.weight", shape.head_dim) if normed else None,
            output=self._output(attention),
            output_bias=self._output_bias(attention) if shape.output_bias else None,
            gate_up=gate_up,
            down=down,
            mlp_norm=self._vector(f"{prefix}post_attention_layernorm.weight", shape.hidden),
        )

    def _qkv(self, attention: str, kind: str, inputs: tuple[int, ...]) -> Tensor:
        """Weight or bias of this rank's heads; a KV head may serve several ranks."""
        shape, dim = self.shape, self.shape.head_dim
        q, kv = self.heads * dim, self.kv_heads * dim
        kv_start = self.rank * shape.kv_heads // self.tp * dim
        fused = self._empty(q + 2 * kv, *inputs)
        query, key, value = fused.split((q, kv, kv))
        heads, kv_heads = (shape.heads * dim, *inputs), (shape.kv_heads * dim, *inputs)
        self._want(f"{attention}q_proj.{kind}", heads, query, start=self.rank * q)
        self._want(f"{attention}k_proj.{kind}", kv_heads, key, start=kv_start)
        self._want(f"{attention}v_proj.{kind}", kv_heads, value, start=kv_start)
        return fused

    def _output(self, attention: str) -> Tensor:
        width, dim = self.heads * self.shape.head_dim, self.shape.heads * self.shape.head_dim
        output = self._empty(self.shape.hidden, width)
        whole = (self.shape.hidden, dim)
        self._want(f"{attention}o_proj.weight", whole, output, dim=1, start=self.rank * width)
        return output

    def _output_bias(self, attention: str) -> Tensor | None:
        """Whole on rank 0, none elsewhere: what the ranks compute is summed."""
        bias = self._empty(self.shape.hidden if self.rank == 0 else 0)
        self._want(f"{attention}o_proj.bias", (self.shape.hidden,), bias)
        return bias if self.rank == 0 else None

    def _mlp(self, mlp: str) -> tuple[Tensor, Tensor]:
        hidden, whole, inner = self.shape.hidden, self.shape.intermediate, self.inner
        start = self.rank * inner
        gate_up, down = self._empty(2 * inner, hidden), self._empty(hidden, inner)
        gate, up = gate_up.split(inner)
        self._want(f"{mlp}gate_proj.weight", (whole, hidden), gate, start=start)
        self._want(f"{mlp}up_proj.weight", (whole, hidden), up, start=start)
        self._want(f"{mlp}down_proj.weight", (hidden, whole), down, dim=1, start=start)
        return gate_up, down

    def _vector(self, name: str, size: int) -> Tensor:
        vector = self._empty(size)
        self._want(name, (size,), vector)
        return vector

    def _want(
        self, name: str, whole: tuple[int, ...], target: Tensor, *, dim: int = 0, start: int = 0
    ) -> None:
        """`target` is `whole` from `start` of `dim` on, then zeros if that ends before it."""
        stop = min(start + target.shape[dim], whole[dim])
        held = max(0, stop - start)
        target.narrow(dim, held, target.shape[dim] - held).zero_()
        share = [slice(0, size) for size in whole]
        share[dim] = slice(stop - held, stop)
        self.parts.append(Part(name, whole, tuple(share), target.narrow(dim, 0, held)))

    def _empty(self, *sizes: int) -> Tensor:
        return torch.empty(sizes, dtype=self.dtype, device=self.device)
