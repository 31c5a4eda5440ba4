"""The fleets to choose from: every configuration of a space, with the replicas it may have.

A *configuration* is a combination of all dimensions but the replicas; a *candidate* is a
configuration with a number of replicas. What cannot be bought or cannot run is left out here, with
a count and a reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Final

from calibration.profiles import Profile, load_profile
from engine.config import SchedulerSettings
from sim.comparing.grid import scenario_with, shown
from sim.economics.prices import usd_per_hour
from sim.fit import fitted
from sim.planning.space import (
    HARDWARE,
    ConstraintSettings,
    PlanSettings,
    axes,
    profile_name,
    replica_counts,
    size,
)
from sim.scenario import Scenario, scenario_of
from traces.errors import ConfigError

CENT: Final = 6
"""Decimals of a price in US dollars that count: below are rounding errors of sums."""


@dataclass(frozen=True, eq=False)
class Configuration:
    """A combination of the dimensions' values, replicas apart."""

    place: int
    """In the space, counted from 0, the first dimension varying slowest; it breaks ties."""
    settings: Mapping[str, Any]
    """Value of each dimension."""
    label: str
    """The values that tell it from the others, for a reader."""
    scenario: Scenario = field(repr=False)
    """With one replica."""
    profile: Profile = field(repr=False)
    scheduler: SchedulerSettings = field(repr=False)
    """With the limits that follow from GPU and model."""
    kv_blocks: int
    """Of a replica."""
    usd_per_replica_hour: float
    replicas: tuple[int, ...] = field(repr=False)
    """How many it may have, ascending; at least one number."""

    @property
    def gpu(self) -> str:
        """The GPU, as price files name it."""
        return self.profile.device.name

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """From the cheapest to the dearest."""
        return tuple(Candidate(self, count) for count in self.replicas)

    def with_replicas(self, count: int) -> Candidate:
        """A candidate of this configuration, whether the space has it or not."""
        return Candidate(self, count)


@dataclass(frozen=True)
class Candidate:
    """A configuration with a number of replicas."""

    configuration: Configuration
    replicas: int

    @property
    def usd_per_hour(self) -> float:
        """What it costs for an hour."""
        return round(self.replicas * self.configuration.usd_per_replica_hour, CENT)

    @property
    def gpus(self) -> int:
        """All replicas' together."""
        return self.replicas * self.configuration.profile.tp

    @property
    def scenario(self) -> Scenario:
        """What `kvcast replay` simulates of it."""
        scenario = self.configuration.scenario
        cluster = scenario.cluster.model_copy(update={"replicas": self.replicas})
        return scenario.model_copy(update={"cluster": cluster})

    @property
    def label(self) -> str:
        """For a reader: `4 x h200 · tp 2 · fp8 KV`."""
        return f"{self.replicas} x {self.configuration.label}"

    @property
    def settings(self) -> dict[str, Any]:
        """Value of each dimension, the replicas with them."""
        return {**self.configuration.settings, "replicas": self.replicas}

    @property
    def identity(self) -> tuple[int, int]:
        """Place of the configuration, and replicas."""
        return self.configuration.place, self.replicas


@dataclass(frozen=True)
class Dropped:
    """Candidates that are left out before anything is simulated."""

    reason: str
    """`does not fit`, `is not possible`, or a constraint's name."""
    candidates: int
    example: str
    """What is wrong with one of them, in a sentence."""


class Space:
    """All candidates of a plan; configurations are made when they are asked for."""

    def __init__(self, settings: PlanSettings, values: Mapping[str, Any]) -> None:
        """Check the dimensions; whether their values go together is found out one by one.

        Args:
            settings: the plan's.
            values: what all candidates' scenarios state, see `base_values`.

        Raises:
            ConfigError: an unknown or empty dimension.
        """
        self.axes: Mapping[str, tuple[Any, ...]] = axes(settings)
        self.replicas = replica_counts(settings, scenario_of(values).cluster.replicas)
        self._values = values
        self._constraints = settings.constraints
        self._varied = [name for name, choices in self.axes.items() if len(choices) > 1]
        self._profiles: dict[str, Profile | ConfigError] = {}
        self._drops = _Drops()
        self._made: dict[int, Configuration | None] = {}
        self._wrong: dict[tuple[str, int], ConfigError] = {}
        self._right: set[tuple[str, int]] = set()

    @property
    def size(self) -> int:
        """Configurations, with those that cannot be bought or cannot run."""
        return size(self.axes)

    @property
    def stated(self) -> int:
        """Candidates, with those that cannot be bought or cannot run."""
        return self.size * len(self.replicas)

    @property
    def made(self) -> list[Configuration]:
        """The configurations that were asked for and can be bought, by place."""
        return [one for _, one in sorted(self._made.items()) if one is not None]

    @property
    def dropped(self) -> list[Dropped]:
        """What was asked for and cannot be bought or cannot run, by reason."""
        return self._drops.found()

    def every(self) -> list[Configuration]:
        """All configurations.

        Raises:
            ConfigError: a value that nothing can be made of, a missing price, or none is left.
        """
        for places in product(*(range(len(choices)) for choices in self.axes.values())):
            self.at(places)
        self.check()
        return self.made

    def check(self) -> None:
        """Refuse what was asked for if nothing of it is left; raises ConfigError."""
        for (name, at), error in self._wrong.items():
            if (name, at) not in self._right:
                raise ConfigError(f"space.{name}: {shown(self.axes[name][at])}: {_bare(error)}")
        if not self.made:
            raise ConfigError(
                f"space: no candidate is left of {self._drops.total:,}: {self._drops}"
            )

    def at(self, places: Sequence[int]) -> Configuration | None:
        """The configuration with these places of the dimensions' values; None: left out.

        Raises:
            ConfigError: its GPU has no price.
        """
        place = 0
        for at, choices in zip(places, self.axes.values(), strict=True):
            place = place * len(choices) + at
        if place not in self._made:
            self._made[place] = self._make(place, dict(zip(self.axes, places, strict=True)))
        return self._made[place]

    def _make(self, place: int, chosen: Mapping[str, int]) -> Configuration | None:
        stated = {name: self.axes[name][at] for name, at in chosen.items()}
        counts = self.replicas
        try:
            scenario, profile = _scenario(self._values, stated, self._profiles)
        except ConfigError as error:
            self._drops.add("is not possible", len(counts), _bare(error))
            for one in chosen.items():
                self._wrong.setdefault(one, error)
            return None
        self._right.update(chosen.items())
        try:
            scheduler, kv_blocks = fitted(scenario, profile)
        except ConfigError as error:
            self._drops.add("does not fit", len(counts), str(error))
            return None
        price = usd_per_hour(profile, scenario.economics, 1)
        allowed = _allowed(counts, profile.tp, price, self._constraints, self._drops)
        if not allowed:
            return None
        return Configuration(
            place=place,
            settings=stated,
            label=_label(stated, self._varied, profile),
            scenario=scenario,
            profile=profile,
            scheduler=scheduler,
            kv_blocks=kv_blocks,
            usd_per_replica_hour=price,
            replicas=allowed,
        )


