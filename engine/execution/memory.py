"""How much memory a device has left."""

from pathlib import Path
from typing import Final

import torch

from traces.errors import ConfigError

GIB: Final = 2**30


def free_bytes(device: torch.device) -> int | None:
    """Memory that can be had on `device` without swapping; None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        facts = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return None
    for line in facts.splitlines():
        name, _, amount = line.partition(":")
        if name == "MemAvailable":
            return int(amount.split()[0]) * 1024
    return None


def check_room(what: str, asked_bytes: int, device: torch.device) -> None:
    """Raises ConfigError where so much cannot be had.

    To be asked before it is taken: a CPU promises memory that it does not have, and ends the
    process that uses it.
    """
    free = free_bytes(device)
    if free is not None and asked_bytes > free:
        raise out_of_memory(what, asked_bytes, device)


def out_of_memory(what: str, asked_bytes: int, device: torch.device) -> ConfigError:
    """Says what was asked for and what is free."""
    free = free_bytes(device)
    left = "less" if free is None else f"{free / GIB:.2f} GiB"
    return ConfigError(
        f"{what} take {asked_bytes / GIB:.2f} GiB on {device}, where {left} is free;"
        " take a smaller model or dtype, or split it (tp)"
    )
