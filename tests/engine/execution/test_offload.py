"""Copies between tiers against a model that makes one after the other."""

from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config import (
    CacheSettings,
    EngineSettings,
    OffloadSettings,
    SchedulerSettings,
)
from engine.execution.offload import Offloader
from engine.llm import LLMEngine
from engine.metrics import FINISHED
from engine.work import CPU, DISK, GPU
from tests.engine.execution.latedevice import ENTRIES, LateDevice, LateLedger, LateMark
from tests.engine.execution.rehearsal import (
    HOST,
    Model,
    fill,
    numbers,
    offload_settings,
    pool_of,
    slow_disk,
)
from tests.engine.ledger import continuation
from tests.engine.test_llm import Steps, asks, caches, offloads, schedulers
from traces.errors import ConfigError
from traces.request import Request

rooms = st.tuples(st.integers(2, 8), st.integers(0, 6), st.integers(0, 6))
seeds = st.integers(0, 2**32)


@settings(max_examples=60, deadline=None)
@given(slots=rooms, spares=st.integers(1, 3), seed=seeds, slow=st.booleans())
def test_moves_have_the_effect_of_one_after_the_other(slots, spares, seed, slow):
    random = Random(seed)
    model, pool = Model(slots, random), pool_of(slots[GPU])
    with TemporaryDirectory() as folder:
        chosen = offload_settings(pool, slots, Path(folder) / "a" / "b")
        offloader = Offloader(pool, chosen, HOST, spare_rows=spares)
        try:
            if slow:
                with slow_disk(Random(seed + 1)):
                    model.run_at_once(offloader, pool, 8)
                    model.check(offloader, pool, lambda: None)
            else:
                model.run_at_once(offloader, pool, 30)
                model.check(offloader, pool, lambda: None)
            assert offloader.lost() == ()
        finally:
            offloader.close()


@settings(max_examples=400, deadline=None)
@given(
    slots=rooms.filter(lambda slots: slots[CPU] + slots[DISK] > 0),
    spares=st.integers(1, 3),
    seed=seeds,
    eager=st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]),
    asynchronous=st.booleans(),
)
def test_steps_and_copies_meet_in_the_right_order(slots, spares, seed, eager, asynchronous):
    random = Random(seed)
    model, pool = Model(slots, random), pool_of(slots[GPU])
    device = LateDevice(Random(seed + 1), eager)
    wrong: list[str] = []

    def kernel(step):
        held = numbers(pool)
        wrong.extend(f"{step}: {b}" for b, number in step.reads.items() if held[b] != number)
        for block, number in step.writes.items():
            fill(pool, block, number)

    with TemporaryDirectory() as folder:
        offloader = Offloader(
            pool,
            offload_settings(pool, slots, folder),
            HOST,
            asynchronous=asynchronous,
            stream=device,
            spare_rows=spares,
        )
        try:
            under_way: list[LateMark] = []
            for step in model.steps(20, asynchronous=asynchronous):
                offloader.before(step.before, step.unsettled)
                under_way.append(device.launch(lambda step=step: kernel(step)))
                offloader.after(step.after)
                for _ in range(random.randrange(6)):
                    device.advance()
                if len(under_way) > asynchronous:
                    under_way.pop(0).synchronize()
            device.finish()
            assert not wrong
            model.check(offloader, pool, device.finish)
        finally:
            offloader.close()


