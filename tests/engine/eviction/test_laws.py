"""What holds of every policy: in the scheduler, however many steps are taken at once."""

from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine.eviction import EVICTION
from engine.eviction.keystream import KeyStream
from engine.prefix import Piece, PrefixIndex
from tests.decisions import Decider, Record, first_difference, invariants
from tests.engine.eviction.audit import SPECS, Audited, watched
from tests.workloads import cases


def served(
    params: Record, requests: list[Record], *, exact: bool, named: bool, sessions: int
) -> Decider:
    # vLLM's victim among equals is the first admitted: two may preempt each other for ever
    requests = [
        row | {"priority": row["priority"] * len(requests) + i} for i, row in enumerate(requests)
    ]
    decider = Decider(params, requests, exact=exact, named=named)
    watched(decider.core.blocks, Audited)
    for i, seq in enumerate(decider.all):
        seq.request = seq.request._replace(
            session_id=i % sessions if i % 3 else -1,
            turn=i // sessions,
            tenant=f"t{i % 2}",
            slo_class=f"c{i % 3}" if i % 2 else "",
        )
    decider.run(max_steps=20_000)
    return decider


def left(decider: Decider) -> tuple[Any, ...]:
    """What a run leaves behind in its cache."""
    blocks = decider.core.blocks
    pieces = sorted((p.start, p.end, p.key, p.hits) for p in blocks.eviction.sizes)  # type: ignore[attr-defined]
    return pieces, blocks.evicted, blocks._hashless if not blocks.named else len(blocks._names)


def case_of(
    settings: dict[str, Any], rows: list[tuple[float, int, int, int]], hash_block: int
) -> tuple[Record, list[Record]]:
    """Requests by arrival, prompt, output and hashes of a prompt that all have in common."""
    params = {
        "max_num_seqs": 4,
        "max_num_batched_tokens": 8,
        "no_prefix_caching": False,
        "chunked": True,
        "policy": "fcfs",
        "long_prefill_token_threshold": 0,
        "watermark": 0.0,
        "async_scheduling": False,
        "max_model_len": 10**6,
        "dump_blocks": True,
    }
    requests = [
        {
            "id": f"r{i}",
            "arrival": arrival,
            "input_tokens": prompt,
            "output_tokens": output,
            "priority": 0,
            "hash_block_size": hash_block,
            "hash_ids": [0] * hashes,
        }
        for i, (arrival, prompt, output, hashes) in enumerate(rows)
    ]
    return params | settings, requests


# A preempted request's own beginning goes before its end: what is left must be seen as it is
# computed anew, and may make room for a head of the queue at any step.
LEFT_BEHIND = case_of(
    {
        "block_size": 1,
        "num_blocks": 121,
        "no_reserve_full_isl": True,
        "step_time_ns": {"a": 0, "b": 2_000_000, "c": 12, "d": 1000},
    },
    [
        (0.001457, 31, 28, 0),
        (0.001811, 18, 1, 0),
        (0.001847, 58, 2, 0),
        (0.002043, 37, 59, 0),
        (0.002727, 21, 55, 0),
        (0.003747, 34, 4, 0),
        (0.004053, 48, 70, 0),
        (0.005032, 31, 70, 0),
    ],
    1,
)
# Content expires while a head of the queue, which would hit it, waits for blocks.
EXPIRING = case_of(
    {
        "block_size": 16,
        "num_blocks": 33,
        "max_num_seqs": 12,
        "max_num_batched_tokens": 80,
        "long_prefill_token_threshold": 2,
        "no_reserve_full_isl": False,
        "max_model_len": 207,
        "step_time_ns": {"a": 3_000_000, "b": 20, "c": 5000, "d": 1000},
    },
    [
        (0.004096, 59, 20, 0),
        (0.00429, 195, 20, 3),
        (0.008322, 134, 3, 1),
        (0.008544, 108, 53, 0),
        (0.014178, 145, 53, 0),
    ],
    40,
)


@settings(max_examples=400, deadline=None)
@given(cases(), st.sampled_from(SPECS), st.integers(1, 4))
@example(LEFT_BEHIND, "2q", 1)
@example(EXPIRING, "ttl:ttl_s=0.02", 1)
def test_stepping_naming_and_fast_forward_evict_the_same(
    case: tuple[Record, list[Record]], eviction: str, sessions: int
) -> None:
    params, requests = case
    params = params | {"eviction": eviction}
    exact = served(params, requests, exact=True, named=False, sessions=sessions)
    assert invariants(exact) is None
    assert_accounted(exact)
    for named in (False, True):
        other = served(params, requests, exact=named, named=named, sessions=sessions)
        # of a sequence's own content that two pieces hold, only names tell that it is the same
        untold = (
            ("block_ids", "cached_hashes") if named and exact.core.blocks.copies else ("block_ids",)
        )
        for record in (*exact.steps, *other.steps):
            for name in untold:
                record.pop(name, None)
        assert first_difference(exact.steps, other.steps) is None
        assert first_difference(exact.per_request(), other.per_request()) is None
        assert invariants(other) is None
        assert_accounted(other)
        assert other.core.blocks.evicted == exact.core.blocks.evicted
        if not named:
            assert left(other) == left(exact)


