"""One request's state inside a scheduler."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from traces.request import Request

if TYPE_CHECKING:
    from engine.prefix import Piece

WAITING: Final = 0
RUNNING: Final = 1
FINISHED: Final = 2


class Sequence:
    """A request as the scheduler sees it: where it stands and which pieces of blocks it holds.

    Times are integers on the caller's clock (picoseconds in the simulator); the scheduler itself
    only compares `arrival`.
    """

    __slots__ = (
        "admission",
        "admitted",
        "ahead",
        "arrival",
        "base",
        "cached_tokens",
        "contested_until",
        "decoding",
        "finish",
        "finish_epoch",
        "first_scheduled",
        "first_token",
        "generated",
        "hashes",
        "held",
        "kept",
        "last_token",
        "number",
        "open",
        "output_limit",
        "preemptions",
        "prefill_end",
        "priority",
        "prompt_tokens",
        "queued",
        "request",
        "resumed_cached",
        "shared_blocks",
        "stamp",
        "status",
        "swapped",
        "table",
    )

    def __init__(self, request: Request, number: int, arrival: int) -> None:
        self.request: Request = request
        self.number: int = number
        """Unlike any other sequence's of the same scheduler."""
        self.arrival: int = arrival
        self.priority: int = request.priority
        self.prompt_tokens: int = request.prompt_tokens
        self.output_limit: int = request.output_tokens
        """Output tokens after which it ends: as asked for, or what the model's limit leaves."""
        self.hashes: tuple[int, ...] = request.hashes
        self.shared_blocks: int = 0
        """Leading full blocks whose content another request may have too."""

        self.status: int = WAITING
        self.generated: int = 0
        """Output tokens sampled before the last admission."""
        self.prefill_end: int = request.prompt_tokens
        """Tokens to compute before the next output token: prompt and outputs known on admission."""
        self.base: int = 0
        """Computed tokens; for a decoding sequence, less the decode set's epoch."""
        self.decoding: bool = False
        """In the decode set."""
        self.finish_epoch: int = 0
        """The decode set's epoch at which its last decode step is scheduled."""
        self.admission: int = 0
        """Rank among admissions: the running order."""
        self.stamp: int = 0
        """The last step that granted it tokens one by one (see Scheduler)."""
        self.ahead: int = 0
        """Asynchronous only, after being left out of a step: its last token is already known."""

        self.held: tuple[Piece, ...] = ()
        """Closed pieces it references, in order; each reaches to the next one's start."""
        self.open: Piece | None = None
        """The piece it is computing."""
        self.kept: tuple[Piece, ...] = ()
        """Its own closed pieces that nobody else can hit, oldest first, to find on resuming."""
        self.contested_until: int = 0
        """Below this block, registration looks for copies (see BlockManager); 0: nowhere."""
        self.swapped: int = 0
        """Tokens whose KV waits in a tier below since it was preempted."""
        self.table: list[int] = []
        """Names of its blocks in order, where an executor needs them."""

        self.queued: int = -1
        """When the scheduler was first called with it waiting (vLLM's `queued_ts`)."""
        self.admitted: int = -1
        """When the scheduler was called and first admitted it (vLLM's `scheduled_ts`)."""
        self.first_scheduled: int = -1
        """When the first step that computes some of it began."""
        self.first_token: int = -1
        self.last_token: int = -1
        """When the token before a preemption came out."""
        self.finish: int = -1
        self.preemptions: int = 0
        self.cached_tokens: int = 0
        """Prefix hit of the first admission."""
        self.resumed_cached: tuple[int, ...] = ()
        """Prefix hit of each resumption."""

    def __repr__(self) -> str:
        return f"Sequence({self.request.request_id})"
