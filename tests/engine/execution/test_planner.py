"""What the planner sends makes the device's tables those of the scheduler, row by row."""

from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.execution.plan import SAMPLED, Plan
from engine.execution.planner import Planner
from engine.sequence import Sequence
from engine.work import Generation, Move, Place, Sampling, Share, Work
from traces.request import Request

BLOCK_TOKENS = 4
MAX_MODEL_LEN = 100


def planner(max_num_seqs: int = 8, **changes) -> Planner:
    return Planner(max_num_seqs, MAX_MODEL_LEN, BLOCK_TOKENS, **changes)


def generation(
    number: int = 0, prompt: int = 6, *, sampling: Sampling | None = None, forced=()
) -> Generation:
    seq = Sequence(Request(number, 0.0, prompt, 50), number, 0)
    seq.table = [1000 * (number + 1) + at for at in range(-(-MAX_MODEL_LEN // BLOCK_TOKENS))]
    tokens = [100 * number + at for at in range(prompt)]
    return Generation(seq, tokens, sampling or Sampling(), forced)


def part(plan: Plan, name: str) -> list[int]:
    return plan.vector[getattr(plan.sections, name)].tolist()


def updates(plan: Plan) -> list[tuple[int, int, int]]:
    named = (part(plan, f"update_{what}") for what in ("rows", "columns", "blocks"))
    return list(zip(*named, strict=True))


@given(st.randoms(use_true_random=False))
@settings(deadline=None)
def test_the_device_knows_every_block_a_step_reads_and_is_told_each_once(random: Random):
    plans, tables = planner(4), np.zeros((5, MAX_MODEL_LEN // BLOCK_TOKENS), np.int64)
    told: set[tuple[int, int]] = set()
    running: list[tuple[Generation, int]] = []
    for number in range(30):
        if len(running) < 4:
            running.append((generation(number, random.randint(1, 40)), 0))
        if random.random() < 0.2:
            gone, _ = running.pop(random.randrange(len(running)))
            row = plans._rows.get(gone.seq, 0)
            told -= {place for place in told if place[0] == row}
            plans.drop(gone.seq)
        work, moved = Work(), []
        for one, computed in running:
            left = len(one.tokens) - computed
            chunk = random.randint(1, left) if left > 0 else 1
            if computed + chunk <= MAX_MODEL_LEN and random.random() < 0.8:
                share = Share(one, computed + chunk, chunk)
                (work.prefills if left > 0 else work.decodes).append(share)
                computed += chunk
            moved.append((one, computed))
        running = moved
        plan = plans.plan(work)
        for row, column, block in updates(plan):
            assert (row, column) not in told
            told.add((row, column))
            tables[row, column] = block
        shares = work.decodes + work.prefills
        rows = part(plan, "rows")
        assert len(set(rows)) == len(shares) and 0 not in rows
        for row, share in zip(rows, shares, strict=True):
            blocks = -(-share.context // BLOCK_TOKENS)
            assert tables[row, :blocks].tolist() == share.generation.seq.table[:blocks]
    for one, _ in running:
        plans.drop(one.seq)
        plans.drop(one.seq)
    assert plans.free_rows == 4


def test_decodes_stand_first_then_the_chunks_with_their_tokens():
    plans, a, b, c = planner(), generation(0, 6), generation(1, 9), generation(2, 5)
    plans.plan(Work([], [Share(a, 6, 6)]))
    plan = plans.plan(Work([Share(a, 7, 1)], [Share(b, 4, 4), Share(c, 5, 5)]))
    assert part(plan, "rows") == [1, 2, 3]
    assert part(plan, "context") == [7, 4, 5]
    assert part(plan, "positions") == [6, 0, 1, 2, 3, 0, 1, 2, 3, 4]
    assert part(plan, "token_rows") == [1, 2, 2, 2, 2, 3, 3, 3, 3, 3]
    assert part(plan, "starts") == [0, 4, 9]
    assert part(plan, "ids") == [100, 101, 102, 103, 200, 201, 202, 203, 204]
    assert part(plan, "last") == [0, 4, 9]
    assert (plan.counts.max_chunk, plan.counts.max_context) == (5, 7)
    later = plans.plan(Work([], [Share(b, 9, 5)]))
    assert part(later, "ids") == [104, 105, 106, 107, 108]
    assert part(later, "positions") == [4, 5, 6, 7, 8]


@given(st.integers(1, 20), st.integers(0, 5), st.integers(0, 8))
@settings(deadline=None)
def test_a_forced_token_stands_where_its_output_token_would(prompt, known, forced):
    """Of a sequence that was preempted after `known` output tokens, and comes back."""
    one = generation(0, prompt, forced=tuple(range(500, 500 + forced)))
    one.tokens += list(one.forced[:known]) + [7] * (known - forced)
    plans = planner()
    for context in range(1, prompt + known + 1):
        found = part(plans.plan(Work([], [Share(one, context, 1)])), "forced")
        index = context - prompt
        assert found == [500 + index if 0 <= index < forced else SAMPLED]
    for context in range(prompt + known + 1, prompt + known + 10):
        found = part(plans.plan(Work([Share(one, context, 1)])), "forced")
        index = context - prompt
        assert found == [500 + index if index < forced else SAMPLED]


def test_only_steps_of_decodes_alone_are_filled_up_to_a_bucket():
    plans = planner(buckets=(1, 2, 4))
    some = [generation(number) for number in range(7)]
    plan = plans.plan(Work([], [Share(one, 6, 6) for one in some]))
    assert (plan.counts.bucket, plan.counts.padding) == (0, 0)
    for decodes, bucket in ((1, 1), (2, 2), (3, 4), (4, 4), (5, 0)):
        plan = plans.plan(Work([Share(one, 7, 1) for one in some[:decodes]]))
        assert plan.counts.bucket == bucket
        padding = max(bucket - decodes, 0)
        assert plan.counts.padding == padding and plan.counts.decodes == decodes + padding
        assert part(plan, "rows")[decodes:] == [0] * padding
        assert part(plan, "context")[decodes:] == [1] * padding
        assert part(plan, "positions") == [6] * decodes + [0] * padding
        assert part(plan, "forced") == [SAMPLED] * (decodes + padding)
    mixed = Work([Share(some[0], 8, 1)], [Share(some[1], 7, 1)])
    some[1].tokens.append(0)
    assert plans.plan(mixed).counts.bucket == 0
    assert plans.plan(Work()).counts.bucket == 0


def test_sampling_is_sent_only_if_somebody_samples():
    plans = planner(buckets=(4,))
    greedy = generation(0)
    warm = generation(1, sampling=Sampling(0.7, 0.9, 2**63 + 5))
    both = [Share(greedy, 6, 6), Share(warm, 6, 6)]
    plan = plans.plan(Work([], both))
    vector, at = plan.vector, plan.sections
    assert (plan.counts.samples, plan.counts.nucleus) == (1, 1)
    assert vector[at.seeds].view(np.int64).tolist() == [0, 5]
    assert vector[at.temperature].view(np.float32).tolist() == [0.0, np.float32(0.7)]
    assert vector[at.top_p].view(np.float32).tolist() == [1.0, np.float32(0.9)]
    plan = plans.plan(Work([Share(greedy, 7, 1)]))
    assert (plan.counts.samples, part(plan, "seeds")) == (0, [])
    plan = plans.plan(Work([Share(warm, 7, 1)]))
    assert plan.counts.padding == 3
    temperature = plan.vector[plan.sections.temperature].view(np.float32).tolist()
    assert temperature == [np.float32(0.7), 0.0, 0.0, 0.0]


def test_without_reuse_every_share_is_a_chunk_of_all_tokens():
    plans, a, b = planner(reuse=False, buckets=(1, 2)), generation(0, 6), generation(1, 9)
    plans.plan(Work([], [Share(a, 6, 6)]))
    a.tokens.append(77)
    plan = plans.plan(Work([Share(a, 7, 1)], [Share(b, 9, 2)]))
    assert (plan.counts.decodes, plan.counts.prefills, plan.counts.bucket) == (0, 2, 0)
    assert part(plan, "ids") == [*a.tokens, *b.tokens]
    assert part(plan, "starts") == [0, 7, 16]


def test_moves_go_along():
    before = (Move(Place(0, 3), Place(1, 4)), Move(Place(2, 5), Place(0, 6)))
    after = (Move(Place(0, 9), Place(1, 2)),)
    one = generation()
    plan = planner().plan(Work([], [Share(one, 6, 6)], before, after))
    assert Plan.read(plan.vector).moves() == ([*before], [*after])
    assert not plan.counts.unsettled
    assert planner().plan(Work(unsettled=True)).counts.unsettled


def test_a_plan_is_written_into_the_room_it_is_given():
    room = np.full(4096, -7, np.int32)
    plans, one = planner(), generation()
    plan = plans.plan(Work([], [Share(one, 6, 6)]), room)
    assert np.shares_memory(plan.vector, room)
    plans.drop(one.seq)
    elsewhere = plans.plan(Work([], [Share(one, 6, 6)]), room[:10])
    assert not np.shares_memory(elsewhere.vector, room)
    for name in elsewhere.sections._fields:
        assert part(elsewhere, name) == part(plan, name)


def test_work_that_breaks_a_promise_is_refused():
    plans, one = planner(1), generation()
    with pytest.raises(RuntimeError, match=r"decode of Sequence\(0\), which has not prefilled"):
        plans.plan(Work([Share(one, 7, 1)]))
    with pytest.raises(RuntimeError, match="prefill up to 8 tokens, 6 are known"):
        plans.plan(Work([], [Share(one, 8, 8)]))
    with pytest.raises(RuntimeError, match="no row is left for Sequence"):
        plans.plan(Work([], [Share(generation(1), 6, 6)]))
    one.seq.table = one.seq.table[:2]
    with pytest.raises(RuntimeError, match="9 tokens need 3 blocks, its table has 2"):
        plans.plan(Work([Share(one, 9, 1)]))
    with pytest.raises(RuntimeError, match="context 101 exceeds max_model_len 100"):
        long = generation(2, 101)
        long.seq.table.append(1)
        planner().plan(Work([], [Share(long, 101, 101)]))
