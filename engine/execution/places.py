"""Where the tokens of a step and their past lie in the KV pool: worked out once for all layers."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import torch
from torch import Tensor

from engine.execution.inputs import StepInput
from engine.kvformats import BlockLayout

GROUP_ELEMENTS: Final = 2**19
"""Key elements of the decodes that a CPU takes at a time: they and their values stay in its cache
between gathering and use."""
PADDED_ELEMENTS: Final = 2**17
"""Padding among them that costs as much as taking the shorter ones by themselves."""
DEVICE_ELEMENTS: Final = 2**28
"""As GROUP_ELEMENTS, of any other device: memory is the limit there."""


class Group(NamedTuple):
    """Decodes that attend together, padded to as many blocks as the longest of them sees."""

    members: Tensor
    """[members] int64: which tokens of the step."""
    rows: Tensor
    """[members] int64: their rows in the tables."""
    blocks: Tensor
    """[members, columns] int64: the blocks each sees, then the null block, where padding writes but
    nobody's NaN stands."""
    last: Tensor
    """[members] int64: column of the block that holds the newest token."""
    hidden: Tensor
    """[members, 1, 1, columns x block_tokens] bool: past the end or before the window."""
    unwritten: Tensor
    """[members, 1, block_tokens, 1] bool: past the end, in the last block."""
    partial: Tensor
    """[members, 1, 1, 1] bool: the last block is not full."""


class Chunk(NamedTuple):
    """Prefill tokens of one sequence."""

    begin: int
    """First of its tokens, counted from the step's first."""
    end: int
    row: int
    context: int
    table: Tensor
    """[blocks] int32: of its context."""

    @property
    def first(self) -> int:
        """Position of its first token."""
        return self.context - (self.end - self.begin)


@dataclass(slots=True)
class Places:
    """Where a step's tokens and their past lie in the pool: the same for all layers."""

    step: StepInput
    layout: BlockLayout
    blocks: Tensor
    """[tokens] int64: the block of each token."""
    slots: Tensor
    """[tokens] int64: its place in there."""
    chunks: list[Chunk]
    layer: int = -1
    """Appended to last."""
    _groups: dict[int, list[Group]] = field(default_factory=dict[int, list[Group]])

    @classmethod
    def of(cls, step: StepInput, layout: BlockLayout) -> "Places":
        """The places of `step` in a pool of blocks laid out so."""
        positions, tokens = step.positions.long(), layout.block_tokens
        blocks = step.tables[step.token_rows.long(), positions // tokens].long()
        return cls(step, layout, blocks, positions % tokens, list(_chunks(step, tokens)))

    def groups(self, window: int) -> list[Group]:
        """The decodes, in groups; `window` as in Ops.attend."""
        if window not in self._groups:
            self._groups[window] = list(self._grouped(window))
        return self._groups[window]

    def _grouped(self, window: int) -> Iterator[Group]:
        context = self.step.context[: self.step.decodes].long()
        tokens = self.layout.block_tokens
        first = (context - window).clamp_(min=0) // tokens if window else torch.zeros_like(context)
        last = (context - 1) // tokens
        columns = last - first + 1
        for members, longest in (
            self._by_length(columns) if columns.device.type == "cpu" else self._alike(window)
        ):
            yield self._group(members, first[members], last[members], longest, window)

    def _group(
        self, members: Tensor, first: Tensor, last: Tensor, columns: int, window: int
    ) -> Group:
        """`members`, whose blocks from column `first` to `last` of their tables are seen."""
        step, tokens, device = self.step, self.layout.block_tokens, members.device
        rows, ends = step.rows[members].long(), step.context[members].long().unsqueeze(1)
        column = first.unsqueeze(1) + torch.arange(columns, device=device)
        seen = column <= last.unsqueeze(1)
        blocks = step.tables[rows.unsqueeze(1), column.where(seen, 0)].long().where(seen, 0)
        inside = torch.arange(tokens, device=device)
        position = (column.unsqueeze(2) * tokens + inside).flatten(1)
        hidden = position >= ends
        if window:
            hidden |= position < ends - window
        held = ends - last.unsqueeze(1) * tokens
        return Group(
            members=members,
            rows=rows,
            blocks=blocks,
            last=last - first,
            hidden=hidden[:, None, None, :],
            unwritten=(inside >= held)[:, None, :, None],
            partial=(held < tokens)[:, None, :, None],
        )

    def _by_length(self, columns: Tensor) -> Iterator[tuple[Tensor, int]]:
        """Decodes that see about as many blocks, and how many the longest of them sees."""
        counts: list[int] = columns.tolist()
        members: list[int] = []
        longest = padding = 0
        for member in reversed(columns.argsort().tolist()):
            padding += (longest - counts[member]) * self._block_elements
            taken = (len(members) + 1) * longest * self._block_elements
            if members and (padding > PADDED_ELEMENTS or taken > GROUP_ELEMENTS):
                yield torch.tensor(members), longest
                members = []
            if not members:
                longest, padding = counts[member], 0
            members.append(member)
        if members:
            yield torch.tensor(members), longest

    def _alike(self, window: int) -> Iterator[tuple[Tensor, int]]:
        """Decodes in order: nothing is read back, so all may be as long as the longest."""
        tokens, decodes = self.layout.block_tokens, self.step.decodes
        longest = -(-self.step.max_context // tokens)
        if window:
            longest = min(longest, (window + tokens - 2) // tokens + 1)
        together = max(1, DEVICE_ELEMENTS // (longest * self._block_elements))
        for begin in range(0, decodes, together):
            end = min(begin + together, decodes)
            yield torch.arange(begin, end, device=self.step.rows.device), longest

    @property
    def _block_elements(self) -> int:
        return self.layout.block_tokens * self.layout.kv_heads * self.layout.head_dim


def _chunks(step: StepInput, block_tokens: int) -> Iterator[Chunk]:
    if not step.prefills:
        return
    starts: list[int] = step.starts.tolist()
    rows, contexts = (x[step.decodes :].tolist() for x in (step.rows, step.context))
    for at, (row, context) in enumerate(zip(rows, contexts, strict=True)):
        yield Chunk(
            begin=step.decodes + starts[at],
            end=step.decodes + starts[at + 1],
            row=row,
            context=context,
            table=step.tables[row, : -(-context // block_tokens)],
        )
