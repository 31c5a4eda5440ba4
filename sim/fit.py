"""Settings that follow from the model and its GPU where a scenario leaves them open."""

from calibration.devices import StatedDevice
from calibration.hardware import Gpu
from calibration.profiles import Profile
from engine.config import SchedulerSettings
from sim.scenario import Scenario
from traces.errors import ConfigError

GIB = 2**30


def fitted(scenario: Scenario, profile: Profile) -> tuple[SchedulerSettings, int]:
    """The scheduler's settings, all of them resolved, and the KV blocks of a replica.

    Any one sequence fits the pool alone.

    Raises:
        ConfigError: the model does not fit its GPU, or max_model_len is more than the model, the
            pool or a whole-prompt step allows.
    """
    settings = _with_batch_limits(scenario.scheduler, profile.device)
    num_blocks = scenario.memory.num_blocks or _capacity(scenario, settings, profile)
    return _with_max_model_len(settings, scenario, profile, num_blocks), num_blocks


def default_batch_limits(gpu: Gpu | StatedDevice) -> tuple[int, int]:
    """Sequences and tokens of a step, as vLLM 0.33.0's server has them for a GPU.

    Source: `EngineArgs._set_default_args` there: by memory, the A100 apart.
    """
    if gpu.memory_bytes >= 160 * GIB:
        return 1024, 16384
    if gpu.memory_bytes >= 70 * GIB and not gpu.name.lower().startswith("a100"):
        return 1024, 8192
    return 256, 2048


def _with_batch_limits(settings: SchedulerSettings, gpu: Gpu | StatedDevice) -> SchedulerSettings:
    sequences, tokens = default_batch_limits(gpu)
    return settings.model_copy(
        update={
            "max_num_seqs": settings.max_num_seqs or sequences,
            "max_num_batched_tokens": settings.max_num_batched_tokens or tokens,
        }
    )


def _capacity(scenario: Scenario, settings: SchedulerSettings, profile: Profile) -> int:
    assert settings.max_num_batched_tokens is not None and settings.max_num_seqs is not None
    return profile.capacity(
        block_tokens=scenario.cache.block_tokens,
        memory_share=scenario.memory.memory_share,
        max_batched_tokens=settings.max_num_batched_tokens,
        max_sequences=settings.max_num_seqs,
    ).blocks


def _with_max_model_len(
    settings: SchedulerSettings, scenario: Scenario, profile: Profile, num_blocks: int
) -> SchedulerSettings:
    pool = (num_blocks - 1) * scenario.cache.block_tokens
    limits = {
        f"the {pool:,} tokens of a replica's {num_blocks - 1:,} KV blocks": pool,
        f"the model's {profile.shape.max_position:,} ({profile.model})": profile.shape.max_position,
    }
    budget = settings.max_num_batched_tokens
    if budget and not settings.chunked_prefill and settings.batching == "continuous":
        limits[f"max_num_batched_tokens of {budget:,}, as prompts are not chunked"] = budget
    asked = settings.max_model_len
    if asked is None:
        return settings.model_copy(update={"max_model_len": min(limits.values())})
    for what, limit in limits.items():
        if asked > limit:
            raise ConfigError(f"scheduler.max_model_len: {asked:,} is more than {what}")
    return settings
