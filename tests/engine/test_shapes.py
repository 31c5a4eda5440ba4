"""Shapes: published parameter counts, bytes and FLOPs, tensor parallelism, errors."""

import json
from pathlib import Path

import pytest

from calibration.hardware import model, model_cards
from engine.shapes import FAMILIES, ModelShape
from traces.errors import ConfigError

LLAMA = model("llama-3.1-8b")
MIXTRAL = model("mixtral-8x7b")


@pytest.mark.parametrize("name", model_cards())
def test_parameters_match_the_published_count(name: str):
    assert model(name).parameters == model_cards()[name].parameters


def test_active_parameters_leave_out_idle_experts():
    assert LLAMA.active_parameters == LLAMA.parameters
    assert MIXTRAL.active_parameters == 12_879_925_248  # "12.9B" in the Mixtral paper
    assert model("qwen3-30b-a3b").active_parameters == pytest.approx(3.3e9, rel=0.02)  # model card


def test_bytes_and_flops_of_llama():
    assert LLAMA.weight_bytes() == 2 * 8_030_261_248
    assert LLAMA.kv_bytes_per_token() == 2 * 32 * 8 * 128 * 2
    assert LLAMA.attention_flops_per_pair() == 4 * 32 * 32 * 128
    embedding = 128_256 * 4096
    norms = (2 * 32 + 1) * 4096
    assert LLAMA.gemm_flops_per_token() == 2 * (LLAMA.parameters - 2 * embedding - norms)
    assert LLAMA.lm_head_flops_per_row() == 2 * embedding


def test_kv_dtypes_shrink_the_cache_but_for_their_scales():
    full = LLAMA.kv_bytes_per_token("bf16")
    vectors = 2 * 32 * 8
    assert LLAMA.kv_bytes_per_token("fp8") == full // 2
    assert LLAMA.kv_bytes_per_token("int8") == full // 2 + 4 * vectors
    assert LLAMA.kv_bytes_per_token("int4") == full // 4 + 4 * vectors


def test_quantised_weights_keep_vocabulary_and_norms_in_16_bits():
    rest = 2 * (2 * 128_256 * 4096 + (2 * 32 + 1) * 4096)
    linear = LLAMA.weight_bytes() - rest
    assert LLAMA.weight_bytes("fp8") == rest + linear // 2
    assert (LLAMA.weight_bytes("int4") - rest) / linear == pytest.approx(4.15625 / 16)


@pytest.mark.parametrize("name", ["llama-3.1-70b", "qwen2.5-72b", "mixtral-8x7b"])
@pytest.mark.parametrize("tp", [2, 4, 8])
def test_tensor_parallelism_divides_the_work(name: str, tp: int):
    shape = model(name)
    assert shape.weight_bytes(tp=tp) == pytest.approx(shape.weight_bytes() / tp, rel=2e-3)
    assert shape.kv_bytes_per_token(tp=tp) * tp == shape.kv_bytes_per_token()
    assert shape.attention_flops_per_pair(tp) * tp == shape.attention_flops_per_pair()


def test_kv_heads_are_replicated_beyond_their_number():
    shape = model("llama-3.1-70b")
    assert shape.kv_bytes_per_token(tp=16) == shape.kv_bytes_per_token(tp=8)
    assert shape.attention_weights(16) > shape.attention_weights(1) / 16


@pytest.mark.parametrize("tp", [0, 3, 5, 64])
def test_a_split_that_heads_do_not_allow_is_refused(tp: int):
    with pytest.raises(ConfigError, match=f"32 attention heads do not divide by tp {tp}"):
        LLAMA.weight_bytes(tp=tp)


def test_config_json_is_read_from_mapping_file_and_folder(tmp_path: Path):
    fields = dict(model_cards()["qwen3-0.6b"].config)
    (tmp_path / "config.json").write_text(json.dumps(fields), encoding="utf-8")
    by_folder = ModelShape.from_hf_config(tmp_path, "q")
    assert by_folder == ModelShape.from_hf_config(tmp_path / "config.json", "q")
    assert by_folder == ModelShape.from_hf_config(fields, "q")
    assert by_folder.qk_norm and by_folder.tied_embeddings and not by_folder.qkv_bias
    assert model(tmp_path).name == tmp_path.name


def test_qwen2_moe_has_a_shared_expert():
    config = {  # Qwen1.5-MoE-A2.7B, published as 14.3B parameters of which 2.7B are active
        "model_type": "qwen2_moe",
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "num_experts": 60,
        "num_experts_per_tok": 4,
        "decoder_sparse_step": 1,
        "vocab_size": 151936,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": False,
    }
    shape = ModelShape.from_hf_config(config)
    assert shape.parameters == 14_315_784_192
    assert shape.active_parameters == pytest.approx(2.7e9, rel=0.01)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt_neox"}, "architecture gpt_neox is unknown; known: llama, mistral"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"num_hidden_layers": "32"}, "num_hidden_layers must be a whole number above 0, got '32'"),
        ({"mlp_bias": True}, "mlp_bias true is not supported"),
    ],
)
def test_a_config_that_cannot_be_used_is_refused(change: dict[str, object], message: str):
    fields = {**model_cards()["llama-3.1-8b"].config, **change}
    with pytest.raises(ConfigError, match=message):
        ModelShape.from_hf_config(fields, "x")


def test_unreadable_files_are_named(tmp_path: Path):
    (tmp_path / "config.json").write_text("[]", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"config\.json: expected an object, got list"):
        ModelShape.from_hf_config(tmp_path)
    with pytest.raises(ConfigError, match=r"none\.json: cannot be read"):
        ModelShape.from_hf_config(tmp_path / "none.json")


def test_every_family_has_a_published_model():
    seen = {card.config["model_type"] for card in model_cards().values()}
    assert seen | {"qwen2_moe"} == set(FAMILIES)


def test_sliding_windows_are_recorded_where_they_are_in_use():
    mistral = {**model_cards()["mistral-7b-v0.3"].config, "sliding_window": 4096}
    assert ModelShape.from_hf_config(mistral).sliding_window == 4096
    assert model("mistral-7b-v0.3").sliding_window is None
    assert model("qwen2.5-7b").sliding_window is None  # stated, but use_sliding_window is false
