from dataclasses import replace
from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration.measuring.design import (
    FACTOR,
    Limits,
    Point,
    graph_edges,
    in_turns,
    ladders,
    space_filling,
)

limits = st.builds(
    Limits,
    max_sequences=st.integers(1, 512),
    max_tokens=st.integers(16, 16384),
    max_context_tokens=st.integers(100, 131072),
    pool_blocks=st.integers(20, 100_000),
    block_tokens=st.sampled_from([4, 16, 64]),
)

ROOMY = Limits(
    max_sequences=256,
    max_tokens=8192,
    max_context_tokens=32768,
    pool_blocks=20_000,
    block_tokens=16,
    graph_sizes=(1, 2, 4, *range(8, 257, 8)),
)


@settings(max_examples=200, deadline=None)
@given(limits, st.integers(0, 10**6))
def test_every_point_fits_the_engine(some, seed):
    points = space_filling(some, 40, np.random.default_rng(seed))
    points += [point for _, point in in_turns(ladders(some))] + graph_edges(some)
    for point in points:
        assert point.fits(some)
        assert point.before_tokens % some.block_tokens == 0
        contexts = point.contexts()
        assert len(contexts) == point.decodes
        assert all(2 <= context <= some.max_context_tokens for context in contexts)
        features = point.features(some)
        assert 0 < features.decodes + features.prefill_tokens <= some.max_tokens
        assert 0 < features.decodes + features.prefills <= some.max_sequences


def test_the_space_is_filled_along_each_axis():
    points = space_filling(ROOMY, 200, np.random.default_rng(0))
    kinds = {(point.decodes > 0, point.prefills > 0) for point in points}
    assert kinds == {(True, False), (False, True), (True, True)}
    assert {point.spread > 0 for point in points if point.decodes > 1} == {True, False}
    assert any(point.before_tokens == 0 for point in points if point.prefills)
    for most, values in (
        (256, [point.decodes for point in points if point.decodes]),
        (32768, [point.context_tokens for point in points if point.decodes]),
        (8192, [point.prefills * point.chunk_tokens for point in points if point.prefills]),
    ):
        halves = np.log(values) > np.log(most) / 2
        assert 0.2 < halves.mean() < 0.9
        assert max(values) > most / 3


def test_the_same_seed_gives_the_same_points():
    def drawn(seed):
        return space_filling(ROOMY, 50, np.random.default_rng(seed))

    assert drawn(3) == drawn(3)
    assert drawn(3) != drawn(4)


def test_ladders_climb_to_the_limits():
    chunks, decodes, contexts, cached = ladders(ROOMY)
    assert [point.decodes for point in decodes] == [1, 4, 16, 64, 256]
    assert chunks[-1].prefills * chunks[-1].chunk_tokens == 8192
    assert contexts[-1].context_tokens > 32768 / 2
    assert cached[-1].before_tokens > 32768 / 2
    for ladder in (chunks, decodes, contexts, cached):
        work = [point.prompt_tokens() for point in ladder]
        assert all(low < high <= 2 * FACTOR * low for low, high in pairwise(work))


def test_edges_of_graphs_stand_on_both_sides():
    small = replace(ROOMY, graph_sizes=(1, 2, 4, 8), max_sequences=8)
    assert [point.decodes for point in graph_edges(small)] == [1, 2, 3, 4, 5, 8]
    sizes = [point.features(small).graph_tokens for point in graph_edges(small)]
    assert sizes == [1, 2, 4, 4, 8, 8]
    assert graph_edges(replace(ROOMY, graph_sizes=())) == []


def test_only_steps_of_decodes_alone_replay_a_graph():
    assert Point(decodes=5).features(ROOMY).graph_tokens == 8
    mixed = Point(decodes=5, prefills=1, chunk_tokens=8)
    assert mixed.features(ROOMY).graph_tokens == 0


@settings(deadline=None)
@given(st.integers(2, 300), st.integers(16, 5000))
def test_ragged_contexts_have_the_mean_that_is_asked_for(decodes, context):
    ragged = Point(decodes=decodes, context_tokens=context, spread=0.9).contexts()
    assert abs(np.mean(ragged) - context) <= 1
    assert max(ragged) > 1.5 * min(ragged)
