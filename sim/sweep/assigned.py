"""The cells that one worker has, and how long it has been at the first of them."""

from __future__ import annotations

import time
from collections import deque
from math import inf
from typing import Any, Final

SHORT_S: Final = 0.2
"""A worker whose last cell took less has the next one lying ready: it need not wait until its
master finds the time. Longer cells are given one by one, so that none waits behind another."""


class Assigned:
    """Cells by their keys, in order: the first is being worked on, a second one lies ready."""

    def __init__(self, timeout_s: float | None) -> None:
        self.cells: deque[tuple[str, Any]] = deque()
        self.until_s = inf
        """When the first will have taken too long, by the monotonic clock."""
        self._timeout_s = timeout_s
        self._since_s = 0.0
        self._took_s = inf

    @property
    def room(self) -> int:
        """How many cells the worker may have."""
        return 1 + (self._took_s < SHORT_S)

    def add(self, key: str, cell: Any) -> None:
        """One more."""
        self.cells.append((key, cell))
        if len(self.cells) == 1:
            self._start()

    def done(self) -> str:
        """The first is; its key."""
        key, _ = self.cells.popleft()
        self._took_s = time.monotonic() - self._since_s
        self.until_s = inf
        if self.cells:
            self._start()
        return key

    def overdue(self) -> bool:
        """Whether the first has taken too long."""
        return time.monotonic() > self.until_s

    def _start(self) -> None:
        self._since_s = time.monotonic()
        if self._timeout_s is not None:
            self.until_s = self._since_s + self._timeout_s
