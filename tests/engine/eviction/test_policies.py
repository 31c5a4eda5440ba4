"""What leaves first, policy by policy, where it can be said in a line or two."""

from math import exp
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.decoding import DecodeSet
from engine.eviction import eviction_policy
from engine.eviction.classes import Category
from engine.eviction.keystream import KeyStream
from engine.eviction.protocol import CacheView
from engine.eviction.ranked import Ghosts, Ranked
from engine.moment import Moment
from engine.prefix import Piece, PrefixIndex
from engine.sequence import FINISHED, Sequence
from tests.engine.eviction.audit import SPECS
from traces.errors import ConfigError
from traces.request import Request

SECOND_PS = 10**12


class Cache:
    """A policy by itself, and pieces to give it."""

    def __init__(self, spec: str, capacity: int = 100, **view: Any) -> None:
        self.moment = Moment()
        self.prefix = PrefixIndex(1, DecodeSet(1, paged=True), 0)
        self.prefix.expect_hashes(1)
        self.view = CacheView(capacity, prefix=self.prefix, moment=self.moment, **view)
        self.policy: Any = eviction_policy(spec, self.view)
        self.requests = 0

    def sequence(self, blocks: int, **request: Any) -> Sequence:
        self.requests += 1
        start = 1000 * self.requests
        seq = Sequence(
            Request(
                self.requests,
                0.0,
                blocks,
                1,
                hashes=tuple(range(start, start + blocks)),
                hash_tokens=1,
                hashed_tokens=blocks,
                **request,
            ),
            self.requests,
            0,
        )
        seq.shared_blocks = blocks
        return seq

    def begun(self, blocks: int, start: int = 0, **request: Any) -> Piece:
        """A piece of a request that finished, about to be freed."""
        seq = self.sequence(start + blocks, **request)
        seq.status = FINISHED
        return self.of(seq, start, start + blocks)

    def of(self, seq: Sequence, start: int, end: int) -> Piece:
        piece = Piece(start, end, seq)
        piece.refs = 0
        piece.key = self.prefix.key(seq, start)
        piece.born = self.requests
        if hasattr(self.policy, "begin"):
            self.policy.begin(piece)
        return piece

    def freed(self, blocks: int = 1, start: int = 0, **request: Any) -> Piece:
        piece = self.begun(blocks, start, **request)
        self.policy.push(piece)
        return piece

    def hit(self, piece: Piece, seq: Sequence | None = None) -> None:
        self.policy.remove(piece)
        piece.hits += 1
        if seq is not None:
            self.policy.hit(piece, seq)
        self.policy.push(piece)

    def evict(self, blocks: int = 1) -> Piece:
        piece = self.policy.victim()
        piece.end -= blocks
        assert piece.end >= piece.start
        self.policy.evicted(piece, blocks)
        return piece

    def order(self) -> list[Piece]:
        """All that is there, as it goes."""
        pieces: list[Piece] = []
        while True:
            try:
                piece = self.policy.victim()
            except (IndexError, AssertionError):
                return pieces
            pieces.append(self.evict(piece.end - piece.start))

    def evict_blocks(self, blocks: int, most: int) -> None:
        """As the block manager does, at most so many at once."""
        while blocks:
            piece = self.policy.victim()
            cut = min(blocks, piece.end - piece.start, most)
            if hasattr(self.policy, "together"):
                cut = min(cut, self.policy.together(piece))
            self.evict(cut)
            blocks -= cut


