"""Blocks in CPU memory: the CPU tier, and room for those on their way to or from the disk."""

from collections import deque
from concurrent.futures import Future
from mmap import mmap
from typing import Any

import torch
from torch import Tensor

from engine.execution.copystream import Mark
from engine.execution.disk import Block
from engine.execution.memory import GIB, free_bytes
from traces.errors import ConfigError

CPU_DEVICE = torch.device("cpu")


class HostBlocks:
    """Rows of memory, of one block each; a slot of the CPU tier is a name for one of them.

    There are spare rows beyond those that slots name. A block goes to disk from the row it lies
    in; if its slot is filled again meanwhile, the slot goes on with a spare row, and the old one
    becomes spare: neither copies to the device nor the loop wait for the disk, as long as there
    are spare rows.
    """

    def __init__(self, slots: int, spares: int, block_bytes: int, *, pinned: bool) -> None:
        """Memory of any content.

        Args:
            slots: of the CPU tier.
            spares: rows besides; at least one, if there is a disk tier.
            block_bytes: of a block.
            pinned: for copies to and from a GPU.

        Raises:
            ConfigError: for more than there is free.
        """
        size = (slots + spares) * block_bytes
        free = free_bytes(CPU_DEVICE)
        if free is not None and size > free:
            raise _does_not_fit(slots, spares, size, f"but {free / GIB:.2f} GiB is free")
        try:
            self.memory = _memory(size).view(slots + spares, block_bytes)
            """[rows, block_bytes] uint8."""
        except OSError as error:
            raise _does_not_fit(slots, spares, size, f"and there is none: {error}") from error
        self._pinned = False
        if pinned and size:
            refusal = int(_cuda().cudaHostRegister(self.memory.data_ptr(), size, 0))
            if refusal:
                why = f"and CUDA does not pin so much (cudaHostRegister: error {refusal})"
                raise _does_not_fit(slots, spares, size, why)
            self._pinned = True
        self._blocks = self.memory.numpy()
        self._row = list(range(slots))
        self._spare = deque(range(slots, slots + spares))
        self._writes: dict[int, list[Future[None]]] = {}
        """Jobs that write a row's block to disk; some may be done."""
        self._copies: dict[int, Mark] = {}
        """Copies that may still touch a row which became spare."""

    @property
    def spare_rows(self) -> int:
        """Rows that `take` can give, perhaps after a write."""
        return len(self._spare)

    def row(self, slot: int) -> int:
        """Where the block of a slot lies."""
        return self._row[slot]

    def block(self, row: int) -> Block:
        """The bytes of a row."""
        return self._blocks[row]

    def last_copies(self, row: int) -> Mark | None:
        """What has to be reached before the host overwrites a row that was taken."""
        return self._copies.get(row)

    def is_being_written(self, row: int) -> bool:
        """Whether a job still reads it."""
        return not all(write.done() for write in self._writes.get(row, ()))

    def will_be_written(self, row: int, job: "Future[None]") -> None:
        """A job writes this row to disk."""
        under_way = [write for write in self._writes.get(row, ()) if not write.done()]
        self._writes[row] = [*under_way, job]

    def take(self) -> int:
        """A spare row, the caller's until `give` or `put`; waits until its block is on disk."""
        row = self._spare.popleft()
        for write in self._writes.pop(row, ()):
            write.result()
        return row

    def give(self, row: int, copies: Mark | None = None) -> None:
        """Make a row spare; `copies` may still touch it (None: no more once it is on disk)."""
        if copies is not None:
            self._copies[row] = copies
        self._spare.append(row)

    def put(self, slot: int, row: int, copies: Mark) -> None:
        """Let a slot name another row; `copies` may still touch the one it named."""
        self.give(self._row[slot], copies)
        self._row[slot] = row

    def close(self) -> None:
        """Unpin the memory; nothing may copy from or to it any more."""
        if self._pinned:
            _cuda().cudaHostUnregister(self.memory.data_ptr())
            self._pinned = False


def _memory(size_bytes: int) -> Tensor:
    """Pages that hold nothing else: those of malloc cannot be pinned twice.

    torch's own pinned memory would be rounded up to a power of two.
    """
    if not size_bytes:
        return torch.empty(0, dtype=torch.uint8)
    return torch.frombuffer(mmap(-1, size_bytes), dtype=torch.uint8)


def _cuda() -> Any:
    """The CUDA runtime."""
    return torch.cuda.cudart()


def _does_not_fit(slots: int, spares: int, size: int, why: str) -> ConfigError:
    return ConfigError(
        f"offload.cpu_bytes: {slots} blocks in CPU memory and {spares} on their way to disk take"
        f" {size / GIB:.2f} GiB, {why}; ask for less"
    )
