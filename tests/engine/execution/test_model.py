"""The model computes what transformers computes, however its work is cut into steps."""

import random
from functools import cache
from itertools import accumulate
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedModel

from engine.execution.model import Model
from tests.engine.execution.families import FAMILIES, make, random_tokens, reference_logits, save
from tests.engine.execution.ranks import logits_of_ranks, logits_of_texts
from tests.engine.execution.steps import Stepper, load
from traces.errors import ConfigError


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory):
    """Of each family: transformers' model, and ours loaded from the folder that it saved."""

    @cache
    def of(family: str) -> tuple[PreTrainedModel, Model]:
        theirs = make(family)
        return theirs, load(save(theirs, tmp_path_factory.mktemp(family)))

    return of


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=3, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_logits_equal_those_of_transformers(family: str, models, seed: int):
    draw = random.Random(seed)
    theirs, ours = models(family)
    texts = [random_tokens(draw.randint(1, 90), draw) for _ in range(5)]
    stepper = Stepper(ours, block_tokens=draw.choice((4, 16)), seed=seed)
    for text, logits in zip(texts, in_random_steps(stepper, texts, draw), strict=True):
        expected = reference_logits(theirs, text)
        assert expected.abs().max() > 1
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)


def in_random_steps(stepper: Stepper, texts: list[list[int]], draw: random.Random) -> list[Tensor]:
    """Logits of each text; its tokens come now as a chunk, now one by one, now not in a step."""
    got: list[list[Tensor]] = [[] for _ in texts]
    while waiting := [at for at, text in enumerate(texts) if stepper.computed[at + 1] < len(text)]:
        chosen = draw.sample(waiting, draw.randint(1, len(waiting)))
        decodes = draw.randint(0, len(chosen))
        shares: list[tuple[int, list[int]]] = []
        for number, at in enumerate(chosen):
            start, size = stepper.computed[at + 1], 1 if number < decodes else draw.randint(1, 20)
            shares.append((at + 1, texts[at][start : start + size]))
        logits = stepper.step(
            [(row, tokens[0]) for row, tokens in shares[:decodes]], shares[decodes:]
        )
        parts = logits.split([len(tokens) for _, tokens in shares])
        for at, part in zip(chosen, parts, strict=True):
            got[at].append(part)
    return [torch.cat(parts) for parts in got]


@pytest.mark.parametrize("family", ["llama-gqa-bias", "mistral-window", "qwen3"])
def test_greedy_text_of_a_mixed_batch_is_that_of_transformers(family: str, models):
    """By induction: after each prefix of what we wrote, transformers would go on as we did."""
    draw = random.Random(family)
    theirs, ours = models(family)
    prompts = [random_tokens(length, draw) for length in (1, 7, 16, 40, 77)]
    texts = greedy(Stepper(ours), prompts, new_tokens=128, draw=draw)
    for prompt, text in zip(prompts, texts, strict=True):
        expected = reference_logits(theirs, text[:-1]).argmax(-1)
        assert text[: len(prompt)] == prompt and len(text) == len(prompt) + 128
        assert text[len(prompt) :] == expected[len(prompt) - 1 :].tolist()


def greedy(
    stepper: Stepper, prompts: list[list[int]], new_tokens: int, draw: random.Random
) -> list[list[int]]:
    """Prompts with their continuations; while some decode, others still prefill chunk by chunk."""
    texts = [list(prompt) for prompt in prompts]
    while True:
        decodes: list[tuple[int, int]] = []
        prefills: list[tuple[int, list[int]]] = []
        for row, (text, prompt) in enumerate(zip(texts, prompts, strict=True), 1):
            done = stepper.computed[row]
            if done < len(prompt):
                prefills.append((row, prompt[done : done + draw.randint(1, 9)]))
            elif len(text) < len(prompt) + new_tokens:
                decodes.append((row, text[-1]))
        if not decodes and not prefills:
            return texts
        chosen = stepper.step(decodes, prefills).argmax(-1)
        ends = [1] * len(decodes) + [len(chunk) for _, chunk in prefills]
        rows = [row for row, _ in (*decodes, *prefills)]
        for row, end in zip(rows, accumulate(ends), strict=True):
            if stepper.computed[row] == len(texts[row - 1]):
                texts[row - 1].append(int(chosen[end - 1]))


