"""A device that is as late as may be, and an executor of texts on it (see tests.engine.ledger)."""

from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from random import Random
from threading import RLock

import torch
from torch import Tensor

from engine.config import EngineSettings
from engine.execution.kvcache import KvPool
from engine.execution.offload import Offloader
from engine.kvformats import block_layout
from engine.sequence import Sequence
from engine.work import Share, StepOutput, Work
from tests.engine.ledger import VOCAB, next_token, text_hash


class LateMark:
    def __init__(self, device: "LateDevice") -> None:
        self.device = device
        self.passed = False

    def synchronize(self) -> None:
        self.device.advance_to(self)


class LateDevice:
    """A stream of copies and one of steps that do nothing until somebody waits, and then go on in
    any order that the marks between them allow."""

    def __init__(self, random: Random, eager: float) -> None:
        """`eager`: how often a step goes on rather than a copy, where both could."""
        self.random = random
        self.eager = eager
        self.copies: deque[tuple[str, object]] = deque()
        self.steps: deque[tuple[str, object]] = deque()
        self.lock = RLock()

    # a CopyStream

    def running(self):
        return nullcontext()

    def copy(self, target: Tensor, source: Tensor) -> None:
        self.add(self.copies, "do", lambda: target.copy_(source))

    def mark(self) -> LateMark:
        return self.mark_in(self.copies)

    def follow_steps(self) -> None:
        self.add(self.copies, "until", self.mark_in(self.steps))

    def hold_steps(self, mark: LateMark) -> None:
        self.add(self.steps, "until", mark)

    # the device itself

    def launch(self, kernel: Callable[[], object]) -> LateMark:
        self.add(self.steps, "do", kernel)
        return self.mark_in(self.steps)

    def add(self, stream: deque[tuple[str, object]], what: str, argument: object) -> None:
        with self.lock:
            stream.append((what, argument))

    def mark_in(self, stream: deque[tuple[str, object]]) -> LateMark:
        mark = LateMark(self)
        self.add(stream, "pass", mark)
        return mark

    def advance_to(self, mark: LateMark) -> None:
        with self.lock:
            while not mark.passed:
                assert self.advance(), "the streams wait for each other"

    def advance(self) -> bool:
        """One thing more is done; False: nothing can be."""
        with self.lock:
            ready = [stream for stream in (self.copies, self.steps) if can_go_on(stream)]
            if not ready:
                return False
            both = len(ready) == 2
            what, argument = ready[both and self.random.random() < self.eager].popleft()
            if what == "do":
                argument()
            elif what == "pass":
                argument.passed = True
            return True

    def finish(self) -> None:
        while self.advance():
            pass
        assert not self.copies and not self.steps


def can_go_on(stream: deque[tuple[str, object]]) -> bool:
    if not stream:
        return False
    what, argument = stream[0]
    return what != "until" or argument.passed


ENTRIES = 4
"""Tokens of a block of the LateLedger."""
ENTRY_BYTES = 8


class LateStep:
    """A launched step of texts."""

    def __init__(self, ended: LateMark, tokens: list[int]) -> None:
        self.ended = ended
        self.tokens = tokens

    def wait(self) -> StepOutput:
        self.ended.synchronize()
        return StepOutput(self.tokens, 0.0, 0, 0)


class LateLedger:
    """Keeps the hash of the text up to each token in a real pool, and moves blocks with a real
    Offloader. Each step checks all that its sequences have in the pool."""

    def __init__(
        self, num_blocks: int, settings: EngineSettings, random: Random, eager: float, spares: int
    ) -> None:
        layout = block_layout("fp32", 1, 1, 1, ENTRIES)
        assert layout.block_bytes == ENTRIES * ENTRY_BYTES
        host = torch.device("cpu")
        self.pool = KvPool(layout, num_blocks, device=host, dtype=torch.float32, rows=1)
        self.entries = self.pool.buffer.view(torch.int64).numpy()
        self.num_blocks = num_blocks
        self.block_bytes = layout.block_bytes
        self.vocab = VOCAB
        self.random = random
        self.device = LateDevice(random, eager)
        self.offloader = Offloader(
            self.pool,
            settings.offload,
            host,
            asynchronous=settings.scheduler.async_scheduling,
            stream=self.device,
            spare_rows=spares,
        )
        self.said: dict[Sequence, list[int]] = {}
        """The tokens of each sequence as the device knows them."""
        self.wrong: list[str] = []

    def launch(self, work: Work) -> LateStep:
        tokens: list[int] = []
        kernel = self.kernel(work, tokens)
        self.offloader.before(work.before, work.unsettled)
        ended = self.device.launch(kernel)
        self.offloader.after(work.after)
        for _ in range(self.random.randrange(6)):
            self.device.advance()
        return LateStep(ended, tokens)

    def kernel(self, work: Work, tokens: list[int]) -> Callable[[], None]:
        """The step with what the host knows now."""
        decodes = [self.share(share) for share in work.decodes]
        prefills = [
            (*self.share(share), share.generation.tokens[: share.context])
            for share in work.prefills
        ]

        def run() -> None:
            for table, said, context, chunk, known in prefills:
                said[:] = known
                self.write(table, said, context, chunk)
            for table, said, context, chunk in decodes:
                self.write(table, said, context, chunk)
            for table, said, context, *_ in [*decodes, *prefills]:
                tokens.append(next_token(self.read(table, said, context)))
                said.append(tokens[-1])

        return run

    def share(self, share: Share) -> tuple[list[int], list[int], int, int]:
        seq = share.generation.seq
        return list(seq.table), self.said.setdefault(seq, []), share.context, share.chunk

    def write(self, table: list[int], said: list[int], context: int, chunk: int) -> None:
        text = 0
        for at, token in enumerate(said[:context]):
            text = text_hash(text, token)
            if at >= context - chunk:
                self.entries[table[at // ENTRIES], at % ENTRIES] = text

    def read(self, table: list[int], said: list[int], context: int) -> int:
        """The text's hash; notes the tokens whose entry is that of another text."""
        text = 0
        for at, token in enumerate(said[:context]):
            text = text_hash(text, token)
            if self.entries[table[at // ENTRIES], at % ENTRIES] != text:
                self.wrong.append(f"token {at} of {said[:context]} in block {table[at // ENTRIES]}")
        return text

    def drop(self, seq: Sequence) -> None:
        self.said.pop(seq, None)

    def lost(self) -> tuple[int, ...]:
        return ()

    def close(self) -> None:
        self.device.finish()
        self.offloader.close()
