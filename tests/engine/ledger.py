"""An executor that computes no attention but knows, of every slot, which text stands behind it.

A token's entry is the hash of the text up to it; the next token follows from the whole text. Before
a sequence's tokens are computed, every earlier slot of its table must hold the entry of its own
text: whatever the scheduler reuses, evicts, swaps or loads, a wrong block is found at once.
"""

from engine.sequence import Sequence
from engine.work import GPU, Generation, Move, Share, StepOutput, Work

VOCAB = 50


def text_hash(before: int, token: int) -> int:
    return hash((before, token))


def next_token(text: int) -> int:
    return text % VOCAB


def continuation(prompt: list[int], tokens: int, stop: frozenset[int]) -> list[int]:
    """What follows a prompt, without any cache."""
    text = 0
    for token in prompt:
        text = text_hash(text, token)
    output: list[int] = []
    while len(output) < tokens:
        output.append(next_token(text))
        if output[-1] in stop:
            break
        text = text_hash(text, output[-1])
    return output


class Done:
    """A step that ran as it was launched; its tokens are told when waited for."""

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = tokens

    def wait(self) -> StepOutput:
        return StepOutput(self.tokens, 0.0, 0, 0)


class Ledger:
    """Keeps `num_blocks` blocks of `block_tokens` entries, and tiers of as many slots as asked."""

    def __init__(self, num_blocks: int, block_tokens: int, vocab: int = VOCAB) -> None:
        self.num_blocks = num_blocks
        self.block_bytes = 1
        self.vocab = vocab
        self.block_tokens = block_tokens
        self.places: dict[tuple[int, int], list[int | None]] = {
            (GPU, block): [None] * block_tokens for block in range(num_blocks)
        }
        self.last: dict[Sequence, int] = {}
        self.computed_tokens = 0
        self.closed = False

    def launch(self, work: Work) -> Done:
        self.move(work.before)
        tokens = [self.decode(share) for share in work.decodes]
        for share in work.prefills:  # a chunk may read what another of the step writes
            self.write(share)
        tokens += [self.prefill(share) for share in work.prefills]
        self.move(work.after)
        return Done(tokens)

    def decode(self, share: Share) -> int:
        generation, context, _ = share
        text = self.entry(generation, context - 2)
        token = self.last[generation.seq]
        assert text is not None
        text = text_hash(text, token)
        self.put(generation, context - 1, text)
        self.computed_tokens += 1
        return self.sample(share, text)

    def write(self, share: Share) -> None:
        generation, context, chunk = share
        text = 0
        for at, token in enumerate(generation.tokens[:context]):
            text = text_hash(text, token)
            if at >= context - chunk:
                self.put(generation, at, text)
        self.computed_tokens += chunk

    def prefill(self, share: Share) -> int:
        generation, context, _ = share
        text = 0
        for at, token in enumerate(generation.tokens[:context]):
            text = text_hash(text, token)
            assert self.entry(generation, at) == text, f"{generation.seq} token {at}"
        return self.sample(share, text)

    def sample(self, share: Share, text: int) -> int:
        generation, context, _ = share
        at = context - generation.seq.prompt_tokens
        forced = generation.forced
        token = forced[at] if 0 <= at < len(forced) else next_token(text)
        self.last[generation.seq] = token
        return token

    def entry(self, generation: Generation, at: int) -> int | None:
        block, slot = divmod(at, self.block_tokens)
        name = generation.seq.table[block]
        assert 0 < name < self.num_blocks
        return self.places[GPU, name][slot]

    def put(self, generation: Generation, at: int, text: int) -> None:
        block, slot = divmod(at, self.block_tokens)
        self.places[GPU, generation.seq.table[block]][slot] = text

    def move(self, moves: tuple[Move, ...]) -> None:
        for source, target in moves:
            self.places[tuple(target)] = list(self.places[tuple(source)])

    def drop(self, seq: Sequence) -> None:
        self.last.pop(seq, None)

    def lost(self) -> tuple[int, ...]:
        return ()

    def close(self) -> None:
        self.closed = True
