"""The decode batch as running sums."""

from heapq import heapify, heappop, heappush

from engine.sequence import Sequence


class DecodeSet:
    """All decoding sequences at once: every step gives each one token.

    A sequence stores `base = computed tokens - epoch`, so that a step costs one increment of
    `epoch` however many sequences run. The set keeps their number, the sum of bases, how many
    have each base modulo the block size (whose next token starts a block), and a heap of who
    ends when. A heap entry counts only while both its numbers are the sequence's own: one that
    left and joined again has another entry.
    """

    __slots__ = ("_block_tokens", "_ends", "_paged", "_residues", "base_sum", "epoch", "size")

    def __init__(self, block_tokens: int, paged: bool = True) -> None:
        self.epoch: int = 0
        """Decode steps scheduled so far."""
        self.size: int = 0
        self.base_sum: int = 0
        self._block_tokens: int = block_tokens
        self._paged: bool = paged
        self._residues: list[int] = [0] * block_tokens
        self._ends: list[tuple[int, int, Sequence]] = []

    @property
    def context_tokens(self) -> int:
        """Computed tokens of all members together."""
        return self.base_sum + self.size * self.epoch

    def extremes(self) -> tuple[int, int]:
        """Computed tokens of the shortest and the longest member; the set must not be empty."""
        bases = [entry[2].base for entry in self._ends if self._counts(entry)]
        return min(bases) + self.epoch, max(bases) + self.epoch

    def computed(self, seq: Sequence) -> int:
        """Computed tokens of a sequence, in the set or not."""
        return seq.base + self.epoch if seq.decoding else seq.base

    def join(self, seq: Sequence, steps: int) -> None:
        """Add `seq`, which has `steps` decode steps to go; its `base` holds its computed tokens."""
        base = seq.base - self.epoch
        seq.base = base
        seq.decoding = True
        seq.finish_epoch = self.epoch + steps
        self.size += 1
        self.base_sum += base
        self._residues[base % self._block_tokens] += 1
        heappush(self._ends, (seq.finish_epoch, seq.admission, seq))

    def leave(self, seq: Sequence) -> None:
        """Remove `seq`; its `base` holds its computed tokens again."""
        self.size -= 1
        self.base_sum -= seq.base
        self._residues[seq.base % self._block_tokens] -= 1
        seq.base += self.epoch
        seq.decoding = False
        ends = self._ends
        if len(ends) > 4 * self.size + 64:  # mostly entries of sequences that left
            self._ends = [e for e in ends if e[2].decoding and self._counts(e)]
            heapify(self._ends)

    def hold_back(self, seq: Sequence) -> None:
        """Undo the last epoch for a member that got no token in it."""
        self._residues[seq.base % self._block_tokens] -= 1
        seq.base -= 1
        self.base_sum -= 1
        self._residues[seq.base % self._block_tokens] += 1
        seq.finish_epoch += 1
        heappush(self._ends, (seq.finish_epoch, seq.admission, seq))

    def blocks_due(self, steps: int) -> int:
        """New blocks that the next `steps` steps need."""
        if not self._paged:
            return 0
        block_tokens = self._block_tokens
        residues = self._residues
        if steps == 1:
            return residues[-self.epoch % block_tokens]
        rounds, rest = divmod(steps, block_tokens)
        due = self.size * rounds
        if rest:
            last = -self.epoch % block_tokens
            first = last - rest + 1
            if first >= 0:
                due += sum(residues[first : last + 1])
            else:
                due += sum(residues[: last + 1]) + sum(residues[first:])
        return due

    def starts_block(self, seq: Sequence) -> bool:
        """Whether the member's next token needs a new block."""
        return self._paged and (seq.base + self.epoch) % self._block_tokens == 0

    def steps_to_finish(self) -> int:
        """Steps until the first member has had its last; the set must not be empty."""
        ends = self._ends
        while True:
            finish, admission, seq = ends[0]
            # `_counts`, written out for speed
            if seq.decoding and seq.finish_epoch == finish and seq.admission == admission:
                return finish - self.epoch
            heappop(ends)

    def pop_finished(self) -> tuple[Sequence, ...]:
        """Remove and return, in admission order, the members whose last step is scheduled."""
        finished: tuple[Sequence, ...] = ()
        ends = self._ends
        while ends and ends[0][0] <= self.epoch:
            entry = heappop(ends)
            if self._counts(entry):
                seq = entry[2]
                self.leave(seq)
                ends = self._ends
                finished += (seq,)
        return finished

    def _counts(self, entry: tuple[int, int, Sequence]) -> bool:
        seq = entry[2]
        return seq.decoding and seq.finish_epoch == entry[0] and seq.admission == entry[1]
