"""Texts are as alike as their trace says."""

import subprocess
import sys
from itertools import combinations, islice, takewhile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.content import chained_hashes
from engine.prompts import text_of
from traces.reader import sample_trace
from traces.request import Request

VOCAB = 50_000

sizes = st.integers(1, 40)
hash_lists = st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=6, unique=True)


def request(number: int, prompt: int, output: int, hashes=(), per_hash=0, hashed=0) -> Request:
    return Request(number, 0.0, prompt, output, tuple(hashes), per_hash, hashed)


def alike(one: list[int], other: list[int]) -> int:
    """Tokens that two texts begin with alike."""
    same = takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
    return sum(1 for _ in same)


@given(sizes, sizes, st.integers(1, 200_000), st.integers(0, 2**40), st.integers(0, 2**70))
def test_a_text_has_the_length_and_the_vocabulary_that_were_asked_for(
    prompt, output, vocab, number, seed
):
    text = text_of(request(number, prompt, output), vocab, seed)
    assert len(text.prompt) == prompt
    assert text.answer == []
    assert all(0 <= token < vocab for token in text.prompt)


@given(hash_lists, st.integers(1, 33), st.data())
def test_texts_agree_as_far_as_their_hashes_and_no_further(hashes, per_hash, data):
    shared = data.draw(st.integers(0, len(hashes)))
    others = data.draw(
        st.lists(
            st.integers(0, 2**63 - 1).filter(lambda h: h not in hashes), min_size=1, max_size=3
        )
    )
    end = len(hashes) * per_hash - data.draw(st.integers(0, per_hash - 1))
    one = request(1, end + 3, 5, hashes, per_hash, end)
    chain = [*hashes[:shared], *others]
    other = request(2, len(chain) * per_hash + 2, 5, chain, per_hash, len(chain) * per_hash)
    reached = alike(text_of(one, VOCAB).prompt, text_of(other, VOCAB).prompt)
    known = min(shared * per_hash, end)
    assert reached >= known
    assert reached < known + 4  # but by chance: one in 50,000 for a token


@given(hash_lists, st.integers(2, 33), sizes, st.data())
def test_a_next_turn_begins_with_the_turn_before_and_its_answer(hashes, per_hash, more, data):
    """Its hashes cover the answer, the last of them in part."""
    end = len(hashes) * per_hash - data.draw(st.integers(0, per_hash - 1))
    prompt = data.draw(st.integers(1, end))
    first = text_of(request(1, prompt, end - prompt + 1, hashes, per_hash, end), VOCAB)
    assert len(first.answer) == end - prompt
    longer = [*hashes, 1, 2**63 - 1]
    covered = len(longer) * per_hash
    second = text_of(request(2, covered + more, 3, longer, per_hash, covered), VOCAB)
    assert second.prompt[:end] == first.prompt + first.answer


def test_the_sample_shares_the_blocks_that_its_hashes_say():
    """The engine's hashes of tokens find what the simulator's hashes of the trace find."""
    requests = list(islice(sample_trace("chat"), 60))
    texts = [text_of(one, VOCAB) for one in requests]
    block = requests[0].hash_tokens // 2
    pairs = 0
    for (one, text), (two, other) in combinations(zip(requests, texts, strict=True), 2):
        known = alike(list(one.hashes), list(two.hashes)) * one.hash_tokens
        full = min(known, one.hashed_tokens, two.hashed_tokens) // block
        mine = chained_hashes([*text.prompt, *text.answer], block)
        theirs = chained_hashes([*other.prompt, *other.answer], block)
        assert alike(list(mine), list(theirs)) == full
        pairs += full > 0
    assert pairs > 100


@pytest.mark.parametrize("hashed", [0, 64])
def test_seed_and_number_make_texts_of_their_own(hashed: int):
    hashes = (11, 12)[: hashed // 32]
    text = text_of(request(1, 100, 1, hashes, 32, hashed), VOCAB)
    assert text == text_of(request(1, 100, 1, hashes, 32, hashed), VOCAB)
    other = text_of(request(2, 100, 1, hashes, 32, hashed), VOCAB)
    assert alike(text.prompt, other.prompt) in range(hashed, hashed + 2)
    assert alike(text.prompt, text_of(request(1, 100, 1, hashes, 32, hashed), VOCAB, 1).prompt) < 2


@given(st.integers(0, 2**40), st.integers(1, 20))
def test_a_text_of_its_own_is_not_that_of_a_hash_with_its_number(number, prompt):
    own = text_of(request(number, prompt + 9, 1), VOCAB).prompt
    hashed = text_of(request(0, prompt + 9, 1, (number,), 64, prompt + 9), VOCAB).prompt
    assert alike(own, hashed) < 5


@settings(max_examples=5)
@given(st.integers(2, 1000))
def test_all_tokens_are_about_as_frequent(vocab):
    """Chi-square over the vocabulary, 20 tokens expected of each; five deviations allowed."""
    counts = [0] * vocab
    for number in range(20):
        for token in text_of(request(number, vocab, 1), vocab).prompt:
            counts[token] += 1
    statistic = sum((count - 20) ** 2 / 20 for count in counts)
    assert statistic < vocab + 5 * (2 * vocab) ** 0.5


def test_texts_are_the_same_in_every_process():
    program = (
        "from engine.prompts import text_of; from traces.request import Request;"
        "print(text_of(Request(7, 0.0, 40, 9, (5, 6), 32, 45), 999, 3))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    here = text_of(Request(7, 0.0, 40, 9, (5, 6), 32, 45), 999, 3)
    assert done.stdout.strip() == str(here)
