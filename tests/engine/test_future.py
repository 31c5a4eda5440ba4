"""What is known of the future is what the requests will do."""

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.decoding import DecodeSet
from engine.future import NEVER, KnownFuture, Uses, future_of, needs_future
from engine.prefix import PrefixIndex
from engine.sequence import Sequence
from tests.prefixes import prefix_traces
from traces.errors import ConfigError, TraceError
from traces.request import Request


def blocks_of(request: Request, block_tokens: int) -> tuple[range, range]:
    """Of a request, the blocks it asks for, and those it computes that others may have."""
    most = request.prompt_tokens + request.output_tokens - 1
    left = min(request.hashed_tokens, most) // block_tokens
    asked = min(left, (request.prompt_tokens - 1) // block_tokens)
    return range(asked), range(asked, left)


def keys_of(request: Request, block_tokens: int, hash_tokens: int) -> list[int]:
    index = PrefixIndex(block_tokens, DecodeSet(block_tokens), 0)
    index.expect_hashes(hash_tokens)
    seq = Sequence(request, 1, 0)
    return [index.key(seq, block) for block in range(request.hashed_tokens // block_tokens)]


@settings(max_examples=150, deadline=None)
@given(st.data(), st.sampled_from([(1, 1), (4, 4), (4, 2), (8, 3), (5, 2), (3, 4), (2, 5)]))
def test_the_next_use_is_the_first_request_that_asks_before_another_computes(
    data: st.DataObject, sizes: tuple[int, int]
):
    hash_tokens, block_tokens = sizes
    requests = data.draw(prefix_traces(hash_tokens, answers=True))
    future = KnownFuture(Uses(requests, block_tokens))
    keys = [keys_of(request, block_tokens, hash_tokens) for request in requests]
    order = list(range(len(requests)))
    data.draw(st.randoms(use_true_random=False)).shuffle(order)
    left = set(order)
    for passing in order:
        for key in met_twice(keys, -(-hash_tokens // block_tokens)):
            assert future.next_use(key) == first_use(requests, keys, key, left, block_tokens)
        future.passed(passing)
        future.passed(passing)
        left.discard(passing)
        assert future.begins() == min(left, default=len(requests))
    assert all(future.next_use(key) == NEVER for one in keys for key in one)


def met_twice(keys: list[list[int]], parts: int) -> set[int]:
    """Blocks of hashes that two requests mention: of others nothing is known."""
    mentioned = Counter(one for of_request in keys for one in {key // parts for key in of_request})
    return {key for one in keys for key in one if mentioned[key // parts] > 1}


def first_use(
    requests: list[Request], keys: list[list[int]], key: int, left: set[int], block_tokens: int
) -> int:
    for number, request in enumerate(requests):
        if number not in left or key not in keys[number]:
            continue
        asked, computed = blocks_of(request, block_tokens)
        block = keys[number].index(key)
        if block in asked:
            return number
        if block in computed:
            return NEVER
    return NEVER


def test_only_requests_that_are_admitted_ask():
    one = Request(0, 0.0, 9, 1, (5, 6, 7), 4, 9)
    requests = [one._replace(request_id=number) for number in range(4)]
    uses = Uses(requests, 4, admitted=lambda request: request.request_id != 1)
    key = keys_of(one, 4, 4)[0]
    assert uses.next_use(key, 1, set()) == 2
    assert uses.next_use(key, 2, {2}) == 3


def test_content_of_one_request_takes_no_memory():
    lone = [
        Request(i, 0.0, 4000, 1, tuple(range(9000 * i, 9000 * i + 1000)), 4, 4000) for i in range(9)
    ]
    assert Uses(lone, 4).mentions == 0
    assert Uses(lone, 4).size_bytes < 100


def test_memory_is_a_dozen_bytes_a_mention():
    shared = tuple(random.Random(1).sample(range(2**62), 10_000))
    requests = [Request(i, 0.0, 40_000, 1, shared, 4, 40_000) for i in range(30)]
    uses = Uses(requests, 4)
    assert uses.mentions == 300_000
    assert uses.size_bytes < 12 * uses.mentions


def test_what_cannot_be_known_is_refused():
    with pytest.raises(TraceError, match="request 5 comes as number 0"):
        Uses([Request(5, 0.0, 8, 1)], 4)
    mixed = [Request(0, 0.0, 8, 1, (1, 2), 4, 8), Request(1, 0.0, 8, 1, (1,), 8, 8)]
    with pytest.raises(ConfigError, match="hash_tokens: 8 after 4"):
        Uses(mixed, 4)


def test_only_policies_that_need_it_get_a_future():
    assert needs_future("belady")
    assert not needs_future("lru")
    assert future_of("lru", [], 16) is None
    assert future_of("belady", [], 16) is not None
