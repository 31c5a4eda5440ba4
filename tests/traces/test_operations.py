"""Operations keep order, numbers and sessions, and compose."""

from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.traces.requests import plain, request_lists
from traces.describe import describe
from traces.errors import ConfigError
from traces.operations import compress_time, limit, scale_lengths, tag, thin, tile, window
from traces.pipeline import Operation, apply_operations, parse_operation, transformed
from traces.reader import open_trace, sample_trace
from traces.request import Request
from traces.rows import check_request
from traces.settings import checked

SPECS = st.sampled_from(
    [
        {"window": {"start_s": 1.0, "end_s": 1e6}},
        {"thin": {"factor": 0.6, "seed": 2}},
        {"tile": {"copies": 3, "spread_s": 5.0}},
        {"tile": {"copies": 1}},
        {"compress_time": {"factor": 2.0}},
        {"scale_lengths": {"prompt": 1.7, "output": 0.3}},
        {"scale_lengths": {"prompt": 0.2}},
        {"limit": {"count": 7}},
        {"tag": {"tenant": "a", "priority": -1, "slo_class": "fast"}},
    ]
)
PIPELINES = st.lists(SPECS.map(Operation.model_validate), max_size=4)


@settings(deadline=None, max_examples=150)
@given(request_lists(), PIPELINES)
def test_any_pipeline_yields_a_valid_trace(requests: list[Request], steps: list[Operation]) -> None:
    last_s = 0.0
    for position, request in enumerate(apply_operations(requests, steps)):
        assert request.request_id == position
        check_request(request._replace(session_id=min(request.session_id, 2**62)), last_s)
        last_s = request.arrival_s


@settings(deadline=None)
@given(request_lists(), PIPELINES, PIPELINES)
def test_pipelines_compose(
    requests: list[Request], first: list[Operation], then: list[Operation]
) -> None:
    in_two = apply_operations(list(apply_operations(requests, first)), then)
    assert list(in_two) == list(apply_operations(requests, first + then))


@given(request_lists(), st.integers(1, 5), st.floats(0, 1e3))
def test_tile_multiplies_requests_and_content(
    requests: list[Request], copies: int, spread_s: float
) -> None:
    tiled = list(tile(requests, copies, spread_s, seed=3))
    assert len(tiled) == copies * len(requests)
    assert sum(r.prompt_tokens for r in tiled) == copies * sum(r.prompt_tokens for r in requests)
    distinct = {h for r in requests for h in r.hashes}
    assert len({h for r in tiled for h in r.hashes}) == copies * len(distinct)
    shared = tile(requests, copies, spread_s, seed=3, share_content=True)
    assert {h for r in shared for h in r.hashes} == distinct
    sessions = {r.session_id for r in requests} - {-1}
    assert len({r.session_id for r in tiled} - {-1}) == copies * len(sessions)


def test_tiling_twice_makes_four_different_copies() -> None:
    requests = list(sample_trace("chat"))[:50]
    distinct = {h for r in requests for h in r.hashes}
    tiled = list(tile(tile(requests, 2), 2))
    assert len({h for r in tiled for h in r.hashes}) == 4 * len(distinct)


def test_tile_keeps_the_rate_curve_and_breaks_step() -> None:
    rng = np.random.default_rng(1)
    rates = np.repeat([2.0, 10.0, 4.0], 600)  # in each second of half an hour
    arrivals_s = np.sort(np.repeat(np.arange(1800.0), rng.poisson(rates)) + 0.5)
    requests = plain(arrivals_s.tolist())
    tiled = np.array([r.arrival_s for r in tile(requests, 50, spread_s=30.0)])
    before, _ = np.histogram(arrivals_s, [0, 600, 1200, 1800])
    assert (np.diff(tiled) >= 0).all()
    after, _ = np.histogram(tiled, [0, 600, 1200, 1800])
    assert after == pytest.approx(50 * before, rel=0.08)
    assert len(np.unique(tiled)) > 20 * len(np.unique(arrivals_s))


def test_tile_holds_no_more_than_its_spread() -> None:
    taken = 0

    def source():  # type: ignore[no-untyped-def]
        nonlocal taken
        for taken in range(10**9):
            yield Request(taken, taken * 1.0, 10, 5)

    for request in limit(tile(source(), 1024, spread_s=10.0), 200_000):
        assert taken <= request.arrival_s + 10 + 2 * 2**16 / 1024
    assert taken < 1000


@given(request_lists(), st.floats(0.01, 100))
def test_compress_time_scales_gaps_and_pauses(requests: list[Request], factor: float) -> None:
    faster = list(compress_time(requests, factor))
    for was, now in zip(pairwise(requests), pairwise(faster), strict=True):
        gap_s = was[1].arrival_s - was[0].arrival_s
        got_s = now[1].arrival_s - now[0].arrival_s
        assert got_s * factor == pytest.approx(gap_s, rel=1e-9, abs=1e-6)
        assert now[1].think_s * factor == pytest.approx(was[1].think_s)


