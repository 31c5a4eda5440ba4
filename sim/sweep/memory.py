"""A bound on the memory of a process, and sizes as people write them."""

from __future__ import annotations

import re
import resource
from pathlib import Path
from typing import Final

from traces.errors import ConfigError

STATUS: Final = Path("/proc/self/status")

UNITS: Final = {
    "": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 1 << 10,
    "MIB": 1 << 20,
    "GIB": 1 << 30,
    "TIB": 1 << 40,
}

_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Z]*)")


def bound_memory(further_bytes: int) -> None:
    """Let this process take so much memory beyond what it has; more raises MemoryError.

    Counted is writable memory of its own, whether touched or not (Linux's RLIMIT_DATA). A library
    that cannot live with a refusal may end the process instead.

    Raises:
        ConfigError: this system does not say what the process has.
    """
    try:
        (line,) = re.findall(r"^VmData:\s+(\d+) kB$", STATUS.read_text("ascii"), re.MULTILINE)
    except (OSError, ValueError):
        raise ConfigError(f"--cell-memory: needs Linux, whose {STATUS} is not here") from None
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    most = int(line) * 1024 + further_bytes
    if hard != resource.RLIM_INFINITY:
        most = min(most, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (most, hard))


def parse_size(text: str, what: str = "--cell-memory") -> int:
    """Bytes of a size such as 4GiB, 500MB or 1000000; raises ConfigError."""
    match = _SIZE.fullmatch(text.strip().upper())
    if match is None or match[2] not in UNITS or not float(match[1]):
        raise ConfigError(f"{what}: expected a size such as 4GiB or 500MB, got {text!r}")
    return round(float(match[1]) * UNITS[match[2]])


def size(count: int) -> str:
    """Bytes in words: 4 GiB, 512 MiB."""
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if count >= unit:
            return f"{count / unit:.4g} {name}"
    return f"{count} bytes"
