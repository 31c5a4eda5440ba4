"""Electrical power by a utilisation model: linear between idle and busy.

A GPU draws idle_w between steps and peak_w in a step, so over any time in which a share u of it has
a step running it draws on average

    idle_w + (peak_w - idle_w) u

(Fan, Weber and Barroso, Power Provisioning for a Warehouse-sized Computer, ISCA 2007: the linear
model in utilisation). To that comes the server around it, constant, and all is multiplied by the
site's PUE. docs/economics.md says how far this may be off: a step of few decodes draws far less
than the board power that stands for peak_w where nothing was measured.
"""

from __future__ import annotations

from dataclasses import dataclass

from calibration.hardware import Gpu
from calibration.profiles import Profile
from sim.economics.errors import NotStatedError
from sim.economics.settings import EconomicsSettings, PowerSettings
from traces.errors import ConfigError


@dataclass(frozen=True, slots=True)
class GpuPower:
    """What one GPU draws, W, and where the figures are from."""

    idle_w: float
    peak_w: float
    idle_source: str
    peak_source: str

    def mean_w(self, utilization: float) -> float:
        """Average draw of a GPU that has a step running for a share `utilization` of the time."""
        return self.idle_w + (self.peak_w - self.idle_w) * utilization


def gpu_power(profile: Profile, settings: EconomicsSettings) -> GpuPower:
    """Power of a profile's GPU: as set, else as measured for the profile, else by the data sheet.

    Measured is what the profile's `power` states; else, for peak_w, the most that nvidia-smi read
    while the profile's steps were measured.

    Raises:
        NotStatedError: nobody states one of the two; the message says how to.
        ConfigError: the two together make no sense.
    """
    idle_w, idle_source = _stated(profile, "idle_w", settings.power.idle_w, "idle_w")
    peak_w, peak_source = _stated(profile, "peak_w", settings.power.peak_w, "tdp_w")
    if idle_w > peak_w:
        raise ConfigError(
            f"economics.power: idle_w of {profile.device.name} must be at most its peak_w,"
            f" got {idle_w:g} W ({idle_source}) and {peak_w:g} W ({peak_source})"
        )
    return GpuPower(idle_w, peak_w, idle_source, peak_source)


def site_power_w(gpu: GpuPower, utilization: float, gpus: int, settings: PowerSettings) -> float:
    """Average power that a fleet takes from the grid, W: GPUs, servers around them, site."""
    return settings.pue * gpus * (gpu.mean_w(utilization) + settings.host_w_per_gpu)


def _stated(profile: Profile, name: str, as_set: float | None, field: str) -> tuple[float, str]:
    """One figure and its source; `field` is the data sheet's name of it."""
    if as_set is not None:
        return as_set, "as set"
    if profile.power is not None:
        return getattr(profile.power, name), f"measured: {profile.power.source}"
    if name == "peak_w" and profile.experiment is not None:
        read = profile.experiment.conditions.get("power_w")
        if isinstance(read, dict) and isinstance(most := read.get("most"), (int, float)):
            when = f"while steps were measured ({profile.experiment.date})"
            return float(most), f"measured: most that nvidia-smi read {when}"
    device = profile.device
    known = getattr(device, field) if isinstance(device, Gpu) else None
    if known is None:
        raise NotStatedError(
            f"economics: no {name} of {device.name} is known; state economics.power.{name}"
        )
    assert isinstance(device, Gpu)
    return known, device.source(field)
