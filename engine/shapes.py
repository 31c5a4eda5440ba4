"""A model's shape: what its config.json says, and the sizes and FLOPs that follow from it.

Torch-free: the engine loads weights by it, capacity and cost model compute with it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self, cast

from engine.kvformats import block_layout
from traces.errors import ConfigError

WEIGHT_DTYPES: Final[Mapping[str, int]] = {
    "bf16": 512,
    "fp16": 512,
    "fp8": 256,
    "int8": 256,
    "int4": 133,
    "fp32": 1024,
}
"""Bytes of 256 weights of a linear layer. int4: groups of 128 weights share a 16-bit scale and a
4-bit zero point, as in AWQ and GPTQ, so 2 x (64 + 2.5) bytes."""

FAMILIES: Final = ("llama", "mistral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "mixtral")
"""`model_type` values that `from_hf_config` reads; SmolLM's is llama, that of Qwen2.5 qwen2."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A decoder-only transformer with gated MLPs; experts where `experts` is not 0.

    Methods that take `tp` count what one of `tp` tensor-parallel GPUs holds or computes, and raise
    ConfigError where the model cannot be split so: attention heads must divide by `tp`, KV heads
    divide by `tp` or (being replicated) `tp` by them.
    """

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    """Inner size of a dense MLP; of a model of experts only, 0."""
    vocab: int
    tied_embeddings: bool
    max_position: int
    """Tokens of prompt and output that the model supports."""
    experts: int = 0
    experts_per_token: int = 0
    moe_intermediate: int = 0
    shared_intermediate: int = 0
    """Inner size of the shared expert that every token visits; 0: none."""
    dense_layers: int = 0
    """Layers with a dense MLP in a model with experts."""
    sliding_window: int | None = None
    """Recorded for the reader: neither cost nor capacity uses it (both keep the full context)."""
    qkv_bias: bool = False
    output_bias: bool = False
    """The attention's output projection has a bias."""
    qk_norm: bool = False

    @classmethod
    def from_hf_config(cls, source: Mapping[str, Any] | str | Path, name: str = "") -> Self:
        """Read a Hugging Face config.json: its content, its path, or the folder it is in.

        Raises:
            ConfigError: for a file that cannot be read, a model_type that is not in FAMILIES, or
                the first field that is missing or wrong.
        """
        if isinstance(source, Mapping):
            return cls._from_fields(source, name or str(source.get("_name_or_path") or "config"))
        path = Path(source)
        path = path / "config.json" if path.is_dir() else path
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path}: cannot be read as a config.json: {error}") from error
        if not isinstance(config, dict):
            raise ConfigError(f"{path}: expected an object, got {type(config).__name__}")
        try:
            return cls._from_fields(cast(dict[str, Any], config), name or path.parent.name)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error

    @classmethod
    def _from_fields(cls, config: Mapping[str, Any], name: str) -> Self:
        family = config.get("model_type")
        if family not in FAMILIES:
            what = config.get("architectures") or family
            raise ConfigError(
                f"{name}: architecture {what} is unknown; known: {', '.join(FAMILIES)}"
            )

        def whole(field: str, default: int | None = None) -> int:
            value = config.get(field)
            value = default if value is None else value
            if value is None:
                raise ConfigError(f"{name}: {field} is missing")
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"{name}: {field} must be a whole number above 0, got {value!r}")
            return value

        if config.get("mlp_bias"):
            raise ConfigError(f"{name}: mlp_bias true is not supported")
        heads, hidden = whole("num_attention_heads"), whole("hidden_size")
        layers = whole("num_hidden_layers")
        window = config.get("sliding_window")
        if family.startswith("qwen") and not config.get("use_sliding_window"):
            window = None
        moe = family in ("qwen2_moe", "qwen3_moe", "mixtral")
        sparse_every = whole("decoder_sparse_step", 1) if moe else 1
        dense_only: set[int] = set(config.get("mlp_only_layers") or ())
        dense = (
            sum(1 for i in range(layers) if i in dense_only or (i + 1) % sparse_every) if moe else 0
        )
        inner = "intermediate_size" if family == "mixtral" else "moe_intermediate_size"
        bias = bool(config.get("attention_bias"))
        return cls(
            name=name,
            layers=layers,
            hidden=hidden,
            heads=heads,
            kv_heads=whole("num_key_value_heads", heads),
            head_dim=whole("head_dim", max(1, hidden // heads)),
            intermediate=whole("intermediate_size") if dense or not moe else 0,
            vocab=whole("vocab_size"),
            tied_embeddings=bool(config.get("tie_word_embeddings", False)),
            max_position=whole("max_position_embeddings"),
            experts=whole("num_local_experts" if family == "mixtral" else "num_experts")
            if moe
            else 0,
            experts_per_token=whole("num_experts_per_tok") if moe else 0,
            moe_intermediate=whole(inner) if moe else 0,
            shared_intermediate=whole("shared_expert_intermediate_size")
            if family == "qwen2_moe"
            else 0,
            dense_layers=dense,
            sliding_window=window,
            qkv_bias=bias or family in ("qwen2", "qwen2_moe"),
            output_bias=bias,
            qk_norm=family in ("qwen3", "qwen3_moe"),
        )

    @property
    def moe_layers(self) -> int:
        """Layers whose MLP is a set of experts."""
        return self.layers - self.dense_layers if self.experts else 0

    @property
    def parameters(self) -> int:
        """All parameters; tied embeddings count once."""
        return self._matrices(1) + self._vectors(1) + self._router + self._vocabulary(1)

    @property
    def active_parameters(self) -> int:
        """Parameters that one token meets: the experts chosen for it, not all of them."""
        idle = self.moe_layers * (self.experts - self.experts_per_token) * self.expert_weights(1)
        return self.parameters - idle

    def heads_per_gpu(self, tp: int) -> int:
        """Attention (query) heads computed by each of `tp` GPUs."""
        if tp < 1 or self.heads % tp:
            raise ConfigError(f"{self.name}: {self.heads} attention heads do not divide by tp {tp}")
        return self.heads // tp

    def kv_heads_per_gpu(self, tp: int) -> int:
        """KV heads held by each of `tp` GPUs; replicated where there are fewer heads than GPUs."""
        self.heads_per_gpu(tp)
        if (self.kv_heads % tp) and (tp % self.kv_heads):
            raise ConfigError(f"{self.name}: {self.kv_heads} KV heads do not spread over tp {tp}")
        return max(1, self.kv_heads // tp)

    def attention_weights(self, tp: int = 1) -> int:
        """Weights of a layer's four attention projections."""
        query = self.heads_per_gpu(tp) * self.head_dim
        return self.hidden * 2 * (query + self.kv_heads_per_gpu(tp) * self.head_dim)

    def mlp_weights(self, tp: int = 1) -> int:
        """Weights of a dense layer's gate, up and down projections."""
        return 3 * self.hidden * -(-self.intermediate // tp)

    def expert_weights(self, tp: int = 1) -> int:
        """Weights of one expert of one layer, each expert being split over the GPUs."""
        return 3 * self.hidden * -(-self.moe_intermediate // tp)

    def shared_expert_weights(self, tp: int = 1) -> int:
        """Weights of a layer's shared expert."""
        return 3 * self.hidden * -(-self.shared_intermediate // tp)

    def common_weights(self, tp: int = 1) -> int:
        """Weights of all layers' linear maps that every token meets: all but router and experts."""
        return (
            self.layers * self.attention_weights(tp)
            + (self.layers - self.moe_layers) * self.mlp_weights(tp)
            + self.moe_layers * self.shared_expert_weights(tp)
        )

    def weight_bytes(self, dtype: str = "bf16", tp: int = 1) -> int:
        """Bytes of weights on each GPU.

        `dtype` (a key of WEIGHT_DTYPES) is that of the layers' linear maps; embeddings, output
        head, router, norms and biases stay in 16 bits, as published quantised checkpoints do,
        unless all weights have 32.
        """
        rest = self._vectors(tp) + self._router + self._vocabulary(tp)
        return linear_bytes(self._matrices(tp), dtype) + unquantised_bytes(dtype) * rest

    def kv_block_bytes(self, dtype: str = "bf16", block_tokens: int = 16, tp: int = 1) -> int:
        """Bytes of a block of KV cache on each GPU; `dtype` is a key of engine.kvformats.KV_DTYPES.

        Raises:
            ConfigError: for an unknown dtype, or one that cannot hold this head_dim.
        """
        kv_heads = self.kv_heads_per_gpu(tp)
        return block_layout(dtype, self.layers, kv_heads, self.head_dim, block_tokens).block_bytes

    def kv_bytes_per_token(self, dtype: str = "bf16", tp: int = 1, block_tokens: int = 16) -> float:
        """Bytes of KV cache that a token takes on each GPU: its share of a block."""
        return self.kv_block_bytes(dtype, block_tokens, tp) / block_tokens

    def gemm_flops_per_token(self, tp: int = 1) -> int:
        """FLOPs (a multiply-add is 2) of all layers' linear maps for one token."""
        chosen = self.moe_layers * self.experts_per_token * self.expert_weights(tp)
        return 2 * (self.common_weights(tp) + chosen + self.router_weights)

    def attention_flops_per_pair(self, tp: int = 1) -> int:
        """FLOPs of all layers' attention for one token looking at one token: QK and PV."""
        return 4 * self.layers * self.heads_per_gpu(tp) * self.head_dim

    @property
    def even_context_tokens(self) -> int:
        """Tokens of context whose attention takes as many FLOPs as a token's linear maps."""
        return self.gemm_flops_per_token() // self.attention_flops_per_pair()

    def lm_head_flops_per_row(self, tp: int = 1) -> int:
        """FLOPs of the output head for one row of logits."""
        return 2 * self.lm_head_weights(tp)

    def lm_head_weights(self, tp: int = 1) -> int:
        """Weights of the output head, which is split by vocabulary."""
        return self.hidden * -(-self.vocab // tp)

    @property
    def router_weights(self) -> int:
        """Weights that choose the experts, on every GPU."""
        return self.moe_layers * self.hidden * self.experts

    @property
    def _router(self) -> int:
        gate = self.moe_layers * self.hidden if self.shared_intermediate else 0
        return self.router_weights + gate

    def _matrices(self, tp: int) -> int:
        return self.common_weights(tp) + self.moe_layers * self.experts * self.expert_weights(tp)

    def _vectors(self, tp: int) -> int:
        query = self.heads_per_gpu(tp) * self.head_dim
        layer = 2 * self.hidden
        layer += 2 * self.head_dim if self.qk_norm else 0
        layer += self.hidden if self.output_bias else 0
        if self.qkv_bias:
            layer += query + 2 * self.kv_heads_per_gpu(tp) * self.head_dim
        return self.layers * layer + self.hidden

    def _vocabulary(self, tp: int) -> int:
        return self.lm_head_weights(tp) * (1 if self.tied_embeddings else 2)


def unquantised_bytes(dtype: str) -> int:
    """Bytes of a number that is not in a linear layer, activations too: 4 for fp32, else 2."""
    return 4 if dtype == "fp32" else 2


def linear_bytes(weights: int, dtype: str) -> int:
    """Bytes of so many weights of linear layers in a dtype of WEIGHT_DTYPES, rounded up.

    Raises:
        ConfigError: for an unknown dtype.
    """
    if dtype not in WEIGHT_DTYPES:
        raise ConfigError(f"weight dtype {dtype!r} is unknown; known: {', '.join(WEIGHT_DTYPES)}")
    return -(-weights * WEIGHT_DTYPES[dtype] // 256)
