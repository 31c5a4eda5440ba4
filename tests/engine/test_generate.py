"""Prompts in, answers out: the texts are known without any engine."""

from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config import CacheSettings, EngineSettings, SchedulerSettings
from engine.generate import generate
from engine.llm import LLMEngine
from tests.engine.ledger import VOCAB, Ledger, continuation
from tests.engine.test_llm import nothing_leaked
from traces.errors import ConfigError

EOS = frozenset({7, 13})


class Letters:
    """A tokenizer of one character a token, which holds the last one back until the next comes."""

    eos = EOS

    def encode(self, text: str) -> list[int]:
        return [ord(letter) - 64 for letter in text]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(chr(token + 64) for token in ids)

    def stream(self, prompt: Sequence[int] = ()) -> "Held":
        return Held(self)


class Held:
    def __init__(self, letters: Letters) -> None:
        self.letters, self.held = letters, ""

    def push(self, ids: Iterable[int]) -> str:
        said, self.held = self.held, self.letters.decode(list(ids))
        return said

    def finish(self) -> str:
        said, self.held = self.held, ""
        return said


def engine(**scheduler: object) -> LLMEngine:
    limits = {"max_num_seqs": 4, "max_num_batched_tokens": 24, "max_model_len": 64} | scheduler
    chosen = EngineSettings(
        model="none",
        kv_dtype="fp32",
        scheduler=SchedulerSettings.model_validate(limits),
        cache=CacheSettings(block_tokens=4),
    )
    return LLMEngine(Ledger(40, 4), chosen)


texts = st.text([chr(64 + token) for token in range(VOCAB)], min_size=1, max_size=30)


@settings(max_examples=40, deadline=None)
@given(st.lists(texts, min_size=1, max_size=8), st.integers(1, 30), st.booleans(), st.booleans())
def test_answers_are_those_of_each_prompt_alone(prompts, most, stop_at_eos, asynchronous):
    it = engine(async_scheduling=asynchronous)
    pieces: dict[int, str] = {}
    counts: list[int] = []

    def said(number: int, piece: str) -> None:
        pieces[number] = pieces.get(number, "") + piece

    letters = Letters()
    answers = generate(
        it,
        prompts,
        most,
        tokenizer=letters,
        stop_at_eos=stop_at_eos,
        on_text=said,
        progress=counts.append,
    )
    assert len(answers) == len(prompts)
    for number, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        room = 64 - len(prompt)
        ids = letters.encode(prompt)
        stop = EOS if stop_at_eos else frozenset[int]()
        assert answer.tokens == continuation(ids, min(most, room), stop)
        ended = stop_at_eos and answer.tokens[-1] in EOS
        assert answer.text == letters.decode(answer.tokens[: len(answer.tokens) - ended])
        assert answer.text == pieces.get(number, "")
        assert answer.outcome == ("truncated" if most > room and not ended else "finished")
        assert answer.prompt_tokens == len(prompt)
        assert 0 <= answer.cached_tokens < answer.prompt_tokens
        assert 0 < answer.ttft_s <= answer.e2e_s
        assert (answer.tpot_s is None) == (len(answer.tokens) == 1)
        if answer.tpot_s is not None:
            decoding_s = answer.tpot_s * (len(answer.tokens) - 1)
            assert answer.e2e_s == pytest.approx(answer.ttft_s + decoding_s)
    assert counts == sorted(counts)
    assert counts[-1] == sum(len(answer.tokens) for answer in answers)
    nothing_leaked(it)


def test_token_ids_need_no_tokenizer():
    answer = generate(engine(), [[1, 2, 3]], 5)[0]
    assert answer.tokens == continuation([1, 2, 3], 5, frozenset())
    assert answer.text == ""
    with pytest.raises(ConfigError, match=r"^prompt 1: is text, which needs a tokenizer"):
        generate(engine(), ["ABC"], 5)


@pytest.mark.parametrize(
    ("prompts", "says"),
    [
        ([[1], list(range(40)) * 2], r"^prompt 2: prompt of 80 tokens: the prompt leaves no room"),
        ([list(range(40)) * 2], r"^prompt of 80 tokens: the prompt leaves no room below max_mo"),
        ([[1], [2], []], r"^prompt 3: is empty; expected at least one token"),
        ([[]], r"^prompt: is empty; expected at least one token"),
        ([[1], [1, VOCAB]], rf"^prompt 2: token {VOCAB} is not in the vocabulary of {VOCAB}"),
    ],
)
def test_a_prompt_that_cannot_be_served_leaves_the_engine_as_it_was(prompts, says):
    it = engine()
    with pytest.raises(ConfigError, match=says):
        generate(it, prompts, 5)
    nothing_leaked(it)
    assert not it.work_left
    assert isinstance(it.executor, Ledger)
    assert it.executor.computed_tokens == 0
    assert generate(it, [[1, 2]], 5)[0].tokens == continuation([1, 2], 5, frozenset())


def test_no_prompts_no_answers():
    assert generate(engine(), [], 5) == []
