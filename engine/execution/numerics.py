"""What a config.json says of a model's arithmetic, beyond the sizes in its ModelShape."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from engine.execution.rope import rope_parameters
from traces.errors import ConfigError

SUPPORTED: Final = ("llama", "mistral", "qwen2", "qwen3")
"""`model_type` values that the engine runs: dense decoders with rope, RMS norm and SwiGLU."""

_WINDOW: Final = 4096
"""What transformers takes where a windowed family's config.json is silent."""


@dataclass(frozen=True, slots=True)
class Numerics:
    """How a model computes."""

    norm_eps: float
    rope: Mapping[str, Any]
    """See engine.execution.rope."""
    windows: tuple[int, ...]
    """Of each layer: the last tokens that a token sees, itself included; 0: all."""


def read_numerics(config: Mapping[str, Any], layers: int) -> Numerics:
    """The arithmetic that a config.json of one of the SUPPORTED families asks for.

    Raises:
        ConfigError: naming what is not supported.
    """
    check_family(config)
    activation = config.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise ConfigError(f"hidden_act must be silu, got {activation!r}")
    if quantization := config.get("quantization_config"):
        stated = quantization.get("quant_method") if isinstance(quantization, Mapping) else None
        raise ConfigError(
            f"weights quantised with {stated or quantization} are not supported;"
            " supported: bf16, fp16 and fp32 weights, or a .gguf file"
        )
    eps = config.get("rms_norm_eps", 1e-6)
    if isinstance(eps, bool) or not isinstance(eps, int | float) or eps < 0:
        raise ConfigError(f"rms_norm_eps must be a number of at least 0, got {eps!r}")
    return Numerics(float(eps), rope_parameters(config), _windows(config, layers))


def check_family(config: Mapping[str, Any]) -> None:
    """Raises ConfigError unless the model is of a family that the engine runs."""
    family = config.get("model_type")
    if family not in SUPPORTED:
        named = config.get("architectures")
        said = f"{family} {named}" if named else f"{family}"
        raise ConfigError(f"unsupported architecture {said}; supported: {', '.join(SUPPORTED)}")


def _windows(config: Mapping[str, Any], layers: int) -> tuple[int, ...]:
    """Llama sees everything, Mistral has one window, Qwen may have one on its upper layers."""
    family = config["model_type"]
    windowed = family == "mistral" or (
        family.startswith("qwen") and bool(config.get("use_sliding_window"))
    )
    window = (config.get("sliding_window", _WINDOW) or 0) if windowed else 0
    if isinstance(window, bool) or not isinstance(window, int) or window < 0:
        raise ConfigError(f"sliding_window must be a whole number above 0 or null, got {window!r}")
    if family == "mistral" or not window:
        return (window,) * layers
    first = config.get("max_window_layers", 28)
    kinds = config.get("layer_types") or [
        "sliding_attention" if layer >= first else "full_attention" for layer in range(layers)
    ]
    if len(kinds) != layers or not set(kinds) <= {"sliding_attention", "full_attention"}:
        raise ConfigError(
            f"layer_types must be {layers} times full_attention or sliding_attention, got {kinds}"
        )
    return tuple(window if kind == "sliding_attention" else 0 for kind in kinds)
