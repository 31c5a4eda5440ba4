"""Settings of one engine: what the scheduler and the block manager follow."""

from typing import Literal

from pydantic import Field, field_validator, model_validator

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
    async_scheduling: bool = True
    """Schedule a step while the one before runs: host time is hidden, news come a step late."""

    @field_validator("order")
    @classmethod
    def _known_order(cls, name: str) -> str:
        from engine.policies import ORDER

        return known_name("policy", name, ORDER)

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

        return known_name("policy", name, EVICTION)

    @model_validator(mode="after")
    def _check(self) -> "CacheSettings":
        if self.allocation == "contiguous" and self.prefix_caching:
            raise ValueError("allocation: contiguous memory shares nothing; prefix_caching: false")
        return self
