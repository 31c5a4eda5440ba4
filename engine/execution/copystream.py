"""Where copies run: on a stream of their own, beside the one on which the steps run."""

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Mark(Protocol):
    """A point in the order of the copies: all begun before it."""

    def synchronize(self) -> None:
        """Block until it is reached; may be called in any thread."""
        ...


class CopyStream(Protocol):
    """Runs copies one after the other. Only `hold_steps` and `follow_steps` tie it to the steps."""

    def running(self) -> AbstractContextManager[object]:
        """Copies are begun in here."""
        ...

    def copy(self, target: Tensor, source: Tensor) -> None:
        """Begin a copy; between them `target` and `source` are on the host and on the device."""
        ...

    def mark(self) -> Mark:
        """The copies begun so far."""
        ...

    def follow_steps(self) -> None:
        """Copies begun from now on wait for the steps launched so far."""
        ...

    def hold_steps(self, mark: Mark) -> None:
        """Steps launched from now on wait for `mark`."""
        ...


class CudaCopies:
    """A CUDA stream; the steps run on whichever is the current one where it is called."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def running(self) -> AbstractContextManager[object]:
        """See CopyStream."""
        return torch.cuda.stream(self._stream)

    def copy(self, target: Tensor, source: Tensor) -> None:
        """See CopyStream; asynchronous only if the host's half is pinned."""
        target.copy_(source, non_blocking=True)

    def mark(self) -> torch.cuda.Event:
        """See CopyStream."""
        event = torch.cuda.Event(blocking=True)  # threads wait for it: they are to sleep, not spin
        event.record(self._stream)
        return event

    def follow_steps(self) -> None:
        """See CopyStream."""
        self._stream.wait_stream(torch.cuda.current_stream(self._device))

    def hold_steps(self, mark: Mark) -> None:
        """See CopyStream."""
        assert isinstance(mark, torch.cuda.Event)
        torch.cuda.current_stream(self._device).wait_event(mark)


class _Passed:
    """A mark that is behind us."""

    def synchronize(self) -> None:
        pass


class CopiesAtOnce:
    """Where the steps run on the CPU everything is done when it is begun."""

    def running(self) -> AbstractContextManager[object]:
        """See CopyStream."""
        return nullcontext()

    def copy(self, target: Tensor, source: Tensor) -> None:
        """See CopyStream."""
        target.copy_(source)

    def mark(self) -> Mark:
        """See CopyStream."""
        return _Passed()

    def follow_steps(self) -> None:
        """See CopyStream."""

    def hold_steps(self, mark: Mark) -> None:
        """See CopyStream."""


def copy_stream(device: torch.device) -> CopyStream:
    """The way to copy between the CPU and `device`."""
    return CudaCopies(device) if device.type == "cuda" else CopiesAtOnce()


class _Run(NamedTuple):
    """A copy of `blocks` consecutive blocks to or from as many consecutive rows."""

    down: bool
    block: int
    row: int
    blocks: int


class BlockCopies:
    """Copies of whole blocks between device and host, in order; neighbours go in one."""

    def __init__(self, stream: CopyStream, on_device: Tensor, on_host: Tensor) -> None:
        """Between two tensors [any number, block_bytes]."""
        self._stream = stream
        self._on_device = on_device
        self._on_host = on_host
        self._run = _Run(down=True, block=0, row=0, blocks=0)
        """Not begun yet: perhaps it becomes longer."""

    def down(self, block: int, row: int) -> None:
        """Copy a block of the device to a row of the host."""
        self._add(_Run(True, block, row, 1))

    def up(self, row: int, block: int) -> None:
        """Copy a row of the host to a block of the device."""
        self._add(_Run(False, block, row, 1))

    def mark(self) -> Mark:
        """The copies so far."""
        self._begin()
        return self._stream.mark()

    def _add(self, one: _Run) -> None:
        down, block, row, blocks = self._run
        if blocks and one == (down, block + blocks, row + blocks, 1):
            self._run = _Run(down, block, row, blocks + 1)
        else:
            self._begin()
            self._run = one

    def _begin(self) -> None:
        down, block, row, blocks = self._run
        if not blocks:
            return
        self._run = self._run._replace(blocks=0)
        on_device = self._on_device[block : block + blocks]
        on_host = self._on_host[row : row + blocks]
        if down:
            self._stream.copy(on_host, on_device)
        else:
            self._stream.copy(on_device, on_host)
