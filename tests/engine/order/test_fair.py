"""Orders that share the service among tenants: bounds, shares, and what coming back is worth."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.order.served import Steps

LONGEST = 40

requests = st.tuples(st.integers(1, LONGEST), st.integers(1, 30))


def backlogged(it: Steps, *tenants: str) -> bool:
    return all(it.waits(tenant) for tenant in tenants)


def gaps(it: Steps, one: str, other: str, **weights: float) -> list[float]:
    """By how much `one` is ahead after each step, as long as both tenants wait."""
    ahead = [0.0]
    while backlogged(it, one, other):
        it.step()
        had = it.service(**weights)
        ahead.append(had[one] - had[other])
    return ahead


# ---- the virtual token counter


@settings(deadline=None, max_examples=60)
@given(
    st.lists(requests, min_size=5, max_size=25),
    st.lists(requests, min_size=5, max_size=25),
    st.integers(18, 60),
    st.sampled_from([(1.0, 2.0), (1.0, 0.0), (0.0, 1.0), (3.0, 0.5)]),
    st.sampled_from(["contiguous", "paged"]),
)
def test_the_service_of_two_that_always_wait_differs_by_a_bound(
    one: Any, other: Any, blocks: int, weights: tuple[float, float], allocation: str
) -> None:
    """Theorem 4.4: |W_f - W_g| <= 2 max(w_p L_input, w_q M) in any interval, and (lemma 4.3) half
    of that from the start. M is the pool, whose tokens bound the outputs of those that run.
    """
    input_weight, output_weight = weights
    it = Steps(
        f"vtc:input_weight={input_weight}:output_weight={output_weight}",
        num_blocks=blocks + 1, allocation=allocation, max_model_len=LONGEST + 30,
    )  # fmt: skip
    for number in range(max(len(one), len(other))):
        for tenant, wanted in (("f", one), ("g", other)):
            if number < len(wanted):
                prompt, output = wanted[number]
                it.add(prompt, output, tenant=tenant)
    ahead = gaps(it, "f", "g", input_weight=input_weight, output_weight=output_weight)
    bound = max(input_weight * LONGEST, output_weight * blocks * 4)
    assert max(ahead) <= bound
    assert min(ahead) >= -bound
    assert max(ahead) - min(ahead) <= 2 * bound


def flood(order: str, **limits: Any) -> Steps:
    """Tenant g asks three times as much as f, and is always there first."""
    it = Steps(order, **({"max_num_seqs": 4} | limits))
    for _ in range(60):
        it.add_all([(8, 10, "g"), (8, 10, "g"), (8, 10, "g"), (8, 10, "f")])
    return it


def test_first_come_first_served_keeps_no_such_bound() -> None:
    fcfs, vtc = (flood(order) for order in ("fcfs", "vtc"))
    bound = max(8, 2 * 4 * 18)
    assert -min(gaps(vtc, "f", "g")) < bound
    assert -min(gaps(fcfs, "f", "g")) > 5 * bound


def until_one_is_through(it: Steps, *tenants: str) -> dict[str, float]:
    while backlogged(it, *tenants):
        it.step()
    return it.service()


@pytest.mark.parametrize("order", ["vtc", "deficit-round-robin:quantum=20", "dlpm:quantum=20"])
@pytest.mark.parametrize("weight", [0.5, 1.0, 2.0, 3.0])
def test_shares_are_as_the_weights(order: str, weight: float) -> None:
    """Of whatever the policy counts: with equal requests that is of anything."""
    it = Steps(f"{order}:g={weight}", max_num_seqs=4)
    it.add_all([(8, 10, "g"), (8, 10, "f")] * 200)
    had = until_one_is_through(it, "f", "g")
    assert had["g"] / had["f"] == pytest.approx(weight, rel=0.05)


def test_three_tenants_have_their_shares_together() -> None:
    it = Steps("vtc:b=2:c=4", max_num_seqs=5)
    it.add_all([(5, 12, "a"), (20, 4, "b"), (1, 15, "c")] * 150)
    had = until_one_is_through(it, "a", "b", "c")
    assert had["b"] / had["a"] == pytest.approx(2, rel=0.1)
    assert had["c"] / had["a"] == pytest.approx(4, rel=0.1)


def test_inputs_and_outputs_count_as_stated() -> None:
    """f sends long prompts, g gets long answers; what is equal is the weighted sum."""
    for input_weight, output_weight in ((1, 2), (1, 0.1), (0.1, 1)):
        it = Steps(f"vtc:input_weight={input_weight}:output_weight={output_weight}",
                   max_num_seqs=3)  # fmt: skip
        it.add_all([(40, 4, "f"), (4, 40, "g")] * 150)
        while backlogged(it, "f", "g"):
            it.step()
        had = it.service(input_weight, output_weight)
        assert had["f"] / had["g"] == pytest.approx(1, rel=0.1)


@settings(deadline=None, max_examples=15)
@given(st.integers(1, 80), st.integers(1, 4))
def test_having_been_away_earns_nothing(alone: int, places: int) -> None:
    """f had nothing to do for as long as it likes: from its return on the bound holds."""
    it = Steps("vtc", max_num_seqs=places)
    it.add_all([(8, 10, "g")] * 80)
    for _ in range(alone):
        it.step()
    it.add_all([(8, 10, "f")] * 30)
    before = it.service()
    ahead = [0.0]
    while backlogged(it, "f", "g"):
        it.step()
        had = it.service()
        ahead.append(had["f"] - before["f"] - had["g"] + before["g"])
    assert max(ahead) - min(ahead) <= 2 * max(8, 2 * places * 18)


def test_who_comes_into_an_empty_queue_is_lifted_to_who_left_it_last() -> None:
    """Otherwise f, which has had nothing, would be served until it has had what g had."""
    it = Steps("vtc", max_num_seqs=1)
    it.add_all([(8, 10, "g")] * 20)
    it.until_idle()
    it.add_all([(8, 10, "f"), (8, 10, "g")] * 10)
    it.until_idle()
    tenants = [seq.request.tenant for seq in it.admitted[20:]]
    assert all(abs(tenants[:n].count("f") - tenants[:n].count("g")) <= 1 for n in range(21))


@pytest.mark.parametrize("order", ["vtc", "deficit-round-robin", "dlpm"])
def test_a_tenant_alone_has_it_all(order: str) -> None:
    """Work conserving: a share that nobody takes is not kept free."""
    alone, fcfs = Steps(order, max_num_seqs=3), Steps("fcfs", max_num_seqs=3)
    for it in (alone, fcfs):
        it.add_all([(8, 10, "f")] * 20)
        it.until_idle()
    assert alone.count == fcfs.count
    assert alone.order() == fcfs.order()


@settings(deadline=None, max_examples=80)
@given(
    st.lists(
        st.tuples(st.integers(1, 5), st.integers(1, 9), st.sampled_from("fgh"), st.integers(0, 3)),
        min_size=2,
        max_size=15,
    ),
    st.integers(6, 9),
    st.sampled_from([12, 16, 60]),
    st.sampled_from(["whole prompts", "chunks", "asynchronous"]),
)
def test_accounts_are_what_was_served(wanted: Any, budget: int, num_blocks: int, way: str) -> None:
    """After every step and to the token, whoever is preempted, left out of a step, or done."""
    it = Steps(
        "vtc", max_num_batched_tokens=budget, num_blocks=num_blocks,
        prefill_first=way == "whole prompts", chunked_prefill=way != "whole prompts",
        async_scheduling=way == "asynchronous", max_model_len=1000,
    )  # fmt: skip
    coming = list(wanted)
    while coming or not it.core.idle:
        if coming:
            prompt, output, tenant, gap = coming.pop(0)
            # recomputed whole, so it must fit into a step
            it.add(prompt, min(output, budget - prompt), tenant=tenant)
        for _ in range(gap if coming else 1):
            it.step()
            accounts = it.core.queue._discipline._accounts
            had = {t: one.input_tokens + 2 * one.output_tokens for t, one in accounts.items()}
            assert had == {t: tokens for t, tokens in it.service().items() if t in had}
            assert all(tokens == 0 for t, tokens in it.service().items() if t not in had)


def test_a_preempted_prompt_is_charged_once() -> None:
    it = Steps("vtc", num_blocks=12)
    it.add_all([(8, 25, "f"), (8, 25, "g")] * 4)
    it.until_idle()
    assert any(seq.preemptions for seq in it.all)
    accounts = it.core.queue._discipline._accounts
    for tenant in ("f", "g"):
        assert accounts[tenant].input_tokens == 4 * 8
        assert accounts[tenant].output_tokens == 4 * 25


# ---- deficit round robin


@settings(deadline=None, max_examples=60)
@given(
    st.lists(requests, min_size=5, max_size=25),
    st.lists(requests, min_size=5, max_size=25),
    st.integers(1, 100),
    st.integers(1, 3),
)
def test_deficits_keep_service_within_a_quantum_and_what_runs(
    one: Any, other: Any, quantum: int, places: int
) -> None:
    """Tokens served differ by no more than a quantum and what each may owe, a prompt and the
    outputs of all that run (Shreedhar and Varghese, lemma 2, with payment afterwards).
    """
    it = Steps(f"deficit-round-robin:quantum={quantum}", max_num_seqs=places)
    for number in range(max(len(one), len(other))):
        for tenant, wanted in (("f", one), ("g", other)):
            if number < len(wanted):
                prompt, output = wanted[number]
                it.add(prompt, output, tenant=tenant)
    owed = LONGEST + 30 * places
    ahead = gaps(it, "f", "g", input_weight=1, output_weight=1)
    assert max(map(abs, ahead)) <= 2 * (quantum + owed)


def tenants_in_turn(it: Steps) -> str:
    return "".join(seq.request.tenant for seq in it.until_idle().admitted)


def test_a_turn_lasts_a_quantum() -> None:
    it = Steps("deficit-round-robin:quantum=36", max_num_seqs=1)
    it.add_all([(8, 10, "f")] * 8 + [(8, 10, "g")] * 8)
    assert tenants_in_turn(it) == "ffgg" * 4


def test_nobody_is_passed_over_because_the_one_before_has_left() -> None:
    it = Steps("deficit-round-robin:quantum=36", max_num_seqs=1)
    it.add_all([(8, 10, "f")] + [(8, 10, "g")] * 4 + [(8, 10, "h")] * 4)
    assert tenants_in_turn(it) == "fgghhgghh"


# ---- locality and fairness


def shared_prefixes(order: str) -> tuple[float, float]:
    """Share of prompt tokens that hit, and how far tenants are apart at most.

    Tenant f's requests all begin alike, g's in one of thirty ways that do not stay in the cache.
    """
    it = Steps(order, max_num_seqs=2, num_blocks=61, prefix_caching=True)
    for number in range(40):
        for tenant, kind in (("f", 1), ("g", 2 + number % 30)):
            it.add(44, 4, tenant=tenant, hashes=(kind,), hash_tokens=40, hashed_tokens=40)
    ahead = gaps(it, "f", "g", input_weight=1, output_weight=1)
    it.until_idle()
    hits = sum(seq.cached_tokens for seq in it.all) / (44 * len(it.all))
    return hits, max(map(abs, ahead))


def test_dlpm_lies_between_longest_prefix_match_and_vtc() -> None:
    names = ("longest-prefix-match", "dlpm:quantum=120", "dlpm:quantum=30", "vtc:output_weight=1")
    hits, apart = zip(*(shared_prefixes(name) for name in names), strict=True)
    assert apart[0] > apart[1] > apart[2] >= 0
    assert apart[0] > 3 * apart[3]
    assert hits[0] >= hits[1] >= hits[2]


def test_dlpm_without_end_is_longest_prefix_match() -> None:
    assert shared_prefixes("dlpm:quantum=1000000") == shared_prefixes("longest-prefix-match")
