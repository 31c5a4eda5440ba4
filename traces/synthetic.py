"""Synthetic traces: seeded arrivals, lengths, shared system prompts and sessions, from settings."""

from collections.abc import Iterator
from functools import partial
from heapq import heappop, heappush
from itertools import count, islice
from typing import Self

import numpy as np
from pydantic import Field, model_validator

from traces.arrivals import Arrivals
from traces.distributions import Distribution, counts, values
from traces.reader import Trace
from traces.request import Request
from traces.rows import Tally, blocks_of
from traces.settings import Settings

_BLOCK = 4096
_CHAIN = 1 << 24
"""Hashes kept apart for the blocks of one session or system prompt."""


class SystemPrompt(Settings):
    """`count` different prompts that sessions begin with, each of a length drawn from `tokens`.

    `weight` is their part, together, in sessions. Among them the n-th most popular is taken in
    proportion to 1 / n**zipf.
    """

    tokens: Distribution
    count: int = Field(default=1, ge=1, le=100_000)
    weight: float = Field(default=1.0, gt=0)
    zipf: float = Field(default=0.0, ge=0)


class Sessions(Settings):
    """Conversations of several turns; each turn's prompt is all before, the answer, and new text.

    In a closed loop a turn follows the answer to the one before by the pause `think_s`. The trace's
    own arrival times, for an open loop, take an answer to last `output_token_s` a token.
    """

    turns: Distribution
    think_s: Distribution
    output_token_s: float = Field(default=0.02, ge=0)
    max_context_tokens: int | None = Field(default=None, ge=2)
    """A session ends before the turn whose prompt + output would pass this."""


class SyntheticSpec(Settings):
    """A synthetic trace. Without `sessions` every request stands alone.

    `arrivals` says when sessions begin: with sessions, requests come more often. Ends after
    `duration_s` or `requests`, whichever is first. The spec and its seed determine every request.
    """

    name: str = "synthetic"
    seed: int = Field(default=0, ge=0)
    duration_s: float | None = Field(default=None, gt=0)
    requests: int | None = Field(default=None, ge=1)
    arrivals: Arrivals
    prompt_tokens: Distribution | None = None
    """Text a user adds in a turn; in a request without sessions and system prompt, the prompt."""
    output_tokens: Distribution | None = None
    token_pairs: tuple[tuple[int, int], ...] | None = None
    """Instead of the two above: (prompt, output) drawn together, to keep their correlation."""
    system_prompts: tuple[SystemPrompt, ...] = ()
    sessions: Sessions | None = None
    hash_tokens: int = Field(default=64, ge=1)
    """Tokens a hash of shared content stands for."""

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        if self.duration_s is None and self.requests is None:
            raise ValueError("give duration_s, requests or both")
        apart = self.prompt_tokens is not None and self.output_tokens is not None
        none_apart = self.prompt_tokens is None and self.output_tokens is None
        if not (none_apart if self.token_pairs else apart):
            raise ValueError("give prompt_tokens and output_tokens, or token_pairs")
        if any(min(pair) < 1 for pair in self.token_pairs or ()):
            raise ValueError("token_pairs must be at least 1")
        return self


def synthetic_trace(spec: SyntheticSpec) -> Trace:
    """The trace a spec describes, generated anew, and the same, each time it is iterated."""
    return Trace(spec.name, "synthetic", partial(_generate_from_seed, spec))


def generate(spec: SyntheticSpec, random: np.random.Generator) -> Iterator[Request]:
    """Requests of a spec in arrival order, drawn from `random` (`spec.seed` is not looked at).

    Memory holds the sessions under way, nothing else.
    """
    requests = _conversations(spec, random)
    if spec.duration_s is not None:
        requests = _until(requests, spec.duration_s)
    return islice(requests, spec.requests)


def _generate_from_seed(spec: SyntheticSpec, tally: Tally) -> Iterator[Request]:
    del tally
    return generate(spec, np.random.default_rng(spec.seed))


def _until(requests: Iterator[Request], end_s: float) -> Iterator[Request]:
    for request in requests:
        if request.arrival_s >= end_s:
            return
        yield request


class _Session:
    """A conversation under way: what its next turn builds upon."""

    __slots__ = ("chain", "context_tokens", "number", "pending", "shared", "system_tokens", "turns")

    def __init__(self, number: int, chain: int, system_chain: int, system_tokens: int, shared: int):
        self.number = number
        self.chain = chain
        """First hash of its own blocks."""
        self.shared = tuple(range(system_chain, system_chain + shared))
        """Hashes of the system prompt's blocks that hold nothing else."""
        self.system_tokens = system_tokens
        self.context_tokens = system_tokens
        """Tokens before the next user text."""
        self.turns = 1
        """Turns it still wants to take, the pending one included."""
        self.pending: tuple[int, int, int, float] = (0, 0, 0, 0.0)
        """Turn, prompt tokens, output tokens and pause of the request to come."""

    def hashes(self, tokens: int, hash_tokens: int) -> tuple[int, ...]:
        """Hashes of its first so many tokens."""
        blocks = blocks_of(tokens, hash_tokens)
        return self.shared + tuple(range(self.chain + len(self.shared), self.chain + blocks))


