"""Rotary positions: the table of cosines and sines that `ops.rope` turns queries and keys by."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from torch import Tensor

from traces.errors import ConfigError

Parameters = Mapping[str, Any]
"""`rope_type`, `rope_theta` and what the type asks for, named as in a config.json."""


def rope_parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """The rope settings of a config.json, be they written by transformers 4 or 5.

    Version 4 has `rope_theta` beside `rope_scaling`, version 5 both in `rope_parameters`.

    Raises:
        ConfigError: for an unknown type or a setting that is not supported.
    """
    stated = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(stated, Mapping) or any(isinstance(v, Mapping) for v in stated.values()):
        raise ConfigError(f"rope_parameters must be one set for all layers, got {stated!r}")
    found = dict(stated)
    found["rope_type"] = found.get("rope_type") or found.get("type") or "default"
    found.setdefault("rope_theta", config.get("rope_theta") or 10_000.0)
    original = config.get("original_max_position_embeddings") or found.get(
        "original_max_position_embeddings"
    )
    found["original_max_position_embeddings"] = original or config.get("max_position_embeddings")
    if found["rope_type"] not in SCALINGS:
        raise ConfigError(
            f"rope type {found['rope_type']!r} is not supported; supported: {', '.join(SCALINGS)}"
        )
    rotated = found.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0
    if rotated != 1.0:
        raise ConfigError(f"partial_rotary_factor must be 1, got {rotated!r}")
    return found


def rope_table(parameters: Parameters, head_dim: int, positions: int) -> Tensor:
    """Cosines, then sines, of the head_dim / 2 angles of each position: [positions, head_dim] fp32.

    The angles are made in fp32, as the published implementations do: their rounding at far
    positions is part of what a model was trained with.

    Raises:
        ConfigError: for a parameter that is missing or wrong.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    frequencies = 1.0 / _number(parameters, "rope_theta") ** exponents
    frequencies, amplitude = SCALINGS[parameters["rope_type"]](frequencies, parameters)
    angles = torch.outer(torch.arange(positions).float(), frequencies)
    return torch.cat((angles.cos(), angles.sin()), dim=-1) * amplitude


def _default(frequencies: Tensor, _parameters: Parameters) -> tuple[Tensor, float]:
    return frequencies, 1.0


def _linear(frequencies: Tensor, parameters: Parameters) -> tuple[Tensor, float]:
    """Positions squeezed by `factor`."""
    return frequencies / _number(parameters, "factor"), 1.0


def _llama3(frequencies: Tensor, parameters: Parameters) -> tuple[Tensor, float]:
    """Llama 3.1: long waves are stretched by `factor`, short ones kept, those between blended."""
    factor = _number(parameters, "factor")
    low = _number(parameters, "low_freq_factor")
    high = _number(parameters, "high_freq_factor")
    turns = _number(parameters, "original_max_position_embeddings") / (2 * math.pi / frequencies)
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 - kept) * frequencies / factor + kept * frequencies, 1.0


def _yarn(frequencies: Tensor, parameters: Parameters) -> tuple[Tensor, float]:
    """YaRN (arXiv 2309.00071): channels that turn often are kept, those that turn rarely stretched.

    The ramp between them runs over channels; queries and keys both grow by the attention factor.
    """
    half = frequencies.shape[0]
    factor = _number(parameters, "factor")
    original = _number(parameters, "original_max_position_embeddings")
    theta = _number(parameters, "rope_theta")

    def channel(turns: float) -> float:
        """The channel that makes so many turns within the original context."""
        return half * math.log(original / (turns * 2 * math.pi)) / math.log(theta)

    first = channel(_number(parameters, "beta_fast", 32.0))
    last = channel(_number(parameters, "beta_slow", 1.0))
    if parameters.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, 2 * half - 1)
    # 0.001 keeps a ramp of no width from dividing by zero
    ramp = (torch.arange(half).float() - first) / ((last - first) or 0.001)
    stretched = ramp.clamp(0, 1)
    scaled = frequencies / factor * stretched + frequencies * (1 - stretched)
    return scaled, _yarn_amplitude(factor, parameters)


def _yarn_amplitude(factor: float, parameters: Parameters) -> float:
    def grown(scale: float) -> float:
        return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0

    if parameters.get("attention_factor") is not None:
        return _number(parameters, "attention_factor")
    if parameters.get("mscale") and parameters.get("mscale_all_dim"):
        return grown(_number(parameters, "mscale")) / grown(_number(parameters, "mscale_all_dim"))
    return grown(1.0)


def _divided(frequencies: Tensor, parameters: Parameters) -> tuple[Tensor, float]:
    """Each frequency by a divisor of its own: how .gguf files carry llama3 scaling."""
    divisors = torch.tensor(parameters["divisors"], dtype=torch.float32)
    if divisors.shape != frequencies.shape:
        raise ConfigError(
            f"rope has {len(frequencies)} frequencies, but {len(divisors)} divisors for them"
        )
    return frequencies / divisors, 1.0


SCALINGS: Final[Mapping[str, Callable[[Tensor, Parameters], tuple[Tensor, float]]]] = {
    "default": _default,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
    "divided": _divided,
}
"""By rope_type: frequencies -> scaled frequencies, and what cosines and sines are multiplied by."""


def _number(parameters: Parameters, name: str, default: float | None = None) -> float:
    value = parameters.get(name)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise ConfigError(
            f"rope type {parameters['rope_type']}: {name} must be a number above 0, got {value!r}"
        )
    return float(value)
