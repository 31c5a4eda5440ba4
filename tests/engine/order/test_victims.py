"""Who gives way when blocks run out."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.policies import VICTIM
from engine.sequence import Sequence
from tests.engine.order.served import Steps

CHOICE: dict[str, Callable[[Steps, Sequence], Any]] = {
    "last-in": lambda it, seq: seq.admission,
    "least-important": lambda it, seq: (seq.priority, seq.arrival, -seq.admission),
    "largest": lambda it, seq: (it.core.decodes.computed(seq), seq.admission),
    "least-progress": lambda it, seq: (-it.outputs(seq), seq.admission),
}
"""The victim has the greatest of these before the step."""

crowds = st.lists(
    st.tuples(st.integers(1, 30), st.integers(5, 40), st.integers(0, 3), st.integers(0, 3)),
    min_size=3,
    max_size=12,
)


def test_each_is_known() -> None:
    assert CHOICE.keys() == VICTIM.keys()


@settings(deadline=None, max_examples=80)
@given(st.sampled_from(sorted(CHOICE)), crowds, st.integers(20, 40))
def test_the_victim_is_who_it_says(victim: str, wanted: Any, num_blocks: int) -> None:
    """Looked at in steps of decodes alone: there a step begins with whom it finds running."""
    it = Steps(victim=victim, num_blocks=num_blocks, max_num_seqs=6)
    for prompt, output, priority, gap in wanted:
        it.add(prompt, output, priority=priority)
        for _ in range(gap):
            checked_step(it, victim)
    for _ in range(5000):
        if it.core.idle:
            break
        checked_step(it, victim)
    assert it.core.idle


def checked_step(it: Steps, victim: str) -> None:
    choice = CHOICE[victim]
    running = {seq: choice(it, seq) for seq in it.core.running if seq.decoding}
    pure = len(running) == len(it.core.running)
    due = it.core.decodes.blocks_due(1) if running else 0
    short = due - it.core.blocks.free
    batch = it.step()
    if short > 0 and pure:
        assert batch.preempted
        if victim == "last-in":
            expected = sorted(running, key=lambda seq: running[seq])[-len(batch.preempted) :]
            assert list(batch.preempted) == expected[::-1]
        elif len(batch.preempted) == 1 and victim == "least-important":
            assert batch.preempted[0] is max(running, key=lambda seq: running[seq])


def scene(victim: str) -> Steps:
    """Four run: a is old and small, b is large and has produced most, c is of the lowest class, d
    is the newest; then blocks run out."""
    it = Steps(victim=victim, num_blocks=31)
    for name, prompt, output, priority in (("a", 2, 60, 0), ("b", 40, 60, 0), ("c", 30, 60, 9)):
        it.add(prompt, output, priority=priority, tenant=name)
        for _ in range(3):
            it.step()
    it.add(20, 60, tenant="d")
    while True:
        batch = it.step()
        if batch.preempted:
            return it


@pytest.mark.parametrize(
    ("victim", "who"),
    [("last-in", "d"), ("least-important", "c"), ("largest", "b"), ("least-progress", "d")],
)
def test_four_ways_to_choose(victim: str, who: str) -> None:
    it = scene(victim)
    assert [seq.request.tenant for seq in it.all if seq.preemptions] == [who]


def test_the_largest_frees_most_so_that_fewest_give_way() -> None:
    def preemptions(victim: str) -> int:
        it = Steps(victim=victim, num_blocks=41)
        it.add_all([(10 + 7 * (i % 5), 40, "") for i in range(16)])
        it.until_idle()
        return sum(seq.preemptions for seq in it.all)

    assert preemptions("largest") <= preemptions("last-in")


def test_by_priority_the_default_is_vllms() -> None:
    assert Steps("priority").core.settings.victim_or_default == "least-important"
    assert Steps("fcfs").core.settings.victim_or_default == "last-in"
    assert Steps("priority", victim="largest").core.settings.victim_or_default == "largest"
