"""The radix tree against recordings of SGLang's, and against a plain tree token by token."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.named import chosen
from engine.radix import RANKS, Content, RadixCache
from engine.radix.cache import Hold
from engine.radix.content import content_of
from engine.radix.node import Node
from engine.radix.tree import FLAVOURS
from tests.engine.radix_goldens import (
    Tokens,
    difference,
    hash_sizes,
    recorded,
    title,
    trace_difference,
    trace_requests,
)
from tests.engine.radix_reference import RANKS as REFERENCE_RANKS
from tests.engine.radix_reference import Reference, Row, Run
from traces.errors import ConfigError
from traces.request import Request

EXAMPLES = int(os.environ.get("KVCAST_EXAMPLES", "100"))
"""Random workloads of each rank and flavour."""
SMALL = "radix_small.json.gz"
MOONCAKE = "radix_mooncake_1000.json.gz"
PROMPT_TOKENS_HIT = 2_962_688
"""Of the first 1,000 Mooncake conversation requests, pages of 16, in a cache without bounds."""


@pytest.fixture(scope="module")
def folder(shared: Path) -> Path:
    return shared / "cache-policies"


@pytest.fixture(scope="module")
def mooncake(folder: Path) -> list[tuple[Request, list[int]]]:
    return list(trace_requests(folder.parent / "traces", recorded(folder / MOONCAKE)))


# ---- SGLang's steps


@pytest.mark.parametrize(
    "name", ["branching", "multi_turn", "concurrent", "priorities", "random_1", "random_3"]
)
def test_every_recorded_step_is_taken(folder: Path, name: str) -> None:
    recording = recorded(folder / SMALL)
    case, block_tokens = recording["cases"][name], recording["block_size"]
    assert len(case["runs"]) == 90
    for run in case["runs"]:
        for hash_tokens in hash_sizes(case, block_tokens):
            assert difference(case, run, block_tokens, hash_tokens) is None, title(run)


@pytest.mark.parametrize("policy", RANKS)
def test_every_recorded_request_of_a_trace_is_served_alike(
    folder: Path, mooncake: list[tuple[Request, list[int]]], policy: str
) -> None:
    runs = [run for run in recorded(folder / MOONCAKE)["runs"] if run["policy"] == policy]
    assert len(runs) == (4 if policy == "tlru" else 8)
    for run in runs:
        assert trace_difference(mooncake, run) is None, title(run)


def test_a_departure_from_the_recording_is_noticed(folder: Path) -> None:
    recording = recorded(folder / SMALL)
    case, block_tokens = recording["cases"]["random_3"], recording["block_size"]
    lru, mru = (
        next(run for run in case["runs"] if run["policy"] == policy) for policy in ("lru", "mru")
    )
    assert difference(case, lru | {"policy": "mru"}, block_tokens, 1) is not None
    assert difference(case, mru | {"tree_at_end": []}, block_tokens, 1) is not None


def test_a_cache_without_bounds_hits_what_was_there_before(
    mooncake: list[tuple[Request, list[int]]],
) -> None:
    cache = RadixCache(10**9, page_tokens=16)
    assert sum(cache.serve(request) for request, _ in mooncake) == PROMPT_TOKENS_HIT
    assert cache.evicted_nodes == 0


def test_serving_a_trace_hits_as_recorded(
    folder: Path, mooncake: list[tuple[Request, list[int]]]
) -> None:
    for run in recorded(folder / MOONCAKE)["runs"]:
        if run["capacity"] == 1_000_000 and run["page_size"] == 16:
            cache = RadixCache(1_000_000, 16, partial(RANKS[run["policy"]], **run["config"] or {}))
            if run["cache"] == "unified":
                assert [cache.serve(request) for request, _ in mooncake] == run["hit"]
                assert cache.evicted_tokens == run["evicted_tokens"]
                assert cache.evicted_nodes == run["evicted_nodes"]


# ---- the plain tree


@dataclass
class Sequence:
    """Content in both forms; what follows the hashed tokens is nobody else's."""

    tokens: list[int]
    content: Content
    prompt_tokens: int
    priority: int


