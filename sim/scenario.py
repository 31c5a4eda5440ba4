"""A scenario: everything that determines a run, as settings from YAML and the command line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import Field, field_validator, model_validator

from engine.config import CacheSettings, OffloadSettings, SchedulerSettings
from engine.named import known_policy
from engine.slo import SloSettings
from sim.admission import ADMISSION
from sim.economics.settings import EconomicsSettings
from sim.routing import ROUTERS
from traces.pipeline import TraceSettings
from traces.settings import Settings, known_name, load_settings, merged, settings_of

PRESETS: Final[dict[str, dict[str, Any]]] = {
    "vllm": {},
    "vllm-v0": {
        "scheduler": {
            "chunked_prefill": False,
            "prefill_first": True,
            "async_scheduling": False,
            "watermark": 0.01,
        },
    },
    "orca": {
        "scheduler": {"chunked_prefill": False, "async_scheduling": False},
        "cache": {"allocation": "contiguous", "prefix_caching": False},
    },
    "static": {
        "scheduler": {
            "batching": "static",
            "chunked_prefill": False,
            "async_scheduling": False,
            "max_num_seqs": 32,
        },
        "cache": {"allocation": "contiguous", "prefix_caching": False},
    },
}
"""Ways of serving to compare: settings that a scenario's own ones override.

vllm: the defaults, vLLM's V1 scheduler. vllm-v0: whole prompts in steps of their own, before any
decode. orca: iteration-level batching of whole prompts, memory reserved for the longest sequence
(Yu et al., OSDI'22). static: a batch runs until its last request is done.
"""


class ClusterSettings(Settings):
    """How many replicas, and how requests reach them."""

    replicas: int = Field(default=1, ge=1)
    """Engine instances; each has the profile's GPUs."""
    router: str = "round-robin"
    """A name in sim.routing.ROUTERS, with parameters or not, or a user's own."""
    admission: str = "everybody"
    """A name in sim.admission.ADMISSION, with parameters or not, or a user's own."""
    max_queue: int | None = Field(default=None, ge=0)
    """A busy replica with this many requests waiting rejects more; none: no limit."""
    request_timeout_s: float | None = Field(default=None, gt=0)
    """A client gives up when its last token is not there after this long; none: never."""
    closed_loop: bool = False
    """A session's next turn comes after the answer before it and its think time."""

    @field_validator("router")
    @classmethod
    def _known_router(cls, name: str) -> str:
        return known_policy("router", name, ROUTERS)

    @field_validator("admission")
    @classmethod
    def _known_admission(cls, name: str) -> str:
        return known_policy("admission", name, ADMISSION)


class MemorySettings(Settings):
    """How many KV blocks a replica has."""

    num_blocks: int | None = Field(default=None, ge=2)
    """Blocks of a replica, one of which is vLLM's null block; none: what its memory holds."""
    memory_share: float = Field(default=0.9, gt=0, le=1)
    """Share of the GPU's memory that the engine uses (vLLM's gpu_memory_utilization)."""


class UncertaintySettings(Settings):
    """How far the figures may be off: see sim.uncertainty."""

    replications: int | None = Field(default=None, ge=5)
    """Runs with other draws, for an interval on every figure; none: no intervals."""
    level: float = Field(default=0.95, ge=0.5, le=0.99)
    """Probability that an interval holds the true figure."""
    noise: bool = True
    """Replications draw step noise too, if the profile has any."""
    cost_share: float | None = Field(default=None, gt=0, le=10)
    """Assumed in place of measured intervals: all step times are known within this share."""


class Scenario(Settings):
    """A run: trace, profile, cluster, policies, seed. Equal scenarios give byte-equal results."""

    name: str = "replay"
    seed: int = Field(default=0, ge=0)
    preset: str = "vllm"
    """A way of serving in PRESETS, which the settings below override."""
    trace: TraceSettings = TraceSettings()
    profile: str = "h200-llama-3.1-8b"
    """A shipped profile, a YAML file, or analytic:<gpu>/<model>...; see docs/cost-model.md."""
    model: str | None = None
    """Refuse a profile of another model than this; none: whatever the profile's is."""
    cluster: ClusterSettings = ClusterSettings()
    scheduler: SchedulerSettings = SchedulerSettings()
    cache: CacheSettings = CacheSettings()
    memory: MemorySettings = MemorySettings()
    offload: OffloadSettings = OffloadSettings()
    slo: SloSettings = SloSettings()
    noise: bool = False
    """Step times scatter as measured ones did; needs a calibrated profile."""
    uncertainty: UncertaintySettings = UncertaintySettings()
    economics: EconomicsSettings = EconomicsSettings()
    warmup_s: float = Field(default=0.0, ge=0)
    """Requests that arrive before this are served, but not counted in the summary."""
    end_s: float | None = Field(default=None, gt=0)
    """Cut-off; what is not done by then is unfinished. None: until all is served."""

    @model_validator(mode="before")
    @classmethod
    def _apply_preset(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        given = {
            name: value.model_dump(exclude_unset=True) if isinstance(value, Settings) else value
            for name, value in values.items()
        }
        return merged(PRESETS.get(str(given.get("preset")), {}), given)

    @field_validator("preset")
    @classmethod
    def _known_preset(cls, name: str) -> str:
        return known_name("preset", name, PRESETS)

    @model_validator(mode="after")
    def _counts_something(self) -> Scenario:
        if self.end_s is not None and self.end_s <= self.warmup_s:
            raise ValueError("end_s must be after warmup_s")
        if self.scheduler.preemption == "swap" and not self.offload.cpu_bytes:
            raise ValueError("scheduler.preemption: swap needs room in offload.cpu_bytes")
        return self


def load_scenario(
    path: str | Path | None,
    overrides: Iterable[str] = (),
    options: Mapping[str, Any] | None = None,
) -> Scenario:
    """A scenario from a YAML file (or the defaults), then `options`, then the overrides.

    Raises:
        ConfigError: naming the file or override and the setting; see `load_settings`.
    """
    return load_settings(Scenario, path, overrides, options)


def scenario_of(values: Mapping[str, Any], where: str = "scenario") -> Scenario:
    """Checked settings; raises ConfigError with the nearest name for an unknown one."""
    return settings_of(Scenario, values, where)
