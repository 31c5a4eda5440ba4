"""Whatever steps a scheduler cuts its sequences into, each says what it would say alone."""

from random import Random
from weakref import ref

import pytest

pytest.importorskip("torch")

from engine.execution.executor import TorchExecutor, load_executor
from engine.llm import LLMEngine
from engine.work import CPU, DISK, GPU, Move, Place, Share, Work
from tests.engine.execution.driving import (
    MAX_NUM_SEQS,
    VOCAB,
    Driver,
    assert_right,
    exaggerate,
    expected_output,
    generation,
    settings,
    some_generations,
)


def loaded(tmp_path, **changes) -> TorchExecutor:
    executor = load_executor(settings(tmp_path, **changes))
    exaggerate(executor.runner.model)
    return executor


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("kv_dtype", ["auto", "int8"])
def test_any_schedule_says_what_each_sequence_says_alone(tmp_path, depth, kv_dtype):
    executor = loaded(tmp_path, kv_dtype=kv_dtype)
    for seed in range(4):
        random = Random(10 * depth + seed)
        generations = some_generations(random, 12, sampled=seed % 2 == 1)
        driver = Driver(executor, random, depth)
        driver.serve(generations)
        assert driver.preemptions > 0
        assert_right(executor, generations)
        assert executor.planner.free_rows == MAX_NUM_SEQS
    assert len(executor._staging) == depth, "used again and again"


def test_scarce_blocks_preempt_and_come_back(tmp_path):
    executor = loaded(tmp_path, num_blocks=26)
    generations = some_generations(random := Random(5), 16)
    driver = Driver(executor, random, 2, preempting=0.0, arriving=1.0)
    driver.serve(generations)
    assert driver.preemptions > 2
    assert_right(executor, generations)


def test_without_reuse_nothing_depends_on_what_the_pool_holds(tmp_path):
    executor = loaded(tmp_path, kv_reuse=False, scheduler={"async_scheduling": False})
    generations = some_generations(random := Random(6), 8, sampled=True)

    class Forgetful(Driver):
        def take_output(self) -> None:
            super().take_output()
            executor.runner.pool.buffer.fill_(0x55)

    Forgetful(executor, random).serve(generations)
    assert_right(executor, generations)


def test_a_step_larger_than_the_plan_s_room_runs_too(tmp_path):
    executor = loaded(tmp_path, num_blocks=60, scheduler={"max_num_batched_tokens": 2})
    work = Work()
    for number in range(2):
        one = generation(number, [(7 * number + at * at) % VOCAB for at in range(90)], 1)
        one.seq.table = list(range(1 + 25 * number, 24 + 25 * number))
        work.prefills.append(Share(one, 90, 90))
    assert len(executor.planner.plan(work).vector) > len(executor.runner.words)
    for share in work.prefills:
        executor.drop(share.generation.seq)
    for share, token in zip(work.prefills, executor.launch(work).wait().tokens, strict=True):
        share.generation.tokens.append(token)
        assert_right(executor, [share.generation])


ROOM = {"cpu_bytes": 20 * 2048, "disk_bytes": 100 * 2048}
"""Of 20 blocks in memory, 100 on disk."""


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"cache": {"prefix_caching": True}},
        {"cache": {"prefix_caching": True}, "scheduler": {"async_scheduling": False}},
        {"cache": {"prefix_caching": True}, "offload": ROOM | {"write": "through"}},
        {"cache": {"prefix_caching": True}, "offload": ROOM, "kv_dtype": "fp8_token_head"},
        {"scheduler": {"preemption": "swap"}, "offload": ROOM},
        {"scheduler": {"async_scheduling": False}, "kv_reuse": False},
        {"scheduler": {"async_scheduling": False, "batching": "static"}},
    ],
    ids=str,
)
def test_under_the_engine_s_own_scheduler_too(tmp_path, changes):
    """Prompts begin alike, there are too few blocks, and some tokens are sampled or forced."""
    if "offload" in changes:
        offload = changes["offload"] | {"disk_path": str(tmp_path / "disk")}
        changes = changes | {"offload": offload}
    executor = loaded(tmp_path, **{"num_blocks": 28} | changes)
    engine, random = LLMEngine(executor, executor.settings), Random(3)
    begin = [random.randrange(VOCAB) for _ in range(40)]
    generations = [
        engine.add(
            begin[: random.choice((0, 8, 17, 40))] + one.tokens[:16],
            random.randint(1, 25),
            sampling=one.sampling,
            forced=one.forced,
        )
        for one in some_generations(random, 24, sampled=True)
    ]
    engine.run()
    assert sum(one.seq.preemptions for one in generations) > 0
    assert ("offload" in changes) == any(record["moved_bytes"] for record in engine.records)
    assert_right(executor, generations)
    assert executor.planner.free_rows == MAX_NUM_SEQS
    engine.close()