@given(request_lists(), st.floats(0.01, 10), st.floats(0.01, 10))
def test_scale_lengths_scales_tokens_and_leaves_the_rest(
    requests: list[Request], prompt: float, output: float
) -> None:
    for was, now in zip(requests, scale_lengths(requests, prompt, output), strict=True):
        assert now.prompt_tokens == pytest.approx(prompt * was.prompt_tokens, abs=1)
        assert now.output_tokens == pytest.approx(output * was.output_tokens, abs=1)
        assert now.hashes == was.hashes[: len(now.hashes)]
        assert now[7:] == was[7:]
        if prompt >= 1 and output >= 1:
            assert (now.hashes, now.hashed_tokens) == (was.hashes, was.hashed_tokens)


def test_longer_prompts_share_what_they_did() -> None:
    requests = list(sample_trace("chat"))[:200]
    longer = list(scale_lengths(requests, prompt=1.5))
    assert [r.hashes for r in longer] == [r.hashes for r in requests]
    assert sum(r.prompt_tokens for r in longer) == pytest.approx(
        1.5 * sum(r.prompt_tokens for r in requests), rel=0.01
    )


def test_thin_keeps_sessions_whole_and_nests() -> None:
    trace = sample_trace("agentic")
    turns = Counter(request.session_id for request in trace)
    kept: dict[float, set[int]] = {}
    for factor in (0.2, 0.5, 1.0):
        thinned = Counter(request.session_id for request in thin(trace, factor, seed=4))
        assert all(turns[session] == count for session, count in thinned.items())
        kept[factor] = set(thinned)
        assert len(thinned) == pytest.approx(factor * len(turns), abs=4 * len(turns) ** 0.5)
    assert kept[0.2] < kept[0.5] < kept[1.0]
    assert {r.session_id for r in thin(trace, 0.5, seed=5)} != kept[0.5]


def test_thinned_poisson_stays_poisson() -> None:
    rng = np.random.default_rng(2)
    requests = plain(np.cumsum(rng.exponential(0.1, 40_000)).tolist())
    found = describe(thin(requests, 0.25))
    assert found.mean_rate_per_s == pytest.approx(2.5, rel=0.05)
    assert found.interarrival_cv == pytest.approx(1.0, abs=0.05)


def test_window_begins_sessions_at_their_first_turn_inside() -> None:
    trace = sample_trace("chat")
    cut = list(window(trace, 100.0, 300.0))
    inside = [r for r in trace if 100 <= r.arrival_s < 300]
    assert [r.prompt_tokens for r in cut] == [r.prompt_tokens for r in inside]
    assert [r.arrival_s for r in cut] == pytest.approx([r.arrival_s - 100 for r in inside])
    turns: dict[int, list[Request]] = defaultdict(list)
    for request in cut:
        turns[request.session_id].append(request)
    for session in turns.values():
        assert [request.turn for request in session] == list(range(len(session)))
        assert session[0].think_s == 0


def test_tag_leaves_what_is_not_given() -> None:
    (request,) = tag(plain([0.0], tenant="a", priority=3), slo_class="fast")
    assert (request.tenant, request.priority, request.slo_class) == ("a", 3, "fast")


def test_command_line_and_yaml_say_the_same(shared: Path) -> None:
    stated = [{"window": {"end_s": 600}}, {"thin": {"factor": 0.5, "seed": 1}}]
    typed = ["window:end_s=600", "thin:factor=0.5,seed=1"]
    steps = [parse_operation(text) for text in typed]
    assert steps == [Operation.model_validate(one) for one in stated]
    trace = transformed(open_trace(shared / "traces/mooncake/synthetic_trace.jsonl"), steps)
    assert list(trace) == list(trace)
    assert (trace.name, trace.format) == ("synthetic_trace", "mooncake")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("foo:a=1", "--op foo:a=1: unknown operation 'foo'; known: window, thin, tile"),
        ("tile:copies", "--op tile:copies: 'copies' is no setting=value"),
        ("tile:copies=0", "--op tile:copies=0: tile.copies: must be at least 1, got '0'"),
        ("tile:copy=2", "--op tile:copy=2: tile.copy: unknown setting"),
        ("thin", "--op thin: thin.factor: is required"),
        ("thin:factor=1.5", "--op thin:factor=1.5: thin.factor: must be at most 1, got '1.5'"),
        ("window:start_s=9,end_s=3", "--op window:start_s=9,end_s=3: window: end_s must be after"),
        ("compress_time:factor=nan", "--op compress_time:factor=nan: compress_time.factor: must"),
    ],
)
def test_a_wrong_operation_is_one_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_operation(text)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_an_operation_is_exactly_one() -> None:
    both = {"limit": {"count": 1}, "thin": {"factor": 0.4}}
    with pytest.raises(ConfigError, match=r"run\.yaml: must name one operation of window, thin"):
        checked(Operation, both, "run.yaml")
