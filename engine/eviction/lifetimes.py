"""How long a piece is kept after its last use, in seconds."""

from __future__ import annotations

from typing import Final

from engine.eviction.divided import Queues
from engine.eviction.protocol import CacheView
from engine.moment import Moment
from engine.prefix import Piece
from engine.sequence import FINISHED
from traces.errors import ConfigError

PICOSECONDS: Final = 10**12


class TimeToLive(Queues):
    """LRU, and nobody can hit what was not used for `ttl_s`.

    What a provider promises that bills cached tokens by their lifetime, and what frees content that
    must not be kept. It never hits more than LRU.
    """

    leaf_first: Final = True

    __slots__ = ("_moment", "_ttl")

    def __init__(self, view: CacheView, *, ttl_s: float = 300.0) -> None:
        """`ttl_s`: seconds after its last use at which a piece expires.

        Raises:
            ConfigError: `ttl_s` is not above 0.
        """
        super().__init__(1)
        self._moment: Moment = view.moment
        self._ttl: int = _picoseconds("ttl", ttl_s)

    def push(self, piece: Piece) -> None:
        """Queue `piece` as used now."""
        piece.rank = float(self._moment.now)
        self.join(piece, 0)

    def choose(self) -> Piece:
        """The least recently used."""
        return self._queues[0].least()

    def expired(self) -> Piece | None:
        """The least recently used, if it has expired."""
        queue = self._queues[0]
        if len(queue):
            piece = queue.least()
            if piece.rank + self._ttl <= self._moment.now:
                return piece
        return None


class ToolTimeToLive(Queues):
    """What a session will need again after a tool call is kept for `ttl_s`; else LRU.

    Agents pause between turns for as long as their tools run, in which others' prompts would push
    their context out. For `ttl_s` after a turn its pieces go only if nothing else is left, then the
    one that expires first. It hurts when sessions pause longer: their pieces take up room, and go
    when they are needed. That the time has come is noticed when a request is admitted or ends.

    Source: Li et al., "Continuum: efficient and robust multi-turn LLM agent scheduling with KV
    cache time-to-live", arXiv:2511.02230; with a stated time to live, not an estimated one, and for
    all requests with a session.
    """

    __slots__ = ("_moment", "_ttl")

    ORDINARY: Final = 0
    KEPT: Final = 1

    def __init__(self, view: CacheView, *, ttl_s: float = 10.0) -> None:
        """`ttl_s`: seconds for which a session's pieces are kept.

        Raises:
            ConfigError: `ttl_s` is not above 0.
        """
        super().__init__(2)
        self._moment: Moment = view.moment
        self._ttl: int = _picoseconds("tool-ttl", ttl_s)

    def begin(self, piece: Piece) -> None:
        """See whose time is over."""
        self._lapse()

    def push(self, piece: Piece) -> None:
        """Queue `piece` as used now; one of a session's finished turn is kept."""
        self._lapse()
        owner = piece.owner
        kept = owner is not None and owner.request.session_id >= 0 and owner.status == FINISHED
        if kept:
            piece.rank = float(self._moment.now + self._ttl)
        self.join(piece, self.KEPT if kept else self.ORDINARY)

    def choose(self) -> Piece:
        """The least recently used that is not kept; if all are, the first to expire."""
        ordinary, kept = self._queues
        return ordinary.least() if len(ordinary) else kept.least()

    def _lapse(self) -> None:
        """Let those whose time is over stand where their last use puts them."""
        ordinary, kept = self._queues
        now = self._moment.now
        while len(kept):
            piece = kept.least()
            if piece.rank > now:
                break
            kept.discard(piece)
            piece.segment = self.ORDINARY
            ordinary.add(piece, 0.0, piece.place)
            self._chosen = None


def _picoseconds(policy: str, ttl_s: float) -> int:
    if not ttl_s > 0.0:
        raise ConfigError(f"eviction policy '{policy}': ttl_s: must be above 0, got {ttl_s:g}")
    return round(ttl_s * PICOSECONDS)