@st.composite
def workloads(draw: st.DrawFn) -> tuple[int, int, list[Sequence], list[tuple[str, int, int]]]:
    """Page, capacity, sequences that share much, and calls: (call, whose, how many tokens)."""
    page = draw(st.integers(1, 4))
    hash_tokens = draw(st.sampled_from([1, 2, 3, 5, 8]))
    capacity = page * draw(st.integers(2, 30))
    hashed = Tokens(hash_tokens)
    sequences: list[Sequence] = []
    for number in range(draw(st.integers(1, 8))):
        blocks = draw(st.lists(st.integers(0, 2), max_size=6))
        tokens = [block * hash_tokens + j for block in blocks for j in range(hash_tokens)]
        del tokens[len(tokens) - draw(st.integers(0, min(hash_tokens - 1, len(tokens)))) :]
        content = hashed.content(tokens)
        own = draw(st.integers(0 if tokens else 1, 9))
        tokens += [-1000 * number - i for i in range(1, own + 1)]
        prompt = draw(st.integers(1, len(tokens)))
        sequences.append(Sequence(tokens, content, prompt, draw(st.integers(-1, 2))))
    calls = st.tuples(
        st.sampled_from(["begin", "begin", "begin", "checkpoint", "decode", "finish", "abandon"]),
        st.integers(0, 7),
        st.integers(1, 6),
    )
    return page, capacity, sequences, draw(st.lists(calls, min_size=5, max_size=60))


Step = tuple[Any, ...]


def left(nodes: list[Node]) -> Step:
    return tuple((node.start, node.tokens) for node in nodes)


def gone(runs: list[Run]) -> Step:
    return tuple((run.cached_above(), len(run.tokens)) for run in runs)


class Ours:
    """RadixCache under a list of calls."""

    def __init__(self, cache: RadixCache, sequences: list[Sequence], page: int) -> None:
        self.cache = cache
        self.page = page
        self.sequences = sequences
        self.holds: list[tuple[Hold, Sequence]] = []

    def call(self, call: str, whose: int, tokens: int) -> Step:
        cache = self.cache
        if call == "begin":
            sequence = self.sequences[whose % len(self.sequences)]
            hold = cache.begin(sequence.content, sequence.prompt_tokens, sequence.priority)
            if hold is None:
                return ("rejected",)
            self.holds.append((hold, sequence))
            return (hold.hit_tokens, left(hold.evicted))
        if not self.holds:
            return ()
        at = whose % len(self.holds)
        hold, sequence = self.holds[at]
        if call == "checkpoint":
            return (cache.checkpoint(hold),)
        if call == "decode":
            tokens = min(tokens, len(sequence.tokens) - hold.tokens)
            fits = cache.decode(hold, tokens)
            return (fits, left(hold.evicted))
        del self.holds[at]
        return (cache.finish(hold) if call == "finish" else cache.abandon(hold),)

    def state(self) -> Step:
        cache = self.cache
        every = sorted(
            (node.start, node.tokens, node.hits, node.priority, node.locks, node.history)
            for node in cache.tree.nodes()
        )
        sizes = (cache.available_tokens, cache.evictable_tokens, cache.protected_tokens)
        return (*sizes, every)

    def check(self) -> None:
        """The books balance, and every node stands where its parent looks for it."""
        cache = self.cache
        held = sum(hold.allocated_tokens - hold.cached_tokens for hold, _ in self.holds)
        cached = cache.evictable_tokens + cache.protected_tokens
        assert cache.available_tokens + cached + held == cache.capacity_tokens
        nodes = list(cache.tree.nodes())
        assert sum(node.tokens for node in nodes) == cached
        assert sum(node.tokens for node in nodes if node.locks) == cache.protected_tokens
        for node in nodes:
            parent = node.parent
            assert parent is not None and parent.end == node.start < node.end
            assert parent.children[node.key(node.start + self.page)] is node
            assert len(node.hashes) == len(node.hashes_of(node.start, node.end))
            assert node.locks >= sum(child.locks for child in node.children.values())
            assert node.history >= max(
                [node.end, *(child.history for child in node.children.values())]
            )


