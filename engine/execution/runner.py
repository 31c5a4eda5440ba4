"""The device half of a step: a plan becomes tensors, the model runs, tokens are chosen.

Every process of a tensor-parallel engine has one and gets the same plans. Nothing is read back from
the device: what one step leaves behind for the next stays there.
"""

import gc
from collections.abc import Iterable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from engine.execution.graphs import capture
from engine.execution.inputs import StepInput
from engine.execution.kvcache import KvPool
from engine.execution.model import Model
from engine.execution.plan import (
    NOTHING,
    Counts,
    Plan,
    Sections,
    idle_decodes,
    idle_prefills,
    sections,
)
from engine.execution.sampling import greedy, sample
from engine.work import Move


class Mover(Protocol):
    """Copies whole blocks between the pool and the tiers below: see Offloader."""

    def before(self, moves: Iterable[Move], unsettled: bool) -> int:
        """Begin the copies that come before a step; called once for each step. Returns bytes."""
        ...

    def after(self, moves: Iterable[Move]) -> int:
        """Begin the copies that come after a step, which is launched; returns bytes."""
        ...

    def lost(self) -> tuple[int, ...]:
        """Levels that failed since this was last asked."""
        ...

    def close(self) -> None:
        """Give back memory and files."""
        ...


class Ran(NamedTuple):
    """A step as the device runs it."""

    tokens: Tensor
    """[decodes + prefills] int64 on the device: the last token of each, padding left out. The next
    step overwrites it."""
    graph_bucket: int
    """Decodes of the graph that was replayed; 0: none was."""
    moved_bytes: int