def nodes(replicas: int, tp: int, gpus_per_node: int) -> int:
    """Servers that so many replicas take: none spans two, unless it is larger than one."""
    if tp > gpus_per_node:
        return replicas * -(-tp // gpus_per_node)
    return -(-replicas // (gpus_per_node // tp))


def _bare(error: ConfigError) -> str:
    return str(error).removeprefix("scenario: ")


def _scenario(
    values: Mapping[str, Any], stated: Mapping[str, Any], profiles: dict[str, Any]
) -> tuple[Scenario, Profile]:
    """One configuration's scenario and profile; raises ConfigError."""
    changes = {name: value for name, value in stated.items() if "." in name or name == "preset"}
    named = profile_name(stated)
    if named is not None:
        changes["profile"] = named
    scenario = scenario_with(values, {**changes, "cluster.replicas": 1})
    if scenario.profile not in profiles:
        try:
            profiles[scenario.profile] = load_profile(scenario.profile)
        except ConfigError as error:
            profiles[scenario.profile] = error
    profile = profiles[scenario.profile]
    if isinstance(profile, ConfigError):
        raise profile
    profile.require(model=scenario.model)
    profile.cost_model()  # a model that tp does not split is found out here
    return scenario, profile


def _allowed(
    counts: Sequence[int], tp: int, price: float, bounds: ConstraintSettings, drops: _Drops
) -> tuple[int, ...]:
    """The numbers of replicas that keep every constraint."""
    allowed: list[int] = []
    for count in counts:
        servers = nodes(count, tp, bounds.gpus_per_node)
        usd = round(count * price, CENT)
        if bounds.max_gpus is not None and count * tp > bounds.max_gpus:
            drops.add(f"max_gpus {bounds.max_gpus:,}", 1, f"{count * tp:,} GPUs")
        elif bounds.max_usd_per_hour is not None and usd > bounds.max_usd_per_hour:
            drops.add(f"max_usd_per_hour {bounds.max_usd_per_hour:g}", 1, f"${usd:,.2f} an hour")
        elif bounds.max_nodes is not None and servers > bounds.max_nodes:
            drops.add(f"max_nodes {bounds.max_nodes:,}", 1, f"{servers:,} nodes")
        else:
            allowed.append(count)
    return tuple(allowed)


def _label(stated: Mapping[str, Any], varied: Sequence[str], profile: Profile) -> str:
    """What a reader calls a configuration: its GPU, or its profile, and what else is varied."""
    parts = [profile.name.removeprefix("analytic:")]
    if "gpu" in stated:
        parts = [str(stated["gpu"])]
        parts += [str(stated["model"])] * ("model" in varied)
        parts += [f"tp {profile.tp}"] * (profile.tp > 1)
        parts += [f"{profile.weight_dtype} weights"] * ("weight_dtype" in varied)
        parts += [f"{profile.kv_dtype} KV"] * ("kv_dtype" in varied)
    for name in varied:
        if name in ("profile", *HARDWARE):
            continue
        value = shown(stated[name])
        words = isinstance(stated[name], str)  # a policy's name speaks for itself
        parts.append(value if words else f"{name.rpartition('.')[2]} {value}")
    return " · ".join(parts)


class _Drops:
    """Counts what is left out, by reason, in the order of their first example."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._examples: dict[str, str] = {}

    def add(self, reason: str, candidates: int, example: str) -> None:
        self._counts[reason] = self._counts.get(reason, 0) + candidates
        self._examples.setdefault(reason, example)

    @property
    def total(self) -> int:
        return sum(self._counts.values())

    def found(self) -> list[Dropped]:
        return [
            Dropped(reason, count, self._examples[reason]) for reason, count in self._counts.items()
        ]

    def __str__(self) -> str:
        return "; ".join(
            f"{count:,} {reason} ({self._examples[reason]})"
            for reason, count in self._counts.items()
        )
