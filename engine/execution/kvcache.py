"""The KV pool: blocks of keys and values in device memory, laid out as engine.kvformats says."""

from typing import Any, Final

import torch
from torch import Tensor

from engine.execution.memory import GIB, free_bytes
from engine.kvformats import GROUP_CHANNELS, KV_DTYPES, BlockLayout, Encoding
from traces.errors import ConfigError

ELEMENTS: Final = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp8": torch.uint8,
    "fp8_token": torch.uint8,
    "int8_token": torch.int8,
    "int4_token": torch.uint8,
    "int4_channel": torch.uint8,
    "int4_group": torch.uint8,
}
"""What the elements of an encoding are as a tensor: e4m3fn as its bits, 4-bit numbers in pairs."""


class KvPool:
    """All blocks of one device, one run of bytes each, and every layer's part of them as views.

    Block 0 belongs to nobody: what fills a captured graph up is written there.

    Raises:
        ConfigError: for fewer than 2 blocks, or more than fit into the device's memory.
    """

    buffer: Tensor
    """[num_blocks, layout.block_bytes] uint8, zeros at first: a row is what moves between tiers."""
    tail: Tensor | None
    """[rows, layers, kv_heads, block_tokens, head_dim] `dtype`, if keys are encoded by channel:
    the keys of each sequence's last block as long as it is not full."""
    step_notes: Any = None
    """What the torch operations found out about the step under way; theirs alone."""

    def __init__(
        self,
        layout: BlockLayout,
        num_blocks: int,
        *,
        device: torch.device,
        dtype: torch.dtype,
        rows: int,
    ) -> None:
        if num_blocks < 2:
            raise ConfigError(
                f"num_blocks: must be at least 2, the null block and one to use; got {num_blocks}"
            )
        self.layout = layout
        self.kv_dtype = layout.kv_dtype
        self.num_blocks = num_blocks
        self.block_tokens = layout.block_tokens
        self.dtype = dtype
        by_channel = layout.key.scales == "channel_least"
        shape = (rows, layout.layers, layout.kv_heads, layout.block_tokens, layout.head_dim)
        tail_bytes = by_channel * dtype.itemsize * torch.Size(shape).numel()
        _refuse_too_much(layout, num_blocks, tail_bytes, device)
        try:
            self.buffer = torch.zeros(
                (num_blocks, layout.block_bytes), dtype=torch.uint8, device=device
            )
            self.tail = torch.zeros(shape, dtype=dtype, device=device) if by_channel else None
        except RuntimeError as error:  # torch.OutOfMemoryError is one; a CPU's has no own class
            if "memory" not in str(error):
                raise
            raise _does_not_fit(layout, num_blocks, tail_bytes, device) from error
        key, value = KV_DTYPES[layout.kv_dtype]
        layers = range(layout.layers)
        self._keys = [self._elements(key, layout.key, at, 0) for at in layers]
        self._values = [
            self._elements(value, layout.value, at, layout.value_offset) for at in layers
        ]
        self._key_scales = [self._scales(layout.key, at, layout.key_scale_offset) for at in layers]
        self._value_scales = [
            self._scales(layout.value, at, layout.value_scale_offset) for at in layers
        ]

    @property
    def bytes(self) -> int:
        """Device memory it takes, the tail included."""
        return self.buffer.nbytes + (0 if self.tail is None else self.tail.nbytes)

    def keys(self, layer: int) -> Tensor:
        """[blocks, kv_heads, block_tokens, packed_dim]: the elements, see ELEMENTS; packed_dim is
        head_dim, of 4-bit formats half of it."""
        return self._keys[layer]

    def values(self, layer: int) -> Tensor:
        """As `keys`."""
        return self._values[layer]

    def key_scales(self, layer: int) -> Tensor | None:
        """What stands beside the keys, after the blocks' dimension shaped as `Encoding.scales`
        states: fp32 for `token`, None for `none`, fp16 otherwise."""
        return self._key_scales[layer]

    def value_scales(self, layer: int) -> Tensor | None:
        """As `key_scales`."""
        return self._value_scales[layer]

    def _elements(self, name: str, encoding: Encoding, layer: int, offset: int) -> Tensor:
        dtype = ELEMENTS[name]
        packed = encoding.vector_bytes(self.layout.head_dim) // dtype.itemsize
        return self._view(dtype, layer, offset, (self.block_tokens, packed))

    def _scales(self, encoding: Encoding, layer: int, offset: int) -> Tensor | None:
        tokens, dim = self.block_tokens, self.layout.head_dim
        match encoding.scales:
            case "none":
                return None
            case "token":
                return self._view(torch.float32, layer, offset, (tokens,))
            case "token_least":
                return self._view(torch.float16, layer, offset, (2, tokens))
            case "channel_least":
                return self._view(torch.float16, layer, offset, (2, dim))
            case "group_least":
                groups = dim // GROUP_CHANNELS
                return self._view(torch.float16, layer, offset, (2, tokens, groups))

    def _view(
        self, dtype: torch.dtype, layer: int, offset_bytes: int, of_head: tuple[int, ...]
    ) -> Tensor:
        """[blocks, kv_heads, *of_head] of `dtype`, from `offset_bytes` of a layer on."""
        typed = self.buffer.view(dtype)
        inner = torch.empty((self.layout.kv_heads, *of_head), device="meta").stride()
        start = layer * self.layout.layer_bytes + offset_bytes
        return typed.as_strided(
            (self.num_blocks, self.layout.kv_heads, *of_head),
            (typed.stride(0), *inner),
            start // dtype.itemsize,
        )


def _refuse_too_much(
    layout: BlockLayout, num_blocks: int, tail_bytes: int, device: torch.device
) -> None:
    """A CPU promises memory it does not have and ends the process that takes it: ask before."""
    free = free_bytes(device)
    asked = num_blocks * layout.block_bytes + tail_bytes
    if device.type == "cpu" and free is not None and asked > free:
        raise _does_not_fit(layout, num_blocks, tail_bytes, device)


def _does_not_fit(
    layout: BlockLayout, num_blocks: int, tail_bytes: int, device: torch.device
) -> ConfigError:
    asked = num_blocks * layout.block_bytes + tail_bytes
    free = free_bytes(device)
    said = "less is free" if free is None else f"{free / GIB:.2f} GiB is free"
    fits = "" if free is None else f"; {max(0, free - tail_bytes) // layout.block_bytes} would fit"
    return ConfigError(
        f"num_blocks: {num_blocks} blocks of {layout.kv_dtype} take {asked / GIB:.2f} GiB on"
        f" {device}, {said}{fits}"
    )
