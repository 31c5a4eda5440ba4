"""The fleet's index tells what the replicas' own caches hold, block by block."""

from collections import Counter
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.blocks import BlockManager
from engine.eviction import EVICTION
from engine.prefix import Piece
from sim.routing.index import FleetIndex
from tests.sim.clusters import Setup, workloads
from tests.sim.served import Served
from traces.request import Request

EVICTIONS = sorted(EVICTION.keys() - {"belady"})  # which needs to know the trace
Held = dict[tuple[int, int], int]
"""How often a replica holds each block of content, by hash and block number."""


def held_by(blocks: BlockManager) -> Counter[tuple[int, int]]:
    """All content that a replica's cache holds, or that its running sequences are to compute:
    found by a look at every piece there is."""
    held: Counter[tuple[int, int]] = Counter()
    for piece in pieces_of(blocks):
        owner = piece.owner
        assert owner is not None
        end = owner.shared_blocks if piece.is_open else piece.end
        for block in range(piece.start, min(end, owner.shared_blocks)):
            last = ((block + 1) * blocks.block_tokens - 1) // owner.request.hash_tokens
            held[owner.hashes[last], block] += 1
    return held


def pieces_of(blocks: Any) -> list[Piece]:
    """Every piece whose first block others may hit: the cache's own index has them all."""
    found: list[Piece] = []
    for first in blocks.prefix._index.values():
        piece: Piece | None = first
        while piece is not None:
            found.append(piece)
            piece = piece.later
    return found


def units_of(index: Any, replica: int, requests: tuple[Request, ...]) -> Held:
    """What the index says that `replica` holds, of the content of these requests."""
    held: Held = {}
    block_tokens = index._block_tokens
    for request in requests:
        for block in range(request.hashed_tokens // block_tokens):
            unit = ((block + 1) * block_tokens - 1) // request.hash_tokens
            first = unit * request.hash_tokens // block_tokens
            stop = (unit + 1) * request.hash_tokens // block_tokens
            content = request.hashes[unit]
            copies = index._copies_of(content, replica, (1 << (stop - first)) - 1)
            count = sum(held >> (block - first) & 1 for held in copies)
            if count:
                held[content, block] = count
    return held


@settings(deadline=None, max_examples=200)
@given(workloads(), st.sampled_from(["prefix-exact", "llm-d", "predicted-latency"]))
def test_the_index_is_what_the_caches_hold(setup: Setup, router: str) -> None:
    """After the run: nobody computes any more, so there is nothing to explain."""
    served = setup.serve(router=router)
    index = served.view.index
    for number, replica in enumerate(served.cluster.replicas):
        blocks = replica.scheduler.blocks
        blocks.listener._tell()
        assert units_of(index, number, setup.requests) == held_by(blocks)


@settings(deadline=None, max_examples=300)
@given(workloads(), st.sampled_from(EVICTIONS))
def test_a_match_is_what_a_walk_through_the_cache_finds(setup: Setup, eviction: str) -> None:
    """After the run, for every request and a walk on every replica; fifo leaves holes in chains."""
    cache = setup.cache.model_copy(update={"eviction": eviction})
    served = setup.serve(router="prefix-exact", cache=cache)
    index = served.view.index
    for replica in served.cluster.replicas:
        replica.scheduler.blocks.listener._tell()
    for request in setup.requests:
        walks: dict[int, int] = {}
        for number, replica in enumerate(served.cluster.replicas):
            seq = replica.scheduler.sequence(request, 0)
            hit = replica.scheduler.blocks.match(seq, request.prompt_tokens)
            walks[hit.blocks] = walks.get(hit.blocks, 0) | 1 << number
            assert index.blocks(number, request) == hit.blocks
        assert index.match(request) == sorted(walks.items())


@settings(deadline=None, max_examples=200)
@given(workloads())
def test_meanwhile_only_what_is_admitted_or_about_to_be_told_differs(setup: Setup) -> None:
    """At every arrival the index has what the caches hold, and more only where a request is to
    compute it, or room was made since the replica last admitted or ended a request."""

    def look(served: Served, _: Request) -> None:
        for number, replica in enumerate(served.cluster.replicas):
            blocks = replica.scheduler.blocks
            told = Counter(units_of(served.view.index, number, setup.requests))
            assert told - untold(blocks) == held_by(blocks)
            assert told == held_by(blocks) + untold(blocks)

    setup.serve(router="prefix-exact", at_choice=look)


def untold(blocks: BlockManager) -> Counter[tuple[int, int]]:
    """Content that was evicted, of which the index has not been told."""
    late: Counter[tuple[int, int]] = Counter()
    for owner, start, end in blocks.listener._evicted:
        for block in range(start, min(end, owner.shared_blocks)):
            last = ((block + 1) * blocks.block_tokens - 1) // owner.request.hash_tokens
            late[owner.hashes[last], block] += 1
    return late


def test_a_unit_counts_once_however_often_it_comes_and_goes_in_parts() -> None:
    """Blocks of 4, hashes of 10: units of 2 and 3 blocks in turn."""
    index: Any = FleetIndex(2, 4)
    request = Request(0, 0.0, 41, 1, hashes=(5, 6, 7, 8), hash_tokens=10, hashed_tokens=40)
    index.add(1, request.hashes, 10, 0, 10)
    assert index.match(request) == [(0, 0b01), (10, 0b10)]
    index.add(1, request.hashes, 10, 3, 4)  # a copy of block 3
    index.drop(1, request.hashes, 10, 3, 10)
    assert index.match(request) == [(0, 0b01), (4, 0b10)]
    index.drop(1, request.hashes, 10, 3, 4)
    assert index.match(request) == [(0, 0b01), (3, 0b10)]
    index.drop(1, request.hashes, 10, 0, 3)
    assert index.match(request) == [(0, 0b11)] and len(index) == 0 and not index._copies
