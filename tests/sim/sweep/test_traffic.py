"""Other traffic of the same kind: conversations stay whole, nothing is made up, bursts remain."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.sweep.traffic import Traffic, resampled, traffic_for
from traces.errors import ConfigError
from traces.pipeline import TraceSettings
from traces.reader import sample_trace
from traces.request import Request

COMMON = 7
"""Hash of a system prompt."""


@st.composite
def traces(draw: st.DrawFn) -> list[Request]:
    """Conversations of a few turns and lone requests that all begin with one system prompt."""
    requests: list[Request] = []
    for session in range(draw(st.integers(15, 40))):
        at = draw(st.floats(0, 100))
        alone = draw(st.booleans())
        for turn in range(1 if alone else draw(st.integers(1, 4))):
            own = tuple(1000 * (session + 1) + k for k in range(turn + 1))
            requests.append(
                Request(
                    0,
                    at,
                    64 * (turn + 2),
                    64,
                    (COMMON, *own),
                    64,
                    64 * (turn + 2),
                    -1 if alone else session,
                    turn,
                    0.0 if turn == 0 else 1.5,
                )
            )
            at += draw(st.floats(0.1, 30))
    requests.sort(key=lambda one: one.arrival_s)
    return [one._replace(request_id=i) for i, one in enumerate(requests)]


def drawn(requests: list[Request], seed: int, blocks: int = 8) -> list[Request]:
    return resampled(requests, blocks, np.random.default_rng(seed))


@given(traces(), st.integers(0, 2**32), st.integers(2, 30))
@settings(max_examples=60)
def test_it_is_a_trace_whose_conversations_keep_their_turns(
    requests: list[Request], seed: int, blocks: int
):
    made = drawn(requests, seed, blocks)
    assert [one.request_id for one in made] == list(range(len(made)))
    assert all(one.arrival_s <= other.arrival_s for one, other in pairwise(made))
    end_s = requests[-1].arrival_s * len(requests) / (len(requests) - 1)
    assert 0 <= made[0].arrival_s <= made[-1].arrival_s <= end_s
    sessions = {one.session_id for one in requests if one.session_id >= 0}
    shapes = [shape(requests, session) for session in sessions]
    lone = {one.prompt_tokens for one in requests if one.session_id < 0}
    for session in {one.session_id for one in made if one.session_id >= 0}:
        mine = [one for one in made if one.session_id == session]
        assert [one.turn for one in mine] == list(range(len(mine)))
        assert mine[0].think_s == 0 and all(one.think_s == 1.5 for one in mine[1:])
        # some turns in a row of a session that is there: all, up to the end, or from there on
        assert any(in_a_row(shape(made, session), whole) for whole in shapes)
    assert {one.prompt_tokens for one in made if one.session_id < 0} <= lone


def shape(requests: list[Request], session: int) -> list[tuple[float, ...]]:
    """Turns of a session with the time that each comes after the one before."""
    mine = [one for one in requests if one.session_id == session]
    gaps = [0.0, *(other.arrival_s - one.arrival_s for one, other in pairwise(mine))]
    return [
        (one.prompt_tokens, one.output_tokens, len(one.hashes), round(gap, 6))
        for one, gap in zip(mine, gaps, strict=True)
    ]


def in_a_row(some: list[tuple[float, ...]], whole: list[tuple[float, ...]]) -> bool:
    begins = range(len(whole) - len(some) + 1)
    return any(
        whole[at : at + len(some)] == [(*some[0][:-1], whole[at][-1]), *some[1:]] for at in begins
    )


@given(traces(), st.integers(0, 2**32))
@settings(max_examples=60)
def test_copies_share_what_is_common_and_nothing_else(requests: list[Request], seed: int):
    made = drawn(requests, seed, 4)
    owner: dict[int, tuple[int, int]] = {}
    for one in made:
        assert one.hashes[0] == COMMON
        who = (one.session_id, -1 if one.session_id >= 0 else one.request_id)
        for content in one.hashes[1:]:
            assert owner.setdefault(content, who) == who
    for session in {one.session_id for one in made if one.session_id >= 0}:
        turns = [one.hashes for one in made if one.session_id == session]
        assert all(later[: len(early)] == early for early, later in pairwise(turns))


def test_rate_and_tokens_are_the_traces_on_average():
    requests = list(sample_trace("chat"))
    made = [drawn(requests, seed, 20) for seed in range(40)]
    assert all(one[-1].arrival_s < 1.001 * requests[-1].arrival_s for one in made)
    for figure in (len, lambda trace: sum(one.prompt_tokens for one in trace)):
        found = [figure(one) for one in made]
        spread = float(np.std(found)) / 40**0.5
        assert np.mean(found) == pytest.approx(figure(requests), abs=4 * spread)
        assert len(set(found)) > 20


def test_bursts_stay_and_requests_that_share_content_move_together():
    """Ten bursts of ten; each burst's requests share a document, met by nobody else."""
    requests = [
        Request(0, 10.0 * burst + 0.01 * k, 50, 5, (100 + burst, 10_000 + 10 * burst + k), 32, 50)
        for burst in range(10)
        for k in range(10)
    ]
    made = drawn([one._replace(request_id=i) for i, one in enumerate(requests)], 3, 10)
    documents: dict[int, list[float]] = {}
    for one in made:
        documents.setdefault(one.hashes[0], []).append(one.arrival_s)
    assert len(documents) == 10  # a burst that is drawn twice is two documents
    for arrivals in documents.values():
        assert len(arrivals) == 10
        assert np.diff(arrivals) == pytest.approx(0.01)
    length_s = requests[-1].arrival_s * 100 / 99 / 10
    places = sorted(int(arrivals[0] / length_s) for arrivals in documents.values())
    assert places == list(range(10))  # one in each place, wherever it is from


