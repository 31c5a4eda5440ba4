"""What a KV format costs: the command and its rows; tests/engine/execution has the measurement."""

import json
from pathlib import Path

import pytest

from engine.config import EngineSettings
from engine.quality import measure_formats
from traces.errors import ConfigError


def test_an_unknown_format_is_refused_before_anything_is_loaded():
    settings = EngineSettings(model="nowhere")
    with pytest.raises(ConfigError, match="kv dtype 'int3' is unknown; known: bf16"):
        list(measure_formats(settings, "text", ["bf16", "int3"], max_tokens=8, window_tokens=4))


def test_rows_are_held_against_the_first(tmp_path: Path):
    pytest.importorskip("torch")
    tokenizers = pytest.importorskip("tokenizers")
    config = {
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": 128,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": 64,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    words = {f"w{number}": number for number in range(63)} | {"[UNK]": 63}
    model = tokenizers.models.WordLevel(words, unk_token="[UNK]")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    settings = EngineSettings(model=str(tmp_path), weights="dummy", device="cpu")
    text = " ".join(f"w{number * 7 % 63}" for number in range(100))
    rows = list(measure_formats(settings, text, ["fp32", "int8"], max_tokens=70, window_tokens=32))
    assert [row.kv_dtype for row in rows] == ["fp32", "int8"]
    assert [row.tokens for row in rows] == [62, 62]
    assert rows[0].more == 0.0
    assert rows[0].room == 1.0
    assert 0 < abs(rows[1].more) < 0.01
    assert rows[1].room == pytest.approx(4 * 64 / (64 + 4))
