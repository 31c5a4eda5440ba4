"""Own victims and chunkings."""

from typing import Any

import pytest

from engine.guard import guarded
from engine.sequence import Sequence
from traces.errors import PolicyError
from traces.request import Request


def sequences(count: int) -> list[Sequence]:
    return [Sequence(Request(i, 0.0, 1, 1), i, 0) for i in range(count)]


def test_a_victim_is_one_that_runs():
    one, other, third = sequences(3)
    running = {one: None, other: None}
    choose = guarded("victim", "mine.py:Mine", lambda running, decodes: decodes)
    assert choose(running, other) is other
    for spoilt in (third, None, [], {}):
        with pytest.raises(PolicyError, match=r"expected one of the 2 sequences that run.*quest 0"):
            choose(running, spoilt)


def test_a_step_has_a_token_at_least():
    class Chunks:
        varies = False

        def __init__(self, step_time: Any) -> None:
            self.step_time = step_time

        def budget(self, decodes: int, context_tokens: int, prefix_tokens: int) -> Any:
            return self.step_time

    for answer in (1, 512):
        assert guarded("chunking", "mine.py:Mine", Chunks)(answer).budget(1, 2, 3) == answer
    for answer in (0, -4, None, 2.0, "512"):
        with pytest.raises(PolicyError, match=r"budget\(\) returned .*tokens, at least 1"):
            guarded("chunking", "mine.py:Mine", Chunks)(answer).budget(1, 2, 3)
    Chunks.varies = None  # type: ignore[assignment]
    with pytest.raises(PolicyError, match="has varies = None; expected true or false"):
        guarded("chunking", "mine.py:Mine", Chunks)(1)
    with pytest.raises(PolicyError, match=r"has no budget\(\)"):
        guarded("chunking", "mine.py:Mine", lambda step_time: object())(1)
