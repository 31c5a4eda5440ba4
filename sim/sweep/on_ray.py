"""Cells on a Ray cluster.

Ray runs in a process of its own (sim.sweep.ray_driver): what it writes to the console, the signals
it takes and the minutes it waits for a cluster that is not there stay in it, and nothing but that
process imports it.
"""

from __future__ import annotations

import os
import pickle
import socket
import sys
import time
from contextlib import suppress
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

from sim.sweep.cells import Cell
from sim.sweep.outcomes import Outcome, Work
from sim.sweep.ray_driver import DONE, DROPPED, HERE, REFUSED, Wanted, drive
from traces.errors import ConfigError

REACH_S: Final = 5.0
"""An address that does not answer within this is not reached."""

JOIN_S: Final = 45.0
"""A cluster that has not taken us in after this does not."""

LEAVE_S: Final = 10.0


class OnRay:
    """All CPUs of a cluster, those of nodes that join later too; see `Pool`."""

    def __init__(
        self, address: str, work: Work, timeout_s: float | None, memory_bytes: int | None
    ) -> None:
        """Join a cluster.

        Args:
            address: HOST:PORT of its head, or auto: the one that this machine is part of.
            work: figures of a cell.
            timeout_s: a cell that takes longer is ended.
            memory_bytes: a cell that takes more fails; a node runs as many as it has room for.

        Raises:
            ConfigError: Ray is not installed, or the cluster cannot be used.
        """
        if find_spec("ray") is None:
            raise ConfigError(
                f"--ray {address}: the package ray is not installed; expected"
                " pip install 'kvcast[plan]'"
            )
        _reach(address)
        self._address = address
        self._outcomes: list[tuple[str, Outcome]] = []
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        wanted = Wanted(
            address,
            pickle.dumps(work),
            timeout_s,
            memory_bytes,
            folder=str(Path.cwd()),
            path=[str(Path(entry).resolve()) for entry in sys.path],
        )
        self._process = context.Process(target=drive, args=(theirs, wanted), daemon=True)
        self._process.start()
        theirs.close()
        self._leave_s = 0.0
        """How long it may take to leave the cluster."""
        try:
            self._receive(HERE, time.monotonic() + JOIN_S)
        except BaseException:
            self.close()
            raise
        self._leave_s = LEAVE_S

    def add(self, key: str, cell: Cell) -> None:
        """See `Pool`."""
        with suppress(OSError):  # its end is heard by `take`
            self._pipe.send((key, pickle.dumps(cell)))

    def drop(self) -> list[str]:
        """See `Pool`."""
        with suppress(OSError):
            self._pipe.send(None)
        return self._receive(DROPPED)

    def take(self) -> list[tuple[str, Outcome]]:
        """See `Pool`; raises ConfigError where the cluster is lost or cannot be used."""
        found = self._outcomes or self._receive(DONE)
        self._outcomes = []
        return found

    def close(self) -> None:
        """See `Pool`."""
        self._pipe.close()
        self._process.join(self._leave_s)
        self._process.kill()
        self._process.join()
        self._process.close()

    def _receive(self, expected: str, until_s: float | None = None) -> Any:
        """What comes next under a name; outcomes that come before it are for `take`."""
        while True:
            if until_s is not None and not self._pipe.poll(max(until_s - time.monotonic(), 0)):
                raise ConfigError(
                    f"--ray {self._address}: answers, but not as a Ray cluster"
                    f" of this version does, for {JOIN_S:g} s"
                )
            try:
                name, content = self._pipe.recv()
            except (EOFError, OSError):
                raise ConfigError(f"--ray {self._address}: the cluster is gone") from None
            if name == REFUSED:
                raise ConfigError(f"--ray {self._address}: {content}")
            if name == expected:
                return content
            self._outcomes += content


def _reach(address: str) -> None:
    """Refuse, soon, an address where nobody is: Ray would try for minutes."""
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS") or "auto"
    if address == "auto":
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise ConfigError(f"--ray {address}: expected auto, or HOST:PORT of a Ray cluster's head")
    try:
        socket.create_connection((host.strip("[]"), int(port)), REACH_S).close()
    except (OSError, OverflowError) as error:
        said = getattr(error, "strerror", None) or error
        raise ConfigError(f"--ray {address}: cannot be reached: {said}") from None
