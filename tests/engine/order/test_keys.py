"""Orders that a request's own figures decide."""

from functools import partial
from itertools import pairwise
from math import log
from statistics import fmean, pstdev, stdev
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.order.keys import (
    by_priority,
    earliest_deadline_first,
    first_come_first_served,
    least_slack_first,
    noisy_shortest_job_first,
    shortest_job_first,
    shortest_prefill_first,
)
from engine.order.lengths import ShortestRemaining
from engine.sequence import Sequence
from tests.engine.order.served import MS, Steps
from traces.request import Request

S = 1000 * MS


def sequence(number: int = 0, arrival: int = 0, prompt: int = 10, output: int = 10, **rest: Any):
    generated = rest.pop("generated", 0)
    seq = Sequence(Request(number, arrival / S, prompt, output, **rest), number, arrival)
    seq.generated = generated
    return seq


rows = st.lists(
    st.tuples(
        st.integers(1, 300),
        st.integers(1, 300),
        st.integers(0, 2),
        st.sampled_from(["", "chat", "batch"]),
    ),
    min_size=1,
    max_size=20,
)


def admissions(order: str, wanted: Any) -> list[int]:
    """One place, and everybody is there before the first step."""
    it = Steps(order, max_num_seqs=1)
    for prompt, output, priority, slo_class in wanted:
        it.add(prompt, output, priority=priority, slo_class=slo_class)
    return it.until_idle().order()


KEYS = {
    "fcfs": lambda p, o, c, s: 0,
    "priority": lambda p, o, c, s: c,
    "shortest-prefill": lambda p, o, c, s: p,
    "shortest-job:prompt_weight=0.5": lambda p, o, c, s: o + 0.5 * p,
    "shortest-job:prompt_weight=0": lambda p, o, c, s: o,
    "shortest-remaining:prompt_weight=2": lambda p, o, c, s: o + 2 * p,
    "earliest-deadline:chat=0.5:batch=30": lambda p, o, c, s: {"chat": 0.5, "batch": 30}.get(s, 1),
    "least-slack:prefill_tokens_per_s=100": lambda p, o, c, s: -p,
}


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(sorted(KEYS)), rows)
def test_least_key_first_and_ties_in_order_of_arrival(order: str, wanted: Any) -> None:
    wanted = wanted[:10]  # where numbers sort as their names do
    key: Any = KEYS[order]
    assert admissions(order, wanted) == sorted(range(len(wanted)), key=lambda i: key(*wanted[i]))


def test_deadlines_count_from_arrival() -> None:
    """What came 200 ms earlier with a deadline 100 ms later is due 100 ms before."""
    key = partial(earliest_deadline_first, chat=0.3, default_s=0.4)
    early, late = sequence(1, 0), sequence(2, 200 * MS, slo_class="chat")
    assert key(early) < key(late)
    assert key(early)[0] == 400 * MS
    assert key(late)[0] == 500 * MS


def test_slack_is_what_is_left_after_computing() -> None:
    seq = sequence(3, 5 * S, prompt=1000, generated=200)
    assert least_slack_first(seq, ttft_s=2.0, tpot_s=0.1, prefill_tokens_per_s=300.0) == (
        pytest.approx((5 + 2 + 20 - 4) * S),
        3,
    )


def test_what_is_produced_already_is_no_work_left_but_must_be_computed_again() -> None:
    seq = sequence(prompt=100, output=50, generated=20)
    assert shortest_job_first(seq, prompt_weight=0.1)[0] == pytest.approx(30 + 12)
    assert shortest_prefill_first(seq)[0] == 120


def test_least_work_of_waiting_is_the_same_to_both_oracles() -> None:
    """Shortest job first is shortest remaining first without preemption."""
    assert shortest_job_first.__kwdefaults__ == ShortestRemaining.__init__.__kwdefaults__


@given(st.integers(0, 10**9), st.integers(1, 5000), st.integers(1, 5000), st.integers(0, 99))
def test_a_predictor_without_error_is_the_oracle(
    number: int, prompt: int, output: int, seed: int
) -> None:
    seq = sequence(number, 7, prompt, output)
    assert noisy_shortest_job_first(seq, error=0.0, seed=seed) == shortest_job_first(seq)


@pytest.mark.parametrize("error", [0.1, 0.5, 2.0])
@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_errors_have_the_stated_deviation_and_no_bias(error: float, seed: int) -> None:
    """Standard error of a mean of n: sigma / sqrt(n); of a deviation: sigma / sqrt(2n)."""
    count, output = 40_000, 10**12
    key = partial(noisy_shortest_job_first, error=error, seed=seed, prompt_weight=0.0)
    logs = [log(key(sequence(number, output=output))[0] / output) for number in range(count)]
    assert abs(fmean(logs)) < 4 * error / count**0.5
    assert abs(stdev(logs) - error) < 4 * error / (2 * count) ** 0.5
    of_one = [x / error for x in logs]  # neighbours have nothing to do with each other
    for power, other, deviation in ((1, 1, 1.0), (1, 2, 2**0.5), (2, 1, 2**0.5), (2, 2, 2.0)):
        pairs = ((a**power - (power == 2)) * (b**other - (other == 2)) for a, b in pairwise(of_one))
        assert abs(fmean(pairs)) < 4 * deviation / count**0.5
    beyond = sum(abs(x) > 1.959964 * error for x in logs) / count
    assert abs(beyond - 0.05) < 4 * (0.05 * 0.95 / count) ** 0.5


def test_an_error_is_drawn_once_from_seed_and_number() -> None:
    def errors(seed: int) -> list[float]:
        key = partial(noisy_shortest_job_first, seed=seed)
        return [key(sequence(number, output=1000))[0] for number in range(50)]

    assert errors(3) == errors(3)
    assert len({*errors(3), *errors(4)}) == 100


def test_keys_are_the_requests_own_alone() -> None:
    """They hold no state: the same sequence has the same key whoever came before."""
    for key in (first_come_first_served, by_priority, shortest_job_first, least_slack_first):
        one = sequence(5, 8, 30, 4, priority=2)
        before = key(one)
        key(sequence(1, 2, 3, 4))
        assert key(one) == before


def test_shortest_first_has_the_least_mean_wait_of_all_orders() -> None:
    """Everybody there at once, one place: each output is one step (Smith's rule)."""
    wanted = [(1, output, priority, "") for output, priority in
              [(30, 2), (3, 1), (50, 0), (7, 2), (19, 0), (11, 1), (2, 2), (41, 0)]]  # fmt: skip
    waits: dict[str, float] = {}
    for order in ("fcfs", "priority", "shortest-job", "noisy-shortest-job:error=1.5"):
        elapsed, total = 0, 0
        for number in admissions(order, wanted):
            total += elapsed
            elapsed += wanted[number][1]
        waits[order] = total / len(wanted)
    outputs = sorted(output for _, output, *_ in wanted)
    least = sum(o * (len(outputs) - 1 - i) for i, o in enumerate(outputs)) / len(outputs)
    assert waits["shortest-job"] == least == min(waits.values())
    assert waits["shortest-job"] < waits["noisy-shortest-job:error=1.5"] < waits["fcfs"]
    assert pstdev(waits.values()) > 0
