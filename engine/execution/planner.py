"""The host half of a step: what the scheduler's shares mean in rows, blocks and tokens."""

from collections.abc import Sequence as Listed
from typing import NamedTuple

import numpy as np

from engine.execution.plan import SAMPLED, Counts, Plan, Words, sections
from engine.sequence import Sequence
from engine.work import Generation, Share, Work


class Planner:
    """Writes plans, and knows what the device has already: rows, and the blocks in them.

    A sequence has a row of the block tables from its first share until it is dropped. Of its
    blocks only those are sent that a step is the first to need.
    """

    def __init__(
        self,
        max_num_seqs: int,
        max_model_len: int,
        block_tokens: int,
        *,
        buckets: Listed[int] = (),
        reuse: bool = True,
    ) -> None:
        """A planner of rows 1 to `max_num_seqs`.

        Args:
            max_num_seqs: sequences that have a row at once.
            max_model_len: most context of a sequence, in tokens.
            block_tokens: tokens of a block.
            buckets: ascending sizes to which steps of decodes are filled up: the first that is
                large enough. A step larger than all is left as it is.
            reuse: False: every share becomes one chunk of all the sequence's tokens.
        """
        self._max_model_len = max_model_len
        self._block_tokens = block_tokens
        self._buckets = tuple(buckets)
        self._reuse = reuse
        self._rows: dict[Sequence, int] = {}
        self._free = list(range(max_num_seqs, 0, -1))
        rows = max_num_seqs + 1
        self._sent = np.zeros(rows, np.int32)
        """Blocks of a row that are in the device's table."""
        self._forced_end = np.zeros(rows, np.int32)
        """Contexts of a row below this have a forced token."""
        self._seed = np.zeros(rows, np.int64)
        self._temperature = np.zeros(rows, np.float32)
        self._top_p = np.ones(rows, np.float32)

    @property
    def free_rows(self) -> int:
        """Rows that belong to nobody."""
        return len(self._free)

    def drop(self, seq: Sequence) -> None:
        """Take a sequence's row back, if it has one."""
        row = self._rows.pop(seq, 0)
        if row:
            self._free.append(row)

    def plan(self, work: Work, room: Words | None = None) -> Plan:
        """The plan of a step, written into `room` if that is large enough.

        Raises:
            RuntimeError: where the work contradicts what a scheduler promises: a decode that
                never prefilled, more sequences than rows, a table shorter than the context, a
                prefill of unknown tokens.
        """
        step = self._step(work)
        counts = self._counts(step)
        at = sections(counts)
        words = at.moves.stop
        if room is None or words > len(room):
            plan = Plan(np.empty(words, np.int32), counts, at)
        else:
            plan = Plan(room[:words], counts, at)
        self._write(plan, step)
        if counts.prefills:
            _write_prefills(plan, step)
        if counts.samples:
            self._write_sampling(plan, step)
        return plan

    def _step(self, work: Work) -> "_Step":
        decodes, prefills = work.decodes, work.prefills
        if not self._reuse:
            prefills = [Share(one.generation, one.context, one.context) for one in decodes]
            prefills += [Share(one.generation, one.context, one.context) for one in work.prefills]
            decodes = []
        rows_of = self._rows
        try:
            rows = [rows_of[share.generation.seq] for share in decodes]
        except KeyError as error:
            raise RuntimeError(f"decode of {error.args[0]}, which has not prefilled") from None
        rows += [self._row(share.generation) for share in prefills]
        shares = [*decodes, *prefills]
        row = np.array(rows, np.int32)
        context = np.array([share.context for share in shares], np.int32)
        updates = self._updates(shares, row, context)
        return _Step(len(decodes), shares, row, context, updates, work)

    def _row(self, generation: Generation) -> int:
        """The row of a sequence, which is given one if it has none."""
        seq, sampling, forced = generation.seq, generation.sampling, generation.forced
        row = self._rows.get(seq)
        if row is not None:
            return row
        if not self._free:
            raise RuntimeError(f"no row is left for {seq}: {len(self._rows)} sequences have one")
        row = self._rows[seq] = self._free.pop()
        self._sent[row] = 0
        self._forced_end[row] = seq.prompt_tokens + len(forced) if forced else 0
        self._seed[row] = sampling.seed % 2**63
        self._temperature[row] = sampling.temperature
        self._top_p[row] = sampling.top_p
        return row

    def _updates(
        self, shares: list[Share], row: Words, context: Words
    ) -> tuple[list[int], list[int], list[int]]:
        """Rows, columns and names of the blocks that the step needs and the device has not."""
        needed = -(-context // self._block_tokens)
        rows: list[int] = []
        columns: list[int] = []
        names: list[int] = []
        for i in np.flatnonzero(needed > self._sent[row]).tolist():
            seq, at, end = shares[i].generation.seq, int(row[i]), int(needed[i])
            if end > len(seq.table):
                raise RuntimeError(
                    f"{seq}: {context[i]} tokens need {end} blocks, its table has {len(seq.table)}"
                )
            start = int(self._sent[at])
            rows += [at] * (end - start)
            columns += range(start, end)
            names += seq.table[start:end]
            self._sent[at] = end
        return rows, columns, names

    def _counts(self, step: "_Step") -> Counts:
        decodes = step.decodes
        chunks = [share.chunk for share in step.shares[decodes:]]
        bucket = 0
        if decodes and not chunks:
            bucket = next((size for size in self._buckets if size >= decodes), 0)
        max_context = int(step.context.max(initial=0))
        if max_context > self._max_model_len:
            raise RuntimeError(f"context {max_context} exceeds max_model_len {self._max_model_len}")
        samples = self._temperature[step.row] > 0
        return Counts(
            decodes=bucket or decodes,
            padding=bucket - decodes if bucket else 0,
            prefills=len(chunks),
            prefill_tokens=sum(chunks),
            max_chunk=max(chunks, default=0),
            max_context=max_context,
            updates=len(step.updates[0]),
            bucket=bucket,
            samples=int(samples.any()),
            nucleus=int((samples & (self._top_p[step.row] < 1)).any()),
            before=len(step.work.before),
            after=len(step.work.after),
            unsettled=int(step.work.unsettled),
        )

    def _write(self, plan: Plan, step: "_Step") -> None:
        """All but what only prefills or sampling have; padding has row 0 and context 1."""
        vector, counts, at = plan.vector, plan.counts, plan.sections
        real = len(step.row)
        vector[at.counts] = counts
        rows, context, forced = vector[at.rows], vector[at.context], vector[at.forced]
        rows[:real], rows[real:] = step.row, 0
        context[:real], context[real:] = step.context, 1
        vector[at.positions][: counts.decodes] = context[: counts.decodes] - 1
        vector[at.starts] = 0
        forced[:] = SAMPLED
        for i in np.flatnonzero(step.context < self._forced_end[step.row]).tolist():
            generation, reached, _ = step.shares[i]
            # The first output token follows on the prompt's last.
            if reached >= generation.seq.prompt_tokens:
                forced[i] = generation.forced[reached - generation.seq.prompt_tokens]
        if counts.updates:
            vector[at.update_rows], vector[at.update_columns], vector[at.update_blocks] = (
                step.updates
            )
        if counts.before + counts.after:
            vector[at.moves] = np.array((*step.work.before, *step.work.after), np.int32).ravel()

    def _write_sampling(self, plan: Plan, step: "_Step") -> None:
        """Padding is greedy."""
        vector, at, real = plan.vector, plan.sections, len(step.row)
        for part, values in (
            (vector[at.seeds].view(np.int64), self._seed),
            (vector[at.temperature].view(np.float32), self._temperature),
            (vector[at.top_p].view(np.float32), self._top_p),
        ):
            part[:real] = values[step.row]
            part[real:] = 0


class _Step(NamedTuple):
    """What a plan is made from; of each share in order, decodes first."""

    decodes: int
    shares: list[Share]
    row: Words
    context: Words
    updates: tuple[list[int], list[int], list[int]]
    work: Work


def _write_prefills(plan: Plan, step: _Step) -> None:
    """Their tokens, positions and places, and the decodes' where the two stand together."""
    vector, at, decodes = plan.vector, plan.sections, step.decodes
    starts, positions = vector[at.starts], vector[at.positions][decodes:]
    token_rows, ids, last = vector[at.token_rows], vector[at.ids], vector[at.last]
    token_rows[:decodes] = step.row[:decodes]
    last[:decodes] = np.arange(decodes)
    start = 0
    for i, (generation, context, chunk) in enumerate(step.shares[decodes:]):
        end = start + chunk
        known = generation.tokens[context - chunk : context]
        if len(known) < chunk:
            raise RuntimeError(
                f"{generation.seq}: prefill up to {context} tokens,"
                f" {len(generation.tokens)} are known"
            )
        ids[start:end] = known
        positions[start:end] = np.arange(context - chunk, context)
        token_rows[decodes + start : decodes + end] = step.row[decodes + i]
        starts[i + 1] = end
        last[decodes + i] = decodes + end - 1
        start = end
