"""What one scheduler step runs."""

from engine.decoding import DecodeSet
from engine.sequence import Sequence


class Batch:
    """One step's work, and for how many steps the very same work would be scheduled again.

    The cost of a step depends on these sums and, for a cost that looks, on how `members` differ.
    Over the `horizon`, from one step to the next, `decode_context_tokens` grows by `decodes`,
    `prefill_context_tokens` by `prefill_tokens` and `prefill_pairs` by `prefill_pairs_growth`;
    everything else stays.
    """

    __slots__ = (
        "admitted",
        "completed",
        "decode_context_tokens",
        "decodes",
        "decoding",
        "exhausted",
        "horizon",
        "left_out",
        "members",
        "preempted",
        "prefill_context_tokens",
        "prefill_pairs",
        "prefill_pairs_growth",
        "prefill_tokens",
        "prefills",
    )

    def __init__(self) -> None:
        self.decodes: int = 0
        """Sequences that compute one token at or past their prompt's end."""
        self.decoding: int = 0
        """Sequences of the decode set that get their next token."""
        self.decode_context_tokens: int = 0
        """Sum over decodes of the tokens attended to (those before and the new one)."""
        self.members: DecodeSet | None = None
        """The decode set, as it is while the step is the scheduler's latest."""
        self.prefill_tokens: int = 0
        """Tokens of all prefill chunks."""
        self.prefill_context_tokens: int = 0
        """Sum over prefill chunks of the tokens before and in the chunk: KV read once a chunk."""
        self.prefill_pairs: int = 0
        """Sum over chunks of chunk x context before + chunk (chunk + 1) / 2: causal attention."""
        self.prefill_pairs_growth: int = 0
        """Sum over chunks of chunk squared."""
        self.prefills: tuple[tuple[Sequence, int], ...] = ()
        """Prefilling sequences in running order, each with its chunk's tokens."""
        self.horizon: int = 1
        """Steps for which the scheduler would decide exactly this if nothing arrived."""
        self.admitted: tuple[Sequence, ...] = ()
        """Sequences taken from the waiting queue in this step, in order."""
        self.preempted: tuple[Sequence, ...] = ()
        """Sequences put back into the waiting queue in this step, in order."""
        self.completed: tuple[Sequence, ...] = ()
        """Prefills that end with the batch's last step: they produce a token then."""
        self.exhausted: tuple[Sequence, ...] = ()
        """Sequences whose last output token the batch's last step produces, in running order."""
        self.left_out: tuple[Sequence, ...] = ()
        """Running decodes that found no token budget in this step."""

    @property
    def context_tokens(self) -> int:
        """Tokens attended to by all sequences of the step."""
        return self.decode_context_tokens + self.prefill_context_tokens

    @property
    def sequences(self) -> int:
        """Sequences computed in the step; each has one row of logits."""
        return self.decodes + len(self.prefills)
