"""Filling a step of decodes up, and replaying it as a graph, changes no token."""

from functools import partial
from random import Random

import pytest

pytest.importorskip("torch")

import hypothesis
from hypothesis import strategies as st

from engine.execution.executor import TorchExecutor, load_executor
from engine.execution.graphs import bucket_sizes
from engine.execution.planner import Planner
from tests.engine.execution.driving import (
    BLOCK_TOKENS,
    MAX_MODEL_LEN,
    MAX_NUM_SEQS,
    Driver,
    assert_right,
    exaggerate,
    settings,
    some_generations,
)


@hypothesis.given(st.integers(1, 600))
@hypothesis.settings(deadline=None)
def test_every_number_of_decodes_has_a_bucket_that_is_hardly_larger(max_num_seqs):
    sizes = bucket_sizes(max_num_seqs)
    assert list(sizes) == sorted(set(sizes))
    assert sizes[-1] == max_num_seqs
    for decodes in range(1, max_num_seqs + 1):
        bucket = min(size for size in sizes if size >= decodes)
        assert bucket < max(decodes + 8, 2 * decodes)


def served(executor: TorchExecutor, seed: int, sampled: bool) -> list[list[int]]:
    generations = some_generations(random := Random(seed), 12, sampled=sampled)
    driver = Driver(executor, random, 2, decoding=0.7, arriving=0.3)
    driver.serve(generations)
    assert any(work.decodes and not work.prefills for work, _ in driver.steps)
    assert executor.planner.free_rows == MAX_NUM_SEQS
    return [one.output for one in generations]


@pytest.mark.parametrize("sampled", [False, True])
def test_padding_changes_no_token(tmp_path, sampled):
    executor = load_executor(settings(tmp_path))
    exaggerate(executor.runner.model)
    plain = served(executor, 3, sampled)
    executor.planner = Planner(MAX_NUM_SEQS, MAX_MODEL_LEN, BLOCK_TOKENS, buckets=(1, 5, 6))
    assert served(executor, 3, sampled) == plain


class Rerun:
    """Stands for a captured graph where there is no CUDA: computes the same region anew."""

    def __init__(self, step, decodes: int) -> None:
        self.replay = partial(step, decodes)


@pytest.mark.parametrize("sampled", [False, True])
def test_the_captured_region_reads_all_that_changes_from_step_to_step(
    tmp_path, monkeypatch, sampled
):
    executor = load_executor(settings(tmp_path))
    exaggerate(executor.runner.model)
    plain = served(executor, 5, sampled)
    monkeypatch.setattr(
        "engine.execution.runner.capture",
        lambda _, step, sizes, __: {size: Rerun(step, size) for size in sizes},
    )
    executor.runner.warm_up(64, (1, 3, 6))
    executor.planner = Planner(MAX_NUM_SEQS, MAX_MODEL_LEN, BLOCK_TOKENS, buckets=(1, 3, 6))
    generations = some_generations(random := Random(5), 12, sampled=sampled)
    driver = Driver(executor, random, 2, decoding=0.7, arriving=0.3)
    driver.serve(generations)
    assert [one.output for one in generations] == plain
    assert_buckets(driver, (1, 3, 6))


def assert_buckets(driver: Driver, buckets: tuple[int, ...]) -> None:
    """Steps of decodes alone ran as the smallest graph that holds them, and no others did."""
    for work, output in driver.steps:
        decodes = 0 if work.prefills else len(work.decodes)
        assert output.graph_bucket == min(size for size in (0, *buckets) if size >= decodes)
    assert {output.graph_bucket for _, output in driver.steps} == {0, *buckets}


@pytest.mark.gpu
@pytest.mark.parametrize("sampled", [False, True])
def test_replayed_graphs_say_what_eager_steps_say(tmp_path, sampled):
    cuda = {"device": "cuda", "dtype": "fp32", "kernels": "triton"}
    eager = load_executor(settings(tmp_path, **cuda, cuda_graphs=False))
    exaggerate(eager.runner.model)
    expected = served(eager, 4, sampled)
    graphs = load_executor(settings(tmp_path, **cuda))
    exaggerate(graphs.runner.model)
    assert served(graphs, 4, sampled) == expected


@pytest.mark.gpu
@pytest.mark.parametrize("sampled", [False, True])
def test_replayed_graphs_say_what_each_sequence_says_alone(tmp_path, sampled):
    executor = load_executor(settings(tmp_path, device="cuda", dtype="fp32"))
    exaggerate(executor.runner.model)
    generations = some_generations(random := Random(8), 12, sampled=sampled)
    driver = Driver(executor, random, 2)
    driver.serve(generations)
    assert_right(executor, generations)


@pytest.mark.gpu
def test_only_steps_of_decodes_are_replayed_in_the_smallest_bucket(tmp_path):
    executor = load_executor(settings(tmp_path, device="cuda"))

    driver = Driver(executor, random := Random(9), decoding=0.7, arriving=0.3)
    driver.serve(some_generations(random, 12))
    assert_buckets(driver, (1, 2, 4, 6))
    assert all(output.device_s > 0 for _, output in driver.steps)