def _conversations(spec: SyntheticSpec, random: np.random.Generator) -> Iterator[Request]:
    """Sessions begin as they arrive; in between, those under way take their turns in time order."""
    for_arrivals, for_lengths, for_prompts, for_turns, for_pauses = random.spawn(5)
    lengths = _lengths(spec, for_lengths)
    prompts = _system_prompts(spec.system_prompts, for_prompts)
    first_chain = sum(prompt.count for prompt in spec.system_prompts)
    turns = counts(spec.sessions.turns, for_turns) if spec.sessions else None
    pauses_s = values(spec.sessions.think_s, for_pauses) if spec.sessions else None
    to_request = _conversing if spec.sessions else _alone
    waiting: list[tuple[float, int, _Session]] = []
    request_id = count()
    arrivals_s = spec.arrivals.times_s(for_arrivals)
    for number in count():
        start_s = next(arrivals_s, None)
        while waiting and (start_s is None or waiting[0][0] <= start_s):
            now_s, _, session = heappop(waiting)
            yield to_request(next(request_id), now_s, session, spec.hash_tokens)
            if pauses_s and spec.sessions:
                _plan_next_turn(waiting, now_s, session, spec.sessions, lengths, pauses_s)
        if start_s is None:
            return
        chain, system_tokens = next(prompts) if spec.system_prompts else (0, 0)
        shared = system_tokens // spec.hash_tokens if spec.sessions else 0
        if not spec.sessions:
            shared = blocks_of(system_tokens, spec.hash_tokens)
        session = _Session(
            number, (first_chain + number) * _CHAIN, chain * _CHAIN, system_tokens, shared
        )
        user_tokens, output_tokens = next(lengths)
        session.pending = (0, system_tokens + user_tokens, output_tokens, 0.0)
        session.turns = next(turns) if turns else 1
        heappush(waiting, (start_s, number, session))


def _plan_next_turn(
    waiting: list[tuple[float, int, _Session]],
    now_s: float,
    session: _Session,
    sessions: Sessions,
    lengths: Iterator[tuple[int, int]],
    pauses_s: Iterator[float],
) -> None:
    """Put the session's next turn among those waiting, if it takes one."""
    session.turns -= 1
    if session.turns <= 0:
        return
    turn, prompt_tokens, answer_tokens, _ = session.pending
    user_tokens, output_tokens = next(lengths)
    prompt_tokens += answer_tokens + user_tokens
    limit = sessions.max_context_tokens
    if limit is not None and prompt_tokens + output_tokens > limit:
        return
    pause_s = next(pauses_s)
    session.pending = (turn + 1, prompt_tokens, output_tokens, pause_s)
    arrival_s = now_s + answer_tokens * sessions.output_token_s + pause_s
    heappush(waiting, (arrival_s, session.number, session))


def _conversing(request_id: int, now_s: float, session: _Session, hash_tokens: int) -> Request:
    """A turn; its hashes cover the answer too, so that the next turn finds it."""
    turn, prompt_tokens, output_tokens, think_s = session.pending
    tokens = prompt_tokens + output_tokens
    return Request(
        request_id,
        now_s,
        prompt_tokens,
        output_tokens,
        session.hashes(tokens, hash_tokens),
        hash_tokens,
        tokens,
        session.number,
        turn,
        think_s,
    )


def _alone(request_id: int, now_s: float, session: _Session, hash_tokens: int) -> Request:
    """A request of its own; only its system prompt, if any, is met again."""
    _, prompt_tokens, output_tokens, _ = session.pending
    if not session.shared:
        return Request(request_id, now_s, prompt_tokens, output_tokens)
    return Request(
        request_id,
        now_s,
        prompt_tokens,
        output_tokens,
        session.shared,
        hash_tokens,
        session.system_tokens,
    )


def _lengths(spec: SyntheticSpec, random: np.random.Generator) -> Iterator[tuple[int, int]]:
    """Endless (user text, output) token counts."""
    if spec.token_pairs is not None:
        return _drawn_pairs(spec.token_pairs, random)
    assert spec.prompt_tokens is not None and spec.output_tokens is not None  # see _is_complete
    for_prompts, for_outputs = random.spawn(2)
    return zip(
        counts(spec.prompt_tokens, for_prompts),
        counts(spec.output_tokens, for_outputs),
        strict=True,
    )


def _drawn_pairs(
    pairs: tuple[tuple[int, int], ...], random: np.random.Generator
) -> Iterator[tuple[int, int]]:
    while True:
        for index in random.integers(len(pairs), size=_BLOCK).tolist():
            yield pairs[index]


def _system_prompts(
    prompts: tuple[SystemPrompt, ...], random: np.random.Generator
) -> Iterator[tuple[int, int]]:
    """Endless (number of the system prompt, its tokens), as sessions take them."""
    if not prompts:
        return
    tokens: list[int] = []
    weights: list[float] = []
    for prompt in prompts:
        tokens += islice(counts(prompt.tokens, random, at_least=0), prompt.count)
        popularity = np.arange(1, prompt.count + 1) ** -prompt.zipf
        weights += (prompt.weight * popularity / popularity.sum()).tolist()
    bounds = np.cumsum(weights)
    while True:
        draws = random.uniform(0, bounds[-1], _BLOCK)
        for number in np.searchsorted(bounds, draws, side="right").tolist():
            yield number, tokens[number]
