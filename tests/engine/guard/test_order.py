"""Own orders: the guard changes nothing, finds every breach, and counts whom they pass over."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as repeated
from hypothesis import strategies as st

from engine.config import SchedulerSettings
from engine.guard import guarded
from engine.sequence import FINISHED, Sequence
from tests.engine.guard.own import QUEUE, SHORTEST_PROMPT, own
from tests.sim.clusters import Setup, workloads
from traces.errors import PolicyError
from traces.request import Request

FACTOR = 3


def sequences(count: int) -> list[Sequence]:
    return [Sequence(Request(i, 0.0, 1, 1), i, 0) for i in range(count)]


def made(policy: Any, passed_over: int = FACTOR, running: tuple[int, ...] = (1,)) -> Any:
    view = SimpleNamespace(running=dict.fromkeys(running))
    return guarded("order", "mine.py:Mine", policy, passed_over=passed_over)(view)


def served(setup: Setup, order: str) -> tuple[Any, Any]:
    settings = setup.scheduler.model_dump() | {"order": order, "preemption": "recompute"}
    it = setup.serve(scheduler=SchedulerSettings.model_validate(settings))
    return it.rows.tolist(), it.segments.tolist()


@given(workloads())
@repeated(max_examples=25, deadline=None)
def test_a_guarded_key_decides_as_a_bare_one(tmp_path_factory: Any, setup: Setup):
    spec = own(tmp_path_factory.mktemp("key"), SHORTEST_PROMPT)
    assert served(setup, spec) == served(setup, "shortest-prefill")


@given(workloads())
@repeated(max_examples=25, deadline=None)
def test_a_guarded_queue_decides_as_a_bare_one(tmp_path_factory: Any, setup: Setup):
    source = "from engine.order.fair import VirtualTokenCounter as Mine"
    spec = own(tmp_path_factory.mktemp("queue"), source)
    assert served(setup, f"{spec}:t1=2.5") == served(setup, "vtc:t1=2.5")


@pytest.mark.parametrize("spoilt", ["[1.0]", "()", "(float('nan'),)", "('a',)", "None", "(1j,)"])
def test_a_key_is_a_tuple_of_numbers(spoilt: str):
    key = guarded("order", "mine.py:Mine", eval(f"lambda seq: {spoilt}"))
    with pytest.raises(PolicyError, match=r"returned .*; expected a tuple of numbers.*request 0"):
        key(sequences(1)[0])


def test_numbers_of_all_kinds_are_keys():
    import numpy as np

    keys = [(2,), (1.5, 3), (np.int64(1), True), (np.float32(0.5),), (float("-inf"),)]
    key = guarded("order", "mine.py:Mine", lambda seq: keys[seq.number])
    assert [key(seq) for seq in sequences(len(keys))] == keys


class Queue:
    """In order of arrival; tests spoil one method at a time."""

    def __init__(self, view: Any) -> None:
        self.waiting: list[Sequence] = []

    def add(self, seq: Sequence, again: bool) -> None:
        self.waiting.append(seq)

    def first(self) -> Any:
        return self.waiting[0]

    def remove(self, seq: Sequence) -> None:
        self.waiting.remove(seq)


@pytest.mark.parametrize("answer", [None, 7, "seq", sequences(5)[4]])
def test_the_first_is_one_that_waits(answer: Any):
    class Spoilt(Queue):
        def first(self) -> Any:
            return answer

    queue = made(Spoilt)
    queue.add(sequences(1)[0], False)
    with pytest.raises(PolicyError, match=r"first\(\) returned .*one of the 1 .* request 0$"):
        queue.first()


def test_who_left_is_not_first_any_more():
    class Keeps(Queue):
        def remove(self, seq: Sequence) -> None:
            pass

    queue, (one, other) = made(Keeps), sequences(2)
    queue.add(one, False)
    queue.add(other, False)
    queue.remove(queue.first())
    with pytest.raises(PolicyError, match=r"first\(\) returned Sequence\(0\)"):
        queue.first()


def test_a_queue_has_the_methods_of_a_discipline():
    class Lacking(Queue):
        first = None

    with pytest.raises(PolicyError, match=r"has no first\(\); expected the methods add, first"):
        made(Lacking)


def test_optional_methods_are_there_only_if_the_queue_has_them():
    class Steady(Queue):
        def steady_steps(self, batch: Any) -> Any:
            return batch

    plain, steady = made(Queue), made(Steady)
    assert not hasattr(plain, "steady_steps") and not hasattr(plain, "outranked")
    assert steady.steady_steps(5) == 5
    for spoilt in (0, -1, 2.0, None, "3"):
        with pytest.raises(PolicyError, match="whole number of at least 1"):
            steady.steady_steps(spoilt)


def test_who_gives_way_is_one_that_runs():
    class Jealous(Queue):
        def outranked(self, running: Any) -> Any:
            return self.answer

    one, other = sequences(2)
    Jealous.answer = None
    queue = made(Jealous)
    assert queue.outranked({one: None}) is None
    Jealous.answer = other
    with pytest.raises(PolicyError, match="None, or one of those that run"):
        queue.outranked({one: None})


def test_giving_way_for_ever_is_starving():
    class Jealous(Queue):
        def outranked(self, running: Any) -> Any:
            return next(iter(running))

    queue, (one,) = made(Jealous), sequences(1)
    for _ in range(2):
        for _ in range(FACTOR):
            queue.outranked({one: None})
        queue.ended(one)
    for _ in range(FACTOR):
        queue.outranked({one: None})
    with pytest.raises(PolicyError, match="request 0 is the 4th to give way"):
        queue.outranked({one: None})


def test_a_queue_that_nobody_leaves_while_nothing_runs():
    queue, (one,) = made(Queue, running=()), sequences(1)
    queue.add(one, False)
    for _ in range(FACTOR):
        queue.first()
    with pytest.raises(PolicyError, match="request 0 is not admitted although nothing else runs"):
        queue.first()


def test_many_arrivals_at_once_are_no_such_queue():
    queue = made(Queue, running=())
    for seq in sequences(20 * FACTOR):
        queue.add(seq, False)
        queue.first()


@given(st.data(), st.booleans())
@repeated(max_examples=300, deadline=None)
def test_it_counts_exactly_the_later_ones_that_pass_somebody_over(
    data: st.DataObject, by_key: bool
):
    """Against a count for each sequence that waits, by whatever order they come and go."""
    limit = data.draw(st.integers(1, 4))
    queue, fresh = Turns(limit, by_key), iter(sequences(1000))
    passed: dict[Sequence, int] = {}
    """Who waits, in order of coming, and how many later ones were admitted since."""
    gone: list[Sequence] = []
    for _ in range(data.draw(st.integers(1, 40))):
        what = data.draw(st.sampled_from(["add", "add", "again", "admit", "admit", "drop"]))
        if what == "add" or (what == "again" and not gone):
            seq = next(fresh)
            queue.add(seq, False)
            passed[seq] = 0
        elif what == "again":
            seq = gone.pop()
            queue.add(seq, True)
            passed[seq] = 0
        elif passed:
            seq = data.draw(st.sampled_from(list(passed)))
            before = list(passed)[: list(passed).index(seq)]
            del passed[seq]
            if what == "drop":
                queue.drop(seq)
                continue
            gone.append(seq)
            for one in before:
                passed[one] += 1
            oldest = next(iter(passed), None)
            if oldest is not None and passed[oldest] > limit:
                with pytest.raises(PolicyError, match=f"over by {passed[oldest]} that came"):
                    queue.admit(seq)
                return
            queue.admit(seq)
            assert all(count <= limit for count in passed.values())


class Turns:
    """A guarded key or queue, told what a scheduler would tell it."""

    def __init__(self, limit: int, by_key: bool) -> None:
        order = (lambda seq: (seq.number,)) if by_key else Queue
        self.by_key = by_key
        self.guard = guarded("order", "mine.py:Mine", order, passed_over=limit)
        if not by_key:
            self.guard = self.guard(SimpleNamespace(running={1: None}))

    def add(self, seq: Sequence, again: bool) -> None:
        if self.by_key:
            self.guard(seq)
        else:
            self.guard.add(seq, again)

    def admit(self, seq: Sequence) -> None:
        if not self.by_key:
            self.guard.remove(seq)
        self.guard.admitted(seq)

    def drop(self, seq: Sequence) -> None:
        if not self.by_key:
            self.guard.remove(seq)
        seq.status = FINISHED


def test_latest_first_starves_the_first(tmp_path: Path):
    from calibration.costs import LinearCost
    from tests.sim.served import Served

    spec = own(tmp_path, "def Mine(seq):\n    return (-seq.number,)\n")
    arrivals = [Request(i, i * 1e-6, 1, 1) for i in range(10_200)]
    settings = SchedulerSettings(max_num_seqs=1, order=spec, async_scheduling=False)
    with pytest.raises(PolicyError, match=r"request 1 was passed over by 10,001 .* at \d+\.\d+ s"):
        Served(arrivals, LinearCost(2_000_000, 0, 0, 0), scheduler=settings)


def test_a_queue_of_ones_own_serves_everybody(tmp_path: Path):
    from calibration.costs import LinearCost
    from tests.sim.served import Served

    spec = own(tmp_path, QUEUE)
    arrivals = [Request(i, i * 1e-6, 1 + i % 7, 1 + i % 5) for i in range(200)]
    settings = SchedulerSettings(max_num_seqs=3, order=spec, async_scheduling=False)
    cost = LinearCost(2_000_000, 10, 10, 0)
    mine = Served(arrivals, cost, scheduler=settings)
    theirs = Served(arrivals, cost, scheduler=settings.model_copy(update={"order": "fcfs"}))
    assert mine.rows.tolist() == theirs.rows.tolist()
    mine.assert_empty()
