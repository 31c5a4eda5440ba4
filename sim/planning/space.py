"""What plan.yaml states: the traffic, the fleets to choose from, what they must keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from math import prod
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field, field_validator, model_validator

from sim.scenario import Scenario, scenario_of
from traces.errors import ConfigError
from traces.settings import Settings, merged, read_mapping, setting_names, settings_of

HARDWARE: Final = ("gpu", "model", "tp", "weight_dtype", "kv_dtype")
"""Dimensions that compose the name of an analytic profile, in the order of its parts."""

OWN: Final = (*HARDWARE, "profile", "replicas")
"""Dimensions that are no dotted setting of a scenario."""

ELSEWHERE: Final = {
    "name": "name",
    "seed": "scenario.seed",
    "model": "space.model",
    "cluster.replicas": "space.replicas",
    "end_s": "scenario.end_s",
    "cluster.closed_loop": "scenario.cluster.closed_loop",
    "warmup_s": "scenario.warmup_s",
}
"""Settings of a scenario that are no dimension, and where they are stated instead."""

Method = Literal["auto", "exhaustive", "optuna"]


class ConstraintSettings(Settings):
    """Bounds on what may be bought, whatever it does; none: no bound."""

    max_gpus: int | None = Field(default=None, ge=1)
    max_usd_per_hour: float | None = Field(default=None, gt=0)
    max_nodes: int | None = Field(default=None, ge=1)
    """Servers of `gpus_per_node` GPUs; a replica does not span two."""
    gpus_per_node: int = Field(default=8, ge=1)


class SearchSettings(Settings):
    """How the cheapest candidate is looked for."""

    method: Method = "auto"
    """exhaustive: exact, see docs/planning.md; optuna: samples configurations; auto: by size."""
    exhaustive_up_to: int = Field(default=1000, ge=1)
    """Configurations (replicas apart) up to which auto is exhaustive."""
    trials: int = Field(default=200, ge=1)
    """Configurations that Optuna tries."""
    seed: int = Field(default=0, ge=0)
    """Of Optuna's sampler."""
    sampler: Literal["tpe", "nsga2"] = "tpe"


class ConfidenceSettings(Settings):
    """How sure the winner must be on traffic like the trace's."""

    share: float = Field(default=0.9, gt=0, le=1)
    """Share of redrawn traffic on which every objective is to be met."""
    redraws: int = Field(default=20, ge=0)
    """How often traffic is redrawn; 0: the trace as it is decides alone."""
    level: float = Field(default=0.95, ge=0.5, lt=1)
    """Of the interval about the share that is found."""
    traffic: str | None = None
    """How it is redrawn, as for `kvcast compare --traffic`."""
    blocks: int = Field(default=20, ge=2)
    """Blocks that the trace is cut into, where it is redrawn by blocks."""


class FrontSettings(Settings):
    """The walk along the Pareto fronts."""

    tolerance: float = Field(default=0.02, ge=0)
    """A point that betters those found by no more than this share is not looked for."""
    reach: float = Field(default=4.0, ge=1)
    """Times the winner's price, or GPU time a token, beyond which a front is not looked for."""
    replays: int = Field(default=150, ge=0)
    """Replays that each front may take beyond those of the search; 0: what the search replayed."""


class GrowthSettings(Settings):
    """Traffic that grows month by month."""

    percent_a_month: float = Field(default=10.0, ge=0, le=1000)
    months: int = Field(default=12, ge=0, le=120)
    """Horizon; 0: growth is not looked at."""


class SensitivitySettings(Settings):
    """By how much each assumption is varied; 0 or false: not at all."""

    price: float = Field(default=0.2, ge=0, lt=1)
    rate: float = Field(default=0.2, ge=0, lt=1)
    lengths: float = Field(default=0.2, ge=0, lt=1)
    """Of prompts and answers alike."""
    prefix_reuse: bool = True
    """What without the prefix cache?"""
    step_times: float = Field(default=0.15, ge=0, lt=1)
    """Error of the profile: all step times are off by this share."""

    @model_validator(mode="before")
    @classmethod
    def _switched(cls, values: Any) -> Any:
        if values is True:
            return {}
        if values is False:
            return dict.fromkeys(("price", "rate", "lengths", "step_times"), 0.0) | {
                "prefix_reuse": False
            }
        return values


class PlanSettings(Settings):
    """A plan to be: see docs/planning.md."""

    name: str = ""
    """For headings; empty: the scenario's."""
    scenario: dict[str, Any] | str = Field(default_factory=dict[str, Any])
    """What all candidates have in common: a scenario's settings, or its file."""
    space: dict[str, Any]
    """Values by dimension; `axes` has them checked."""
    constraints: ConstraintSettings = ConstraintSettings()
    objectives: tuple[str, ...] = Field(min_length=1)
    """What the fleet must keep, such as `p99 ttft <= 1s`; see docs/capacity.md."""
    economics: dict[str, Any] = Field(default_factory=dict[str, Any])
    """A scenario's `economics`, on top of what `scenario` states."""
    search: SearchSettings = SearchSettings()
    confidence: ConfidenceSettings = ConfidenceSettings()
    fronts: FrontSettings = FrontSettings()
    growth: GrowthSettings = GrowthSettings()
    sensitivities: SensitivitySettings = SensitivitySettings()

    @field_validator("objectives", mode="before")
    @classmethod
    def _one_or_several(cls, stated: Any) -> Any:
        return (stated,) if isinstance(stated, str) else stated


def load_plan_settings(path: Path) -> PlanSettings:
    """The settings of a plan's file; raises ConfigError naming the file and the setting."""
    return settings_of(PlanSettings, _readable(read_mapping(path)), str(path))


