"""What a config.json asks of the arithmetic is honoured or refused, never passed over."""

import re

import pytest

pytest.importorskip("torch")

from engine.execution.numerics import SUPPORTED, read_numerics
from engine.shapes import FAMILIES
from traces.errors import ConfigError

WINDOWED = {"model_type": "qwen3", "use_sliding_window": True, "sliding_window": 100}


@pytest.mark.parametrize(
    ("config", "windows"),
    [
        ({"model_type": "llama", "sliding_window": 100}, (0, 0, 0)),
        ({"model_type": "mistral", "sliding_window": 100}, (100, 100, 100)),
        ({"model_type": "mistral", "sliding_window": None}, (0, 0, 0)),
        ({"model_type": "mistral"}, (4096, 4096, 4096)),
        ({"model_type": "qwen2", "use_sliding_window": False, "sliding_window": 100}, (0, 0, 0)),
        ({**WINDOWED, "max_window_layers": 2}, (0, 0, 100)),
        ({**WINDOWED, "max_window_layers": 28}, (0, 0, 0)),
        (
            {**WINDOWED, "layer_types": ["full_attention", "sliding_attention", "full_attention"]},
            (0, 100, 0),
        ),
    ],
)
def test_windows_by_layer(config: dict, windows: tuple[int, ...]):
    assert read_numerics(config, layers=3).windows == windows


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"hidden_act": "gelu"}, "hidden_act must be silu, got 'gelu'"),
        ({"rms_norm_eps": "x"}, "rms_norm_eps must be a number of at least 0, got 'x'"),
        (
            {"quantization_config": {"quant_method": "gptq", "bits": 4}},
            "weights quantised with gptq are not supported; supported: bf16, fp16 and fp32",
        ),
        ({"model_type": "mistral", "sliding_window": -3}, "sliding_window must be .* got -3"),
        ({**WINDOWED, "layer_types": ["full_attention"]}, "layer_types must be 3 times"),
        ({**WINDOWED, "layer_types": ["linear_attention"] * 3}, "layer_types must be 3 times"),
        ({"rope_scaling": {"type": "su"}}, "rope type 'su' is not supported"),
    ],
)
def test_what_is_not_supported_is_named(config: dict, said: str):
    with pytest.raises(ConfigError) as error:
        read_numerics({"model_type": "llama", **config}, layers=3)
    assert re.search(said, str(error.value))


@pytest.mark.parametrize("family", [*sorted(set(FAMILIES) - set(SUPPORTED)), "gpt_neox", None])
def test_other_architectures_are_refused_with_those_that_are_not(family: str | None):
    with pytest.raises(ConfigError, match=f"unsupported architecture {family}; supported: llama, "):
        read_numerics({"model_type": family}, layers=3)
