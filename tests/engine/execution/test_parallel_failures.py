"""Where one of several processes ends, the others do: with its reason, and without a wait."""

import os
import signal
import sys
from functools import partial
from multiprocessing import active_children
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen
from time import perf_counter

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
import torch.distributed as dist

from engine.execution.executor import load_executor
from engine.execution.parallel import Followers, RankError, Ranks
from engine.work import Share, Work
from tests.engine.execution.driving import generation, settings
from traces.errors import ConfigError

SOON_S = 15
"""Sooner than any exchange gives a silent rank up."""


@pytest.fixture(autouse=True)
def alone_afterwards(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield
    left = active_children()
    for process in left:
        process.kill()
    assert not left
    assert not dist.is_initialized()


def test_a_rank_that_dies_ends_the_engine(tmp_path):
    executor = load_executor(settings(tmp_path, tp=2))
    one = generation(0, [1, 2, 3], 4)
    one.seq.table = [1, 2]
    executor.launch(Work([], [Share(one, 3, 3)])).wait()
    (follower,) = active_children()
    assert follower.pid is not None
    os.kill(follower.pid, signal.SIGKILL)
    began = perf_counter()
    with pytest.raises(RankError, match=r"tensor-parallel rank 1 ended: exit code -9"):
        for context in range(4, 6):
            executor.launch(Work([Share(one, context, 1)])).wait()
    executor.close()
    assert perf_counter() - began < SOON_S


def test_the_leader_says_what_ended_a_follower_amid_a_step(tmp_path):
    executor = load_executor(settings(tmp_path, tp=2))
    one = generation(0, [1, 2, 3], 4)
    one.seq.table = [1, 2]
    plan = executor.planner.plan(Work([], [Share(one, 3, 3)]))
    broken = plan.vector.copy()
    broken[plan.sections.ids] = 10**6  # no such token
    followers = executor._followers
    assert followers is not None
    began = perf_counter()
    said = r"(?s)tensor-parallel rank 1 ended.*IndexError"
    with pytest.raises(RankError, match=said), followers.expected():
        followers.send(broken)
        executor.runner.run(plan)
    executor.close()
    assert perf_counter() - began < SOON_S


def test_what_all_ranks_refuse_ends_all(tmp_path):
    with pytest.raises(ConfigError, match="num_blocks"):
        load_executor(settings(tmp_path, tp=2, num_blocks=2**40))


def test_what_a_follower_refuses_the_leader_refuses():
    followers = Followers(2, torch.device("cpu"), partial(_agree_then_refuse, 10, "x: must be y"))
    assert followers.ranks.least(99) == 11
    with pytest.raises(ConfigError, match=r"^x: must be y$"), followers.expected():
        followers.ranks.least(99)
    followers.close()


def _agree_then_refuse(number: int, text: str, ranks: Ranks) -> None:
    assert ranks.least(number + ranks.rank) == number + 1
    raise ConfigError(text)


@pytest.mark.parametrize("exchange", ["send", "least"])
def test_the_reason_is_told_however_late_the_leader_looks(exchange):
    followers = Followers(2, torch.device("cpu"), _stumble)
    (follower,) = active_children()
    follower.join()
    with pytest.raises(RankError, match=r"(?s)rank 1 ended.*stumbled"), followers.expected():
        if exchange == "send":
            followers.send(np.zeros(3, np.int32))
        else:
            followers.ranks.least(3)
    followers.close()


def _stumble(ranks: Ranks) -> None:
    raise ValueError("stumbled")


LEADER = """
import sys
from multiprocessing import active_children
from pathlib import Path
from engine.execution.executor import load_executor
from tests.engine.execution.driving import settings

if __name__ == "__main__":
    load_executor(settings(Path(sys.argv[1]), tp=2))
    print(active_children()[0].pid, flush=True)
    sys.stdin.read()
"""


def test_followers_end_with_their_leader(tmp_path):
    script = tmp_path / "leader.py"
    script.write_text(LEADER)
    leader = Popen(
        [sys.executable, str(script), str(tmp_path)],
        stdin=PIPE,
        stdout=PIPE,
        stderr=DEVNULL,
        env=os.environ | {"PYTHONPATH": str(Path.cwd())},
    )
    with leader:
        assert leader.stdout is not None
        assert int(leader.stdout.readline()) != leader.pid
        leader.kill()
        leader.communicate(timeout=SOON_S)  # returns when nobody has its output open any more