class Plain:
    """The reference under the same calls."""

    def __init__(self, cache: Reference, sequences: list[Sequence]) -> None:
        self.cache = cache
        self.sequences = sequences
        self.rows: list[Row] = []

    def call(self, call: str, whose: int, tokens: int) -> Step:
        cache = self.cache
        if call == "begin":
            sequence = self.sequences[whose % len(self.sequences)]
            row, victims = cache.begin(sequence.tokens, sequence.prompt_tokens, sequence.priority)
            if row is None:
                return ("rejected",)
            self.rows.append(row)
            return (row.shared, gone(victims))
        if not self.rows:
            return ()
        at = whose % len(self.rows)
        row = self.rows[at]
        if call == "checkpoint":
            return (cache.checkpoint(row),)
        if call == "decode":
            fits, victims = cache.decode(row, min(tokens, len(row.tokens) - row.length))
            return (fits, gone(victims))
        del self.rows[at]
        return (cache.finish(row) if call == "finish" else cache.abandon(row),)

    def state(self) -> Step:
        cache = self.cache
        every = sorted(
            (run.cached_above(), len(run.tokens), run.hits, run.priority, run.holders, run.deepest)
            for run in cache.runs()
        )
        return (len(cache.free), cache.size(held=False), cache.size(held=True), every)


@pytest.mark.parametrize(
    ("flavour", "policy"),
    [pair for pair in product(FLAVOURS, RANKS) if pair != ("radix", "tlru")],
)
@settings(max_examples=EXAMPLES, deadline=None)
@given(workload=workloads())
def test_every_call_does_what_a_plain_tree_does(
    flavour: str,
    policy: str,
    workload: tuple[int, int, list[Sequence], list[tuple[str, int, int]]],
) -> None:
    page, capacity, sequences, calls = workload
    settings = {"threshold": 6, "next_prompt_estimate": 2} if policy == "tlru" else {}
    cache = RadixCache(capacity, page, partial(RANKS[policy], **settings), flavour)
    reference = Reference(capacity, page, REFERENCE_RANKS[policy], flavour == "unified")
    ours, plain = Ours(cache, sequences, page), Plain(reference, sequences)
    for call in calls:
        assert ours.call(*call) == plain.call(*call), call
        reference.check()
        ours.check()
        assert ours.state() == plain.state(), call


# ---- laws of its own


def prompts(*blocks: tuple[int, ...], hash_tokens: int = 4) -> Iterator[Request]:
    """Requests of one-token answers whose prompts are whole blocks of 4 tokens."""
    tokens = Tokens(hash_tokens)
    for number, ids in enumerate(blocks):
        content = tokens.content([block * 4 + j for block in ids for j in range(4)])
        yield Request(
            number, 0.0, content.hashed_tokens, 1, content.hashes, 4, content.hashed_tokens
        )


def test_the_last_token_is_computed_however_much_is_cached() -> None:
    cache = RadixCache(100, page_tokens=4)
    assert [cache.serve(request) for request in prompts((1, 2, 3), (1, 2, 3))] == [0, 8]
    assert cache.evictable_tokens == 12


def test_requests_without_hashes_share_nothing() -> None:
    cache = RadixCache(100, page_tokens=4)
    assert [cache.serve(Request(i, 0.0, 12, 1)) for i in range(3)] == [0, 0, 0]
    assert cache.evictable_tokens == 36


def test_a_sequence_taken_up_again_finds_its_own_tokens() -> None:
    cache = RadixCache(100, page_tokens=4)
    content = Content()
    hold = cache.begin(content, 8)
    assert hold is not None
    cache.finish(hold)
    again = cache.begin(content, 12)
    assert again is not None
    assert again.hit_tokens == 8


def test_what_does_not_fit_is_rejected_and_leaves_the_cache_usable() -> None:
    cache = RadixCache(12, page_tokens=4)
    short, long, same = prompts((1, 2), (3, 4, 5, 6), (1, 2))
    assert [cache.serve(request) for request in (short, long, same)] == [0, 0, 0]
    assert (cache.rejected, cache.evicted_tokens) == (1, 8)
    assert cache.available_tokens == 4


