"""What a worker process may take of the machine, set by itself before it reads anything."""

from __future__ import annotations

import resource
from dataclasses import dataclass
from typing import Final

GIB: Final = 2**30
MIB: Final = 2**20

FILE_BYTES: Final = GIB
"""Most that a worker may write into one file."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one piece of work, and of what is uploaded."""

    seconds: float = 120.0
    """A run, or the reading of an upload, that takes longer is ended."""
    memory_bytes: int = 4 * GIB
    """Private memory of a worker process (RLIMIT_DATA: what it reserves counts too)."""
    upload_bytes: int = 64 * MIB
    """Of one uploaded file."""


def confine(limits: Limits) -> None:
    """Bound this process for good: memory, size of files, no core dumps."""
    _lower(resource.RLIMIT_DATA, limits.memory_bytes)
    _lower(resource.RLIMIT_FSIZE, FILE_BYTES)
    _lower(resource.RLIMIT_CORE, 0)


def allow_seconds(seconds: float) -> None:
    """Let this process compute for so long from now: a bound that outlives who watches it.

    All threads count, so it is wide; the clock on the wall is kept by `sim.app.worker`.
    """
    used = resource.getrusage(resource.RUSAGE_SELF)
    until = int(used.ru_utime + used.ru_stime + 4 * seconds) + 2
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    if hard == resource.RLIM_INFINITY or until <= hard:
        resource.setrlimit(resource.RLIMIT_CPU, (until, hard))


def _lower(what: int, most: int) -> None:
    """Set soft and hard limit; one that is lower already stays."""
    _, hard = resource.getrlimit(what)
    least = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(what, (least, least))