@given(
    st.sampled_from([spec for spec in SPECS if "history" not in spec]),  # copies change its counts
    st.lists(
        st.tuples(
            st.sampled_from(["free", "free", "hit", "split", "evict", "evict", "again"]),
            st.integers(1, 9),
        ),
        max_size=60,
    ),
)
@settings(max_examples=600, deadline=None)
def test_blocks_go_alike_at_once_and_one_by_one(spec: str, calls: list[tuple[str, int]]) -> None:
    caches = [Cache(spec, capacity=20, context_tokens=7) for _ in range(2)]
    kept: list[list[Piece]] = [[], []]
    for time, (call, number) in enumerate(calls):
        for cache, pieces, most in zip(caches, kept, (100, 1), strict=True):
            cache.moment.now = time * SECOND_PS // 3
            if call in ("hit", "split") and pieces:
                piece = pieces[number % len(pieces)]
                if call == "split" and piece.end - piece.start > 1:
                    assert piece.owner is not None
                    tail = Piece(piece.start + 1, piece.end, piece.owner)
                    tail.refs = 0
                    tail.key = cache.prefix.key(piece.owner, tail.start)
                    tail.born, tail.hits = piece.born, piece.hits
                    tail.rank, tail.segment, tail.place = piece.rank, piece.segment, piece.place
                    piece.end = piece.start + 1
                    cache.policy.replace(piece, tail)
                    pieces.append(tail)
                else:
                    cache.policy.remove(piece)
                piece.hits += 1
                cache.policy.push(piece)
                continue
            room = 20 - sum(piece.end - piece.start for piece in pieces)
            if call == "evict":
                cache.evict_blocks(min(number, 20 - room), most)
            else:
                new = cache.begun(number)
                if call == "again" and pieces:  # the content that follows what is left of a piece
                    seq = pieces[number % len(pieces)].owner
                    end = pieces[number % len(pieces)].end
                    if seq is not None and end < seq.shared_blocks:
                        new = cache.of(seq, end, seq.shared_blocks)
                cache.evict_blocks(max(new.end - new.start - room, 0), most)
                cache.policy.push(new)
                pieces.append(new)
            pieces[:] = [piece for piece in pieces if piece.end > piece.start]
        left = [[(p.owner.number, p.start, p.end) for p in pieces if p.owner] for pieces in kept]
        assert left[0] == left[1]


def test_gdsf_and_flop_aware_keep_what_is_dear_to_compute() -> None:
    for spec in ("gdsf", "flop-aware:alpha=5.0"):
        cache = Cache(spec, context_tokens=10)
        deep, shallow = cache.freed(4, start=40), cache.freed(4)
        assert cache.order() == [shallow, deep]
        cache = Cache(spec, context_tokens=0)  # what attention costs is unknown: as LRU
        deep, shallow = cache.freed(4, start=40), cache.freed(4)
        assert cache.order() == [deep, shallow]


def test_flop_aware_weighs_a_turnover_of_the_pool_against_double_work() -> None:
    """Blocks 5..14 cost 1 + 10 / 10 tokens each: twice a token's worth, one turnover longer."""
    for freed_since, deep_goes_first in ((80, False), (120, True)):
        cache = Cache("flop-aware", capacity=100, context_tokens=10)
        deep = cache.freed(10, start=5)
        cache.freed(freed_since)
        late = cache.freed(1)
        order = cache.order()
        assert (order.index(deep) < order.index(late)) == deep_goes_first


def test_gdsf_forgets_what_was_popular() -> None:
    cache = Cache("gdsf")
    popular = cache.freed()
    for _ in range(5):
        cache.hit(popular)
    for _ in range(20):
        cache.freed()
        if cache.evict() is popular:
            break
    else:
        pytest.fail("it stayed for ever")
    forever = Cache("lfu")
    popular = forever.freed()
    for _ in range(5):
        forever.hit(popular)
    for _ in range(20):
        forever.freed()
        assert forever.evict() is not popular


def test_ttl_gives_up_what_was_not_used_for_long() -> None:
    cache = Cache("ttl:ttl_s=2.0")
    old, renewed = cache.freed(), cache.freed()
    cache.moment.now = SECOND_PS
    cache.hit(renewed)
    assert cache.policy.expired() is None
    cache.moment.now = 2 * SECOND_PS
    assert cache.policy.expired() is old
    cache.evict()
    assert cache.policy.expired() is None
    cache.moment.now = 3 * SECOND_PS
    assert cache.policy.expired() is renewed


def test_tool_ttl_keeps_a_session_for_its_time() -> None:
    cache = Cache("tool-ttl:ttl_s=2.0")
    session = cache.freed(session_id=7)
    other = cache.freed()
    assert cache.policy.victim() is other
    cache.moment.now = 2 * SECOND_PS
    late = cache.freed()  # only now it is seen that the time is over
    assert cache.order() == [session, other, late]