def test_an_answer_is_cached_but_for_its_last_token_and_goes_before_its_prompt() -> None:
    cache = RadixCache(16, page_tokens=4, rank=RANKS["priority"])
    talk = Request(0, 0.0, 8, 9, (100, 101, 102, 103), 4, 16)
    assert cache.serve(talk, answers=True) == 0
    assert cache.evictable_tokens == 16
    assert [cache.serve(request) for request in prompts((7, 8))] == [0]
    assert cache.serve(talk._replace(output_tokens=1, prompt_tokens=16)) == 8


def test_an_answer_without_room_rejects_its_request() -> None:
    cache = RadixCache(16, page_tokens=4)
    assert cache.serve(Request(0, 0.0, 8, 10), answers=True) == 0
    assert cache.rejected == 1
    assert cache.available_tokens == 16 - cache.evictable_tokens


def test_a_request_served_first_is_kept_longest() -> None:
    cache = RadixCache(12, page_tokens=4, rank=RANKS["priority"])
    urgent, idle, other = prompts((1,), (2,), (3, 4))
    cache.serve(urgent._replace(priority=-1))
    cache.serve(idle._replace(priority=2))
    cache.serve(other)
    assert sorted(node.priority for node in cache.tree.nodes()) == [0, 1]


@pytest.mark.parametrize(("policy", "first"), [("lru", 4), ("mru", 8)])
def test_a_new_leaf_is_younger_than_what_it_split_off(policy: str, first: int) -> None:
    """Two prompts computed at once part after a page: one insert both splits and adds a leaf."""
    cache = RadixCache(28, page_tokens=4, rank=RANKS[policy])
    holds = [
        cache.begin(content_of(request), request.prompt_tokens)
        for request in prompts((1, 2), (1, 3, 4))
    ]
    for hold in holds:
        assert hold is not None
        cache.finish(hold)
    assert cache.available_tokens == 12
    assert [node.tokens for node in cache.evict_for_alloc(1)] == [first]


def test_stale_ranks_are_cleared_away() -> None:
    """Under mru an old entry sinks to the bottom of the heap, where nothing would find it."""
    cache = RadixCache(40, page_tokens=4, rank=RANKS["mru"])
    kept, *others = prompts((1, 2), *((10 + i, 50 + i) for i in range(5000)))
    for other in others:
        cache.serve(kept)
        cache.serve(other)
    assert len(cache.tree._heap) < 200


def test_a_long_prompts_hashes_do_not_outlive_it() -> None:
    """A node keeps the hashes of its own tokens, whatever it was cut from."""
    cache = RadixCache(4_000, page_tokens=4)
    long, other = prompts(tuple(range(1, 900)), (1, 2, 901))
    cache.serve(long)
    cache.serve(other)
    assert sorted(len(node.hashes) for node in cache.tree.nodes()) == [1, 2, 897]


def test_ranks_are_chosen_by_name() -> None:
    rank = chosen("rank", "tlru:threshold=8:next_prompt_estimate=4", RANKS)
    cache = RadixCache(16, page_tokens=4, rank=rank)
    assert [cache.serve(request) for request in prompts((1, 2), (3, 4, 5))] == [0, 0]
    with pytest.raises(ConfigError, match="unknown rank 'lrru'; did you mean lru"):
        chosen("rank", "lrru", RANKS)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"capacity_tokens": 15, "page_tokens": 16}, "must hold a page of 16 tokens, got 15"),
        ({"capacity_tokens": 16, "page_tokens": 0}, "page_tokens: must be at least 1, got 0"),
        ({"capacity_tokens": 16, "flavour": "trie"}, "one of radix, unified, got 'trie'"),
        (
            {"capacity_tokens": 16, "flavour": "radix", "rank": partial(RANKS["tlru"])},
            "rank tlru needs 'unified'",
        ),
    ],
)
def test_bad_settings_are_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        RadixCache(**options)


def test_hashes_of_two_sizes_are_refused() -> None:
    cache = RadixCache(100)
    cache.serve(Request(0, 0.0, 8, 1, (1, 2), 4, 8))
    with pytest.raises(ConfigError, match="hash_tokens: 8 after 4"):
        cache.serve(Request(1, 0.0, 8, 1, (1,), 8, 8))