def test_what_shares_content_moves_together_however_far_apart_it_is():
    """A document is read twice, 50 s apart: far more than a block of 5 s."""
    requests = sorted(
        (
            Request(0, float(first + 50 * again), 50, 5, (first,), 64, 50)
            for first in range(50)
            for again in (0, 1)
        ),
        key=lambda one: one.arrival_s,
    )
    made = drawn([one._replace(request_id=i) for i, one in enumerate(requests)], 5, 20)
    documents: dict[int, list[float]] = {}
    for one in made:
        documents.setdefault(one.hashes[0], []).append(one.arrival_s)
    whole_s = requests[-1].arrival_s * 100 / 99
    for times in documents.values():
        if len(times) == 2:
            assert np.diff(times) == pytest.approx([50.0])
        else:  # read for the second time at the trace's beginning, after its end
            assert times[0] <= 50 or times[0] >= whole_s - 50
    assert sum(len(times) == 2 for times in documents.values()) > 10


def test_requests_that_come_all_at_once_are_drawn_too():
    requests = [Request(i, 0.0, 10 + i, 5) for i in range(40)]
    made = drawn(requests, 1)
    assert {one.arrival_s for one in made} == {0.0}
    assert {one.prompt_tokens for one in made} < {10 + i for i in range(40)}


def test_a_single_request_remains():
    assert len(drawn([Request(0, 0.0, 10, 5)], 1)) >= 1


# ---- which way


def test_a_synthetic_trace_is_made_anew_through_its_operations():
    trace = TraceSettings.model_validate(
        {"path": "sample:chat", "operations": [{"limit": {"count": 50}}]}
    )
    traffic = traffic_for(trace, None)
    assert traffic.method == "reseeded"
    one, same, other = (list(traffic.requests(trace, 0, number)) for number in (1, 1, 2))
    assert len(one) == 50
    assert one == same != other
    assert one != list(trace.open())


def test_a_recorded_trace_is_drawn_in_blocks(tmp_path: Path):
    path = tmp_path / "t.csv"
    path.write_text("arrival_s,prompt_tokens,output_tokens\n0,5,5\n1,5,5\n2,6,5\n")
    trace = TraceSettings(path=str(path))
    assert traffic_for(trace, None) == Traffic("blocks", 20)
    (tmp_path / "t.yaml").write_text("requests: 3\n")  # no spec
    assert traffic_for(trace, None).method == "blocks"
    with pytest.raises(ConfigError, match=r"t\.csv cannot be made anew: .* expected blocks"):
        traffic_for(trace, "reseeded")


def test_a_spec_that_gives_another_trace_is_not_taken_for_this_ones(tmp_path: Path):
    path = tmp_path / "t.csv"
    path.write_text("arrival_s,prompt_tokens,output_tokens\n0,5,5\n1,5,5\n2,6,5\n")
    (tmp_path / "t.yaml").write_text(
        "requests: 3\narrivals: {process: poisson, rate: 1}\n"
        "prompt_tokens: {distribution: fixed, value: 5}\n"
        "output_tokens: {distribution: fixed, value: 5}\n"
    )
    from traces.settings import load_settings
    from traces.synthetic import SyntheticSpec

    load_settings(SyntheticSpec, tmp_path / "t.yaml")  # it is a spec
    assert traffic_for(TraceSettings(path=str(path)), None).method == "blocks"


def test_arrivals_that_are_drawn_anyway_are_drawn_anew(tmp_path: Path):
    path = tmp_path / "lengths.csv"
    path.write_text("prompt_tokens,output_tokens\n" + "5,5\n" * 20)
    trace = TraceSettings(path=str(path), rate_per_s=2.0)
    traffic = traffic_for(trace, None)
    assert traffic.method == "reseeded"
    one, other = (list(traffic.requests(trace, 0, number)) for number in (1, 2))
    assert [a.arrival_s for a in one] != [a.arrival_s for a in other]


@pytest.mark.parametrize(
    ("method", "blocks", "says"),
    [
        ("jitter", 20, "--traffic: must be one of same, reseeded, blocks, got 'jitter'"),
        ("blocks", 1, "--blocks: must be at least 2, got 1"),
    ],
)
def test_what_cannot_be_drawn_is_refused(method: str, blocks: int, says: str):
    with pytest.raises(ConfigError) as said:
        traffic_for(TraceSettings(), method, blocks)
    assert str(said.value) == says