def test_tool_ttl_gives_up_first_what_expires_first() -> None:
    cache = Cache("tool-ttl")
    sessions = [cache.freed(session_id=i) for i in range(3)]
    cache.hit(sessions[0])
    assert cache.order() == [sessions[1], sessions[2], sessions[0]]


def test_tool_ttl_keeps_nothing_of_a_turn_that_was_preempted() -> None:
    cache = Cache("tool-ttl")
    preempted = cache.begun(1, session_id=1)
    assert preempted.owner is not None
    preempted.owner.status = 0
    kept = cache.freed(session_id=2)
    cache.policy.push(preempted)
    assert cache.order() == [preempted, kept]


def test_priority_goes_by_the_most_important_user() -> None:
    cache = Cache("priority")
    first, raised, low = cache.freed(priority=0), cache.freed(priority=9), cache.freed(priority=5)
    cache.hit(raised, cache.sequence(1, priority=-1))
    cache.hit(raised, cache.sequence(1, priority=7))
    assert cache.order() == [low, first, raised]


def test_priority_pins_up_to_a_share() -> None:
    cache = Cache("priority:pin=gold+interactive:share=0.05", capacity=100)
    first = cache.freed(3, tenant="gold", priority=9)
    second = cache.freed(2, slo_class="interactive", priority=9)
    plain = cache.freed(1, priority=-5)
    assert cache.order() == [plain, first, second]
    cache = Cache("priority:pin=gold:share=0.05", capacity=100)
    pinned = [cache.freed(3, tenant="gold") for _ in range(2)]
    plain = cache.freed(1)
    assert cache.order() == [pinned[0], plain, pinned[1]]


def test_category_learns_whose_pieces_come_back() -> None:
    cache = Cache("category")
    for second in range(20):
        cache.moment.now = second * SECOND_PS
        chat, batch = cache.freed(slo_class="chat"), cache.freed(slo_class="batch")
        cache.moment.now += SECOND_PS // 2
        cache.hit(chat)
        assert cache.order() == [batch, chat]


def test_reuse_is_taken_as_exponential() -> None:
    """Half of the blocks come back, after 10 s in the mean: of two that did not within 20 s, one
    in 1 + e^2 will."""
    kind = Category()
    kind.freed, kind.reused, kind.waited = 998, 499, 499 * 10 * SECOND_PS
    share = kind.reuse_within(10**9 * SECOND_PS, 20 * SECOND_PS)
    assert share == pytest.approx(1 / (1 + exp(2)))
    soon = kind.reuse_within(5 * SECOND_PS, 20 * SECOND_PS)
    assert soon == pytest.approx(share * (1 - exp(-0.5)))


def test_category_lets_go_of_what_should_have_come_back_by_now() -> None:
    """All come back: chats within a second in the mean, agents after 100; and what is evicted has
    been there for a second in the mean."""
    for age_s, first in ((0, "agent"), (60, "chat")):
        cache = Cache("category", capacity=1000)
        for wait_s, tenant in ((1, "chat"), (100, "agent")):
            for _ in range(40):
                cache.freed(tenant=tenant)
                piece = cache.policy.victim()
                cache.moment.now += wait_s * SECOND_PS
                cache.hit(piece)
                cache.evict()
        for _ in range(80):
            cache.freed()
            cache.moment.now += 2 * SECOND_PS
            cache.policy.begin(Piece(0, 0, None))
            cache.evict()
        pieces = {tenant: cache.freed(tenant=tenant) for tenant in ("chat", "agent")}
        cache.moment.now += age_s * SECOND_PS
        cache.policy.begin(Piece(0, 0, None))
        assert cache.order()[0] is pieces[first]


def test_what_the_queue_wants_stays() -> None:
    cache = Cache("queue-informed")
    wanted, plain = cache.freed(2), cache.freed(2)
    seq = wanted.owner
    assert seq is not None
    waiting = Sequence(seq.request, 99, 0)
    waiting.shared_blocks = seq.shared_blocks
    assert cache.policy.victim() is wanted
    cache.policy.queued(waiting)
    assert cache.policy.victim() is plain
    cache.policy.queued(waiting_too := _like(waiting, 100))
    cache.policy.unqueued(waiting)
    assert cache.policy.victim() is plain
    cache.policy.unqueued(waiting_too)
    assert cache.order() == [wanted, plain]


