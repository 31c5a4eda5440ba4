"""What a queue with a memory of its own is told and asked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from engine.decoding import DecodeSet
from engine.moment import Moment
from engine.sequence import Sequence

if TYPE_CHECKING:
    from engine.blocks import BlockManager

FOREVER: Final = 1 << 60


class Discipline(Protocol):
    """Holds the waiting sequences and says who is first.

    `first` may be asked at any time, and often: asking must change no answer. It may have more
    methods, which are called if it has them:

    - `admitted(seq)`: the sequence, which was first and has been removed, runs now.
    - `served(batch, steps)`: so many steps of that batch are scheduled.
    - `ended(seq)`: a sequence finished or was given up.
    - `steady_steps(batch) -> int`: for how many steps of `batch`, of which the first is decided
      already, the same sequence stays first while nothing comes or goes; FOREVER if it has no
      such method.
    - `outranked(running) -> Sequence | None`: who, of those that run, must give way if the first
      that waits finds no place; None if none must.
    """

    def add(self, seq: Sequence, again: bool) -> None:
        """`seq` comes into the queue; `again`: it was preempted."""
        ...

    def first(self) -> Sequence:
        """The sequence to be admitted next; there is one."""
        ...

    def remove(self, seq: Sequence) -> None:
        """`seq` leaves the queue: mostly the first."""
        ...


class QueueView:
    """What a queue may know of the scheduler it belongs to."""

    __slots__ = ("blocks", "decodes", "moment", "running")

    def __init__(
        self,
        blocks: BlockManager,
        decodes: DecodeSet,
        running: dict[Sequence, None],
        moment: Moment,
    ) -> None:
        self.blocks: BlockManager = blocks
        self.decodes: DecodeSet = decodes
        self.running: dict[Sequence, None] = running
        """In admission order."""
        self.moment: Moment = moment

    def cached_tokens(self, seq: Sequence) -> int:
        """Tokens of a waiting sequence that the prefix cache has now."""
        hit = self.blocks.match(seq, seq.prompt_tokens + seq.generated)
        return (hit.blocks + len(hit.below)) * self.blocks.block_tokens

    def output_tokens(self, seq: Sequence) -> int:
        """Output tokens of a sequence, waiting or running, that are scheduled by now."""
        if seq.decoding:
            return seq.output_limit - (seq.finish_epoch - self.decodes.epoch)
        return seq.generated