class Runner:
    """A model and its pool, with what stays on the device from step to step."""

    def __init__(
        self,
        model: Model,
        pool: KvPool,
        *,
        max_num_seqs: int,
        max_model_len: int,
        max_tokens: int,
        mover: Mover | None = None,
    ) -> None:
        """A runner that has seen nothing.

        Args:
            model: its weights are on the pool's device.
            pool: blocks are named as its rows are; its tail has `max_num_seqs + 1` rows.
            max_num_seqs: rows of the block tables, besides row 0, which is nobody's.
            max_model_len: most context of a sequence, in tokens.
            max_tokens: prefill tokens of a usual step: larger plans take another way to the device.
            mover: of the tiers below the pool; None: there are none.
        """
        self.model = model
        self.pool = pool
        self.mover = mover
        self.device = pool.buffer.device
        self.max_model_len = max_model_len
        self.tables = torch.zeros(
            (max_num_seqs + 1, -(-max_model_len // pool.block_tokens)),
            dtype=torch.int32,
            device=self.device,
        )
        """[rows, blocks]: see StepInput."""
        self.last_token = torch.zeros(max_num_seqs + 1, dtype=torch.int64, device=self.device)
        """[rows]: the token that each sequence's next decode starts from."""
        largest = NOTHING._replace(
            decodes=max_num_seqs,
            prefills=max_num_seqs,
            prefill_tokens=max_tokens,
            updates=max_tokens + max_num_seqs,
            samples=1,
        )
        self.words = torch.zeros(
            sections(largest).moves.start, dtype=torch.int32, device=self.device
        )
        """The plan of the step: captured graphs read it here."""
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._hidden = torch.empty(0)
        self._tokens = torch.empty(0)

    def warm_up(self, tokens: int, buckets: Iterable[int]) -> None:
        """Have kernels compiled and memory taken, and capture steps of so many decodes."""
        sizes = tuple(buckets)
        most, embedding = max(sizes, default=1), self.model.weights.embedding
        self._hidden = embedding.new_empty(most, embedding.shape[1])
        self._tokens = self.last_token.new_empty(most)
        self.run(idle_prefills(tokens, min(tokens, self.max_model_len)))
        self._prepare(1)
        self._decode(1)
        self._graphs = capture(self._prepare, self._decode, sizes, self.device)

    def close(self) -> None:
        """Let go of weights, pool and graphs; nothing can run any more."""
        if self.mover is not None:
            self.mover.close()
            self.mover = None
        self._graphs.clear()
        if hasattr(self, "model"):
            del self.model, self.pool
        gc.collect()  # the pool and what the operations noted of a step refer to each other
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @torch.inference_mode()
    def run(self, plan: Plan) -> Ran:
        """Begin a step; returns when all of it is launched (on a CPU: done)."""
        if self.mover is None:
            if plan.counts.before + plan.counts.after:
                raise RuntimeError("copies are asked for, but there is no tier below the pool")
            return Ran(*self._step(plan), 0)
        before, after = plan.moves()
        moved_bytes = self.mover.before(before, bool(plan.counts.unsettled))
        tokens, bucket = self._step(plan)
        return Ran(tokens, bucket, moved_bytes + self.mover.after(after))

    def _step(self, plan: Plan) -> tuple[Tensor, int]:
        """The tokens and the bucket, as in Ran."""
        counts, at = plan.counts, plan.sections
        real = counts.sequences - counts.padding
        if not real:
            return self.last_token[:0], 0
        words = self._upload(plan)
        if counts.updates:
            places = words[at.update_rows], words[at.update_columns]
            self.tables[places] = words[at.update_blocks]
        graph = self._graphs.get(counts.bucket)
        if graph is None or words is not self.words:
            hidden = self._last_hidden(words, counts, at, counts.max_context)
            return self._choose(hidden, words, counts, at)[:real], 0
        graph.replay()
        if not counts.samples:
            return self._tokens[:real], counts.bucket
        hidden = self._hidden[: counts.decodes]
        return self._choose(hidden, words, counts, at)[:real], counts.bucket

    def _prepare(self, decodes: int) -> None:
        """Have a step of so many decodes, all of which only fill up, stand in `words`."""
        self._upload(idle_decodes(decodes))

    @torch.inference_mode()
    def _decode(self, decodes: int) -> None:
        """A greedy step of the decodes in `words`: what is captured."""
        counts = idle_decodes(decodes).counts
        at = sections(counts)
        hidden = self._last_hidden(self.words, counts, at, self.max_model_len)
        self._hidden[:decodes] = hidden
        self._tokens[:decodes] = self._choose(hidden, self.words, counts, at)

    def _upload(self, plan: Plan) -> Tensor:
        """The plan's vector on the device: in `words`, if it is not too long for it."""
        host = torch.from_numpy(plan.vector)[: plan.device_words]
        if len(host) > len(self.words):
            return host.to(self.device)
        self.words[: len(host)].copy_(host, non_blocking=True)
        return self.words

    def _last_hidden(self, words: Tensor, counts: Counts, at: Sections, max_context: int) -> Tensor:
        """[sequences, hidden]: the model's output for the last token of each sequence."""
        decodes, rows = counts.decodes, words[at.rows]
        tokens = self.last_token[rows[:decodes]]
        if counts.prefills:
            tokens = torch.cat((tokens, words[at.ids].long()))
        step = StepInput(
            tokens=tokens,
            positions=words[at.positions],
            token_rows=words[at.token_rows] if counts.prefills else rows,
            tables=self.tables,
            rows=rows,
            context=words[at.context],
            starts=words[at.starts],
            decodes=decodes,
            max_chunk=counts.max_chunk,
            max_context=max_context,
        )
        hidden = self.model.forward(step, self.pool)
        return hidden[words[at.last]] if counts.prefills else hidden

    def _choose(self, hidden: Tensor, words: Tensor, counts: Counts, at: Sections) -> Tensor:
        """[sequences] int64: the forced or chosen tokens, from which the next decodes start."""
        logits = self.model.logits(hidden)
        if counts.samples:
            tokens = sample(
                logits,
                words[at.seeds].view(torch.int64),
                words[at.context],
                words[at.temperature].view(torch.float32),
                words[at.top_p].view(torch.float32) if counts.nucleus else None,
            )
        else:
            tokens = greedy(logits)
        forced = words[at.forced]
        tokens = torch.where(forced >= 0, forced, tokens)
        self.last_token[words[at.rows]] = tokens
        return tokens
