"""Orders by length: learned, remaining, and fed back."""

from math import log2
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.order.served import Steps

# ---- learned


def test_learned_lengths_are_those_of_the_requests_that_ended() -> None:
    """Tenant `long` answers at length: known once it has, and then all `short` ones come first."""
    it = Steps("learned-shortest:first_guess=10:learning_rate=1", max_num_seqs=1)
    it.add_all([(8, 50, "long"), (8, 2, "short")])
    it.until_idle()
    assert it.order() == [0, 1]
    it.add_all([(8, 50, "long"), (8, 2, "short")] * 3)
    it.until_idle()
    assert it.order()[2:] == [3, 5, 7, 2, 4, 6]


def test_it_expects_the_moving_mean_of_the_same_kind() -> None:
    it = Steps("learned-shortest:first_guess=10:learning_rate=0.25:prompt_weight=0", max_num_seqs=1)
    mean = None
    for output in (40, 8, 100, 20):
        it.add(5, output, tenant="a")
        it.until_idle()
        mean = output if mean is None else mean + 0.25 * (output - mean)
        assert it.core.queue._discipline._means == {("a", "", 3): pytest.approx(mean)}


@pytest.mark.parametrize(
    "other", [{"tenant": "b"}, {"slo_class": "batch"}, {"prompt": 16}, {"prompt": 7}]
)
def test_another_tenant_class_or_size_of_prompt_is_another_kind(other: dict[str, Any]) -> None:
    it = Steps("learned-shortest:first_guess=10", max_num_seqs=1)
    it.add(8, 3)
    it.until_idle()
    it.add(other.pop("prompt", 8), 3, **other)
    it.until_idle()
    assert len(it.core.queue._discipline._means) == 2


def test_who_gave_up_teaches_nothing() -> None:
    it = Steps("learned-shortest", max_num_seqs=1)
    seq = it.add(8, 300)
    it.step()
    it.core.abort(seq)
    it.until_idle()
    assert not it.core.queue._discipline._means


def test_where_lengths_follow_from_tenants_learning_nears_the_oracle() -> None:
    """Mean time to the first step: of what is to be gained by the true lengths, most."""
    wanted = [(4, 40 if i % 3 else 2, f"t{1 if i % 3 else 0}") for i in range(60)]
    waits: dict[str, float] = {}
    for order in ("fcfs", "learned-shortest", "shortest-job"):
        it = Steps(order, max_num_seqs=1)
        it.add_all(wanted[:6])  # two tenants to learn from
        it.until_idle()
        start = it.count
        it.add_all(wanted)
        total = 0
        while not it.core.idle:
            total += (it.count - start) * len(it.step().admitted)
        waits[order] = total / len(wanted)
    assert waits["learned-shortest"] == waits["shortest-job"] < 0.7 * waits["fcfs"]


# ---- shortest remaining


def test_who_has_more_left_gives_way_and_comes_back() -> None:
    it = Steps("shortest-remaining", max_num_seqs=1, prefix_caching=True)
    long = it.add(4, 30)
    for _ in range(5):
        it.step()
    short = it.add(4, 10)
    batch = it.step()
    assert batch.preempted == (long,)
    assert batch.admitted == (short,)
    it.until_idle()
    assert [seq.preemptions for seq in it.all] == [1, 0]
    assert it.ended == [short, long]


def test_who_has_less_left_goes_on() -> None:
    it = Steps("shortest-remaining", max_num_seqs=1)
    running = it.add(4, 30)
    for _ in range(25):
        it.step()
    it.add(4, 10)
    assert not it.step().preempted
    it.until_idle()
    assert it.ended[0] is running


def test_who_has_as_much_left_goes_on() -> None:
    """Otherwise the two would take turns, and each be computed again."""
    it = Steps("shortest-remaining:prompt_weight=0", max_num_seqs=1)
    running = it.add(4, 12)
    for _ in range(2):
        it.step()
    it.add(4, 10)
    assert not it.step().preempted
    it.until_idle()
    assert it.ended[0] is running