def test_what_all_want_goes_by_last_use() -> None:
    cache = Cache("queue-informed")
    pieces = [cache.freed(2) for _ in range(3)]
    for piece in pieces:
        assert piece.owner is not None
        cache.policy.queued(_like(piece.owner, 100 + piece.born))
    assert cache.order() == pieces


def _like(seq: Sequence, number: int) -> Sequence:
    other = Sequence(seq.request, number, 0)
    other.shared_blocks = seq.shared_blocks
    return other


def test_s3fifo_lets_a_scan_pass() -> None:
    stream = KeyStream("s3fifo", 20)
    for key in [*range(18)] * 4:
        stream.access(key)
    for key in range(100, 200):
        stream.access(key)
    assert set(range(18)) - stream.resident.keys() <= {0, 1}
    lru = KeyStream("lru", 20)
    for key in [*([*range(18)] * 4), *range(100, 200)]:
        lru.access(key)
    assert not set(range(18)) & lru.resident.keys()


def test_arc_remembers_runs_by_their_first_block() -> None:
    """A run of 10 blocks that was evicted bit by bit returns as one ghost of 10 blocks."""
    cache = Cache("arc", capacity=20)
    run = cache.freed(10)
    for _ in range(10):
        cache.evict()
    assert run.owner is not None
    again = cache.of(run.owner, 0, 10)
    cache.policy.push(again)
    assert again.segment == 1  # with those used more than once


@given(st.lists(st.integers(1, 4), min_size=1, max_size=10), st.data())
def test_ghosts_do_not_care_how_a_run_is_cut(cuts: list[int], data: st.DataObject) -> None:
    total = sum(cuts)
    cache = Cache("lru")
    whole, parts = Ghosts(cache.view, 100), Ghosts(cache.view, 100)
    shared = data.draw(st.integers(0, total + 3))
    one = cache.begun(total + 3)
    assert one.owner is not None
    one.owner.shared_blocks = shared
    one.end -= total
    whole.add(one, total)
    one.end += total
    for cut in cuts:
        one.end -= cut
        parts.add(one, cut)
    key = cache.view.key(one, one.end)
    assert parts.blocks == whole.blocks == total
    assert parts.take(key) == whole.take(key)
    assert parts.blocks == whole.blocks == 0


def test_ghosts_forget_the_oldest_first() -> None:
    cache = Cache("lru")
    ghosts = Ghosts(cache.view, 5)
    pieces = [cache.begun(2) for _ in range(3)]
    for piece in pieces:
        piece.end -= 2
        ghosts.add(piece, 2)
    assert ghosts.blocks == 4
    assert [ghosts.take(piece.key) for piece in pieces] == [0, 2, 2]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), max_size=200))
def test_ranked_is_a_sorted_list(calls: list[tuple[int, int]]) -> None:
    """Against a list that is sorted anew each time, through more calls than a rebuild takes."""
    ranked, model = Ranked(), dict[Piece, tuple[int, int]]()
    for i, (action, rank) in enumerate(calls * 3):
        if action < 2 or not model:
            piece = Piece(0, 1 + rank, None)
            ranked.add(piece, float(rank), i)
            model[piece] = (rank, i)
        elif action == 2:
            piece = list(model)[rank % len(model)]
            ranked.discard(piece)
            del model[piece]
        else:
            piece = min(model, key=model.__getitem__)
            assert ranked.least() is piece
            assert ranked.least_rank() == model[piece][0]
            assert ranked.least_place() == model[piece][1]
        assert len(ranked) == len(model)
        assert ranked.blocks == sum(piece.end for piece in model)
        assert set(ranked.pieces()) == set(model)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("ttl:ttl_s=0", "'ttl': ttl_s: must be above 0, got 0"),
        ("tool-ttl:ttl_s=-1", "'tool-ttl': ttl_s: must be above 0, got -1"),
        ("priority:share=2", "'priority': share: must be 0 to 1, got 2"),
        ("s3fifo:hit=1", "unknown parameter 'hit'; did you mean hits?"),
    ],
)
def test_a_wrong_parameter_is_named(spec: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said.replace("?", r"\?")):
        eviction_policy(spec, CacheView(10))
