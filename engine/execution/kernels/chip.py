"""What the kernels run on: its multiprocessors, what it converts itself, how its dots count."""

from functools import cache
from typing import Final, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from traces.errors import ConfigError

INTERPRETED: Final = bool(triton.knobs.runtime.interpret)
"""Kernels are run by Triton's interpreter, on numpy: slow, for tests without a GPU."""


class Chip(NamedTuple):
    """A device, as far as the kernels ask."""

    multiprocessors: int
    native: bool
    """It converts e4m3 itself, and understands Nvidia's assembly."""


@cache
def chip(device: torch.device) -> Chip:
    """What `device` is; of a CPU, what the interpreter imitates."""
    if device.type != "cuda":
        return Chip(4, False)
    facts = torch.cuda.get_device_properties(device)
    return Chip(facts.multi_processor_count, (facts.major, facts.minor) >= (8, 9))


def require_kernels(x: Tensor) -> None:
    """Raises ConfigError where no kernel can run on the device of `x`."""
    if not x.is_cuda and not INTERPRETED:
        raise ConfigError(
            f"kernels: triton needs a CUDA device, got {x.device.type}; kernels: torch runs there"
            " (TRITON_INTERPRET=1 in the environment makes Triton imitate a GPU, slowly)"
        )


def dot_dtype(dtype: torch.dtype) -> tl.dtype:
    """What matrix products of `dtype` take; the interpreter knows none of bf16."""
    if dtype == torch.bfloat16:
        return tl.float32 if INTERPRETED else tl.bfloat16
    return tl.float16 if dtype == torch.float16 else tl.float32
