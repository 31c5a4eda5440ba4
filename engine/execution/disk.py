"""The disk tier: slots of one file, written and read by threads.

The file has no name, so that it is gone with the process, however that ends, and several engines
can share a folder. All its room is taken at the start: a disk that is too small says so then.
"""

import logging
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import IO, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from engine.execution.copystream import Mark
from traces.errors import KvcastError

Block: TypeAlias = NDArray[np.uint8]
"""[block_bytes]: one block in CPU memory."""

THREADS: Final = 4
"""That write, and as many that read: a load does not queue behind spills."""


class DiskSlots:
    """Blocks in a file. Jobs on the same slot are done in the order in which they were asked for.

    Where the file cannot be made or written, blocks are kept in memory instead, so that what was
    written can be read nevertheless: `error` says why, and a warning does, once.
    """

    error: OSError | None
    """What went wrong first."""

    def __init__(self, folder: Path, slots: int, block_bytes: int) -> None:
        """Room for `slots` blocks in `folder`, which is made."""
        self._folder = folder
        self._block_bytes = block_bytes
        self.error = None
        self._failing = Lock()
        self._kept: dict[int, bytes] = {}
        """Blocks that could not be written, by slot."""
        self._file: IO[bytes] | None = None
        try:
            self._file = _new_file(folder, slots * block_bytes)
        except OSError as error:
            self._fail(error)
        self._jobs: dict[int, Future[None]] = {}
        """The last job on each slot."""
        self._writers = ThreadPoolExecutor(THREADS, "kvcast-disk-write")
        self._readers = ThreadPoolExecutor(THREADS, "kvcast-disk-read")

    def write(self, slot: int, block: Block, ready: Mark) -> "Future[None]":
        """Write `block`, which must not change until the job is done, once `ready` is reached."""
        return self._submit(self._writers, self._write, slot, block, ready)

    def read(self, slot: int, into: Block, ready: Mark | None) -> "Future[None]":
        """Read a slot into memory that may be overwritten once `ready` is reached.

        The future raises KvcastError if that fails.
        """
        return self._submit(self._readers, self._read, slot, into, ready)

    def close(self) -> None:
        """Give the room back; jobs under way are waited for, others given up."""
        for threads in (self._writers, self._readers):
            threads.shutdown(cancel_futures=True)
        if self._file is not None:
            self._file.close()
            self._file = None
        self._kept.clear()

    def _submit(
        self,
        threads: ThreadPoolExecutor,
        job: Callable[[int, Block], None],
        slot: int,
        block: Block,
        ready: Mark | None,
    ) -> "Future[None]":
        # A job waits for earlier ones only, and both pools begin theirs in order: the earliest
        # that is not done can always go on.
        earlier = self._jobs.get(slot)

        def in_order() -> None:
            if earlier is not None:
                earlier.exception()
            if ready is not None:
                ready.synchronize()
            job(slot, block)

        future = self._jobs[slot] = threads.submit(in_order)
        return future

    def _write(self, slot: int, block: Block) -> None:
        try:
            self._transfer(os.pwrite, slot, block)
        except OSError as error:
            self._kept[slot] = block.tobytes()
            self._fail(error)
        else:
            self._kept.pop(slot, None)

    def _read(self, slot: int, into: Block) -> None:
        kept = self._kept.get(slot)
        if kept is not None:
            into[:] = np.frombuffer(kept, np.uint8)
            return
        try:
            self._transfer(_pread_into, slot, into)
        except OSError as error:
            raise KvcastError(
                f"{self._folder}: a KV block in the disk tier cannot be read back: {error}; check"
                " the disk, or serve without the tier (offload.disk_bytes: 0)"
            ) from error

    def _transfer(
        self, system_call: Callable[[int, memoryview, int], int], slot: int, block: Block
    ) -> None:
        """Read or write a whole block; the kernel may do less at a time."""
        if self._file is None:
            raise OSError("there is no file")
        rest, offset = block.data, slot * self._block_bytes
        while rest:
            done = system_call(self._file.fileno(), rest, offset)
            if done == 0:
                raise OSError("the file is shorter than it was")
            rest, offset = rest[done:], offset + done

    def _fail(self, error: OSError) -> None:
        with self._failing:
            if self.error is not None:
                return
            self.error = error
        logging.getLogger("kvcast").warning(
            "%s: no KV blocks are kept on disk from now on: %s", self._folder, error
        )


def _new_file(folder: Path, size_bytes: int) -> IO[bytes]:
    folder.mkdir(parents=True, exist_ok=True)
    file = tempfile.TemporaryFile(dir=folder, prefix="kvcast-", buffering=0)  # noqa: SIM115
    try:
        if hasattr(os, "posix_fallocate"):  # macOS has none
            os.posix_fallocate(file.fileno(), 0, size_bytes)
    except BaseException:
        file.close()
        raise
    return file


def _pread_into(descriptor: int, block: memoryview, offset: int) -> int:
    return os.preadv(descriptor, [block], offset)
