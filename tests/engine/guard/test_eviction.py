"""Own eviction policies: the guard changes nothing, and only pieces that may go are evicted."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as repeated

from engine.eviction.protocol import CacheView
from engine.guard import guarded
from engine.prefix import Piece
from engine.sequence import Sequence
from tests.engine.guard.own import LRU, own
from tests.sim.clusters import Setup, workloads
from traces.errors import PolicyError
from traces.request import Request


class Latest:
    """Keeps a list; tests spoil one method at a time."""

    answer: Any = None

    def __init__(self, view: CacheView) -> None:
        self.pieces: list[Piece] = []

    def push(self, piece: Piece) -> None:
        self.pieces.append(piece)

    def remove(self, piece: Piece) -> None:
        self.pieces.remove(piece)

    def replace(self, piece: Piece, tail: Piece) -> None:
        self.pieces[self.pieces.index(piece)] = tail

    def victim(self) -> Any:
        return self.pieces[-1]

    def evicted(self, piece: Piece, blocks: int) -> None:
        if piece.end == piece.start:
            self.pieces.remove(piece)


def made(policy: Any) -> Any:
    return guarded("eviction policy", "mine.py:Mine", policy)(CacheView(8))


def piece(number: int = 0, blocks: int = 2) -> Piece:
    one = Piece(0, blocks, Sequence(Request(number, 0.0, 1, 1), number, 0))
    one.refs = 0
    return one


def said(policy: Any) -> str:
    with pytest.raises(PolicyError) as broken:
        policy.victim()
    return str(broken.value)


@pytest.mark.parametrize("name", ["fifo", "lru", "priority", "lfu:history=true"])
@given(setup=workloads())
@repeated(max_examples=25, deadline=None)
def test_a_guarded_policy_evicts_as_a_bare_one(tmp_path_factory: Any, name: str, setup: Setup):
    source = f"""
from engine.eviction import eviction_policy

def Mine(view):
    return eviction_policy("{name}", view)
"""
    spec = own(tmp_path_factory.mktemp("own"), source)
    ran = [
        setup.serve(cache=setup.cache.model_copy(update={"eviction": eviction}))
        for eviction in (spec, name)
    ]
    assert ran[0].rows.tolist() == ran[1].rows.tolist()
    assert ran[0].segments.tolist() == ran[1].segments.tolist()


@given(workloads())
@repeated(max_examples=25, deadline=None)
def test_a_policy_of_ones_own_serves_everybody(tmp_path_factory: Any, setup: Setup):
    spec = own(tmp_path_factory.mktemp("lru"), LRU)
    served = setup.serve(cache=setup.cache.model_copy(update={"eviction": spec}))
    served.assert_empty()


def test_a_victim_is_a_piece():
    for answer in (None, 7, "piece"):
        policy = made(type("Spoilt", (Latest,), {"victim": lambda self, it=answer: it}))
        policy.push(piece())
        assert f"victim() returned {answer!r}; expected a piece that was pushed" in said(policy)


def test_a_victim_was_pushed_and_is_not_in_use_or_gone():
    one, other, third = piece(1), piece(2), piece(3)
    third.refs = 1

    class Spoilt(Latest):
        def victim(self) -> Piece:
            return self.answer

        def evicted(self, piece: Piece, blocks: int) -> None:
            pass

        def remove(self, piece: Piece) -> None:
            pass

    policy = made(Spoilt)
    policy.begin(piece(9))
    Spoilt.answer = one
    assert "[0, 2) of request 1, which was not pushed" in said(policy)
    policy.push(one)
    policy.push(other)
    assert policy.victim() is one
    one.end = 0
    policy.evicted(one, 2)
    assert "which is evicted already" in said(policy)
    Spoilt.answer = other
    policy.remove(other)
    assert said(policy).endswith("or was removed again; expected a piece that was pushed and that"
                                 " nobody references, at request 9")  # fmt: skip
    Spoilt.answer = third
    assert "which is in use" in said(policy)


def test_a_victim_has_something_to_evict():
    policy = made(Latest)
    policy.push(piece(1, blocks=0))
    assert "[0, 0) of request 1, which is evicted already" in said(policy)


def test_a_victim_is_the_same_until_something_happens():
    class Fickle(Latest):
        def victim(self) -> Piece:
            self.pieces.reverse()
            return self.pieces[0]

    policy, one, other = made(Fickle), piece(1), piece(2)
    policy.push(one)
    policy.push(other)
    policy.victim()
    assert "after blocks [0, 2) of request 2; expected the same" in said(policy)
    policy = made(Fickle)
    policy.push(one)
    policy.push(other)
    assert policy.victim() is other
    policy.evicted(other, 1)
    assert policy.victim() is one


def test_the_victim_of_a_policy_that_lost_its_pieces():
    class Forgetful(Latest):
        def push(self, piece: Piece) -> None:
            pass

    policy = made(Forgetful)
    policy.begin(piece(9))
    policy.push(piece(1))
    assert "victim() raised IndexError" in said(policy)
    assert said(policy).endswith("at request 9")


def test_what_expired_can_be_given_up():
    one, other = piece(1), piece(2)

    class Expiring(Latest):
        def expired(self) -> Any:
            return self.answer

    policy = made(Expiring)
    policy.push(one)
    assert policy.expired() is None
    Expiring.answer = one
    assert policy.expired() is one
    one.end = 0
    policy.evicted(one, 2)
    with pytest.raises(PolicyError, match=r"expired\(\) returned .*evicted already"):
        policy.expired()
    Expiring.answer = other
    with pytest.raises(PolicyError, match=r"expired\(\) returned .*not pushed"):
        policy.expired()


def test_optional_methods_are_passed_on_if_there_are_any():
    told: list[Any] = []

    class Curious(Latest):
        def begin(self, piece: Piece) -> None:
            told.append(piece)

        def queued(self, seq: Any) -> None:
            told.append(seq)

        def unqueued(self, seq: Any) -> None:
            told.append(seq)

    policy, plain, one = made(Curious), made(Latest), piece()
    policy.begin(one)
    policy.queued(one.owner)
    policy.unqueued(one.owner)
    plain.begin(one)
    assert told == [one, one.owner, one.owner]
    assert not any(
        hasattr(plain, name) for name in ("hit", "queued", "unqueued", "together", "expired")
    )


def test_what_goes_together_is_a_part_of_the_victim():
    class Parted(Latest):
        def together(self, piece: Piece) -> Any:
            return self.answer

    policy, one = made(Parted), piece(blocks=2)
    policy.push(one)
    Parted.answer = 2
    assert policy.together(one) == 2
    for wrong in (0, 3, None, 1.0):
        Parted.answer = wrong
        with pytest.raises(PolicyError, match="expected a whole number of blocks, from 1 to"):
            policy.together(one)


def test_a_policy_has_the_methods_of_the_protocol():
    for name in ("push", "remove", "replace", "victim", "evicted"):
        with pytest.raises(PolicyError, match=rf"has no {name}\(\); expected the methods push,"):
            made(type("Lacking", (Latest,), {name: None}))


def test_a_class_that_cannot_be_made():
    with pytest.raises(PolicyError, match="making it raised TypeError"):
        made(type("Viewless", (), {}))
