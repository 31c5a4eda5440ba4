"""Tensor parallelism: the leader runs the loop, followers run the same steps on their devices.

The leader, rank 0, is the process that asked for the engine. Followers are spawned; each loads its
share of the model and then waits for plans. Plans travel through a gloo group of their own, so that
the CPU's traffic never waits for the GPUs'.
"""

import signal
import traceback
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Final, cast

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage] - it is public

from engine.execution.plan import Words
from traces.errors import ConfigError

STEP_TIMEOUT: Final = timedelta(minutes=5)
"""A rank that does not take part in an exchange for so long is taken for dead."""
IDLE_TIMEOUT: Final = timedelta(days=3650)
"""A follower waits for the next plan as long as the leader lives."""
LAST_WORDS_S: Final = 5.0
"""How long an exchange that failed waits for the follower's reason."""
LEAVE_S: Final = 10.0
"""How long followers have to end by themselves."""

ADDRESS: Final = "127.0.0.1"


class Ranks:
    """This process among the `tp` that share a model."""

    def __init__(self, rank: int, tp: int, store: TCPStore, device: torch.device) -> None:
        """Meet the others; returns when all are there."""
        self.rank = rank
        self.tp = tp
        cuda = device.type == "cuda"
        dist.init_process_group(
            "nccl" if cuda else "gloo",
            store=store,
            rank=rank,
            world_size=tp,
            timeout=STEP_TIMEOUT,
            device_id=device if cuda else None,
        )
        plans = dist.new_group(backend="gloo", timeout=IDLE_TIMEOUT)
        self._plans = cast(dist.ProcessGroup, plans)

    def send(self, vector: Words) -> None:
        """Leader: give a plan to all followers."""
        dist.broadcast(torch.tensor([len(vector)]), src=0, group=self._plans)
        dist.broadcast(torch.from_numpy(vector), src=0, group=self._plans)

    def send_end(self) -> None:
        """Leader: there will be no more plans."""
        dist.broadcast(torch.tensor([0]), src=0, group=self._plans)

    def receive(self) -> Words | None:
        """Follower: wait for the next plan; None: there will be no more."""
        words = torch.zeros(1, dtype=torch.int64)
        dist.broadcast(words, src=0, group=self._plans)
        if not words.item():
            return None
        vector = np.empty(int(words.item()), np.int32)
        dist.broadcast(torch.from_numpy(vector), src=0, group=self._plans)
        return vector

    def least(self, number: int) -> int:
        """The least of the numbers that all ranks say."""
        said = torch.tensor([number])
        dist.all_reduce(said, dist.ReduceOp.MIN, group=self._plans)
        return int(said.item())

    def leave(self) -> None:
        """Give the groups back."""
        dist.destroy_process_group()


class RankError(RuntimeError):
    """Another rank is not there any more; says which and why."""


Follow = Callable[[Ranks], None]
"""What a follower does until it receives the end; picklable."""


class Followers:
    """The leader's view of the other ranks' processes.

    Raises:
        ConfigError: what a follower found wrong with the settings.
        RankError: when a follower ends before it is asked to.
    """

    def __init__(self, tp: int, device: torch.device, follow: Follow) -> None:
        """Start ranks 1 to `tp` - 1, each of which calls `follow`, and meet them as rank 0."""
        if dist.is_initialized():
            raise ConfigError(
                "tp: this process has a torch.distributed group already: an engine with tp > 1"
                " needs a process of its own"
            )
        store = TCPStore(ADDRESS, 0, is_master=True, timeout=STEP_TIMEOUT)
        spawn = mp.get_context("spawn")
        self._processes: list[SpawnProcess] = []
        self._news: list[Connection] = []
        self._together = True
        """All ranks do the same; an error on one of them leaves the others waiting for it."""
        for rank in range(1, tp):
            news, told = spawn.Pipe(duplex=False)
            arguments = (rank, tp, store.port, device.type, follow, told)
            process = spawn.Process(target=_live, args=arguments, name=f"rank{rank}", daemon=True)
            process.start()
            told.close()
            self._processes.append(process)
            self._news.append(news)
        try:
            self._await_start()
            self.ranks: Final = Ranks(0, tp, store, device)
        except BaseException:
            self._end_processes(0.0)
            raise

    def send(self, vector: Words) -> None:
        """Give the followers a plan."""
        self.check()
        self.ranks.send(vector)

    def check(self) -> None:
        """Raise if a follower has ended."""
        for i, news in enumerate(self._news):
            if news.poll():
                self._raise_for(i)

    @contextmanager
    def expected(self) -> Generator[None]:
        """Errors of an exchange in here are told as what ended the follower, if one ended."""
        try:
            yield
        except BaseException as error:
            self._together = False
            known = isinstance(error, RankError) or not isinstance(error, RuntimeError)
            if not known and wait(self._news, LAST_WORDS_S):
                try:
                    self.check()
                except (ConfigError, RankError) as cause:
                    raise cause from error
            raise

    def close(self) -> None:
        """End the followers: those that wait for a plan are told to go, others are not asked."""
        if self._together:
            with suppress(RuntimeError):  # one may have ended meanwhile
                self.ranks.send_end()
        self._end_processes(LEAVE_S if self._together else 0.0)
        self.ranks.leave()

    def _await_start(self) -> None:
        """Whoever fails before all have met would leave the others waiting."""
        for i, news in enumerate(self._news):
            if not news.poll(STEP_TIMEOUT.total_seconds()):
                raise RankError(f"tensor-parallel rank {i + 1} did not start in {STEP_TIMEOUT}")
            try:
                said = news.recv()
            except EOFError:
                said = ("", "")
            if said is not None:
                self._raise(i, *said)

    def _raise_for(self, i: int) -> None:
        """Raise what follower `i` said last, or that it said nothing."""
        try:
            kind, text = self._news[i].recv()
        except EOFError:
            kind, text = "", ""
        self._raise(i, kind, text)

    def _raise(self, i: int, kind: str, text: str) -> None:
        if kind == ConfigError.__name__:
            raise ConfigError(text)
        process = self._processes[i]
        process.join(LAST_WORDS_S)
        how = f"exit code {process.exitcode}" if not text else f"\n{text}"
        raise RankError(f"tensor-parallel rank {i + 1} ended: {how}")

    def _end_processes(self, patience_s: float) -> None:
        for process in self._processes:
            process.join(patience_s)
            if process.is_alive():
                process.kill()
            process.join()
            process.close()
        for news in self._news:
            news.close()


def _live(
    rank: int, tp: int, port: int, device_type: str, follow: Follow, told: Connection
) -> None:
    """A follower's process: tell the leader of its start, and of an error that ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the leader gets it too, and ends the followers
    try:
        device = torch.device(device_type, rank)
        if device_type == "cuda":
            torch.cuda.set_device(device)
        told.send(None)
        store = TCPStore(ADDRESS, port, is_master=False, timeout=STEP_TIMEOUT)
        ranks = Ranks(rank, tp, store, device)
        follow(ranks)
        ranks.leave()
    except Exception as error:
        with suppress(OSError):  # perhaps it is the leader that ended
            expected = isinstance(error, ConfigError)
            text = str(error) if expected else traceback.format_exc()
            told.send((type(error).__name__, text))
        raise SystemExit(1) from None
