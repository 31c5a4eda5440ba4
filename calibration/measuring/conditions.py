"""What is measured on, and in which state it is: names, versions, clocks, temperatures, load."""

import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any, Final

from engine.config import EngineSettings
from engine.units import significant
from traces.version import installed_version

Sample = dict[str, float]
"""State of a device by names with units."""

NVIDIA_SMI: Final = {
    "clocks.sm": "sm_mhz",
    "clocks.mem": "memory_mhz",
    "temperature.gpu": "temperature_c",
    "power.draw": "power_w",
    "power.limit": "power_limit_w",
}
"""What nvidia-smi is asked for, and what it is called here."""

PATIENCE_S: Final = 5.0
"""With nvidia-smi, which can hang."""

CPUINFO: Final = Path("/proc/cpuinfo")
FREQUENCIES: Final = Path("/sys/devices/system/cpu")


@dataclass(frozen=True)
class Host:
    """The machine of an experiment."""

    device: str
    """Name of the CPU or of the GPU, as the operating system or the driver gives it."""
    memory_bytes: int
    """Of the GPU, or of the machine; 0: unknown."""
    gpu_uuid: str
    """Empty on a CPU."""
    threads: int
    """That PyTorch computes with on the CPU."""
    versions: Mapping[str, str]

    def sample(self) -> Sample:
        """Its state now; what cannot be read is left out."""
        return cpu_sample() | (gpu_sample(self.gpu_uuid) if self.gpu_uuid else {})


def host_of(settings: EngineSettings) -> Host:
    """The machine that an engine with these (resolved) settings runs on."""
    from engine.execution.machine import machine

    found = machine(settings.device)
    versions = {
        "kvcast": installed_version(),
        "python": platform.python_version(),
        "torch": found.torch,
    }
    if found.cuda:
        versions |= {"cuda": found.cuda, "driver": _driver(found.gpu_uuid)}
    return Host(
        device=found.gpu or cpu_name(),
        memory_bytes=found.memory_bytes or memory_bytes(),
        gpu_uuid=found.gpu_uuid,
        threads=found.threads,
        versions=versions,
    )


def cpu_name() -> str:
    """As /proc/cpuinfo has it, or the operating system."""
    names = _cpuinfo("model name")
    return names[0] if names else platform.processor() or platform.machine()


def memory_bytes() -> int:
    """Of the machine; 0: unknown."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError):
        return 0


def cpu_sample() -> Sample:
    """Load of the last minute and mean frequency of the cores, as far as they can be read."""
    found: Sample = {}
    if hasattr(os, "getloadavg"):
        found["load_1min"] = os.getloadavg()[0]
    khz = [_number(file) for file in FREQUENCIES.glob("cpu[0-9]*/cpufreq/scaling_cur_freq")]
    mhz = [one / 1000 for one in khz if one] or [float(one) for one in _cpuinfo("cpu MHz")]
    if mhz:
        found["cpu_mhz"] = fmean(mhz)
    return found


def gpu_sample(uuid: str) -> Sample:
    """Clocks, temperature and power, as far as nvidia-smi tells."""
    answers = _nvidia_smi(uuid, tuple(NVIDIA_SMI))
    found: Sample = {}
    for name, answer in zip(NVIDIA_SMI.values(), answers, strict=False):
        try:
            found[name] = float(answer)
        except ValueError:  # [N/A]
            continue
    return found


def summary_of(samples: Sequence[Sample]) -> dict[str, Any]:
    """Least, median and most of each quantity."""
    found: dict[str, Any] = {}
    for name in dict.fromkeys(name for sample in samples for name in sample):
        values = [sample[name] for sample in samples if name in sample]
        spread = {"least": min(values), "median": median(values), "most": max(values)}
        found[name] = {of: float(f"{value:.4g}") for of, value in spread.items()}
    return found


def disturbance(samples: Sequence[Sample]) -> str:
    """What else had to be done on the machine while it was measured; empty: nothing much."""
    loads = [sample["load_1min"] for sample in samples if "load_1min" in sample]
    cores = os.cpu_count() or 1
    if not loads or median(loads) <= cores:
        return ""
    return (
        f"load was {significant(median(loads), 2)} on {cores} cores: other work disturbed the"
        " measurement"
    )


def said(sample: Sample) -> str:
    """A few words on the state of a device, for a progress bar."""
    shown = {"sm_mhz": "{} MHz", "temperature_c": "{} °C", "power_w": "{} W"}
    if "sm_mhz" not in sample:
        shown = {"load_1min": "load {}"}
    parts = (
        text.format(significant(sample[name], 2)) for name, text in shown.items() if name in sample
    )
    return ", ".join(parts)


def _driver(uuid: str) -> str:
    return next(iter(_nvidia_smi(uuid, ("driver_version",))), "unknown")


def _nvidia_smi(uuid: str, names: tuple[str, ...]) -> list[str]:
    """What it answers; nothing where it is missing, hangs or does not know the GPU."""
    command = [
        "nvidia-smi",
        f"--id={uuid}",
        f"--query-gpu={','.join(names)}",
        "--format=csv,noheader,nounits",
    ]
    try:
        ran = subprocess.run(
            command, capture_output=True, text=True, timeout=PATIENCE_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return [answer.strip() for answer in ran.stdout.strip().split(",")]


def _cpuinfo(field: str) -> list[str]:
    try:
        lines = CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    parted = (line.partition(":") for line in lines)
    return [value.strip() for name, _, value in parted if name.strip() == field and value.strip()]


def _number(file: Path) -> float:
    try:
        return float(file.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 0.0
