"""What passes between the engine's loop and whatever executes its steps; torch-free."""

from collections.abc import Callable
from collections.abc import Sequence as Listed
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol

from engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen from the logits."""

    temperature: float = 0.0
    """0: the most likely token (greedy)."""
    top_p: float = 1.0
    """Only the most likely tokens whose probabilities add up to this; at least one."""
    seed: int = 0
    """The same seed, prompt and settings give the same text, whatever else is in the batch."""


@dataclass(slots=True, eq=False)
class Generation:
    """A sequence with its content: the tokens known so far and how to go on."""

    seq: Sequence
    tokens: list[int]
    """Prompt and the output tokens that are known on the host."""
    sampling: Sampling = Sampling()
    forced: Listed[int] = ()
    """Output tokens to emit instead of sampled ones, from the first on (to replay a recording)."""
    stop_tokens: frozenset[int] = frozenset()
    """Output tokens that end it."""
    on_token: "Callable[[Generation, int], None] | None" = None
    """Called with each output token as the host learns it."""
    outcome: int = -1
    """A number in engine.metrics.OUTCOMES once it has ended, else -1."""

    @property
    def output(self) -> list[int]:
        """The output tokens known on the host."""
        return self.tokens[self.seq.prompt_tokens :]


class Share(NamedTuple):
    """What one sequence computes in a step: the `chunk` tokens that end at `context`."""

    generation: Generation
    context: int
    """Tokens it has computed once the step is done."""
    chunk: int
    """Of a decode 1: the token sampled last, which perhaps only the device knows yet."""


GPU: Final = 0
CPU: Final = 1
DISK: Final = 2
REMOTE: Final = 3
TIERS: Final = ("gpu", "cpu", "disk", "remote")
"""Where a KV block can lie; a tier's level is its place here."""


class Place(NamedTuple):
    """Room for one block: on the GPU a block of the pool, below it a slot of the tier."""

    level: int
    slot: int


class Move(NamedTuple):
    """A copy of one whole block, all its layers, from one tier to another."""

    source: Place
    target: Place


@dataclass(slots=True)
class Work:
    """One step: who computes what. Physical blocks stand in each sequence's `table`."""

    decodes: list[Share] = field(default_factory=list)
    prefills: list[Share] = field(default_factory=list)
    """Chunks of known tokens; one whose context reaches `seq.prefill_end` gives a token too."""
    before: tuple[Move, ...] = ()
    """Copies to be made in this order before the step computes."""
    after: tuple[Move, ...] = ()
    """Copies of what the step computes, in this order."""
    unsettled: bool = False
    """A sequence gave up its blocks while a step with it was in flight: the copies of `before` wait
    for that step. Otherwise no step launched and not yet waited for touches their blocks."""


class StepOutput(NamedTuple):
    """What a step gave, and what it took."""

    tokens: list[int]
    """The token of each decode, then of each prefill in order; of an unfinished prefill, any."""
    device_s: float
    """Time on the device, from its first copy to its last token."""
    graph_bucket: int
    """Decodes that the replayed graph was captured for; 0: none was replayed."""
    moved_bytes: int
    """Bytes of KV blocks copied between tiers for this step."""


class Flight(Protocol):
    """A step under way."""

    def wait(self) -> StepOutput:
        """Block until the step is done."""
        ...


class Executor(Protocol):
    """Runs steps in the order they are launched, each reading what the one before wrote."""

    num_blocks: int
    """Of the KV pool, the null block included."""
    block_bytes: int
    """Of one block, all layers."""
    vocab: int
    """Token ids are below this."""

    def launch(self, work: Work) -> Flight:
        """Begin a step, perhaps of copies only or of nothing, and return without waiting."""
        ...

    def drop(self, seq: Sequence) -> None:
        """Forget a sequence that ended or was preempted; it may come back as a new one."""
        ...

    def lost(self) -> tuple[int, ...]:
        """Levels of tiers that failed since this was last asked; what they hold can still be read,
        but nothing more is to be written to them."""
        ...

    def close(self) -> None:
        """Give back memory, processes and files."""
        ...
