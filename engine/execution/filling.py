"""A pool of keys and values that nobody computed, to time steps whose contexts are pretended."""

from typing import Final

import torch
from torch import Tensor

from engine.execution.kvcache import KvPool

FP8_CODES: Final = {"fp8": 64, "fp8_token_head": 112}
"""Codes of e4m3 below these are numbers from 0 to 2, or to 128 where a scale stands beside them."""
FP8_SIGN: Final = 128


def fill_with_noise(pool: KvPool, seed: int = 1) -> None:
    """Fill a pool with numbers as real keys and values might be, in its format.

    A device computes zeros with less power, and so faster, than what a model leaves in its cache.
    """
    generator = torch.Generator(device=pool.buffer.device).manual_seed(seed)
    for layer in range(pool.layout.layers):
        for part in (pool.keys(layer), pool.values(layer)):
            _fill(part, pool.kv_dtype, generator)
        for scales in (pool.key_scales(layer), pool.value_scales(layer)):
            if scales is not None:
                scales.uniform_(0.005, 0.015, generator=generator)
    if pool.tail is not None:
        pool.tail.normal_(generator=generator)


def _fill(part: Tensor, kv_dtype: str, generator: torch.Generator) -> None:
    if part.is_floating_point():
        part.normal_(generator=generator)
    elif part.dtype == torch.int8:
        part.random_(-127, 128, generator=generator)
    elif kv_dtype in FP8_CODES:
        signs = torch.empty_like(part).random_(0, 2, generator=generator) * FP8_SIGN
        part.random_(0, FP8_CODES[kv_dtype], generator=generator).bitwise_or_(signs)
    else:
        part.random_(0, 256, generator=generator)
