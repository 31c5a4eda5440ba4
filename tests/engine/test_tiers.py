"""Which blocks lie in which tier, and what has to move, against texts known without any cache."""

from collections import Counter
from functools import partial
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from engine.config import CacheSettings, EngineSettings, OffloadSettings, SchedulerSettings
from engine.llm import LLMEngine
from engine.metrics import TIMED_OUT
from engine.moment import Moment
from engine.sequence import Sequence
from engine.tiers import Tier, Tiers, room_below
from engine.work import CPU, GPU, REMOTE, Generation, Move, Place
from tests.engine.ledger import Ledger, continuation
from tests.engine.test_llm import Steps, nothing_leaked
from traces.request import Request

NO_STOP: frozenset[int] = frozenset()


class Places(dict[tuple[int, int], list[int | None]]):
    """What lies where: on a GPU of its own, in the pool that is everybody's."""

    def __init__(self, own: dict[tuple[int, int], list[int | None]], pool: "Places | None"):
        super().__init__(own)
        self.pool: dict[tuple[int, int], list[int | None]] = {} if pool is None else pool.pool

    def __missing__(self, place: tuple[int, int]) -> list[int | None]:
        return self.pool[place]

    def __setitem__(self, place: tuple[int, int], entries: list[int | None]) -> None:
        target = self.pool if place[0] == REMOTE else super()
        target.__setitem__(place, entries)


def replicas(
    count: int, pool_slots: int, offload: dict[str, Any], **scheduler: Any
) -> list[LLMEngine]:
    """Engines with texts in place of keys and values, that share a pool."""
    limits = {"max_num_seqs": 8, "max_num_batched_tokens": 24, "max_model_len": 64, **scheduler}
    chosen = EngineSettings(
        model="none",
        kv_dtype="fp32",
        scheduler=SchedulerSettings(**limits),
        cache=CacheSettings(block_tokens=4),
        offload=OffloadSettings(**offload),
    )
    # the simulator's scheduler, in the engine's loop
    offloaded = chosen.offload.model_copy(update={"remote_bytes": max(pool_slots, 1)})
    chosen = chosen.model_copy(update={"offload": offloaded})
    made: list[LLMEngine] = []
    pool = room_below(REMOTE, pool_slots, 1, chosen.offload.eviction, Moment())
    for _ in range(count):
        ledger = Ledger(19, 4)
        ledger.places = Places(ledger.places, made[0].executor.places if made else None)  # type: ignore[attr-defined]
        with patch("engine.llm.Tiers", partial(Tiers, remote=pool)):
            made.append(LLMEngine(ledger, chosen, clock=Steps()))
    return made


def sound(engines: list[LLMEngine]) -> None:
    """No slot is lost, held twice, or beyond a tier's size; content lies once in a tier."""
    for tier in {id(tier): tier for it in engines for tier in it.tiers.tiers}.values():  # type: ignore[union-attr]
        swapped = [
            slot
            for it in engines
            for slots in it.tiers._swapped.values()  # type: ignore[union-attr]
            for slot in slots
            if tier is it.tiers.tiers[0]  # type: ignore[union-attr]
        ]
        held = [piece.names[0] for piece in tier._pieces.values()]
        slots = Counter([*held, *tier._free, *swapped])
        assert set(slots) <= set(range(tier.slots))
        assert len(held) + tier.free + len(swapped) == tier.slots
        assert max(slots.values(), default=1) == 1
        assert tier._pinned == sum(piece.refs > 0 for piece in tier._pieces.values())


prompts = st.builds(
    lambda family, start, own: [*(10 * family + at % 7 for at in range(start)), *own],
    st.integers(0, 3),
    st.sampled_from([12, 20, 32, 40]),
    st.lists(st.integers(40, 49), max_size=6),
)
"""Some conversations asked for again and again, more of them than a pool holds."""
asks = st.lists(
    st.tuples(
        prompts,
        st.integers(1, 9),
        st.sampled_from([0, 0, 0, 1]),
        st.integers(0, 5),
        st.sampled_from([10**9, 10**9, 10**9, 0, 1, 5]),
    ),
    min_size=12,
    max_size=30,
)
offloads = st.fixed_dictionaries(
    {
        "cpu_bytes": st.sampled_from([0, 1, 6, 20]),
        "disk_bytes": st.sampled_from([0, 0, 4]),
        "disk_path": st.just("unused"),
        "write": st.sampled_from(["on_evict", "through"]),
        "eviction": st.sampled_from(["lru", "fifo"]),
        "prefetch": st.sampled_from(["never", "on_arrival", "on_arrival"]),
        "prefetch_share": st.sampled_from([0.3, 1.0]),
    }
)


