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
    """Order of service: a name in engine.policies.ORDER, with parameters, or one's own."""
    victim: str | None = None
    """Who gives way when a running sequence finds no block: a name in engine.policies.VICTIM.
    None: least-important where the order is by priority, else last-in, as in vLLM."""
    chunking: str | None = None
    """How many tokens a step takes: a name in engine.policies.CHUNKING, at most
    max_num_batched_tokens. None: always that many."""
    starvation_limit: int = Field(default=10_000, ge=1)
    """An order of one's own ends the run when it lets a request wait while so many later ones are
    admitted; kvcast's orders may."""
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

    @field_validator("victim")
    @classmethod
    def _known_victim(cls, name: str | None) -> str | None:
        from engine.policies import VICTIM

        return None if name is None else known_policy("victim", name, VICTIM)

    @field_validator("chunking")
    @classmethod
    def _known_chunking(cls, name: str | None) -> str | None:
        from engine.policies import CHUNKING

        return None if name is None else known_policy("chunking", name, CHUNKING)

    @property
    def victim_or_default(self) -> str:
        """The policy that chooses victims."""
        return self.victim or ("least-important" if self.order == "priority" else "last-in")

    @model_validator(mode="after")
    def _check(self) -> "SchedulerSettings":
        if self.chunking is not None and not self.chunked_prefill:
            raise ValueError("chunking: needs chunked_prefill: true")
        if self.chunking is not None and self.batching == "static":
            raise ValueError("chunking: needs batching: continuous")
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
    remote_bytes: int = Field(default=0, ge=0)
    """Room in a pool that all replicas of a cluster share; 0: none. Simulator only."""
    dtype: Literal["same", "fp8", "int8", "int4"] = "same"
    """How blocks are written below the GPU; same: as on it. Simulator only."""
    write: Literal["on_evict", "through"] = "on_evict"
    """When a block goes down: as it is evicted, or as soon as it is full."""
    eviction: str = "lru"
    """Which blocks of a full tier go first: a policy of engine.eviction.EVICTION."""
    reload: Literal["always", "cheaper"] = "always"
    """cheaper: load what lies below only where computing it would take longer. Simulator only."""
    prefetch: Literal["never", "on_arrival"] = "never"
    """on_arrival: begin to load what lies below as a request is queued."""
    prefetch_share: float = Field(default=0.5, gt=0, le=1)
    """Most of the GPU's blocks that are held for requests which still wait."""
    cpu_bytes_per_s: float | None = Field(default=None, gt=0)
    """Rate between a GPU and CPU memory; None: the profile's. Rates are the simulator's only."""
    disk_bytes_per_s: float | None = Field(default=None, gt=0)
    """Rate of a replica's disk; None: the profile's."""
    remote_bytes_per_s: float | None = Field(default=None, gt=0)
    """Rate of the remote pool, which all replicas share; None: the profile's."""
    remote_latency_s: float | None = Field(default=None, ge=0)
    """Until the first byte of a transfer from or to the pool arrives; None: the profile's."""

    @field_validator("eviction")
    @classmethod
    def _known_eviction(cls, name: str) -> str:
        from engine.eviction import EVICTION

        return known_policy("policy", name, EVICTION)

    @property
    def has_room(self) -> bool:
        """There is a tier below the GPU."""
        return bool(self.cpu_bytes or self.disk_bytes or self.remote_bytes)

    def simulated_only(self) -> tuple[str, ...]:
        """Names of the settings, other than their defaults, that no engine can follow."""
        names = ("remote_bytes", "dtype", "reload")
        names += ("cpu_bytes_per_s", "disk_bytes_per_s", "remote_bytes_per_s", "remote_latency_s")
        defaults = type(self).model_fields
        return tuple(name for name in names if getattr(self, name) != defaults[name].default)


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
        for name in self.offload.simulated_only():
            value = getattr(self.offload, name)
            default = type(self.offload).model_fields[name].default
            raise ValueError(
                f"offload.{name}: is {value!r}, which the simulator knows and the engine does not;"
                f" expected {default!r}"
            )
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
