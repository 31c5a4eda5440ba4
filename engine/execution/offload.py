"""Copies KV blocks between the tiers: GPU, CPU memory, disk. `engine.tiers` decides which.

Copies run on a stream of their own, in the order in which they are asked for, so between two of
them nothing has to be waited for. What ties them to the steps:

- Before step n: the copies save blocks that the step overwrites, and load blocks that it reads, so
  it waits for them. They wait for nothing: a block that is evicted or loaded was in nobody's hands,
  so no step under way reads or writes it. Except when a sequence gave up its blocks while a step
  with it was under way (`unsettled`): then the copies wait for that step first.
- After step n: the copies save blocks that it filled, so they wait for it, while the step after it
  runs beside them. Until they are done nobody may overwrite those blocks. Sequences hold what a
  step fills until its output is taken. With asynchronous scheduling the first step that was
  scheduled after that is n + 2, so n + 2 is the first that waits. With synchronous scheduling it
  is n + 1; so it is when `unsettled`, for sequences may have let go before.

The host waits only for reads from disk, and for writes where too many are under way. A block goes
to disk from where it lies in CPU memory (see HostBlocks), when the copy that brings it there is
done; the thread that writes waits for that. A load first has all the blocks of its list read, then
copied up.
"""

from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future
from pathlib import Path
from typing import Final

import torch

from engine import work
from engine.config import OffloadSettings
from engine.execution.copystream import BlockCopies, CopyStream, Mark, copy_stream
from engine.execution.disk import DiskSlots
from engine.execution.hostblocks import HostBlocks
from engine.execution.kvcache import KvPool
from engine.work import DISK, Move, Place

SPARE_BYTES: Final = 256 * 2**20
"""CPU memory for blocks on their way to or from the disk, beyond that of the CPU tier."""
SPARE_ROWS: Final = 1024
"""As many at most: small blocks need no more."""