@settings(max_examples=300, deadline=None)
@given(asks, offloads, st.sampled_from([0, 6, 40]), st.booleans(), st.booleans())
def test_what_others_put_into_the_pool_is_the_same_text(wanted, offload, pool, late, swap):
    preemption = "swap" if swap and offload["cpu_bytes"] else "recompute"
    engines = replicas(
        2, pool, offload, async_scheduling=late, preemption=preemption, max_num_seqs=3
    )
    waiting = list(wanted)
    due = 0
    running: dict[Generation, tuple[LLMEngine, list[int], int]] = {}
    first_admitted = ended = 0
    for step in range(3000):
        while waiting and due + waiting[0][3] <= step:
            prompt, tokens, which, gap, patience = waiting.pop(0)
            due += gap
            it = engines[which]
            generation = it.add(prompt, tokens)
            it.executor.move(it.tiers.take_early())  # type: ignore[attr-defined, union-attr]
            running[generation] = it, continuation(prompt, tokens, NO_STOP), step + patience
        for generation, (it, _, until) in running.items():
            if step >= until:
                it.abort(generation)
        for it in engines:
            for generation in it.step():
                _, text, _ = running.pop(generation)
                assert generation.output == text[: len(generation.output)]
                assert generation.outcome == TIMED_OUT or generation.output == text
                first_admitted += generation.seq.admitted >= 0 and generation.seq.prompt_tokens
                ended += 1
            sound(engines)
        if not waiting and not any(it.work_left for it in engines):
            break
    assert ended == len(wanted)
    summaries = [it.tiers.summary() for it in engines]  # type: ignore[union-attr]
    found = sum(
        count
        for one in summaries
        for name, count in one.items()
        if name.endswith("_hit_tokens") or name == "computed_tokens"
    )
    assert found == first_admitted
    for it in engines:
        nothing_leaked(it)
        assert not it.scheduler.blocks.early
        assert not it.tiers._arriving and not it.tiers._origins  # type: ignore[union-attr]


@pytest.mark.parametrize("write", ["on_evict", "through"])
def test_a_replica_finds_what_another_put_into_the_pool(write: str):
    one, other = replicas(2, 100, {"write": write}, async_scheduling=False)
    prompt = list(range(30))
    one.add(prompt, 2)
    one.run()
    for filler in range(8):  # pushes the prompt out of the first one's blocks
        one.add([40, *range(filler, filler + 29)], 2)
        one.run()
    before = other.executor.computed_tokens  # type: ignore[attr-defined]
    assert before == 0
    [generation] = [other.add(prompt, 2)] and other.run()
    assert generation.output == continuation(prompt, 2, NO_STOP)
    assert other.executor.computed_tokens == 2 + 1  # type: ignore[attr-defined]
    assert other.tiers.summary()["remote_hit_tokens"] == 28  # type: ignore[union-attr]


def key_of(number: int) -> tuple[int, Sequence]:
    return number, Sequence(Request(number, 0.0, 8, 1), number, 0)


def keep(tiers: Tiers, number: int) -> None:
    key, owner = key_of(number)
    tiers.evicted(key, owner, 0, name=number)


def moved(tiers: Tiers) -> list[Move]:
    before, after = tiers.take_moves()
    assert after == ()
    return list(before)


def test_a_block_goes_down_tier_by_tier_and_another_replica_loads_it_from_the_pool():
    pool = room_below(REMOTE, 2, 1, "lru", Moment())
    one, other = (Tiers(OffloadSettings(cpu_bytes=1), 1, remote=pool) for _ in range(2))
    keep(one, 7)
    keep(one, 8)
    assert moved(one) == [
        Move(Place(GPU, 7), Place(CPU, 0)),
        Move(Place(CPU, 0), Place(REMOTE, 0)),
        Move(Place(GPU, 8), Place(CPU, 0)),
    ]
    other.pin([7])
    other.load([7], [3])
    assert moved(other) == [Move(Place(REMOTE, 0), Place(GPU, 3))]
    # what only the pool holds goes to a replica's own memory as it leaves its GPU
    keep(other, 7)
    assert moved(other) == [Move(Place(GPU, 3 + 4), Place(CPU, 0))]
    # and from there nowhere, for the pool has it
    keep(other, 9)
    assert moved(other) == [Move(Place(GPU, 9), Place(CPU, 0))]
    assert pool is not None and pool.blocks == 1


