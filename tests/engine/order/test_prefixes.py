"""Longest prefix match."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.order.served import Steps


@st.composite
def trees(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Prompts of whole blocks of 4 tokens that begin alike: paths in a small tree, and a tail."""
    wanted: list[dict[str, Any]] = []
    for number in range(draw(st.integers(2, 16))):
        path: list[int] = []
        for _ in range(draw(st.integers(0, 5))):
            path.append(10 * (path[-1] if path else 1) + draw(st.integers(0, 1)))
        wanted.append(
            {
                "prompt": 4 * len(path) + 1 + number % 3,
                "output": draw(st.integers(1, 6)),
                "hashes": tuple(path),
                "hash_tokens": 4 if path else 0,
                "hashed_tokens": 4 * len(path),
            }
        )
    return wanted


@settings(deadline=None, max_examples=100)
@given(trees(), st.integers(12, 40), st.integers(1, 2))
def test_who_is_admitted_has_the_longest_match_of_all_that_wait(
    wanted: list[dict[str, Any]], num_blocks: int, places: int
) -> None:
    """Matched by walking each prompt against the cache's content, in order of arrival."""
    it = Steps("longest-prefix-match", max_num_seqs=places, num_blocks=num_blocks,
               prefix_caching=True)  # fmt: skip
    for one in wanted:
        it.add(**one)
    while not it.core.idle:
        if it.core._news:
            it.core._take_in()
        waiting = sorted((seq for seq in it.all if seq.status == 0),
                         key=lambda seq: (not seq.preemptions, seq.number))  # fmt: skip
        cached = {seq: it.core.blocks.match(seq, seq.prompt_tokens).blocks for seq in waiting}
        batch = it.step()
        if batch.admitted and not batch.preempted:
            first = batch.admitted[0]
            assert cached[first] == max(cached.values())
            if not any(seq.preemptions for seq in waiting):
                assert first is max(waiting, key=lambda seq: cached[seq])


def test_what_is_cached_is_used_before_it_is_evicted() -> None:
    """Two prompts in turn, room for one: in order of arrival every request misses."""
    hits: dict[str, int] = {}
    for order in ("fcfs", "longest-prefix-match"):
        it = Steps(order, max_num_seqs=1, num_blocks=12, prefix_caching=True)
        for number in range(12):
            it.add(41, 2, hashes=(1 + number % 2,), hash_tokens=40, hashed_tokens=40)
        it.until_idle()
        hits[order] = sum(seq.cached_tokens > 0 for seq in it.all)
    assert hits == {"fcfs": 0, "longest-prefix-match": 10}


def test_with_too_many_waiting_it_is_first_come_first_served() -> None:
    def served(most: int) -> list[int]:
        it = Steps(f"longest-prefix-match:most={most}", max_num_seqs=1, num_blocks=12,
                   prefix_caching=True)  # fmt: skip
        for number in range(6):
            it.add(41, 2, hashes=(1 + number % 2,), hash_tokens=40, hashed_tokens=40)
        return it.until_idle().order()

    assert served(6) == [0, 2, 4, 1, 3, 5]
    assert served(1) == [0, 1, 2, 3, 4, 5]
    assert served(4) == [0, 1, 3, 5, 2, 4]
