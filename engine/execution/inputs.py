"""What one step computes, as tensors on the device."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class StepInput:
    """The tokens of a step: those of the decodes first, one each, then the prefill chunks.

    A sequence has a row in `tables` for as long as it runs. A decode that only fills a captured
    graph up has row 0, whose table names the null block 0, and context 1. Lengths that size
    grids and workspaces are Python integers; nothing here is read back to the host in a step.
    """

    tokens: Tensor
    """[tokens] int64: token ids."""
    positions: Tensor
    """[tokens] int32: place in the sequence, from 0."""
    token_rows: Tensor
    """[tokens] int32: row of `tables` of the token's sequence."""
    tables: Tensor
    """[rows, blocks] int32: physical blocks of each sequence in order."""
    rows: Tensor
    """[sequences] int32: row of each sequence; decodes first, then prefills."""
    context: Tensor
    """[sequences] int32: tokens the sequence has once the step is done, those of the step included:
    its last token attends to so many."""
    starts: Tensor
    """[prefills + 1] int32: where each chunk begins, counted from the first prefill token; the last
    entry is the number of prefill tokens. [1] if there are none."""
    decodes: int
    """Sequences (and tokens) that are decodes."""
    max_chunk: int
    """Tokens of the longest chunk; 0 without prefills."""
    max_context: int
    """No sequence has more context; a captured graph states the largest it can ever have."""

    @property
    def prefills(self) -> int:
        """Sequences that prefill."""
        return self.rows.shape[0] - self.decodes