def test_write_through_goes_to_the_pool_as_well():
    pool = room_below(REMOTE, 2, 1, "lru", Moment())
    one = Tiers(OffloadSettings(cpu_bytes=1, write="through"), 1, remote=pool)
    key, owner = key_of(7)
    one.computed(key, owner, 0, 3)
    before, after = one.take_moves()
    assert before == ()
    assert after == (
        Move(Place(GPU, 3), Place(CPU, 0)),
        Move(Place(CPU, 0), Place(REMOTE, 0)),
    )
    one.evicted(key, owner, 0, 3)
    assert moved(one) == []
    assert pool is not None and pool.blocks == pool.slots - pool.free == 1


def test_what_is_pinned_stays():
    tier = room_below(CPU, 3, 1, "lru", Moment())
    assert isinstance(tier, Tier)
    for number in range(3):
        key, owner = key_of(number)
        tier.keep(tier.newcomer(key, owner, 0), tier.take())
    tier.pin(0)
    tier.pin(2)
    first = tier.evict()
    assert first is not None and first.key == 1
    assert tier.evict() is None
    tier.unpin(2, hits=1)
    second = tier.evict()
    assert second is not None and (second.key, second.hits) == (2, 1)


class Selective:
    """Keeps and loads as a test says."""

    def __init__(self, load: int = 0, levels: tuple[int, ...] = ()) -> None:
        self.load = load
        self.levels = levels
        self.asked: list[list[Place]] = []

    def blocks_to_load(self, seq: Sequence, start: int, places: list[Place]) -> int:
        self.asked.append(places)
        return self.load

    def is_worth_keeping(self, block: int, level: int) -> bool:
        return level in self.levels


def test_what_is_not_worth_keeping_does_not_move():
    pool = room_below(REMOTE, 9, 1, "lru", Moment())
    tiers = Tiers(OffloadSettings(cpu_bytes=1), 1, remote=pool)
    tiers.worth = Selective(levels=(CPU,))
    keep(tiers, 1)
    keep(tiers, 2)
    assert len(moved(tiers)) == 2
    assert tiers.summary()["dropped_blocks"] == 1
    tiers.worth = Selective(levels=(REMOTE,))
    keep(tiers, 3)
    assert moved(tiers) == []


@pytest.mark.parametrize("load", [0, 1, 5])
def test_as_many_blocks_are_loaded_as_are_worth_it(load: int):
    [it] = replicas(1, 100, {}, async_scheduling=False)
    prompt = list(range(30))
    for tokens in (prompt, *([40, *range(filler, filler + 29)] for filler in range(8))):
        it.add(tokens, 2)
        it.run()
    assert it.tiers is not None
    worth = it.tiers.worth = Selective(load, (REMOTE,))
    before = it.executor.computed_tokens  # type: ignore[attr-defined]
    generation = it.add(prompt, 2)
    it.run()
    assert generation.output == continuation(prompt, 2, NO_STOP)
    assert it.executor.computed_tokens - before == 31 - 4 * load  # type: ignore[attr-defined]
    assert [len(places) for places in worth.asked] == [7]


@pytest.mark.parametrize(
    ("setting", "value"),
    [("remote_bytes", 1), ("dtype", "int8"), ("reload", "cheaper"), ("cpu_bytes_per_s", 1e9)],
)
def test_the_engine_refuses_what_only_the_simulator_knows(setting: str, value: Any):
    with pytest.raises(ValidationError, match=rf"offload\.{setting}: is '?{value}.* simulator"):
        EngineSettings(model="none", offload=OffloadSettings(**{setting: value}))


