"""Caches without time: what each policy hits, against models that know nothing of pieces."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.eviction import EVICTION
from engine.future import KnownFuture, Uses, needs_future
from sim.study.caches import BlockCache, Tallies, TreeCache
from tests.prefixes import chained, prefix_traces
from traces.errors import ConfigError
from traces.request import Request

SIZES = [(1, 1), (4, 4), (4, 2), (4, 1), (5, 2), (3, 4), (8, 3)]
"""Tokens of a hash and of a block."""


def cache_of(
    spec: str, blocks: int | None, block_tokens: int, requests: Sequence[Request], **how: Any
):
    room = None if blocks is None else blocks * block_tokens
    future = None
    if needs_future(spec):
        # an empty cache of the same size knows what fits
        fits = BlockCache(room, block_tokens, "lru", **how).fits
        future = KnownFuture(Uses(requests, block_tokens, admitted=fits))
    return BlockCache(room, block_tokens, spec, future=future, **how)


def hits(cache: BlockCache | TreeCache, requests: Sequence[Request]) -> list[int]:
    return [cache.serve(request) or 0 for request in requests]


@settings(max_examples=250, deadline=None)
@given(st.data(), st.sampled_from(SIZES), st.integers(1, 12))
def test_no_policy_hits_more_than_belady(data: st.DataObject, sizes: tuple[int, int], blocks: int):
    hash_tokens, block_tokens = sizes
    requests = data.draw(prefix_traces(hash_tokens))
    most = sum(hits(cache_of("belady", blocks, block_tokens, requests), requests))
    for spec in (*EVICTION, "lfu:history=true"):
        cache = cache_of(spec, blocks, block_tokens, requests)
        assert sum(hits(cache, requests)) <= most, spec


@settings(max_examples=150, deadline=None)
@given(st.data(), st.sampled_from(SIZES), st.integers(1, 12))
def test_belady_hits_what_can_be_kept(data: st.DataObject, sizes: tuple[int, int], blocks: int):
    """Where no prompt ends with a block nothing is computed twice, and the bound is exact: the most
    intervals between uses of a block for which there is room all the time."""
    hash_tokens, block_tokens = sizes
    requests = [
        request
        for request in data.draw(prefix_traces(hash_tokens))
        if request.prompt_tokens % block_tokens
    ]
    requests = [one._replace(request_id=number) for number, one in enumerate(requests)]
    cache = cache_of("belady", blocks, block_tokens, requests)
    assert sum(hits(cache, requests)) == block_tokens * most_kept(requests, blocks, block_tokens)


def most_kept(requests: Sequence[Request], blocks: int, block_tokens: int) -> int:
    """Intervals that end first are taken first, each if there is room for it (a classic greedy)."""
    asked = [
        {
            request.hashes[((block + 1) * block_tokens - 1) // request.hash_tokens] * 1000 + block
            for block in range(request.prompt_tokens // block_tokens)
        }
        for request in requests
        if -(-request.prompt_tokens // block_tokens) <= blocks
    ]
    room = [
        blocks - -(-request.prompt_tokens // block_tokens)
        for request in requests
        if -(-request.prompt_tokens // block_tokens) <= blocks
    ]
    last: dict[int, int] = {}
    intervals: list[tuple[int, int]] = []
    for now, contents in enumerate(asked):
        for content in contents:
            if content in last:
                intervals.append((last[content], now))
            last[content] = now
    kept = 0
    for begin, end in sorted(intervals, key=lambda interval: (interval[1], -interval[0])):
        if all(room[at] > 0 for at in range(begin + 1, end)):
            kept += 1
            for at in range(begin + 1, end):
                room[at] -= 1
    return kept


@settings(max_examples=100, deadline=None)
@given(st.data(), st.sampled_from(SIZES))
def test_without_limit_all_content_seen_before_is_hit(data: st.DataObject, sizes: tuple[int, int]):
    hash_tokens, block_tokens = sizes
    requests = data.draw(prefix_traces(hash_tokens))
    seen: set[tuple[int, int]] = set()
    expected: list[int] = []
    for request in requests:
        contents = [
            (request.hashes[((block + 1) * block_tokens - 1) // hash_tokens], block)
            for block in range(request.prompt_tokens // block_tokens)
        ]
        found = 0
        for content in contents[: (request.prompt_tokens - 1) // block_tokens]:
            if content not in seen:
                break
            found += 1
        expected.append(found * block_tokens)
        seen.update(contents)
    for spec in ("lru", "belady", "s3fifo"):
        assert hits(cache_of(spec, None, block_tokens, requests), requests) == expected
    assert hits(TreeCache(None, block_tokens, "lru"), requests) == expected


@settings(max_examples=150, deadline=None)
@given(st.data(), st.sampled_from(SIZES), st.integers(1, 12))
def test_lru_hits_what_lies_high_enough_in_the_stack(
    data: st.DataObject, sizes: tuple[int, int], blocks: int
):
    """Mattson's stack: a block is there if fewer others were used since than there is room for.
    Every prompt ends within a block, which takes the place of one."""
    hash_tokens, block_tokens = sizes
    requests = [
        request
        for request in data.draw(prefix_traces(hash_tokens))
        if request.prompt_tokens % block_tokens and request.prompt_tokens <= blocks * block_tokens
    ]
    stack: list[tuple[int, int]] = []
    expected: list[int] = []
    for request in requests:
        contents = [
            (request.hashes[((block + 1) * block_tokens - 1) // hash_tokens], block)
            for block in range(request.prompt_tokens // block_tokens)
        ]
        found = 0
        for content in contents:
            if content not in stack[: blocks - 1]:
                break
            found += 1
        expected.append(found * block_tokens)
        stack = contents + [content for content in stack if content not in contents]
    assert hits(cache_of("lru", blocks, block_tokens, requests), requests) == expected


@settings(max_examples=100, deadline=None)
@given(st.data(), st.integers(2, 12))
def test_lfu_with_history_evicts_what_was_asked_for_least(data: st.DataObject, blocks: int):
    requests = [
        request
        for request in data.draw(prefix_traces(4, whole=False))
        if request.prompt_tokens <= blocks * 4
    ]
    counts: dict[int, int] = {}
    freed: dict[int, int] = {}
    clock = 0
    expected: list[int] = []
    for request in requests:
        contents = list(request.hashes[: request.prompt_tokens // 4])
        found = 0
        while found < len(contents) and contents[found] in freed:
            found += 1
        expected.append(4 * found)
        hit = {content: freed.pop(content) for content in contents[:found]}
        while len(freed) + len(hit) + len(contents) - found + 1 > blocks:
            # pieces in the order in which they were freed, each from its end
            del freed[min(freed, key=lambda content: (counts[content], freed[content]))]
        for content in reversed(contents):
            counts[content] = counts.get(content, 0) + 1
            clock += 1
            freed[content] = clock
    assert hits(cache_of("lfu:history=true", blocks, 4, requests), requests) == expected


@settings(max_examples=80, deadline=None)
@given(st.data(), st.sampled_from(SIZES), st.integers(1, 12), st.booleans())
def test_no_block_is_lost(data: st.DataObject, sizes: tuple[int, int], blocks: int, answers: bool):
    hash_tokens, block_tokens = sizes
    requests = data.draw(prefix_traces(hash_tokens, answers=True))
    for spec in (*EVICTION, "lfu:history=true"):
        cache = cache_of(spec, blocks, block_tokens, requests, answers=answers)
        tallies = Tallies()
        for request in requests:
            hit_tokens = cache.serve(request)
            tallies.add(request, hit_tokens, block_tokens, 100)
            assert cache.blocks.free == cache.blocks.usable
            assert hit_tokens is None or 0 <= hit_tokens < request.prompt_tokens
        total = tallies.total
        assert total.requests == len(requests)
        assert total.hit_tokens <= total.prompt_tokens
        assert 0 <= total.work_left <= total.work


def test_what_is_larger_than_the_cache_goes_past_it():
    requests = [Request(i, 0.0, 9, 1, (1, 2, 3), 4, 9) for i in range(2)]
    cache = BlockCache(8, 4, "lru")
    assert [cache.serve(request) for request in requests] == [None, None]
    tree = TreeCache(8, 4, "lru")
    assert [tree.serve(request) for request in requests] == [None, None]
    assert BlockCache(12, 4, "lru").serve(requests[0]) == 0


def test_answers_take_room_only_if_asked():
    requests = [Request(0, 0.0, 5, 8, (1, 2), 4, 5), Request(1, 1.0, 5, 8, (1, 2), 4, 5)]
    assert hits(BlockCache(8, 4, "lru"), requests) == [0, 4]
    assert hits(BlockCache(8, 4, "lru", answers=True), requests) == [0, 0]  # 12 tokens do not fit
    assert hits(BlockCache(12, 4, "lru", answers=True), requests) == [0, 4]


def test_looking_changes_nothing():
    requests = [Request(i, float(i), 9, 1, (1, 2, 3), 4, 9) for i in range(3)]
    cache = BlockCache(16, 4, "lru")
    assert cache.holds(requests[0]) == 0
    cache.serve(requests[0])
    assert cache.holds(requests[1]) == cache.holds(requests[1]) == cache.serve(requests[1]) == 8


def test_attention_counts_where_it_is_known():
    tallies = Tallies()
    tallies.add(Request(0, 0.0, 100, 1, tenant="a"), 60, 10, 50)
    assert tallies.total.work == 100 + 100 * 100 / 100
    assert tallies.total.work_left == (100 - 60) + (100 * 100 - 60 * 60) / 100
    assert tallies.tenants["a"].ratios()["token_hit_ratio"] == 0.6


def test_errors():
    with pytest.raises(ConfigError, match="capacity of 3 tokens: holds no block of 4"):
        BlockCache(3, 4, "lru")
    with pytest.raises(ConfigError, match="cannot be asked what they hold"):
        TreeCache(8, 4, "lru").holds(Request(0, 0.0, 4, 1))
    with pytest.raises(ConfigError, match="unknown radix rank 'arc'"):
        TreeCache(8, 4, "arc")


def test_lfu_with_history_tells_the_blocks_of_a_piece_apart():
    texts = ("a", "a", "a", "wxy", "ab", "c", "de", "a")
    requests = [
        Request(i, float(i), 4 * len(text) + 1, 1, chained(tuple(map(ord, text))), 4, 4 * len(text))
        for i, text in enumerate(texts)
    ]
    # "wxy" takes all of four blocks, "ab" computes a again, "de" needs two: b and c, not b and a
    assert hits(BlockCache(16, 4, "lfu:history=true"), requests)[-1] == 4
    assert hits(BlockCache(16, 4, "lru"), requests)[-1] == 0
