"""Perplexity through the paged pool: against transformers, and what each KV format may cost."""

import random
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("gguf")

from engine.execution.model import Model, load_model
from engine.execution.ops import load_ops
from engine.execution.perplexity import measure_perplexity
from engine.execution.tokenizer import load_tokenizer
from tests.engine.execution.families import (
    make,
    random_tokens,
    reference_logits,
    save,
)
from tests.engine.execution.ggufs import smollm2
from traces.errors import ConfigError


def load(path: Path) -> Model:
    return load_model(path, dtype=torch.float32, device=torch.device("cpu"), ops=load_ops("torch"))


@pytest.mark.parametrize("chunk_tokens", [1, 7, 16, 64])
def test_it_is_that_of_transformers_however_the_text_is_chunked(tmp_path, chunk_tokens):
    theirs = make("llama-gqa-bias")
    tokens = random_tokens(3 * 48 + 5, random.Random(1))
    nats = 0.0
    for start in (0, 48, 96):
        window = tokens[start : start + 48]
        logits = reference_logits(theirs, window)[:-1].double()
        wanted = torch.tensor(window[1:])
        nats += float(torch.nn.functional.cross_entropy(logits, wanted, reduction="sum"))
    ours = measure_perplexity(
        load(save(theirs, tmp_path)), tokens, "fp32", window_tokens=48, chunk_tokens=chunk_tokens
    )
    assert ours.tokens == 3 * 47
    assert ours.nats == pytest.approx(nats, rel=1e-6)


def test_windows_that_cannot_be_are_refused(tmp_path):
    model = load(save(make("llama"), tmp_path))
    with pytest.raises(ConfigError, match="text: 10 tokens, a window takes 48"):
        measure_perplexity(model, [1] * 10, "fp32", window_tokens=48)
    with pytest.raises(ConfigError, match="window_tokens: must be at most 512 for this model"):
        measure_perplexity(model, [1] * 10_000, "fp32", window_tokens=1024)


@pytest.mark.slow
def test_what_formats_cost_a_real_model_on_real_text():
    """Bounds well above what docs/log.md reports: the text is short, and its figures scatter."""
    import pydoc_data.topics

    path = smollm2()
    model, text = load(path), pydoc_data.topics.topics["typesseq"]
    tokens = load_tokenizer(path).encode(text)[:1024]
    costs = {
        name: measure_perplexity(model, tokens, name, window_tokens=512).perplexity
        for name in ("bf16", "int8", "fp8_token_head", "int4_channel")
    }
    base = costs["bf16"]
    assert costs["int8"] == pytest.approx(base, rel=0.005)
    assert costs["fp8_token_head"] == pytest.approx(base, rel=0.05)
    assert costs["int4_channel"] == pytest.approx(base, rel=0.05)
