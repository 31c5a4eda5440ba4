"""What a device can do at best, measured: how fast it copies, how fast it multiplies.

The ceilings of its roofline: what an engine's steps reach is told as a part of them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Final

import torch

COPY_BYTES: Final = {"cuda": 2**32, "cpu": 2**27}
"""Bytes that a copy reads, and as many that it writes: far more than any cache holds."""
MATRIX: Final = {"cuda": 8192, "cpu": 1024}
"""Rows, columns and inner size of the product."""
REPEATS: Final = {"cuda": 30, "cpu": 7}
WARM_UPS: Final = 3


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Of one device."""

    device: str
    """Its name."""
    bytes_per_s: float
    """Of memory, read plus written."""
    flops_per_s: float
    """Of a matrix product in `dtype`; a multiply-add is 2."""
    dtype: str
    copy_bytes: int
    """Size of the copy that was measured, read plus written."""
    matrix: int
    """Size of the square matrices that were multiplied."""


def measure_ceilings(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """Copy and multiply on an otherwise idle device, and take the median times.

    Takes some seconds, and device memory for two copies of COPY_BYTES, less where it is not free.
    """
    bytes_per_s, copy_bytes = _copying(device)
    return Ceilings(
        device=_name(device),
        bytes_per_s=bytes_per_s,
        flops_per_s=_multiplying(device, dtype),
        dtype=str(dtype).removeprefix("torch."),
        copy_bytes=copy_bytes,
        matrix=MATRIX[device.type],
    )


def _copying(device: torch.device) -> tuple[float, int]:
    size = COPY_BYTES[device.type]
    if device.type == "cuda":
        size = min(size, torch.cuda.mem_get_info(device)[0] // 4)
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    return 2 * size / _seconds(lambda: target.copy_(source), device), 2 * size


def _multiplying(device: torch.device, dtype: torch.dtype) -> float:
    """Random numbers: a GPU multiplies zeros with less power, and so faster."""
    size = MATRIX[device.type]
    left = torch.randn(size, size, device=device).to(dtype)
    right = torch.randn(size, size, device=device).to(dtype)
    out = torch.empty_like(left)
    return 2 * size**3 / _seconds(lambda: torch.mm(left, right, out=out), device)


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    """Median time of a run on the device."""
    for _ in range(WARM_UPS):
        run()
    repeats = REPEATS[device.type]
    if device.type == "cpu":
        return median(_on_host(run) for _ in range(repeats))
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    marks[0].record()
    for mark in marks[1:]:
        run()
        mark.record()
    torch.cuda.synchronize(device)
    return median(marks[i].elapsed_time(marks[i + 1]) for i in range(repeats)) / 1000


def _on_host(run: Callable[[], object]) -> float:
    began = perf_counter()
    run()
    return perf_counter() - began


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"