def test_nobody_gives_way_where_there_is_room() -> None:
    it = Steps("shortest-remaining", max_num_seqs=2)
    it.add(4, 30)
    it.step()
    it.add(4, 2)
    it.until_idle()
    assert not any(seq.preemptions for seq in it.all)


arrivals = st.lists(st.tuples(st.integers(1, 40), st.integers(0, 12)), min_size=2, max_size=15)


@settings(deadline=None, max_examples=100)
@given(arrivals)
def test_on_one_server_it_is_srpt_exactly(wanted: list[tuple[int, int]]) -> None:
    """Steps of one token each, nothing recomputed: the textbook's schedule, slot by slot."""
    it = Steps("shortest-remaining:prompt_weight=0", max_num_seqs=1, block_tokens=1,
               prefix_caching=True)  # fmt: skip
    left: dict[int, int] = {}
    for output, gap in wanted:
        left[
            it.add(1, output, hashes=(len(it.all) + 1,), hash_tokens=1, hashed_tokens=1).number
        ] = output
        for _ in range(gap):
            slot(it, left)
    while not it.core.idle:
        slot(it, left)
    assert not left


def slot(it: Steps, left: dict[int, int]) -> None:
    before = {seq.number: it.outputs(seq) for seq in it.all}
    it.step()
    served = [seq.number for seq in it.all if it.outputs(seq) > before[seq.number]]
    assert len(served) == (1 if left else 0)
    for number in served:
        assert left[number] == min(left.values())
        left[number] -= 1
        if not left[number]:
            del left[number]


# ---- feedback


@given(st.integers(1, 100), st.integers(0, 10_000))
def test_level_k_ends_at_quantum_times_2_to_the_k_plus_1_minus_1(quantum: int, served: int) -> None:
    level = Steps(f"feedback:quantum={quantum}").core.queue._discipline._level_at(served)
    ends = [quantum * (2 ** (k + 1) - 1) for k in range(20)]
    assert level == next(k for k, end in enumerate(ends) if served < end)
    assert level == int(log2(served // quantum + 1))


def test_a_long_prompt_skips_levels() -> None:
    it = Steps("feedback:quantum=10:prompt_weight=1", max_num_seqs=1)
    it.add_all([(1000, 1, "a"), (40, 1, "b"), (9, 1, "c"), (9, 1, "d"), (12, 1, "e")])
    it.until_idle()
    assert it.order() == [2, 3, 4, 1, 0]


def test_a_new_request_comes_before_who_has_used_up_its_level() -> None:
    it = Steps("feedback:quantum=10:prompt_weight=0", max_num_seqs=1, prefix_caching=True)
    old = it.add(4, 100)
    for _ in range(9):
        it.step()
    early = it.add(4, 5)  # while the old one is on the first level still
    assert not it.step().preempted
    new = it.add(4, 5)
    batch = it.step()
    assert batch.preempted == (old,)
    assert batch.admitted == (early,)
    it.until_idle()
    assert it.ended == [early, new, old]


@settings(deadline=None, max_examples=30)
@given(
    st.integers(1, 5),
    st.integers(1, 60),
    st.integers(1, 30),
    st.integers(1, 4),
    st.sampled_from([1, 3, 20]),
    st.booleans(),
)
def test_nobody_starves_behind_a_stream_of_short_requests(
    promote_after: int, prompt: int, output: int, quantum: int, budget: int, prefix_caching: bool
) -> None:
    """A new request of one token comes before each step, for ever: the long one ends all the same.

    Each time it is promoted it gets a quantum of output tokens, computing anew what it lost. What
    came meanwhile goes first the next time, and is as many as there were steps: so the bound.
    """
    it = Steps(
        f"feedback:quantum={quantum}:promote_after={promote_after}:prompt_weight=1",
        max_num_seqs=1, max_num_batched_tokens=budget, prefix_caching=prefix_caching,
    )  # fmt: skip
    long = it.add(prompt, output)
    turns = -(-output // quantum) + 1
    steps_a_turn = -(-(prompt + output) // budget) + quantum
    for _ in range(turns * (promote_after + turns * steps_a_turn + 2)):
        it.add(1, 1)
        it.step()
        if long in it.ended:
            return
    raise AssertionError(f"{it.outputs(long)} of {output} after {it.count} steps")
