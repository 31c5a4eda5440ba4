"""Answers to prompts, all of them in one continuous batch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from engine.llm import GREEDY, LLMEngine
from engine.loading import TextStream, Tokenizer
from engine.metrics import OUTCOMES, PICOSECONDS
from engine.work import Generation, Sampling
from traces.errors import ConfigError

NO_STOP: Final[frozenset[int]] = frozenset()

Prompt = str | Sequence[int]
"""A text, or its token ids."""

OnText = Callable[[int, str], None]
"""Called with a prompt's number and the next piece of its answer."""


@dataclass(frozen=True, slots=True)
class Completion:
    """The answer to a prompt, and how long it took."""

    prompt_tokens: int
    tokens: list[int]
    """The answer's token ids; one that ended it is the last."""
    text: str
    """The answer without special tokens; empty without a tokenizer."""
    outcome: str
    """A name in engine.metrics.OUTCOMES; truncated: the model's length limit came first."""
    cached_tokens: int
    """Of the prompt, found in the prefix cache."""
    ttft_s: float
    tpot_s: float | None
    """None of a single token."""
    e2e_s: float


def generate(
    engine: LLMEngine,
    prompts: Sequence[Prompt],
    max_tokens: int,
    *,
    tokenizer: Tokenizer | None = None,
    sampling: Sampling = GREEDY,
    stop_at_eos: bool = True,
    on_text: OnText | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Completion]:
    """Complete all prompts, in their order.

    Args:
        engine: at rest.
        prompts: texts or token ids.
        max_tokens: most output tokens of each.
        tokenizer: the model's; None: prompts are token ids, and so are the answers.
        sampling: how tokens are chosen.
        stop_at_eos: end an answer at a token that the tokenizer says ends a text.
        on_text: told of each answer piece by piece.
        progress: told after each step how many output tokens there are.

    Raises:
        ConfigError: for a prompt that is empty, not of the vocabulary or too long; then none of
            them is served.
    """
    ids = [_encoded(prompt, tokenizer, number) for number, prompt in enumerate(prompts, 1)]
    stop = tokenizer.eos if tokenizer is not None and stop_at_eos else NO_STOP
    answers = [_Answer(number, one, tokenizer, on_text) for number, one in enumerate(ids)]
    generations: list[Generation] = []
    for number, (one, answer) in enumerate(zip(ids, answers, strict=True), 1):
        try:
            generations.append(
                engine.add(
                    one, max_tokens, sampling=sampling, stop_tokens=stop, on_token=answer.take
                )
            )
        except ConfigError as error:
            for generation in generations:
                engine.abort(generation)
            engine.run()
            raise _of_prompt(number, error) if len(ids) > 1 else error from None
    while engine.work_left:
        engine.step()
        if progress is not None:
            progress(sum(len(g.tokens) - g.seq.prompt_tokens for g in generations))
    return [
        _completion(generation, answer.finish())
        for generation, answer in zip(generations, answers, strict=True)
    ]


class _Answer:
    """The text of one answer as its tokens come."""

    def __init__(
        self, number: int, prompt: list[int], tokenizer: Tokenizer | None, on_text: OnText | None
    ) -> None:
        self._number = number
        self._stream: TextStream | None = None if tokenizer is None else tokenizer.stream(prompt)
        self._on_text = on_text
        self._pieces: list[str] = []

    def take(self, generation: Generation, token: int) -> None:
        """The next token; one that ends the answer is no part of its text."""
        if self._stream is not None and token not in generation.stop_tokens:
            self._say(self._stream.push((token,)))

    def finish(self) -> str:
        """The whole text."""
        if self._stream is not None:
            self._say(self._stream.finish())
        return "".join(self._pieces)

    def _say(self, piece: str) -> None:
        if piece:
            self._pieces.append(piece)
            if self._on_text is not None:
                self._on_text(self._number, piece)


def _encoded(prompt: Prompt, tokenizer: Tokenizer | None, number: int) -> list[int]:
    if not isinstance(prompt, str):
        return list(prompt)
    if tokenizer is None:
        raise ConfigError(f"prompt {number}: is text, which needs a tokenizer; expected token ids")
    return tokenizer.encode(prompt)


def _of_prompt(number: int, error: ConfigError) -> ConfigError:
    return ConfigError(f"prompt {number}: {str(error).removeprefix('prompt: ')}")


def _completion(generation: Generation, text: str) -> Completion:
    seq, tokens = generation.seq, generation.output
    decoding = seq.last_token - seq.first_token
    return Completion(
        prompt_tokens=seq.prompt_tokens,
        tokens=tokens,
        text=text,
        outcome=OUTCOMES[generation.outcome],
        cached_tokens=seq.cached_tokens,
        ttft_s=(seq.first_token - seq.arrival) / PICOSECONDS,
        tpot_s=decoding / (len(tokens) - 1) / PICOSECONDS if len(tokens) > 1 else None,
        e2e_s=(seq.last_token - seq.arrival) / PICOSECONDS,
    )
