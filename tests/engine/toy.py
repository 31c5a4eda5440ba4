"""A model that is small enough for a test, for dummy weights."""

import json
from pathlib import Path

VOCAB = 97


def toy_model(folder: Path) -> str:
    """Writes config.json of a Llama of two layers; returns the folder as a command takes it."""
    folder.mkdir(exist_ok=True)
    config = {
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": VOCAB,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
    }
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def save_tokenizer(folder: Path) -> None:
    """Writes tokenizer.json: the words w0, w1, ..."""
    import tokenizers

    vocabulary = {f"w{number}": number for number in range(VOCAB)}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="w0"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    words.save(str(folder / "tokenizer.json"))
