"""Prices of GPU-hours: `prices.yaml` or a copy of it that a user keeps, each dated and sourced."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, Literal, Self

import yaml
from pydantic import Field, field_validator, model_validator

from calibration.hardware import gpu
from calibration.profiles import Profile
from sim.economics.errors import NotStatedError
from sim.economics.settings import CONTRACTS, Contract, Date, EconomicsSettings
from traces.errors import ConfigError
from traces.settings import Settings, known_name, read_mapping, settings_of

SHIPPED: Final = "sim/economics/prices.yaml"

YEAR_DAYS: Final = 365


class Price(Settings):
    """What one GPU costs for an hour under one contract: stated, or its share of an instance."""

    usd_per_gpu_hour: float | None = Field(default=None, ge=0)
    usd_per_instance_hour: float | None = Field(default=None, ge=0)
    gpus: int | None = Field(default=None, ge=1)
    """Of the instance."""
    instance: str = ""
    """Provider, type and region."""
    date: Date
    """When the price was seen."""
    source: str = Field(min_length=1)

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        instance = (self.usd_per_instance_hour, self.gpus)
        stated = instance if self.usd_per_gpu_hour is None else (self.usd_per_gpu_hour,)
        mixed = self.usd_per_gpu_hour is not None and instance != (None, None)
        if None in stated or mixed:
            raise ValueError(
                "state usd_per_gpu_hour, or usd_per_instance_hour and the instance's gpus"
            )
        return self

    @property
    def usd(self) -> float:
        """Of one GPU for an hour, US dollars."""
        if self.usd_per_gpu_hour is not None:
            return self.usd_per_gpu_hour
        assert self.usd_per_instance_hour is not None and self.gpus is not None
        return self.usd_per_instance_hour / self.gpus

    @property
    def derivation(self) -> str:
        """How the figure for one GPU follows, in words."""
        if self.usd_per_gpu_hour is not None:
            return self.instance
        whole = f"${self.usd_per_instance_hour:g}/h"
        words = whole if self.gpus == 1 else f"{whole}, {self.gpus} GPUs"
        return f"{self.instance} ({words})" if self.instance else words


class Prices(Settings):
    """A price file: prices by GPU and contract."""

    currency: Literal["USD"]
    """Figures of other currencies are to be converted by whoever knows the rate."""
    gpus: dict[str, dict[Contract, Price]]
    where: str = "prices"
    """The file, for messages."""

    @field_validator("gpus", mode="before")
    @classmethod
    def _canonical(cls, stated: Any) -> Any:
        if not isinstance(stated, dict):
            return stated
        found: dict[str, Any] = {}
        for name, contracts in stated.items():
            key = canonical(str(name))
            if key in found:
                raise ValueError(f"{key} is priced twice, the second time as {name}")
            for contract in contracts if isinstance(contracts, dict) else ():
                known_name(f"contract of {name}", str(contract), CONTRACTS)
            found[key] = contracts
        return found

    def price(self, name: str, contract: Contract = "on-demand") -> Price:
        """What a GPU of this name or alias costs.

        Raises:
            NotStatedError: there is no such price; it says how to give one.
        """
        contracts = self.gpus.get(canonical(name), {})
        if contract in contracts:
            return contracts[contract]
        has = f"it has {', '.join(contracts)}" if contracts else "it has none of that GPU"
        raise NotStatedError(
            f"economics: {self.where} has no {contract} price of {name}; {has}; state"
            " economics.usd_per_gpu_hour, or add one to a price file"
            " (kvcast prices --write my-prices.yaml) and set economics.prices"
        )


def canonical(name: str) -> str:
    """The data file's name of a GPU known by an alias; any other name as it is."""
    try:
        return gpu(name).name
    except ConfigError:
        return name


@cache
def shipped_prices() -> Prices:
    """The prices that come with kvcast."""
    return _prices(yaml.safe_load(shipped_text()), SHIPPED)


def shipped_text() -> str:
    """The shipped price file, comments and all: what a user's copy begins as."""
    return (files("sim") / "economics" / "prices.yaml").read_text(encoding="utf-8")


def load_prices(path: str | Path | None) -> Prices:
    """The prices of a file; None: those that come with kvcast.

    Raises:
        ConfigError: naming the file, the GPU and what is wrong.
    """
    if path is None:
        return shipped_prices()
    path = Path(path)
    try:
        state = path.stat()
    except OSError as error:
        raise ConfigError(
            f"economics.prices: {path}: cannot be read: {error.strerror or error}"
        ) from None
    return _read(path, state.st_mtime_ns, state.st_size)


def stated_price(profile: Profile, settings: EconomicsSettings) -> Price | None:
    """The price of a price file that a profile's GPU is paid by; None: the settings state one.

    Raises:
        NotStatedError: nobody states one; the message says how to.
        ConfigError: a price file that cannot be used.
    """
    if settings.usd_per_gpu_hour is not None:
        return None
    return load_prices(settings.prices).price(profile.device.name, settings.contract)


def usd_per_gpu_hour(profile: Profile, settings: EconomicsSettings) -> float:
    """What one GPU of a profile costs for an hour, US dollars; raises as `stated_price`."""
    price = stated_price(profile, settings)
    if price is not None:
        return price.usd
    assert settings.usd_per_gpu_hour is not None
    return settings.usd_per_gpu_hour


def usd_per_hour(profile: Profile, settings: EconomicsSettings, replicas: int) -> float:
    """What a fleet of `replicas`, each of the profile's `tp` GPUs, costs for an hour, US dollars.

    Raises:
        NotStatedError: nobody states a price; the message says how to.
        ConfigError: a price file that cannot be used.
    """
    return replicas * profile.tp * usd_per_gpu_hour(profile, settings)


def old_price(profile: Profile, settings: EconomicsSettings) -> str:
    """One line if the price used is more than a year older than `as_of`; else empty."""
    if settings.as_of is None or settings.usd_per_gpu_hour is not None:
        return ""
    try:
        price = stated_price(profile, settings)
    except NotStatedError:
        return ""
    if price is None or (settings.as_of - price.date).days <= YEAR_DAYS:
        return ""
    return (
        f"the {settings.contract} price of {profile.device.name} is of {price.date}, more than a"
        f" year before {settings.as_of} (economics.as_of)"
    )


@lru_cache(maxsize=16)
def _read(path: Path, modified_ns: int, size: int) -> Prices:
    """A file as it was at that time: a sweep of thousands of runs parses it once."""
    del modified_ns, size
    return _prices(read_mapping(path), str(path))


def _prices(values: Mapping[str, Any], where: str) -> Prices:
    return settings_of(Prices, {**values, "where": where}, where)
