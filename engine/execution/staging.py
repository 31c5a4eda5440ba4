"""Host memory of a step under way: its plan on the way down, its tokens on the way up, its time."""

from time import perf_counter
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from engine.execution.plan import Words


class Staging(Protocol):
    """Belongs to one step from its launch until its output is taken."""

    words: Words
    """Room for the plan."""

    def begin(self) -> None:
        """What is launched from now on belongs to the step."""
        ...

    def end(self, tokens: Tensor) -> None:
        """The step's tokens [n] are all that is left to fetch."""
        ...

    def done(self) -> bool:
        """Whether the tokens are here."""
        ...

    def wait(self) -> None:
        """Return when the tokens are here."""
        ...

    def take(self) -> tuple[list[int], float]:
        """The tokens, and the seconds from begin to end on the device."""
        ...


class CpuStaging:
    """Of a CPU, which is done with a step as soon as it is launched."""

    def __init__(self, words: int) -> None:
        self.words: Words = np.empty(words, np.int32)
        self._tokens: list[int] = []
        self._began = self._ended = 0.0

    def begin(self) -> None:
        """See Staging."""
        self._began = perf_counter()

    def end(self, tokens: Tensor) -> None:
        """See Staging."""
        self._tokens = tokens.tolist()
        self._ended = perf_counter()

    def done(self) -> bool:
        """See Staging."""
        return True

    def wait(self) -> None:
        """See Staging."""

    def take(self) -> tuple[list[int], float]:
        """See Staging."""
        return self._tokens, self._ended - self._began


class CudaStaging:
    """Pinned memory, so that copies run by themselves, and events on the current stream."""

    def __init__(self, words: int, sequences: int) -> None:
        self._pinned = torch.empty(words, dtype=torch.int32, pin_memory=True)
        self.words: Words = self._pinned.numpy()
        self._tokens = torch.empty(sequences, dtype=torch.int64, pin_memory=True)
        self._count = 0
        self._began = torch.cuda.Event(enable_timing=True)
        self._ended = torch.cuda.Event(enable_timing=True)

    def begin(self) -> None:
        """See Staging."""
        self._began.record()

    def end(self, tokens: Tensor) -> None:
        """See Staging."""
        self._count = len(tokens)
        self._tokens[: self._count].copy_(tokens, non_blocking=True)
        self._ended.record()

    def done(self) -> bool:
        """See Staging."""
        return self._ended.query()

    def wait(self) -> None:
        """See Staging."""
        self._ended.synchronize()

    def take(self) -> tuple[list[int], float]:
        """See Staging."""
        tokens: list[int] = self._tokens[: self._count].tolist()
        return tokens, self._began.elapsed_time(self._ended) / 1000