def test_settings_are_refused_that_no_tier_can_have():
    with pytest.raises(ValidationError):
        OffloadSettings(remote_bytes=-1)
    assert OffloadSettings().simulated_only() == ()
    make = partial(OffloadSettings, disk_path="there", prefetch="on_arrival", write="through")
    assert make(cpu_bytes=5, disk_bytes=5).simulated_only() == ()


def in_the_pool(prompt: list[int], **offload: Any) -> LLMEngine:
    """A replica that has lost a prompt of 30 tokens to the pool, and serves one at a time."""
    [it] = replicas(1, 100, offload, async_scheduling=False, max_num_seqs=1)
    for tokens in (prompt, *([40, *range(filler, filler + 29)] for filler in range(8))):
        it.add(tokens, 2)
        it.run()
    return it


def test_what_a_queued_request_needs_is_loaded_once_and_held_until_it_runs():
    prompt = list(range(30))
    it = in_the_pool(prompt, prefetch="on_arrival", prefetch_share=1.0)
    assert it.tiers is not None
    it.add([45] * 9, 8)
    it.step()
    free = it.scheduler.blocks.free
    waiting = it.add(prompt, 2)
    assert it.scheduler.blocks.free == free - 7
    early = it.tiers.take_early()
    assert [move.source.level for move in early if move.target.level == GPU] == [REMOTE] * 7
    it.executor.move(early)  # type: ignore[attr-defined]
    assert it.tiers.take_due() == []
    loaded = it.tiers.loaded
    it.run()
    assert waiting.output == continuation(prompt, 2, NO_STOP)
    assert waiting.seq.cached_tokens == 28
    assert it.tiers.loaded == loaded
    assert it.tiers.summary()["remote_hit_tokens"] == 28
    nothing_leaked(it)


def test_the_first_step_that_reads_what_was_loaded_early_has_to_wait_for_it():
    prompt = list(range(30))
    it = in_the_pool(prompt, prefetch="on_arrival")
    assert it.tiers is not None
    it.add(prompt, 2)
    names = [move.target.slot for move in it.tiers.take_early() if move.target.level == GPU]
    batch = it.scheduler.schedule()
    assert batch is not None and [seq.table[:7] for seq in batch.admitted] == [names]
    assert it.tiers.take_due() == names
    assert it.tiers.take_due() == []


@pytest.mark.parametrize("share", [0.1, 0.4, 1.0])
def test_no_more_is_held_for_who_waits_than_its_share(share: float):
    it = in_the_pool(list(range(30)), prefetch="on_arrival", prefetch_share=share)
    it.add([45] * 9, 8)
    it.step()
    free, most = it.scheduler.blocks.free, int(share * 18)
    it.add(list(range(30)), 2)
    first = free - it.scheduler.blocks.free
    assert first == min(7, most)
    it.add([40, *range(29)], 2)  # of the other prompts that the pool has by now
    assert free - it.scheduler.blocks.free == first + min(7, most - first)


@pytest.mark.parametrize("end", ["abort", "admission of another", "growth of another"])
def test_what_is_held_for_who_waits_is_let_go(end: str):
    prompt = list(range(30))
    it = in_the_pool(prompt, prefetch="on_arrival", prefetch_share=1.0)
    assert it.tiers is not None
    running = it.add([45] * 40, 20 if end == "growth of another" else 2)
    it.step()
    it.step()
    large = it.add([46] * 52, 2) if end == "admission of another" else None
    waiting = it.add(prompt, 2)
    assert len(it.scheduler.blocks.early) == 1
    early = it.tiers.take_early()
    it.executor.move(early)  # type: ignore[attr-defined]
    if end == "abort":
        it.abort(waiting)
        it.step()
        assert not it.scheduler.blocks.early
    it.run()
    assert sum(move.target.level == GPU for move in early) == 7
    assert running.output == continuation([45] * 40, len(running.output), NO_STOP)
    assert running.seq.preemptions == 0
    if large is not None:
        assert large.seq.admission < waiting.seq.admission
    nothing_leaked(it)


def test_others_do_not_look_in_the_pool_for_what_is_yet_to_be_copied():
    pool = room_below(REMOTE, 2, 1, "lru", Moment())
    one = Tiers(OffloadSettings(write="through"), 1, remote=pool)
    key, owner = key_of(7)
    one.computed(key, owner, 0, 3, leaving=True)
    assert one.take_moves() == ((), ())
    assert pool is not None and key not in pool
