"""The engine's loop against texts that are known without any cache."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config import CacheSettings, EngineSettings, OffloadSettings, SchedulerSettings
from engine.llm import LLMEngine
from engine.metrics import FINISHED, TIMED_OUT
from engine.policies import VICTIM
from engine.work import Generation
from tests.engine.eviction.audit import POLICIES, SPECS
from tests.engine.ledger import VOCAB, Ledger, continuation
from tests.sim.clusters import orders
from traces.errors import ConfigError
from traces.request import Request

NO_STOP: frozenset[int] = frozenset()


class Steps:
    """A clock that counts how often it is asked."""

    def __init__(self) -> None:
        self.time = 0

    def now(self) -> int:
        self.time += 1
        return self.time

    def wait_until(self, time: int) -> None:
        self.time = max(self.time, time)


def engine(
    num_blocks: int = 40,
    *,
    cache: dict[str, Any] | None = None,
    offload: dict[str, Any] | None = None,
    **scheduler: Any,
) -> LLMEngine:
    limits = {"max_num_seqs": 8, "max_num_batched_tokens": 24, "max_model_len": 64, **scheduler}
    chosen = EngineSettings(
        model="none",
        kv_dtype="fp32",
        scheduler=SchedulerSettings(**limits),
        cache=CacheSettings(**{"block_tokens": 4, **(cache or {})}),
        offload=OffloadSettings(**(offload or {})),
    )
    ledger = Ledger(num_blocks, chosen.cache.block_tokens)
    return LLMEngine(ledger, chosen, clock=Steps())


def nothing_leaked(it: LLMEngine) -> None:
    blocks = it.scheduler.blocks
    assert blocks.free == blocks.usable
    assert blocks.contested == 0
    assert not it.executor.last  # type: ignore[attr-defined]
    if it.tiers is not None:
        for tier in it.tiers.tiers:
            assert tier.free + tier.blocks == tier.slots


prompts = st.builds(
    lambda start, own: [*range(start), *own],
    st.sampled_from([0, 3, 8, 11, 16, 25, 32]),
    st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=8),
)
asks = st.lists(
    st.tuples(
        prompts,
        st.integers(1, 24),
        st.sampled_from([NO_STOP, NO_STOP, frozenset(range(3))]),
        st.integers(0, 2),
        st.sampled_from([0, 0, 1, 2, 5, 12, 30]),
        st.sampled_from([0, 0, 0, 0, 1, 5]),
    ),
    min_size=6,
    max_size=16,
)
schedulers = st.fixed_dictionaries(
    {
        "async_scheduling": st.booleans(),
        "order": orders,
        "victim": st.sampled_from([None, None, *VICTIM]),
        "chunking": st.sampled_from(
            [None, "fixed:tokens=1", "fixed:tokens=5", "stall-free:tokens=4"]
        ),
        "max_num_seqs": st.integers(2, 8),
        "max_num_batched_tokens": st.sampled_from([6, 24, 64]),
        "long_prefill_token_threshold": st.sampled_from([0, 3]),
        "preemption": st.sampled_from(["recompute", "swap"]),
        "reserve_full_sequence": st.just(True),
    }
)
caches = st.fixed_dictionaries(
    {"prefix_caching": st.booleans(), "eviction": st.sampled_from(SPECS)}
)
offloads = st.fixed_dictionaries(
    {
        "cpu_bytes": st.integers(1, 20),
        "disk_bytes": st.integers(0, 12),
        "disk_path": st.just("unused"),
        "write": st.sampled_from(["on_evict", "through"]),
        "prefetch": st.sampled_from(["never", "on_arrival"]),
        "prefetch_share": st.sampled_from([0.3, 1.0]),
        "eviction": st.sampled_from(POLICIES),
    }
)


@settings(max_examples=400, deadline=None)
@given(asks, schedulers, caches, offloads, st.sampled_from([17, 17, 19, 23, 40]))
def test_whatever_is_reused_the_text_is_the_same(wanted, scheduler, cache, offload, num_blocks):
    it = engine(num_blocks, cache=cache, offload=offload, **scheduler)
    waiting = sorted(enumerate(wanted), key=lambda ask: ask[1][4])
    running: dict[Generation, tuple[list[int], int, frozenset[int], int]] = {}
    ended = 0
    for step in range(3000):
        while waiting and waiting[0][1][4] <= step:
            number, (prompt, tokens, stop, priority, _, patience) = waiting.pop(0)
            request = Request(
                number,
                0.0,
                1,
                1,
                tenant=f"t{number % 3}",
                slo_class=f"c{priority}",
                priority=priority,
            )
            generation = it.add(prompt, tokens, stop_tokens=stop, request=request)
            running[generation] = (prompt, tokens, stop, step + patience if patience else 10**9)
        for generation, (_, _, _, until) in running.items():
            if step >= until:
                it.abort(generation)
        for generation in it.step():
            prompt, tokens, stop, _ = running.pop(generation)
            want = continuation(prompt, tokens, stop)
            got = generation.output
            if generation.outcome == TIMED_OUT:
                assert got == want[: len(got)]
            else:
                assert generation.outcome == FINISHED
                assert got == want
            ended += 1
        if not waiting and not it.work_left:
            break
    assert ended == len(wanted)
    nothing_leaked(it)


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
def test_a_prompt_that_has_outgrown_the_budget_ends_the_run(asynchronous: bool) -> None:
    whole = {"chunked_prefill": False, "async_scheduling": asynchronous}
    it = engine(16, cache={"prefix_caching": False}, **whole)
    for number in range(3):
        it.add([number] * 20, 30)
    with pytest.raises(ConfigError, match=r"request 1: \d+ tokens .* exceed scheduler"):
        it.run()
