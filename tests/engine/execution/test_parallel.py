"""Several processes share a model, and say what one alone says."""

import os
import signal
from multiprocessing import active_children
from random import Random

import pytest

pytest.importorskip("torch")

import torch.distributed as dist

from engine.execution.executor import TorchExecutor, load_executor
from engine.work import CPU, GPU, Move, Place, Share, Work
from tests.engine.execution.driving import Driver, generation, settings, some_generations
from traces.errors import ConfigError

OFFLOAD = {"cpu_bytes": 2**16}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """An engine of two ranks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        executor = load_executor(settings(tmp_path_factory.mktemp("pair"), tp=2, offload=OFFLOAD))
    yield executor
    executor.close()
    assert not active_children()
    assert not dist.is_initialized()


@pytest.fixture
def alone(tmp_path) -> TorchExecutor:
    return load_executor(settings(tmp_path))


def served(executor: TorchExecutor) -> list[list[int]]:
    outputs = []
    for seed in (1, 2):
        generations = some_generations(random := Random(seed), 8, sampled=seed == 2)
        Driver(executor, random, 2).serve(generations)
        outputs += [one.output for one in generations]
    return outputs


def test_two_ranks_say_what_one_says(pair, alone):
    assert pair.runner.model.kv_heads == alone.runner.model.kv_heads / 2
    assert served(pair) == served(alone)


def test_each_rank_moves_its_share_of_a_block(pair, alone):
    assert pair.block_bytes == alone.block_bytes == 2 * pair.runner.pool.layout.block_bytes
    prompt, outputs = [3, 1, 4, 1, 5, 9, 2, 6], []
    ways = ((5, Place(CPU, 0)), (6, Place(CPU, 9)))
    down = tuple(Move(Place(GPU, block), home) for block, home in ways)
    up = tuple(Move(home, Place(GPU, block)) for block, home in ways)
    for executor in (pair, alone):
        one, other = generation(0, prompt, 3), generation(1, [9] * 8, 1)
        one.seq.table, other.seq.table = [5, 6, 7], [5, 6]
        if executor is alone:
            down, up, other.seq.table = (), (), [8, 9]
        one.tokens += executor.launch(Work([], [Share(one, 8, 8)])).wait().tokens
        moved = executor.launch(Work(before=down)).wait().moved_bytes
        assert moved == len(down) * executor.block_bytes
        executor.launch(Work([], [Share(other, 8, 8)])).wait()
        one.tokens += executor.launch(Work([Share(one, 9, 1)], [], up)).wait().tokens
        one.tokens += executor.launch(Work([Share(one, 10, 1)])).wait().tokens
        executor.drop(one.seq)
        executor.drop(other.seq)
        outputs.append(one.output)
    assert outputs[0] == outputs[1]


def test_an_interrupt_from_the_terminal_is_the_leader_s(pair):
    (follower,) = active_children()
    assert follower.pid is not None
    os.kill(follower.pid, signal.SIGINT)
    one = generation(0, [1, 2, 3], 1)
    one.seq.table = [1]
    assert len(pair.launch(Work([], [Share(one, 3, 3)])).wait().tokens) == 1
    pair.drop(one.seq)


def test_a_process_leads_one_engine_of_several_ranks(pair, tmp_path):
    with pytest.raises(ConfigError, match="a process of its own"):
        load_executor(settings(tmp_path, tp=2))