class Offloader:
    """Makes the moves of one device's pool. The tail of int4_channel stays where it is.

    Raises:
        ConfigError: if there is not as much CPU memory as the settings ask for.
    """

    moved_bytes: dict[tuple[int, int], int]
    """Bytes copied since the start, by level of source and target."""

    def __init__(
        self,
        pool: KvPool,
        settings: OffloadSettings,
        device: torch.device,
        *,
        asynchronous: bool = False,
        stream: CopyStream | None = None,
        spare_rows: int | None = None,
    ) -> None:
        """Tiers that hold nothing yet; a disk that cannot be used is `lost` at once.

        Args:
            pool: its blocks move.
            settings: how much room there is below, as in engine.tiers.
            device: the pool's.
            asynchronous: step n + 1 is scheduled before the output of step n is taken.
            stream: where copies run, if not on one of their own.
            spare_rows: blocks on their way to or from the disk at once, if not as SPARE_BYTES.
        """
        self._block_bytes = pool.layout.block_bytes
        self._stream = stream or copy_stream(device)
        self._steps_until_free = 2 if asynchronous else 1
        slots, disk_slots = (
            size // self._block_bytes for size in (settings.cpu_bytes, settings.disk_bytes)
        )
        if spare_rows is None:
            spare_rows = max(2, min(SPARE_ROWS, SPARE_BYTES // self._block_bytes))
        spare_rows = min(spare_rows, disk_slots)
        cuda = device.type == "cuda"
        self._host = HostBlocks(slots, spare_rows, self._block_bytes, pinned=cuda)
        self._copies = BlockCopies(self._stream, pool.buffer, self._host.memory)
        self._disk: DiskSlots | None = None
        if disk_slots:
            assert settings.disk_path is not None
            self._disk = DiskSlots(Path(settings.disk_path), disk_slots, self._block_bytes)
        self._lost: set[int] = set()
        """Levels whose loss was told."""
        self._saves: deque[tuple[int, Mark]] = deque()
        """Copies after a step, with the first step that must wait for them."""
        self._step = 0
        self._arriving: dict[Place, tuple[int, Future[None]]] = {}
        """Where the blocks that are being read from disk go, with the row that each is read to."""
        self.moved_bytes = {}

    @torch.inference_mode()
    def before(self, moves: Iterable[Move], unsettled: bool) -> int:
        """Begin the copies due before a step; called once for each step, before its launch.

        Without moves too: the step may have to wait for copies begun earlier. Returns bytes.

        Raises:
            KvcastError: if a block cannot be read back from disk.
        """
        self._step += 1
        self._hold_for_saves(unsettled)
        moves = tuple(moves)
        if not moves:
            return 0
        if unsettled:
            self._stream.follow_steps()
        self._stream.hold_steps(self._make(moves))
        self._saves.clear()  # they come before these copies
        return self._count(moves)

    @torch.inference_mode()
    def after(self, moves: Iterable[Move]) -> int:
        """Begin the copies of what a step computes, just after its launch; returns bytes."""
        moves = tuple(moves)
        if not moves:
            return 0
        self._stream.follow_steps()
        self._saves.append((self._step + self._steps_until_free, self._make(moves)))
        return self._count(moves)

    def lost(self) -> tuple[int, ...]:
        """Levels that failed since this was last asked; what they hold can still be loaded."""
        if self._disk is None or self._disk.error is None or DISK in self._lost:
            return ()
        self._lost.add(DISK)
        return (DISK,)

    def close(self) -> None:
        """Give memory and file back, once the copies under way are done; twice is harmless."""
        self._arriving.clear()
        self._stream.mark().synchronize()
        if self._disk is not None:
            self._disk.close()
        self._host.close()

    def _hold_for_saves(self, unsettled: bool) -> None:
        """Let the step to come wait for the copies of blocks that it may overwrite."""
        due: Mark | None = None
        while self._saves and (unsettled or self._saves[0][0] <= self._step):
            due = self._saves.popleft()[1]
        if due is not None:  # it comes after those before it
            self._stream.hold_steps(due)

    def _count(self, moves: tuple[Move, ...]) -> int:
        for source, target in moves:
            way = source.level, target.level
            self.moved_bytes[way] = self.moved_bytes.get(way, 0) + self._block_bytes
        return len(moves) * self._block_bytes

    # ---- one move after the other

    def _make(self, moves: tuple[Move, ...]) -> Mark:
        """Begin the moves, with the same result as if each were done before the next."""
        with self._stream.running():
            for source, target in moves:
                if source in self._arriving or target in self._arriving:
                    self._land()
                self._move(source, target)
            self._land()
            return self._copies.mark()

    def _move(self, source: Place, target: Place) -> None:
        match source.level, target.level:
            case (work.GPU, work.CPU):
                self._copies.down(source.slot, self._row_to_fill(target.slot))
            case (work.CPU, work.GPU):
                self._copies.up(self._host.row(source.slot), target.slot)
            case (work.CPU, work.DISK):
                self._write(self._host.row(source.slot), target.slot)
            case (work.GPU, work.DISK):
                row = self._spare_row()
                self._copies.down(source.slot, row)
                self._write(row, target.slot)
                self._host.give(row)
            case (work.DISK, work.GPU | work.CPU):
                self._read(source.slot, target)
            case _:
                raise ValueError(f"{source} to {target}: a move goes from one tier to another")

    def _row_to_fill(self, slot: int) -> int:
        """The row of a slot whose content is no longer needed there."""
        row = self._host.row(slot)
        if not self._host.is_being_written(row):
            return row
        fresh = self._spare_row()
        self._host.put(slot, fresh, self._copies.mark())
        return fresh

    def _spare_row(self) -> int:
        if not self._host.spare_rows:
            self._land()
        return self._host.take()

    def _write(self, row: int, slot: int) -> None:
        assert self._disk is not None
        job = self._disk.write(slot, self._host.block(row), self._copies.mark())
        self._host.will_be_written(row, job)

    def _read(self, slot: int, target: Place) -> None:
        assert self._disk is not None
        row = self._spare_row()
        job = self._disk.read(slot, self._host.block(row), self._host.last_copies(row))
        self._arriving[target] = row, job

    def _land(self) -> None:
        """Wait for the blocks that are being read, and pass them on."""
        if not self._arriving:
            return
        for target, (row, job) in self._arriving.items():
            job.result()
            if target.level == work.GPU:
                self._copies.up(row, target.slot)
        copies = self._copies.mark()
        for target, (row, _) in self._arriving.items():
            if target.level == work.GPU:
                self._host.give(row, copies)
            else:
                self._host.put(target.slot, row, copies)
        self._arriving.clear()
