"""Text survives the way to tokens and back, whole or as a stream."""

import json
import random
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

pytest.importorskip("torch")
tokenizers = pytest.importorskip("tokenizers")
pytest.importorskip("gguf")
pytest.importorskip("transformers")

from gguf import GGUFWriter
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from engine.execution.gguf_vocabulary import SPLITS
from engine.execution.tokenizer import Tokenizer, load_tokenizer
from tests.engine.execution.ggufs import smollm2
from traces.errors import ConfigError

UNFINISHED = "\N{REPLACEMENT CHARACTER}"
WORDS = "the of and to in is was for that with capital France water government people between"
ENGLISH = (
    "The quick brown fox, it's said, doesn't jump over 12 lazy dogs.\n\n"
    "They'll have been running for 3456789 days; we're told they can't stop.\n"
) * 4


@cache
def real() -> Tokenizer:
    return load_tokenizer(smollm2())


def test_known_encodings_of_smollm2():
    """Ids from transformers' own reading of the same file."""
    text = "The capital of France is Paris. In 2024, it's 3.5 million!\n\n\tdef f(x): return x**2"
    ids = "504 3575 282 4649 314 7042 30 533 216 34 32 34 36 28 357 506 216 35 30 37 2215 17 1116 "
    ids += "197 1604 275 24 104 727 1003 1792 828 34"
    assert real().encode(text) == [int(number) for number in ids.split()]
    text = "  # naïve café 你好 🙂"
    ids = "216 907 15486 46494 37366 216 18645 250 48392 138 47526"
    assert real().encode(text) == [int(number) for number in ids.split()]


def test_frequent_words_are_one_token():
    for word in WORDS.split():
        assert len(real().encode(f" {word}")) == 1


def test_special_tokens_are_read_but_not_written():
    ids = real().encode("<|im_start|>user\nhi<|im_end|>")
    assert ids[0] == 1 and ids[-1] == 2 and len(ids) == 5
    assert real().decode(ids) == "user\nhi"
    assert real().eos == {0, 2}
    assert real().vocab == 49152


ODD = st.text(
    st.one_of(
        # SmolLM2 has no token for some control bytes and for what planes above begin with
        st.characters(exclude_categories=["Cs", "Cc"], max_codepoint=0x3FFFF),
        st.sampled_from("🙂👩‍🚀é你 \n\t0"),
    )
)


@settings(max_examples=100, deadline=None)
@given(ODD)
@example("a  b\t\r\n  c   ")
@example("x = 1234567890 # 你好 👩‍🚀")
def test_text_comes_back(text: str):
    for tokenizer in (real(), sentencepiece_like()):
        assert tokenizer.decode(tokenizer.encode(text)) == text


@settings(max_examples=100, deadline=None)
@given(prompt=ODD, text=ODD, seed=st.integers(0, 2**32))
def test_a_stream_says_the_text_and_no_broken_characters(prompt: str, text: str, seed: int):
    draw = random.Random(seed)
    for tokenizer in (real(), sentencepiece_like()):
        before, ids = tokenizer.encode(prompt), tokenizer.encode(text)
        if not before:
            continue
        stream = tokenizer.stream(before)
        pieces: list[str] = []
        for tokens in cut(ids, draw):
            pieces.append(stream.push(tokens))
            if UNFINISHED not in text:
                assert UNFINISHED not in pieces[-1]
        pieces.append(stream.finish())
        whole = tokenizer.decode([*before, *ids])
        assert tokenizer.decode(before) + "".join(pieces) == whole


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(3, 49151), max_size=60), st.integers(0, 2**32))
def test_a_stream_of_any_tokens_says_what_they_decode_to(ids: list[int], seed: int):
    """Also of tokens that make no UTF-8."""
    stream = real().stream()
    pieces = [stream.push(tokens) for tokens in cut(ids, random.Random(seed))]
    assert "".join([*pieces, stream.finish()]) == real().decode(ids)


def cut(ids: list[int], draw: random.Random) -> list[list[int]]:
    """Mostly one token at a time, as a decode gives them."""
    parts: list[list[int]] = []
    while ids:
        size = draw.choice((1, 1, 1, 2, 5))
        parts.append(ids[:size])
        ids = ids[size:]
    return parts


@cache
def sentencepiece_like() -> Tokenizer:
    """As Llama 2's: spaces become ▁, one is put before a text, unknown characters fall to bytes."""
    backend = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    every_byte = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<unk>", *every_byte], show_progress=False
    )
    backend.train_from_iterator([ENGLISH], trainer)
    plain = json.loads(backend.to_str())  # bytes are no special tokens: they would not be decoded
    plain["added_tokens"] = []
    backend = tokenizers.Tokenizer.from_str(json.dumps(plain))
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return Tokenizer(backend, ())


