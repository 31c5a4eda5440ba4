"""An eviction policy of the user's own, held to EvictionPolicy."""

from __future__ import annotations

from typing import Any, Final

from engine.eviction.protocol import CacheView
from engine.guard.calls import Calls, missing, shown
from engine.prefix import Piece

METHODS: Final = ("push", "remove", "replace", "victim", "evicted")
"""What every eviction policy has; see EvictionPolicy for what it may have."""


class GuardedEviction:
    """Passes everything on to the policy, and knows itself which pieces may be evicted."""

    def __init__(self, calls: Calls, make: Any, view: CacheView) -> None:
        """The policy that `make` makes of `view`.

        Raises:
            PolicyError: here and in every method, when the policy broke its contract.
        """
        self._calls = calls
        self._policy: Any = calls.call("making it", None, make, view)
        lacking = missing(self._policy, METHODS)
        if lacking:
            raise calls.broken(
                f"has no {lacking[0]}()", f"the methods {', '.join(METHODS)} of EvictionPolicy"
            )
        self._evictable: dict[Piece, None] = {}
        self._begun: Any = None
        """The request for which room was asked last."""
        self._said: Piece | None = None
        """The victim, as long as it must stay the same."""
        self.leaf_first: bool = bool(getattr(self._policy, "leaf_first", False))
        for name in ("hit", "queued", "unqueued", "together", "expired"):
            if callable(getattr(self._policy, name, None)):
                setattr(self, name, getattr(self, f"_{name}"))
        self._begins: bool = callable(getattr(self._policy, "begin", None))

    def push(self, piece: Piece) -> None:
        """See EvictionPolicy."""
        self._said = None
        self._evictable[piece] = None
        self._calls.call("push()", piece, self._policy.push, piece)

    def remove(self, piece: Piece) -> None:
        """See EvictionPolicy."""
        self._said = None
        self._evictable.pop(piece, None)
        self._calls.call("remove()", piece, self._policy.remove, piece)

    def replace(self, piece: Piece, tail: Piece) -> None:
        """See EvictionPolicy."""
        self._said = None
        self._evictable.pop(piece, None)
        self._evictable[tail] = None
        self._calls.call("replace()", piece, self._policy.replace, piece, tail)

    def victim(self) -> Piece:
        """See EvictionPolicy; a piece that may be evicted, the same when asked again."""
        piece: Any = self._calls.call("victim()", self._begun, self._policy.victim)
        before = self._said
        if piece is not before or before is None:
            self._check("victim()", piece)
            if before is not None and before.end > before.start:
                raise self._calls.broken(
                    f"victim() returned {_described(piece)} after {_described(before)}",
                    "the same as long as it is not empty and nothing else happens",
                    self._begun,
                )
        self._said = piece
        return piece

    def evicted(self, piece: Piece, blocks: int) -> None:
        """See EvictionPolicy."""
        self._said = None
        if piece.end == piece.start:
            self._evictable.pop(piece, None)
        self._calls.call("evicted()", piece, self._policy.evicted, piece, blocks)

    def begin(self, piece: Piece) -> None:
        """See EvictionPolicy; the guard has it even if the policy has not, for its errors."""
        self._begun = piece.owner
        if self._begins:
            self._said = None
            self._calls.call("begin()", piece, self._policy.begin, piece)

    def _hit(self, piece: Piece, seq: Any) -> None:
        self._said = None
        self._calls.call("hit()", seq, self._policy.hit, piece, seq)

    def _together(self, piece: Piece) -> int:
        blocks: Any = self._calls.call("together()", piece, self._policy.together, piece)
        if not isinstance(blocks, int) or not 1 <= blocks <= piece.end - piece.start:
            raise self._calls.broken(
                f"together() returned {shown(blocks)} for {_described(piece)}",
                "a whole number of blocks, from 1 to all it has",
                self._begun,
            )
        return blocks

    def _queued(self, seq: Any) -> None:
        self._said = None
        self._calls.call("queued()", seq, self._policy.queued, seq)

    def _unqueued(self, seq: Any) -> None:
        self._said = None
        self._calls.call("unqueued()", seq, self._policy.unqueued, seq)

    def _expired(self) -> Piece | None:
        self._said = None
        piece: Any = self._calls.call("expired()", self._begun, self._policy.expired)
        if piece is not None:
            self._check("expired()", piece)
        return piece

    def _check(self, what: str, piece: Any) -> None:
        """Refuse what is no piece, is in use, or has gone already."""
        expected = "a piece that was pushed and that nobody references"
        if not isinstance(piece, Piece):
            raise self._calls.broken(f"{what} returned {shown(piece)}", expected, self._begun)
        if piece in self._evictable and piece.end > piece.start:
            return
        if piece.refs:
            state = "which is in use"
        elif piece.end == piece.start:
            state = "which is evicted already"
        else:
            state = "which was not pushed, or was removed again"
        raise self._calls.broken(
            f"{what} returned {_described(piece)}, {state}", expected, self._begun
        )


def _described(piece: Piece) -> str:
    owner = piece.owner
    blocks = f"blocks [{piece.start}, {piece.end})"
    return f"{blocks} of request {owner.request.request_id}" if owner else blocks
