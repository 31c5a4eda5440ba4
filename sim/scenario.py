"""A scenario: everything that determines a run, as settings from YAML and the command line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, get_args

import yaml
from pydantic import Field, field_validator, model_validator

from engine.config import CacheSettings, SchedulerSettings
from sim.router import ROUTERS
from traces.errors import ConfigError
from traces.pipeline import Operation
from traces.settings import Settings, checked, known_name, read_mapping

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


class TraceSettings(Settings):
    """Which requests are replayed."""

    path: str = Field(default="sample:chat", min_length=1)
    """A file of any known format, or sample:NAME."""
    format: str | None = None
    """Its format; none: recognised."""
    skip_bad_rows: bool = False
    """Count malformed rows instead of stopping at them."""
    rate_per_s: float | None = Field(default=None, gt=0)
    """Rate at which to draw arrivals for a trace that has none."""
    hash_tokens: int = Field(default=512, ge=1)
    """Block size of a Mooncake trace's hashes."""
    operations: tuple[Operation, ...] = ()
    """Applied in order; see docs/traces.md."""


class ClusterSettings(Settings):
    """How many replicas, and how requests reach them."""

    replicas: int = Field(default=1, ge=1)
    """Engine instances; each has the profile's GPUs."""
    router: str = "round-robin"
    """A name in sim.router.ROUTERS."""
    max_queue: int | None = Field(default=None, ge=0)
    """A busy replica with this many requests waiting rejects more; none: no limit."""
    request_timeout_s: float | None = Field(default=None, gt=0)
    """A client gives up when its last token is not there after this long; none: never."""
    closed_loop: bool = False
    """A session's next turn comes after the answer before it and its think time."""

    @field_validator("router")
    @classmethod
    def _known_router(cls, name: str) -> str:
        return known_name("router", name, ROUTERS)


class MemorySettings(Settings):
    """How many KV blocks a replica has."""

    num_blocks: int | None = Field(default=None, ge=2)
    """Blocks of a replica, one of which is vLLM's null block; none: what its memory holds."""
    memory_share: float = Field(default=0.9, gt=0, le=1)
    """Share of the GPU's memory that the engine uses (vLLM's gpu_memory_utilization)."""


class SloSettings(Settings):
    """Limits that a good request keeps; none: no limit."""

    ttft_s: float | None = Field(default=None, gt=0)
    tpot_s: float | None = Field(default=None, gt=0)
    e2e_s: float | None = Field(default=None, gt=0)


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
    slo: SloSettings = SloSettings()
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
        if self.scheduler.preemption == "swap":
            raise ValueError("scheduler.preemption: swap runs on the engine only, for now")
        return self


COMMAND_LINE: Final = "command line"


def load_scenario(
    path: str | Path | None,
    overrides: Iterable[str] = (),
    options: Mapping[str, Any] | None = None,
) -> Scenario:
    """A scenario from a YAML file (or the defaults), then `options`, then the overrides.

    What is wrong is said of the file, or of the command line if the file alone is right.

    Args:
        path: a YAML file; None: the defaults.
        overrides: settings as `dotted.name=value`.
        options: settings as nested mappings.

    Raises:
        ConfigError: naming the file or override and the setting.
    """
    stated = read_mapping(path) if path is not None else {}
    values = merged(stated, options or {})
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals or not name:
            raise ConfigError(f"--set {override}: expected NAME=VALUE, like cluster.replicas=8")
        values = merged(values, _nested(name, _parsed(text, override)))
    try:
        return scenario_of(values, COMMAND_LINE)
    except ConfigError:
        if path is not None:
            scenario_of(stated, str(path))
        raise


def scenario_of(values: Mapping[str, Any], where: str = "scenario") -> Scenario:
    """Checked settings; raises ConfigError with the nearest name for an unknown one."""
    _refuse_unknown(Scenario, values, where, "")
    return checked(Scenario, dict(values), where)


def to_yaml(scenario: Scenario) -> str:
    """The complete scenario; replaying it gives the same results."""
    return yaml.safe_dump(scenario.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `over` on top, mapping by mapping."""
    result = dict(base)
    for key, value in over.items():
        below = result.get(key)
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            value = merged(below, value)
        result[key] = value
    return result


def _nested(name: str, value: Any) -> dict[str, Any]:
    for part in reversed(name.split(".")):
        value = {part: value}
    return value


def _parsed(text: str, override: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"--set {override}: the value is no YAML") from None


def _refuse_unknown(
    model: type[Settings], values: Mapping[str, Any], where: str, above: str
) -> None:
    """Point out a misspelt setting with the nearest right one, before anything else is checked."""
    fields = model.model_fields
    for name, value in values.items():
        if name not in fields:
            hint = _nearest(str(name), model, above)
            raise ConfigError(f"{where}: {above}{name}: unknown setting; {hint}")
        inner = _settings_in(fields[name].annotation)
        if inner is None:
            continue
        if isinstance(value, Mapping):
            _refuse_unknown(inner, value, where, f"{above}{name}.")
        elif isinstance(value, (list, tuple)):
            for number, one in enumerate(value):
                if isinstance(one, Mapping):
                    _refuse_unknown(inner, one, where, f"{above}{name}.{number}.")


def _nearest(name: str, model: type[Settings], above: str) -> str:
    """A setting of this name elsewhere, one spelt alike here or there, or all there are here."""
    here = {field: f"{above}{field}" for field in model.model_fields}
    everywhere = {setting.rpartition(".")[2]: setting for setting in setting_names()}
    if name in everywhere:
        return f"did you mean {everywhere[name]}?"
    for known in (here, everywhere):
        if near := get_close_matches(name, known, 1):
            return f"did you mean {known[near[0]]}?"
    return f"known: {', '.join(here.values())}"


def setting_names(model: type[Settings] = Scenario, above: str = "") -> Iterator[str]:
    """The dotted name of every setting of a scenario, in its order."""
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, Settings):
            yield from setting_names(inner, f"{above}{name}.")
        else:
            yield f"{above}{name}"


def _settings_in(annotation: Any) -> type[Settings] | None:
    """The settings that a field holds: itself, none or several of them."""
    for one in (annotation, *get_args(annotation)):
        if isinstance(one, type) and issubclass(one, Settings):
            return one
    return None
