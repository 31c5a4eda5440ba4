"""A model in one .gguf file, llama.cpp's format: config, weights and tokenizer.

Quantised weights are dequantised as they are loaded; the engine computes in its own dtype.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from engine.execution.gguf_header import TensorInfo, read_header
from engine.execution.weights import Part, Share, Stored
from traces.errors import ConfigError

SUPPORTED: Final = ("llama", "qwen2", "qwen3")
"""`general.architecture` values; a Mistral's is llama."""

MODULES: Final[Mapping[str, str]] = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""llama.cpp's names to Hugging Face's; those of a layer follow `blk.<layer>.`."""


class GgufFile:
    """A .gguf file; a Checkpoint.

    Raises:
        ConfigError: for a file that cannot be read, or holds a model that is not supported.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._header = read_header(path)
        self._stored = {hf_name(name): info for name, info in self._header.tensors.items()}
        try:
            self.config = self._config()
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error

    def tensors(self, wanted: Mapping[str, Part]) -> Iterator[Stored]:
        """See Checkpoint."""
        for name, info in self._stored.items():
            yield Stored(name, info.shape, partial(self._cut, name, info))

    def place(self, name: str) -> str:
        """See Checkpoint."""
        return str(self.path)

    def _cut(self, name: str, info: TensorInfo, share: Share) -> Tensor:
        whole = torch.from_numpy(self._numbers(name, info))
        heads = self._interleaved_heads(name)
        return (halves_from_pairs(whole, heads) if heads else whole)[share]

    def _numbers(self, name: str, info: TensorInfo) -> np.ndarray:
        """The whole tensor, dequantised to fp32."""
        try:
            import gguf
        except ImportError as error:
            raise ConfigError(
                f"{self.path}: dequantising needs the package gguf: pip install 'kvcast[gguf]'"
            ) from error
        try:
            kind = gguf.GGMLQuantizationType(info.kind)
            rows = gguf.quant_shape_to_byte_shape(info.shape, kind)
            if info.offset + prod(rows) > self.path.stat().st_size:
                raise ConfigError(
                    f"{self.path}: is damaged: it ends before tensor {name} does; fetch it again"
                )
            content = np.fromfile(self.path, np.uint8, count=prod(rows), offset=info.offset)
            return gguf.dequantize(content.reshape(rows), kind)
        except (ValueError, NotImplementedError) as error:
            raise ConfigError(
                f"{self.path}: tensor {name} cannot be dequantised: {error}; use a file in F16,"
                " Q8_0 or a Q4 to Q6 format"
            ) from error

    def _interleaved_heads(self, name: str) -> int:
        """Heads of a projection whose rows are ordered for llama.cpp's rope; 0: ours already."""
        if self.config["model_type"] != "llama":
            return 0
        if "self_attn.q_proj" in name:
            return self.config["num_attention_heads"]
        return self.config["num_key_value_heads"] if "self_attn.k_proj" in name else 0

    def _config(self) -> dict[str, Any]:
        """The config.json that this model would have."""
        family = self._field("general.architecture")
        if family not in SUPPORTED:
            raise ConfigError(
                f"unsupported architecture {family}; supported in .gguf: {', '.join(SUPPORTED)}"
            )
        embedding = self._stored.get("model.embed_tokens.weight")
        if embedding is None:
            raise ConfigError("tensor token_embd.weight is missing")
        if self._field(f"{family}.expert_count", 0):
            raise ConfigError("a model of experts is not supported")
        heads = self._count(f"{family}.attention.head_count")
        hidden = self._count(f"{family}.embedding_length")
        head_dim = self._count(f"{family}.attention.key_length", hidden // heads)
        rotated = self._count(f"{family}.rope.dimension_count", head_dim)
        return {
            "model_type": family,
            "hidden_size": hidden,
            "num_hidden_layers": self._field(f"{family}.block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": self._field(f"{family}.attention.head_count_kv", heads),
            "head_dim": head_dim,
            "intermediate_size": self._field(f"{family}.feed_forward_length"),
            "vocab_size": embedding.shape[0],
            "max_position_embeddings": self._field(f"{family}.context_length"),
            "rms_norm_eps": self._field(f"{family}.attention.layer_norm_rms_epsilon"),
            "tie_word_embeddings": "lm_head.weight" not in self._stored,
            "attention_bias": "model.layers.0.self_attn.o_proj.bias" in self._stored,
            "rope_parameters": self._rope(family),
            "partial_rotary_factor": rotated / head_dim,
        }

    def _rope(self, family: str) -> dict[str, Any]:
        theta = self._field(f"{family}.rope.freq_base", 10_000.0)
        divisors = self._header.tensors.get("rope_freqs.weight")
        if divisors is not None:
            listed = self._numbers("rope_freqs.weight", divisors).tolist()
            return {"rope_type": "divided", "rope_theta": theta, "divisors": listed}
        scaling = self._field(f"{family}.rope.scaling.type", "none")
        rope = {"rope_type": "default" if scaling == "none" else scaling, "rope_theta": theta}
        if scaling != "none":
            rope["factor"] = self._field(f"{family}.rope.scaling.factor")
            original = self._field(f"{family}.rope.scaling.original_context_length", 0)
            rope["original_max_position_embeddings"] = original or None
        return rope

    def _count(self, key: str, default: int | None = None) -> int:
        value = self._field(key, default)
        if not isinstance(value, int) or value < 1:
            raise ConfigError(f"{key} must be a whole number above 0, got {value!r}")
        return value

    def _field(self, key: str, default: Any = None) -> Any:
        """A value of the metadata; ConfigError where there is neither it nor a default."""
        value = self._header.values.get(key, default)
        if value is None:
            raise ConfigError(f"{key} is missing")
        return value


def hf_name(name: str) -> str:
    """What Hugging Face calls llama.cpp's tensor; a name without a counterpart stays itself."""
    stem, _, kind = name.rpartition(".")
    block, _, module = stem.rpartition(".")
    if module not in MODULES:
        return name
    layer = f"model.layers.{block.removeprefix('blk.')}." if block else ""
    return f"{layer}{MODULES[module]}.{kind}"


def halves_from_pairs(rows: Tensor, heads: int) -> Tensor:
    """Undo llama.cpp's order of a head's rows.

    Its rope turns neighbouring channels (2 j, 2 j + 1), ours channels j and j + head_dim / 2.
    """
    by_pair = rows.unflatten(0, (heads, -1, 2))
    return by_pair.transpose(1, 2).flatten(0, 2)