class Journal:
    """Notes the moves it is asked for, and what the pool held then."""

    def __init__(self, pool) -> None:
        self.pool, self.notes, self.closed = pool, [], False

    def before(self, moves, unsettled) -> int:
        return self.note(("before", unsettled), moves)

    def after(self, moves) -> int:
        return self.note(("after",), moves)

    def note(self, when, moves) -> int:
        self.notes.append((when, list(moves), self.pool.buffer[5].any().item()))
        return 10 * len(self.notes[-1][1])

    def close(self) -> None:
        self.closed = True


def test_moves_are_made_before_and_after_what_the_step_computes(tmp_path):
    executor = loaded(tmp_path)
    journal = executor.runner.mover = Journal(executor.runner.pool)
    one = generation(0, [3, 1, 4, 1], 2)
    one.seq.table = [5]
    before = [Move(Place(GPU, 5), Place(CPU, 7)), Move(Place(GPU, 6), Place(CPU, 2**20))]
    after = [Move(Place(GPU, 5), Place(DISK, 1))]
    step = Work([], [Share(one, 4, 4)], tuple(before), tuple(after), unsettled=True)
    assert executor.launch(step).wait().moved_bytes == 30
    nothing = executor.launch(Work()).wait()
    assert (nothing.tokens, nothing.graph_bucket, nothing.moved_bytes) == ([], 0, 0)
    assert journal.notes[:2] == [(("before", True), before, False), (("after",), after, True)]
    assert journal.notes[2:] == [(("before", False), [], True), (("after",), [], True)]
    executor.close()
    assert journal.closed


def test_blocks_come_back_from_the_tiers_below(tmp_path):
    """A sequence goes on in other blocks, into which its own were copied by way of a tier."""
    offload = {"cpu_bytes": 2**20, "disk_bytes": 2**20, "disk_path": str(tmp_path / "disk")}
    executor = loaded(tmp_path, offload=offload)
    one = generation(0, [3, 1, 4, 1, 5, 9, 2, 6, 5], 4)
    one.seq.table = [5, 6, 7]
    output = executor.launch(Work([], [Share(one, 9, 9)])).wait()
    one.tokens += output.tokens
    homes = [Place(CPU, 0), Place(DISK, 3), Place(CPU, 9)]
    down = tuple(Move(Place(GPU, block), at) for block, at in zip((5, 6, 7), homes, strict=True))
    assert executor.launch(Work(before=down)).wait().moved_bytes == 3 * executor.block_bytes
    executor.runner.pool.buffer[5:8] = 0x55
    executor.drop(one.seq)
    one.seq.table = [20, 30, 10]
    up = tuple(Move(at, Place(GPU, block)) for block, at in zip(one.seq.table, homes, strict=True))
    for context in range(10, 13):
        flight = executor.launch(Work([], [Share(one, context, 1)], up))
        one.tokens += flight.wait().tokens
        up = ()
    assert_right(executor, [one])
    executor.close()


def test_moves_without_a_tier_are_refused(tmp_path):
    with pytest.raises(RuntimeError, match="no tier below the pool"):
        loaded(tmp_path).launch(Work(before=(Move(Place(GPU, 1), Place(CPU, 0)),)))


def test_output_is_the_same_however_often_it_is_waited_for(tmp_path):
    executor = loaded(tmp_path)
    one, two = generation(0, [5, 6], 3), generation(1, [7], 3)
    one.seq.table, two.seq.table = [1], [2]
    first = executor.launch(Work([], [Share(one, 2, 2)]))
    second = executor.launch(Work([Share(one, 3, 1)], [Share(two, 1, 1)]))
    later, earlier = second.wait(), first.wait()
    assert first.wait() is earlier and second.wait() is later
    one.tokens += [earlier.tokens[0], later.tokens[0]]
    two.tokens.append(later.tokens[1])
    for generated in (one, two):
        assert generated.output == expected_output(executor, generated)


def test_close_lets_go_of_the_pool_and_may_come_twice(tmp_path):
    executor = loaded(tmp_path)
    Driver(executor, random := Random(0)).serve(some_generations(random, 2))
    pool = ref(executor.runner.pool)
    assert pool() is not None
    executor.close()
    assert pool() is None
    executor.close()