@pytest.mark.parametrize(("dtype", "error"), [(torch.bfloat16, 0.05), (torch.float16, 0.01)])
def test_half_precision_is_near(dtype: torch.dtype, error: float, models, tmp_path: Path):
    theirs, _ = models("qwen3")
    ours = load(save(theirs, tmp_path), dtype)
    text = random_tokens(60, random.Random(1))
    logits = Stepper(ours, kv_dtype={torch.bfloat16: "bf16"}.get(dtype, "fp16")).step(
        prefills=[(1, text)]
    )
    expected = reference_logits(theirs, text)
    assert logits.dtype == torch.float32
    assert (logits - expected).norm() < error * expected.norm()


def test_ranks_together_compute_the_whole_model(tmp_path: Path):
    """Split and replicated KV heads, odd vocabulary and inner size, biases, a tied head."""
    draw = random.Random(7)
    changes = {"llama-gqa-bias": {}, "qwen3": {"intermediate_size": 121}, "llama-linear-tied": {}}
    folders = [
        save(make(family, std=0.2, **changes[family]), tmp_path / family) for family in changes
    ]
    texts = [random_tokens(length, draw) for length in (3, 20, 41)]
    whole = [logits_of_texts(Stepper(load(folder)), texts) for folder in folders]
    for rank in logits_of_ranks(folders, texts, 2, tmp_path):
        for got, expected in zip(rank, whole, strict=True):
            assert got.shape == expected.shape
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("kernels", ["torch", "triton"])
@pytest.mark.parametrize("family", ["llama-gqa-bias", "mistral-window", "qwen3"])
def test_a_gpu_computes_what_a_cpu_does(family: str, kernels: str, tmp_path: Path):
    draw = random.Random(family)
    theirs = make(family, head_dim=64)
    ours = load(save(theirs, tmp_path), device=torch.device("cuda"), kernels=kernels)
    texts = [random_tokens(draw.randint(1, 90), draw) for _ in range(5)]
    stepper = Stepper(ours)
    for text, logits in zip(texts, in_random_steps(stepper, texts, draw), strict=True):
        torch.testing.assert_close(logits.cpu(), reference_logits(theirs, text), rtol=0, atol=2e-3)


def test_dummy_weights_are_seeded_and_sane(tmp_path: Path):
    make("qwen2").config.save_pretrained(tmp_path)
    text = random_tokens(30, random.Random(2))
    one, same, other = (
        Stepper(load(tmp_path, weights="dummy", seed=seed)).step(prefills=[(1, text)])
        for seed in (0, 0, 1)
    )
    assert torch.equal(one, same)
    assert (one - other).abs().max() > 0.01
    assert 0.01 < one.std() < 1 and one.isfinite().all()


def test_a_model_is_called_as_its_folder(tmp_path: Path):
    make("qwen2").config.save_pretrained(tmp_path / "Model-3.1-8B")
    assert load(tmp_path / "Model-3.1-8B", weights="dummy").shape.name == "Model-3.1-8B"


def test_positions_end_where_asked(tmp_path: Path):
    make("qwen2").config.save_pretrained(tmp_path)
    assert load(tmp_path, weights="dummy").rope.shape[0] == 512
    assert load(tmp_path, weights="dummy", max_positions=100).rope.shape[0] == 100


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (None, "no config.json; expected a Hugging Face folder"),
        ("[]", "config.json: expected a JSON object, got list"),
        ("{", "config.json: cannot be read as JSON"),
        (
            '{"model_type": "mixtral"}',
            "unsupported architecture mixtral; supported: llama, mistral",
        ),
        ('{"model_type": "llama"}', "num_attention_heads is missing"),
    ],
)
def test_a_folder_that_is_no_model_is_refused_by_name(
    config: str | None, said: str, tmp_path: Path
):
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(ConfigError, match=said) as error:
        load(tmp_path)
    assert str(error.value).startswith(str(tmp_path))
