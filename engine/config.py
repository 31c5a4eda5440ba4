"""Settings of one engine: what the scheduler and the block manager follow, and what runs them."""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from engine.named import known_policy
from traces.settings import Settings, known_name


class SchedulerSettings(Settings):
    """How a scheduler forms batches. The defaults are those of vLLM's V1 scheduler.

    Source of names and defaults: vLLM 0.33.0, `vllm.config.SchedulerConfig` and `CacheConfig`.
    """

    max_num_seqs: int | None = Field(default=None, ge=1)
    """Sequences running at once. None: vLLM's default for the GPU."""
    max_num_batched_tokens: int | None = Field(default=None, ge=1)
    """Token budget of a step; static batching does not look at it. None: as above."""
    max_model_len: int | None = Field(default=None, ge=2)
    """Tokens (prompt + output) at which a sequence is ended; prompts must be shorter. None: what
    the model and the pool allow."""
    order: str = "fcfs"
    """Order of service: a name in engine.policies.ORDER."""
    batching: Literal["continuous", "static"] = "continuous"
    """static: a batch is admitted when the last request of the one before is done."""
    prefill_first: bool = False
    """Steps of whole prompts come before decode steps and are not mixed with them (vLLM V0)."""
    chunked_prefill: bool = True
    """A prompt may be computed in several steps."""
    long_prefill_token_threshold: int = Field(default=0, ge=0)
    """Most tokens of one prompt in a step while others are there; 0: no limit."""
    reserve_full_sequence: bool = True
    """Admit only what fits whole, although its blocks are taken chunk by chunk."""
    watermark: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of the pool that admissions leave free while something runs."""
    preemption: Literal["recompute", "swap"] = "recompute"
    """What becomes of a preempted sequence's KV: computed anew, or kept in CPU memory as far as
    there is room (`offload.cpu_bytes`)."""
    async_scheduling: bool = True
    """Schedule a step while the one before runs: host time is hidden, news come a step late."""

    @field_validator("order")
    @classmethod
    def _known_order(cls, name: str) -> str:
        from engine.policies import ORDER

        return known_policy("policy", name, ORDER)

    @model_validator(mode="after")
    def _check(self) -> "SchedulerSettings":
        if self.prefill_first and self.chunked_prefill:
            raise ValueError("prefill_first: needs chunked_prefill: false")
        if self.prefill_first and self.async_scheduling:
            raise ValueError("prefill_first: needs async_scheduling: false")
        return self


class CacheSettings(Settings):
    """How KV memory is laid out and kept."""

    block_tokens: int = Field(default=16, ge=1)
    """Tokens a block holds."""
    allocation: Literal["paged", "contiguous"] = "paged"
    """contiguous: every sequence gets room for max_model_len tokens at once, as before paging."""
    prefix_caching: bool = True
    """Keep computed blocks for later requests that begin alike."""
    eviction: str = "lru"
    """Which unreferenced blocks go first: a name in engine.eviction.EVICTION."""

    @field_validator("eviction")
    @classmethod
    def _known_eviction(cls, name: str) -> str:
        from engine.eviction import EVICTION

        return known_policy("policy", name, EVICTION)

    @model_validator(mode="after")
    def _check(self) -> "CacheSettings":
        if self.allocation == "contiguous" and self.prefix_caching:
            raise ValueError("allocation: contiguous memory shares nothing; prefix_caching: false")
        return self


class OffloadSettings(Settings):
    """Where KV blocks go that leave the GPU; without room below, nowhere."""

    cpu_bytes: int = Field(default=0, ge=0)
    """Room in (pinned) CPU memory; 0: none."""
    disk_bytes: int = Field(default=0, ge=0)
    """Room in files below `disk_path`; 0: none."""
    disk_path: str | None = None
    """Folder of the disk tier; it is made, and emptied of kvcast's files at the end."""
    write: Literal["on_evict", "through"] = "on_evict"
    """When a block goes down: as it is evicted, or as soon as it is full."""
    eviction: str = "lru"
    """Which blocks of a full tier go first: a name in engine.eviction.EVICTION."""


class EngineSettings(Settings):
    """A model on a device, and how it is served."""

    model: str
    """A Hugging Face folder (config.json, *.safetensors, tokenizer.json), or a .gguf file."""
    weights: Literal["load", "dummy"] = "load"
    """dummy: seeded random weights for the model's config.json; a step costs the same."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: cuda where there is one."""
    dtype: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Of weights and activations. auto: bf16 on CUDA, fp32 on CPU."""
    kv_dtype: str = "auto"
    """A name in engine.kvformats.KV_DTYPES; auto: as `dtype`."""
    kernels: Literal["auto", "torch", "triton"] = "auto"
    """auto: triton on CUDA, torch on CPU."""
    cuda_graphs: bool = True
    """Replay captured graphs for decode steps (CUDA only)."""
    tp: int = Field(default=1, ge=1)
    """Processes that share the model, one GPU each (gloo on CPU)."""
    num_blocks: int | None = Field(default=None, ge=2)
    """KV blocks, one of which is the null block. None: what fits (see `memory_share`)."""
    memory_share: float = Field(default=0.9, gt=0.0, le=1.0)
    """Part of the GPU's memory the engine may take."""
    cpu_kv_bytes: int = Field(default=2**30, ge=1)
    """Room for the KV cache where the device is a CPU and num_blocks is not given."""
    kv_reuse: bool = True
    """false: every step computes all keys and values anew, as without a KV cache."""
    seed: int = Field(default=0, ge=0)
    """Of dummy weights, and of sampling where a request states none."""
    scheduler: SchedulerSettings = SchedulerSettings()
    cache: CacheSettings = CacheSettings()
    offload: OffloadSettings = OffloadSettings()

    @model_validator(mode="after")
    def _check(self) -> "EngineSettings":
        if self.scheduler.preemption == "swap" and not self.offload.cpu_bytes:
            raise ValueError("scheduler.preemption: swap needs room in offload.cpu_bytes")
        if self.offload.disk_bytes and self.offload.disk_path is None:
            raise ValueError("offload.disk_path: is required where offload.disk_bytes is not 0")
        if not self.kv_reuse and self.scheduler.async_scheduling:
            raise ValueError("kv_reuse: false needs scheduler.async_scheduling: false")
        if not self.kv_reuse and self.cache.prefix_caching:
            raise ValueError("kv_reuse: false needs cache.prefix_caching: false")
        return self

    @field_validator("kv_dtype")
    @classmethod
    def _known_kv_dtype(cls, name: str) -> str:
        from engine.kvformats import KV_DTYPES

        return known_name("kv dtype", name, ("auto", *KV_DTYPES))