def assert_accounted(decider: Decider) -> None:
    """Each block is without content, or in the policy's hands once."""
    blocks = decider.core.blocks
    audited: Any = blocks.eviction
    hashless = len(blocks._names) if blocks.named else blocks._hashless
    assert audited.blocks + hashless == blocks.usable
    if blocks.named:
        names = [name for piece in audited.sizes for name in piece.names]
        assert sorted(names + blocks._names) == list(range(1, blocks.usable + 1))


@settings(max_examples=100, deadline=None)
@given(cases(), st.sampled_from(SPECS))
def test_a_run_repeats_itself(case: tuple[Record, list[Record]], eviction: str) -> None:
    params, requests = case
    params = params | {"eviction": eviction}
    one = served(params, requests, exact=False, named=False, sessions=2)
    other = served(params, requests, exact=False, named=False, sessions=2)
    assert one.steps == other.steps
    assert left(one) == left(other)


LEAF_FIRST = [spec for spec in SPECS if getattr(EVICTION[spec.split(":")[0]], "leaf_first", False)]


class LeafFirst(Audited):
    prefix: PrefixIndex

    def evicted(self, piece: Piece, blocks: int) -> None:
        super().evicted(piece, blocks)
        for kept in self.sizes:
            owner = kept.owner
            if owner is not None and kept.start < owner.shared_blocks:
                # all before it is still there, in this copy or another
                assert self.prefix.walk(owner, kept.start + 1).blocks > kept.start


@settings(max_examples=200, deadline=None)
@given(cases(), st.sampled_from(LEAF_FIRST))
def test_who_promises_it_evicts_no_beginning_before_its_end(
    case: tuple[Record, list[Record]], eviction: str
) -> None:
    params, requests = case
    requests = [row | {"priority": i} for i, row in enumerate(requests)]
    decider = Decider(params | {"eviction": eviction}, requests, exact=False, named=False)
    blocks = decider.core.blocks
    watched(blocks, LeafFirst).prefix = blocks.prefix
    decider.run(max_steps=20_000)
    assert "lru" in LEAF_FIRST


streams = st.lists(st.integers(0, 14), max_size=120)


@settings(max_examples=150, deadline=None)
@given(streams, st.integers(1, 12), st.sampled_from(SPECS))
def test_a_key_stream_is_kept_within_capacity(keys: list[int], capacity: int, name: str) -> None:
    stream = KeyStream(name, capacity)
    stream.policy = audited = Audited(stream.policy)
    seen: set[int] = set()
    for key in keys:
        hit = stream.access(key)
        assert not hit or key in seen
        assert key in stream.resident
        assert len(stream.resident) <= capacity
        assert audited.blocks == len(stream.resident)
        seen.add(key)
        if len(seen) <= capacity:
            assert len(stream.resident) == len(seen)  # nothing leaves before it has to


@settings(max_examples=150, deadline=None)
@given(streams, st.integers(1, 12))
def test_a_larger_lru_cache_holds_what_a_smaller_one_does(keys: list[int], capacity: int) -> None:
    small, large = KeyStream("lru", capacity), KeyStream("lru", capacity + 1)
    for key in keys:
        assert large.access(key) >= small.access(key)
        assert small.resident.keys() <= large.resident.keys()


def test_fifo_may_hit_less_in_a_larger_cache() -> None:
    """Belady, Nelson, Shedler, "An anomaly in space-time characteristics of certain programs
    running in a paging machine", CACM 1969."""
    keys = [1, 2, 3, 4, 1, 2, 5, 1, 2, 3, 4, 5]
    hits = {n: sum(map(KeyStream("fifo", n).access, keys)) for n in (3, 4)}
    assert hits == {3: 3, 4: 2}


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 8), st.integers(2, 6))
def test_a_loop_larger_than_the_cache_defeats_lru_but_not_lirs(room: int, rounds: int) -> None:
    keys = list(range(room + 1)) * rounds
    assert sum(map(KeyStream("lru", room).access, keys)) == 0
    assert sum(map(KeyStream("lirs", room).access, keys)) >= (rounds - 1) * (room - 1)


def test_every_policy_has_a_name_of_its_own() -> None:
    assert len({id(policy) for policy in EVICTION.values()}) == len(EVICTION)