@settings(max_examples=300, deadline=None)
@given(
    asks,
    schedulers,
    caches,
    offloads,
    st.sampled_from([17, 17, 19, 23, 40]),
    seeds,
    st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]),
    st.integers(1, 3),
)
def test_the_scheduler_keeps_the_promises_that_copies_rely_on(
    wanted, scheduler, cache, offload, num_blocks, seed, eager, spares
):
    with TemporaryDirectory() as folder:
        room = {f"{name}_bytes": offload[f"{name}_bytes"] * 32 for name in ("cpu", "disk")}
        limits = {"max_num_seqs": 8, "max_num_batched_tokens": 24, "max_model_len": 64}
        chosen = EngineSettings(
            model="none",
            kv_dtype="fp32",
            scheduler=SchedulerSettings(**limits | scheduler),
            cache=CacheSettings(block_tokens=ENTRIES, **cache),
            offload=OffloadSettings(**offload | room | {"disk_path": folder}),
        )
        executor = LateLedger(num_blocks, chosen, Random(seed), eager, spares)
        it = LLMEngine(executor, chosen, clock=Steps())
        try:
            serve(it, wanted)
            executor.device.finish()
            assert not executor.wrong
        finally:
            it.close()


def serve(it: LLMEngine, wanted) -> None:
    """Have all that is asked for said, or given up by those who run out of patience."""
    waiting = sorted(wanted, key=lambda ask: ask[4])
    running = {}
    for step in range(3000):
        while waiting and waiting[0][4] <= step:
            prompt, tokens, stop, priority, _, patience = waiting.pop(0)
            request = Request(len(waiting), 0.0, 1, 1, priority=priority)
            one = it.add(prompt, tokens, stop_tokens=stop, request=request)
            running[one] = continuation(prompt, tokens, stop), step + (patience or 10**9)
        for one, (_, until) in running.items():
            if step >= until:
                it.abort(one)
        for one in it.step():
            said, _ = running.pop(one)
            assert one.output == (said if one.outcome == FINISHED else said[: len(one.output)])
        if not waiting and not it.work_left:
            break
    assert not running


@pytest.mark.gpu
@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("slots", [(12, 9, 0), (12, 0, 9), (9, 6, 12)])
@pytest.mark.parametrize("head_dim", [64, 64 * 1024])
def test_steps_and_copies_on_a_gpu(slots, asynchronous, head_dim, tmp_path):
    device = torch.device("cuda", torch.cuda.current_device())
    random = Random(sum(slots) + asynchronous)
    model, pool = Model(slots, random), pool_of(slots[GPU], head_dim=head_dim, device=device)
    wrong = torch.zeros((), dtype=torch.int64, device=device)
    chosen = offload_settings(pool, slots, tmp_path)
    offloader = Offloader(pool, chosen, device, asynchronous=asynchronous, spare_rows=2)
    under_way = []
    for step in model.steps(300, asynchronous=asynchronous):
        offloader.before(step.before, step.unsettled)
        if random.random() < 0.3:
            torch.cuda._sleep(random.choice([10_000, 1_000_000]))
        for block, number in step.reads.items():
            wrong += (pool.buffer[block].view(torch.int64) != number).any()
        for block, number in step.writes.items():
            fill(pool, block, number)
        ended = torch.cuda.Event()
        ended.record()
        under_way.append(ended)
        offloader.after(step.after)
        if len(under_way) > asynchronous:
            under_way.pop(0).synchronize()
    torch.cuda.synchronize()
    assert not wrong.item()
    model.check(offloader, pool, torch.cuda.synchronize)
    offloader.close()


def test_more_memory_than_there_is_names_the_setting(tmp_path):
    pool = pool_of(3)
    with pytest.raises(ConfigError, match=r"^offload\.cpu_bytes: .* GiB.* is free"):
        Offloader(pool, OffloadSettings(cpu_bytes=2**60), HOST)


def test_bytes_are_counted_by_their_way(tmp_path):
    slots = (5, 3, 4)
    model, pool = Model(slots, Random(5)), pool_of(5)
    offloader = Offloader(pool, offload_settings(pool, slots, tmp_path), HOST)
    moves = model.some_moves(60)
    told = offloader.before(moves[:40], False) + offloader.after(moves[40:])
    size = pool.layout.block_bytes
    assert told == len(moves) * size == sum(offloader.moved_bytes.values())
    for way, moved in offloader.moved_bytes.items():
        assert moved == size * sum((s.level, t.level) == way for s, t in moves)
    assert len(offloader.moved_bytes) == 6
    offloader.close()
