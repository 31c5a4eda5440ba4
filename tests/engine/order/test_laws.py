"""What holds of every order of service."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.named import parameters
from engine.policies import ORDER, VICTIM
from tests.engine.order.served import Steps
from tests.sim.clusters import orders

arrivals = st.lists(
    st.tuples(
        st.integers(1, 40),
        st.integers(1, 30),
        st.sampled_from(["a", "b", "c"]),
        st.integers(0, 3),
        st.integers(0, 4),
    ),
    min_size=1,
    max_size=25,
)
"""Prompt, output, tenant, priority, steps until the next."""


def run(order: str, wanted: Any, **limits: Any) -> Steps:
    it = Steps(order, **limits)
    for prompt, output, tenant, priority, gap in wanted:
        it.add(prompt, output, tenant=tenant, priority=priority, slo_class=f"c{priority}")
        for _ in range(gap):
            it.step()
    return it


@settings(deadline=None, max_examples=150)
@given(orders, arrivals, st.integers(1, 5))
def test_no_place_is_empty_while_somebody_waits(order: str, wanted: Any, places: int) -> None:
    """Work conserving: with blocks and tokens for all, only places are short, and all are taken."""
    it = Steps(order, max_num_seqs=places)
    for prompt, output, tenant, priority, gap in wanted:
        it.add(prompt, output, tenant=tenant, priority=priority)
        for _ in range(gap):
            unfinished = sum(seq.status != 2 for seq in it.all)
            batch = it.step()
            assert batch.sequences == min(places, unfinished)
    it.until_idle()
    assert len(it.ended) == len(it.all)


@settings(deadline=None, max_examples=150)
@given(orders, arrivals, st.integers(1, 5), st.sampled_from([23, 40, 90]), st.booleans())
def test_everybody_is_served_in_the_end_and_nothing_is_left(
    order: str, wanted: Any, places: int, num_blocks: int, prefix_caching: bool
) -> None:
    """Also where blocks run out and requests give way."""
    it = run(order, wanted, num_blocks=num_blocks, max_num_seqs=places,
             prefix_caching=prefix_caching, max_num_batched_tokens=25)  # fmt: skip
    it.until_idle()
    assert sorted(seq.number for seq in it.ended) == [seq.number for seq in it.all]
    assert it.core.blocks.free == it.core.blocks.usable


@settings(deadline=None, max_examples=100)
@given(orders, arrivals, st.integers(1, 4))
def test_the_same_requests_are_served_in_the_same_order(
    order: str, wanted: Any, places: int
) -> None:
    limits = {"max_num_seqs": places, "num_blocks": 40}
    one, other = (run(order, wanted, **limits).until_idle().order() for _ in range(2))
    assert one == other


@settings(deadline=None, max_examples=100)
@given(orders, arrivals, st.data())
def test_asking_who_is_first_changes_nothing(order: str, wanted: Any, data: st.DataObject) -> None:
    asked, quiet = Steps(order, max_num_seqs=2), Steps(order, max_num_seqs=2)
    for prompt, output, tenant, _, gap in wanted:
        for it in (asked, quiet):
            it.add(prompt, output, tenant=tenant)
            for _ in range(gap):
                it.step()
        queue = asked.core.queue
        if queue.size and not asked.core._news:
            first = queue.first()
            assert all(queue.first() is first for _ in range(data.draw(st.integers(1, 3))))
    assert asked.until_idle().order() == quiet.until_idle().order()


@settings(deadline=None, max_examples=200)
@given(orders, arrivals, st.integers(1, 4), st.sampled_from([23, 40, 200]), st.booleans())
def test_who_is_first_does_not_depend_on_how_often_it_is_asked(
    order: str, wanted: Any, places: int, num_blocks: int, prefix_caching: bool
) -> None:
    """A scheduler that names blocks for an executor never looks ahead, and so asks less often."""
    limits: dict[str, Any] = {"max_num_seqs": places, "num_blocks": num_blocks}
    limits |= {"prefix_caching": prefix_caching, "max_num_batched_tokens": 25}
    engine, simulator = (
        run(order, wanted, named=named, **limits).until_idle() for named in (True, False)
    )
    assert engine.order() == simulator.order()
    assert engine.count == simulator.count


@settings(deadline=None, max_examples=100)
@given(orders, arrivals, st.integers(0, 24))
def test_who_gives_up_is_not_waited_for(order: str, wanted: Any, number: int) -> None:
    it = run(order, wanted, max_num_seqs=2)
    gone = it.all[number % len(it.all)]
    there = gone.status != 2
    if there:
        it.core.abort(gone)
    it.until_idle()
    assert len(it.ended) == len(it.all) - there


@pytest.mark.parametrize("name", ["vtc", "deficit-round-robin", "dlpm"])
def test_a_tenants_weight_is_above_0(name: str) -> None:
    from traces.errors import ConfigError

    with pytest.raises(ConfigError, match=rf"^order '{name}': gold must be above 0, got 0$"):
        Steps(f"{name}:gold=0")
    with pytest.raises(ConfigError, match=rf"^order '{name}': gold must be above 0, got -1$"):
        Steps(f"{name}:gold=-1")


@pytest.mark.parametrize("spec", [
    "vtc:input_weight=-1", "vtc:output_weight=-0.5", "deficit-round-robin:quantum=0",
    "dlpm:quantum=0", "dlpm:most=0", "longest-prefix-match:most=0", "feedback:quantum=0",
    "feedback:promote_after=0", "feedback:prompt_weight=-1", "learned-shortest:learning_rate=0",
    "learned-shortest:learning_rate=1.5", "learned-shortest:first_guess=0",
])  # fmt: skip
def test_a_parameter_that_makes_no_sense_is_refused(spec: str) -> None:
    from traces.errors import ConfigError

    name, _, stated = spec.partition(":")
    parameter, _, value = stated.partition("=")
    with pytest.raises(ConfigError, match=rf"^order '{name}': {parameter} must be .*, got {value}"):
        Steps(spec)


@pytest.mark.parametrize("policy", [*ORDER.values(), *VICTIM.values()])
def test_parameters_have_defaults(policy: Any) -> None:
    assert all(isinstance(default, (int, float)) for default in parameters(policy).values())