def plan_settings_of(values: Mapping[str, Any]) -> PlanSettings:
    """Checked settings of a plan; raises ConfigError."""
    return settings_of(PlanSettings, _readable(values), "plan")


def _readable(values: Mapping[str, Any]) -> dict[str, Any]:
    """`sensitivities: false` as the settings it stands for."""
    stated = dict(values)
    if isinstance(stated.get("sensitivities"), bool):
        made = SensitivitySettings.model_validate(stated["sensitivities"])
        stated["sensitivities"] = made.model_dump()
    return stated


def base_values(settings: PlanSettings, folder: Path | None = None) -> dict[str, Any]:
    """What all candidates' scenarios state.

    Args:
        settings: the plan's.
        folder: of the plan's file: where a scenario's file is looked for that is not here.

    Raises:
        ConfigError: a file that cannot be read, or values that make no scenario.
    """
    if isinstance(settings.scenario, str):
        path = Path(settings.scenario)
        if not path.is_file() and folder is not None:
            path = folder / path
        values, where = read_mapping(path), str(path)
    else:
        values, where = dict(settings.scenario), "scenario"
    if settings.economics:
        values = merged(values, {"economics": settings.economics})
    scenario_of(values, where)
    return values


def axes(settings: PlanSettings) -> dict[str, tuple[Any, ...]]:
    """The values of each dimension but the replicas, in the order stated.

    Raises:
        ConfigError: an unknown dimension, one without values, a value twice, or dimensions that
            contradict each other.
    """
    space = settings.space
    found: dict[str, tuple[Any, ...]] = {}
    settings_known = list(setting_names(Scenario))
    for name, stated in space.items():
        _check_dimension(name, settings_known)
        if name == "replicas":
            continue
        if isinstance(stated, Mapping):
            raise ConfigError(
                f"space.{name}: expected a list of values, got a mapping; write dotted names, like"
                f" {name}.{next(iter(stated), 'max_num_seqs')}: [...]"
            )
        values: tuple[Any, ...] = tuple(stated) if isinstance(stated, list) else (stated,)
        if not values:
            raise ConfigError(f"space.{name}: has no value; expected a list of at least one")
        for index, value in enumerate(values):
            if value in values[:index]:
                raise ConfigError(f"space.{name}: {value} is stated twice")
        found[name] = values
    hardware = [name for name in HARDWARE if name in found]
    if hardware and "profile" in found:
        raise ConfigError(
            f"space: states profile and {hardware[0]}; expected one of the two (gpu, model, tp and"
            " dtypes make up an analytic profile)"
        )
    for name in ("gpu", "model") if hardware else ():
        if name not in found:
            raise ConfigError(f"space.{name}: is missing beside space.{hardware[0]}")
    if "profile" in found or hardware:
        stated = settings.scenario if isinstance(settings.scenario, dict) else {}
        if "profile" in stated:
            raise ConfigError(
                f"scenario.profile: {stated['profile']} is stated and space varies it; expected one"
                " of the two"
            )
    return found


def replica_counts(settings: PlanSettings, otherwise: int = 1) -> tuple[int, ...]:
    """How many replicas a fleet may have, ascending; `otherwise` where the space does not say.

    Raises:
        ConfigError: numbers that are none.
    """
    stated: Any = settings.space.get("replicas", otherwise)
    if isinstance(stated, Mapping):
        if set(stated) != {"from", "to"}:
            raise ConfigError(f"space.replicas: expected {{from: 1, to: 32}}, got {dict(stated)!r}")
        first, last = stated["from"], stated["to"]
        _check_counts([first, last])
        if last < first:
            raise ConfigError(f"space.replicas: to must be at least from ({first}), got {last}")
        return tuple(range(first, last + 1))
    values: Sequence[Any] = stated if isinstance(stated, list) else [stated]
    _check_counts(values)
    if not values:
        raise ConfigError("space.replicas: has no value; expected a list, or {from: 1, to: 32}")
    return tuple(sorted(set(values)))


def size(axes_: Mapping[str, Sequence[Any]]) -> int:
    """Configurations of a space: combinations of values, replicas apart."""
    return prod(len(values) for values in axes_.values())


def profile_name(settings: Mapping[str, Any]) -> str | None:
    """The profile that a combination of values names; None: the scenario's own."""
    if "profile" in settings:
        return str(settings["profile"])
    if "gpu" not in settings:
        return None
    name = f"analytic:{settings['gpu']}/{settings['model']}"
    if settings.get("tp", 1) != 1:
        name += f"/tp{settings['tp']}"
    if "weight_dtype" in settings:
        name += f"/w-{settings['weight_dtype']}"
    if "kv_dtype" in settings:
        name += f"/kv-{settings['kv_dtype']}"
    return name


def _check_dimension(name: str, known: Sequence[str]) -> None:
    if name in OWN:
        return
    if name in ELSEWHERE:
        raise ConfigError(f"space.{name}: is no dimension; state {ELSEWHERE[name]}")
    if name.startswith("trace."):
        raise ConfigError(f"space.{name}: traffic is the same for all; state it in scenario.trace")
    if name.startswith(("uncertainty.", "slo.")) or name == "noise":
        raise ConfigError(f"space.{name}: is nothing to buy; state it in scenario")
    if name in known:
        return
    near = get_close_matches(name, [*OWN, *known], 1)
    tails = {one.rpartition(".")[2]: one for one in known}
    hint = tails.get(name) or (near[0] if near else None)
    said = f"did you mean {hint}?" if hint else f"known: {', '.join(OWN)}, and a scenario's"
    raise ConfigError(f"space.{name}: unknown dimension; {said}")


def _check_counts(values: Sequence[Any]) -> None:
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(
                f"space.replicas: must be whole numbers of at least 1, got {value!r}; or"
                " {from: 1, to: 32}"
            )