def byte_level(**options: bool) -> "tokenizers.Tokenizer":
    """A small byte-level BPE, trained on the spot."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<|endoftext|>", "<|im_end|>", "<bos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([ENGLISH], trainer)
    return backend


def test_a_folder_has_its_own_tokenizer_and_every_end_it_states(tmp_path: Path):
    backend = byte_level()
    backend.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path).eos == frozenset()
    write_json(tmp_path / "config.json", {"eos_token_id": 7})
    write_json(tmp_path / "generation_config.json", {"eos_token_id": [8, 9]})
    write_json(tmp_path / "tokenizer_config.json", {"eos_token": {"content": "<|im_end|>"}})
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.eos == {1, 7, 8, 9}
    assert tokenizer.encode(ENGLISH) == backend.encode(ENGLISH).ids
    assert tokenizer.decode(tokenizer.encode(ENGLISH)) == ENGLISH
    write_json(tmp_path / "tokenizer_config.json", {"eos_token": "<|endoftext|>"})
    assert load_tokenizer(tmp_path).eos == {0, 7, 8, 9}


def write_json(file: Path, content: object) -> None:
    file.write_text(json.dumps(content))


def write_vocabulary(file: Path, backend: "tokenizers.Tokenizer", pre: str, **fields) -> Path:
    """A .gguf with nothing but the tokenizer."""
    vocabulary, model = backend.get_vocab(), json.loads(backend.to_str())["model"]
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    writer = GGUFWriter(file, "llama")
    writer.add_tokenizer_model(fields.get("model", "gpt2"))
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if vocabulary[token] < 3 else 1 for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in model["merges"]])
    writer.add_eos_token_id(fields.get("eos", 0))
    writer.add_bos_token_id(2)
    if "add_bos" in fields:
        writer.add_add_bos_token(fields["add_bos"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def test_a_gguf_file_encodes_as_the_tokenizer_it_was_made_from(tmp_path: Path):
    backend = byte_level()
    tokenizer = load_tokenizer(write_vocabulary(tmp_path / "a.gguf", backend, "gpt-2"))
    assert tokenizer.encode(ENGLISH) == backend.encode(ENGLISH).ids
    assert tokenizer.eos == {0, 1}
    text = "a<|im_end|>b"
    assert tokenizer.encode(text) == backend.encode(text).ids and 1 in tokenizer.encode(text)


PIECES = {
    "gpt-2": ["It", "'s", " 12345", " DON", "'", "T", " ", " ok", "!!", "\n", "\n", "x"],
    "smollm": ["It", "'s", " ", *"12345", " DON", "'", "T", " ", " ok", "!!", "\n", "\n", "x"],
    "llama-bpe": ["It", "'s", " ", "123", "45", " DON", "'T", " ", " ok", "!!\n\n", "x"],
    "qwen2": ["It", "'s", " ", *"12345", " DON", "'T", " ", " ok", "!!\n\n", "x"],
}


@pytest.mark.parametrize("pre", SPLITS)
def test_text_is_split_as_the_family_splits_it(pre: str, tmp_path: Path):
    """Tokens of a vocabulary that merges everything end where pieces end."""
    pieces = PIECES[pre]
    text = "It's 12345 DON'T  ok!!\n\nx"
    assert "".join(pieces) == text
    backend = merging_all(pieces)
    tokenizer = load_tokenizer(write_vocabulary(tmp_path / "a.gguf", backend, pre, add_bos=False))
    ids = tokenizer.encode(text)
    assert [tokenizer.decode([token]) for token in ids] == pieces


def merging_all(pieces: list[str]) -> "tokenizers.Tokenizer":
    """A vocabulary in which these pieces, and all pairs of neighbours, become one token."""
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    wanted = [*pieces, *(one + other for one, other in pairwise(pieces))]
    vocabulary = {token: at for at, token in enumerate(("<|endoftext|>", "<|im_end|>", "<bos>"))}
    for letter in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocabulary[letter] = len(vocabulary)
    merges: list[tuple[str, str]] = []
    for piece in wanted:
        letters = level.pre_tokenize_str(piece)[0][0]
        for end in range(2, len(letters) + 1):
            if letters[:end] not in vocabulary:
                vocabulary[letters[:end]] = len(vocabulary)
                merges.append((letters[: end - 1], letters[end - 1]))
    return tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges))


@pytest.mark.parametrize(("pre", "alone"), [("llama-bpe", True), ("qwen2", False)])
def test_a_whole_word_of_llama_3_needs_no_merges(pre: str, alone: bool, tmp_path: Path):
    model = json.loads(byte_level().to_str())["model"]
    vocabulary = {**model["vocab"], "zebra": len(model["vocab"])}
    merges = [tuple(merge) for merge in model["merges"]]
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    file = write_vocabulary(tmp_path / "a.gguf", backend, pre, add_bos=False)
    assert (load_tokenizer(file).encode("zebra") == [vocabulary["zebra"]]) == alone


@pytest.mark.parametrize(
    ("pre", "fields", "first"),
    [
        ("gpt-2", {}, False),
        ("gpt-2", {"add_bos": True}, True),
        ("llama-bpe", {}, True),
        ("llama-bpe", {"add_bos": False}, False),
    ],
)
def test_a_first_token_where_the_model_wants_one(
    pre: str, fields: dict, first: bool, tmp_path: Path
):
    file = write_vocabulary(tmp_path / "a.gguf", byte_level(), pre, **fields)
    assert (load_tokenizer(file).encode("The fox")[0] == 2) == first


def test_what_is_no_tokenizer_is_refused(tmp_path: Path):
    def refusal(path: Path) -> str:
        with pytest.raises(ConfigError) as error:
            load_tokenizer(path)
        return str(error.value)

    assert refusal(tmp_path) == f"{tmp_path}: no tokenizer.json"
    (tmp_path / "tokenizer.model").touch()
    assert "tokenizer.model alone is not read" in refusal(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": 1}')
    assert refusal(tmp_path).startswith(
        f"{tmp_path / 'tokenizer.json'}: is damaged or no tokenizer"
    )
    file = tmp_path / "a.gguf"
    assert "cannot be read" in refusal(file)
    write_vocabulary(file, byte_level(), "gpt-2", model="llama")
    assert "tokenizer.ggml.model is 'llama'; only gpt2" in refusal(file)
    write_vocabulary(file, byte_level(), "falcon")
    assert "tokenizer.ggml.pre is 'falcon'; supported: gpt-2, smollm, llama-bpe" in refusal(file)
