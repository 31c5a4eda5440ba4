"""Texts for a trace's requests: token ids that are as alike as the trace says, and not more."""

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from traces.request import Request

Words = NDArray[np.uint64]

_MASK: Final = (1 << 64) - 1
_STEP: Final = 0x9E3779B97F4A7C15
_OWN: Final = 1 << 63
"""Marks the number of a request among the keys, which hashes never have: they are below it."""


class Text(NamedTuple):
    """What a request says, and what it must be answered where a later turn builds on it."""

    prompt: list[int]
    answer: list[int]
    """The output tokens that the trace knows, from the first on: none, some or all."""


def text_of(request: Request, vocab: int, seed: int = 0) -> Text:
    """The token ids, below `vocab`, of a request.

    Token j of the block of hash h follows from h, j and `seed` alone: requests whose hashes agree
    have the same tokens, others (but by chance) not. Tokens past `hashed_tokens` follow from the
    request's number, so that they are unlike any other request's of its trace.
    """
    hashed = request.hashed_tokens
    prompt = request.prompt_tokens
    total = max(prompt, hashed)
    of_blocks = np.repeat(np.array(request.hashes, np.uint64), max(request.hash_tokens, 1))[:hashed]
    own = np.full(total - hashed, _OWN | request.request_id, np.uint64)
    within = np.arange(hashed, dtype=np.uint64) % np.uint64(max(request.hash_tokens, 1))
    after = np.arange(total - hashed, dtype=np.uint64)
    keys, places = np.concatenate((of_blocks, own)), np.concatenate((within, after))
    numbers = _mixed(_mixed(keys + np.uint64(seed * _STEP & _MASK)) + places * np.uint64(_STEP))
    tokens: list[int] = (numbers % np.uint64(vocab)).tolist()
    return Text(tokens[:prompt], tokens[prompt:hashed])


def _mixed(words: Any) -> Words:
    """SplitMix64's finalizer: 64 bits that look random and differ where `words` do."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
