"""What a vLLM run's meta.json says: settings in kvcast's names, and what it was served on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from engine.config import CacheSettings, SchedulerSettings
from traces.errors import ConfigError
from traces.settings import settings_of

_RESOLVED: Final = "resolved_config."

_SETTINGS: Final[dict[str, tuple[str, ...]]] = {
    "scheduler.max_num_seqs": ("scheduler_config.max_num_seqs", "engine_kwargs.max_num_seqs"),
    "scheduler.max_num_batched_tokens": (
        "scheduler_config.max_num_batched_tokens",
        "engine_kwargs.max_num_batched_tokens",
    ),
    "scheduler.max_model_len": (
        "model_config.max_model_len",
        "model_config_limits.max_model_len",
        "engine_kwargs.max_model_len",
    ),
    "scheduler.order": ("scheduler_config.policy",),
    "scheduler.chunked_prefill": ("scheduler_config.enable_chunked_prefill",),
    "scheduler.long_prefill_token_threshold": ("scheduler_config.long_prefill_token_threshold",),
    "scheduler.reserve_full_sequence": ("scheduler_config.scheduler_reserve_full_isl",),
    "scheduler.async_scheduling": ("scheduler_config.async_scheduling",),
    "cache.block_tokens": ("kv_cache.block_size", "cache_config.block_size"),
    "cache.prefix_caching": (
        "kv_cache.enable_prefix_caching",
        "cache_config.enable_prefix_caching",
    ),
    "memory.num_blocks": ("kv_cache.num_gpu_blocks", "cache_config.num_gpu_blocks"),
    "memory.memory_share": (
        "kv_cache.gpu_memory_utilization",
        "cache_config.gpu_memory_utilization",
    ),
}
"""Scenario settings, and where vLLM's own names for them may stand; what was resolved comes before
what was asked for."""

_ABOUT: Final[dict[str, tuple[str, ...]]] = {
    "model": ("model", "engine_kwargs.model", "model_config.model"),
    "vllm_version": ("vllm_version",),
    "device": ("hardware.device_name",),
    "cuda_version": ("hardware.cuda_version",),
    "torch_version": ("hardware.torch_version",),
    "dtype": ("engine_kwargs.dtype", "model_config.dtype"),
    "kv_cache_dtype": ("engine_kwargs.kv_cache_dtype", "cache_config.cache_dtype"),
    "tensor_parallel_size": (
        "engine_kwargs.tensor_parallel_size",
        "parallel_config.tensor_parallel_size",
    ),
    "data_parallel_size": (
        "engine_kwargs.data_parallel_size",
        "parallel_config.data_parallel_size",
    ),
    "enable_expert_parallel": (
        "engine_kwargs.enable_expert_parallel",
        "parallel_config.enable_expert_parallel",
    ),
    "cudagraph_capture_sizes": (
        "cudagraph_capture_sizes",
        "compilation_config.cudagraph_capture_sizes",
    ),
}


def read_meta(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings as a partial scenario, and what else is known of a run.

    What a file does not say is left out; what it says must make sense. Data-parallel engines are
    replicas.

    Raises:
        ConfigError: naming the file, the setting and the value.
    """
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path}: is no JSON: {error}") from None
    if not isinstance(meta, dict):
        raise ConfigError(f"{path}: expected a JSON object, got {type(meta).__name__}")
    settings: dict[str, Any] = {}
    for name, places in _SETTINGS.items():
        value = _first(meta, places)
        if value is not None:
            section, _, key = name.partition(".")
            settings.setdefault(section, {})[key] = value
    about = {
        name: value
        for name, places in _ABOUT.items()
        if (value := _first(meta, places)) is not None
    }
    replicas = about.get("data_parallel_size", 1)
    if replicas != 1:
        settings["cluster"] = {"replicas": replicas}
    _check(settings, str(path))
    return settings, about


def _first(meta: dict[str, Any], places: tuple[str, ...]) -> Any:
    for place in (*places, *(_RESOLVED + place for place in places)):
        value: Any = meta
        for key in place.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if value is not None:
            return value
    return None


def _check(settings: dict[str, Any], where: str) -> None:
    settings_of(SchedulerSettings, settings.get("scheduler", {}), f"{where}: scheduler")
    settings_of(CacheSettings, settings.get("cache", {}), f"{where}: cache")
    memory = settings.get("memory", {})
    blocks, share = memory.get("num_blocks", 2), memory.get("memory_share", 1.0)
    replicas = settings.get("cluster", {}).get("replicas", 1)
    if type(blocks) is not int or blocks < 2:
        raise ConfigError(f"{where}: num_gpu_blocks is {blocks!r}; expected a whole number >= 2")
    if type(replicas) is not int or replicas < 1:
        raise ConfigError(
            f"{where}: data_parallel_size is {replicas!r}; expected a whole number >= 1"
        )
    if not isinstance(share, int | float) or not 0 < share <= 1:
        raise ConfigError(f"{where}: gpu_memory_utilization is {share!r}; expected 0 < share <= 1")
