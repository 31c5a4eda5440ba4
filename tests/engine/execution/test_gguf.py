"""A .gguf file is the same model as the folder it was made from."""

import random
import re
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
gguf = pytest.importorskip("gguf")

import numpy as np
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFWriter
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.execution.gguf import halves_from_pairs
from engine.execution.gguf_header import read_header
from engine.execution.tokenizer import load_tokenizer
from tests.engine.execution.families import make, random_tokens, reference_logits, save
from tests.engine.execution.ggufs import pairs_from_halves, smollm2, write_gguf
from tests.engine.execution.steps import Stepper, load
from traces.errors import ConfigError


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("llama", {"attention.key_length": None}),
        ("llama3-scaling", {}),
        ("llama-linear-tied", {"rope.scaling.type": "linear", "rope.scaling.factor": 3.0}),
        ("mistral", {"rope.dimension_count": 32}),
        ("qwen2", {}),
        (
            "qwen2-yarn",
            {
                "rope.scaling.type": "yarn",
                "rope.scaling.factor": 4.0,
                "rope.scaling.original_context_length": 128,
            },
        ),
        ("qwen3", {}),
    ],
)
def test_logits_equal_those_of_the_model_it_was_made_from(
    family: str, fields: dict, tmp_path: Path
):
    theirs = make(family)
    ours = load(write_gguf(theirs, tmp_path / "model.gguf", fields=fields))
    text = random_tokens(200, random.Random(family))
    logits = Stepper(ours).step(prefills=[(1, text)])
    torch.testing.assert_close(logits, reference_logits(theirs, text), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "error"),
    [(Kind.F16, 1e-3), (Kind.BF16, 8e-3), (Kind.Q8_0, 1e-2), (Kind.Q5_1, 0.05), (Kind.Q4_1, 0.1)],
)
def test_quantised_weights_are_those_of_the_model_within_their_precision(
    kind: Kind, error: float, tmp_path: Path
):
    theirs = make("llama", intermediate_size=128)
    exact = load(save(theirs, tmp_path), torch.float64).weights
    near = load(write_gguf(theirs, tmp_path / "model.gguf", kind), torch.float64).weights
    pairs = [(near.embedding, exact.embedding), (near.head, exact.head)]
    for mine, other in zip(near.layers, exact.layers, strict=True):
        pairs += [(getattr(mine, name), getattr(other, name)) for name in ("qkv", "down")]
    for got, expected in pairs:
        assert 0 < (got - expected).norm() < error * expected.norm()


@given(heads=st.integers(1, 5), half=st.integers(1, 6), columns=st.integers(1, 3))
def test_the_order_of_rows_is_undone(heads: int, half: int, columns: int):
    rows = np.random.default_rng(half).random((heads * 2 * half, columns))
    assert (
        halves_from_pairs(torch.from_numpy(pairs_from_halves(rows, heads)), heads).numpy() == rows
    ).all()


def test_ranks_split_a_gguf_file_as_they_split_a_folder(tmp_path: Path):
    theirs = make("llama3-scaling")
    folder, file = save(theirs, tmp_path), write_gguf(theirs, tmp_path / "model.gguf")
    for rank in range(2):
        one, other = (load(path, torch.float64, rank=rank, tp=2).weights for path in (folder, file))
        assert torch.equal(one.layers[1].qkv, other.layers[1].qkv)
        assert torch.equal(one.layers[1].down, other.layers[1].down)
        assert torch.equal(one.head, other.head)


def test_smollm2_writes_english():
    file = smollm2()
    tokenizer = load_tokenizer(file)
    prompts = [
        "The capital of France is",
        "<|im_start|>user\nWhat is the opposite of hot?<|im_end|>\n<|im_start|>assistant\n",
    ]
    texts = [tokenizer.encode(prompt) for prompt in prompts]
    stepper = Stepper(load(file))
    ends = [stepper.step(prefills=[(row, text)])[-1] for row, text in enumerate(texts, 1)]
    said: list[list[int]] = [[], []]
    for _ in range(10):
        for tokens, logits in zip(said, ends, strict=True):
            tokens.append(int(logits.argmax()))
        ends = list(stepper.step(decodes=[(1, said[0][-1]), (2, said[1][-1])]))
    assert tokenizer.decode(said[0]).startswith(" Paris")
    assert re.search(r"\bcold\b", tokenizer.decode(said[1]))


def refusal(file: Path) -> str:
    with pytest.raises(ConfigError) as error:
        load(file)
    assert str(error.value).startswith(f"{file}: ") and "\n" not in str(error.value)
    return str(error.value)


def test_a_file_that_is_absent_or_something_else(tmp_path: Path):
    file = tmp_path / "model.gguf"
    assert "cannot be read: No such file" in refusal(file)
    file.write_bytes(b"GGML" * 1000)
    assert "is damaged or no .gguf file: it does not begin with GGUF" in refusal(file)
    file.write_bytes(b"")
    assert "is damaged or no .gguf file" in refusal(file)
    file.write_bytes(b"GGUF" + bytes([0, 0, 0, 3]) * 100)  # its bytes the other way round
    assert "version 50331648 is not one of (2, 3)" in refusal(file)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(make("llama3-scaling"), tmp_path_factory.mktemp("whole") / "whole.gguf")


@settings(max_examples=30, deadline=None)
@given(kept=st.floats(0.0, 0.99))
def test_a_file_that_ends_early_is_refused(kept: float, whole: Path):
    file = whole.with_name("short.gguf")
    file.write_bytes(whole.read_bytes()[: int(whole.stat().st_size * kept)])
    assert "is damaged" in refusal(file)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numbers out of noise
@settings(max_examples=60, deadline=None)
@given(place=st.floats(0.0, 1.0), byte=st.integers(0, 255))
def test_a_changed_byte_of_the_header_does_no_harm(place: float, byte: int, whole: Path):
    """It is another model, or one line says what is wrong."""
    content = bytearray(whole.read_bytes())
    end = min(info.offset for info in read_header(whole).tensors.values())
    content[int(place * (end - 1))] = byte
    file = whole.with_name("changed.gguf")
    file.write_bytes(content)
    try:
        load(file)
    except ConfigError as error:
        assert str(error).startswith(f"{file}: ")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"block_count": None}, "llama.block_count is missing"),
        ({"attention.head_count": None}, "llama.attention.head_count is missing"),
        ({"expert_count": 8}, "a model of experts is not supported"),
        ({"rope.scaling.type": "longrope", "rope.scaling.factor": 2.0}, "rope type 'longrope'"),
        ({"rope.dimension_count": 8}, "partial_rotary_factor must be 1, got 0.5"),
        ({"block_count": 4}, r"tensor model\.layers\.3\.\S+ is missing"),
        ({"feed_forward_length": 96}, r"tensor \S+ has shape \[.*120.*\]; the model's config"),
    ],
)
def test_metadata_that_do_not_fit(fields: dict, said: str, tmp_path: Path):
    file = write_gguf(make("llama"), tmp_path / "model.gguf", fields=fields)
    assert re.search(said, refusal(file))


def test_other_architectures_are_refused(tmp_path: Path):
    file = tmp_path / "model.gguf"
    writer = GGUFWriter(file, "gemma3")
    writer.add_tensor("token_embd.weight", np.zeros((8, 8), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert "unsupported architecture gemma3; supported in .gguf: llama, qwen2, qwen3" in refusal(
        file
    )
