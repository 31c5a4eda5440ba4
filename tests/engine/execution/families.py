"""Small random models of every family, made by transformers: what the engine is compared with."""

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

VOCAB = 211
SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 120,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 4.0,
    "original_max_position_embeddings": 128,
}

FAMILIES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "llama": ("Llama", {"num_key_value_heads": 4}),
    "llama-gqa-bias": ("Llama", {"attention_bias": True, "rms_norm_eps": 0.1}),
    "llama3-scaling": ("Llama", {"rope_parameters": LLAMA3}),
    "llama-linear-tied": (
        "Llama",
        {
            "rope_parameters": {"rope_type": "linear", "rope_theta": 100.0, "factor": 3.0},
            "tie_word_embeddings": True,
        },
    ),
    "mistral-window": ("Mistral", {"sliding_window": 11}),
    "mistral": ("Mistral", {"sliding_window": None, "head_dim": 32}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2-yarn": ("Qwen2", {"rope_parameters": YARN}),
    "qwen2-windows": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3", {"head_dim": 32, "num_key_value_heads": 1}),
}
"""Name to transformers' name of the family, and what its config differs in from SMALL."""


def make(family: str, *, std: float = 0.3, seed: int = 0, **changes: object) -> PreTrainedModel:
    """A random model: matrices and biases of std `std`, norms about 1."""
    kind, config = FAMILIES[family]
    built = getattr(transformers, f"{kind}Config")(**{**SMALL, **config, **changes})
    model = getattr(transformers, f"{kind}ForCausalLM")(built).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(0.0, std, generator=generator)
            if name.endswith("norm.weight"):
                parameter.add_(1.0)
    return model


def save(model: PreTrainedModel, folder: Path, **options: Any) -> Path:
    model.save_pretrained(folder, **options)
    return folder


@torch.inference_mode()
def reference_logits(model: PreTrainedModel, tokens: list[int]) -> Tensor:
    """[tokens, vocab]: the logits after every token of one sequence."""
    return model(torch.tensor([tokens])).logits[0]


def random_tokens(count: int, draw: random.Random) -> list[int]:
    return [draw.randrange(VOCAB) for _ in range(count)]
