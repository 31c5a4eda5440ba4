"""The tokenizer in a .gguf file: a vocabulary and merges, from which a byte-level BPE is built."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from engine.execution.gguf_header import read_header
from traces.errors import ConfigError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.pre_tokenizers import PreTokenizer

CONTROL: Final = 3
USER_DEFINED: Final = 4
"""Kinds of tokens (`token_type`) that are looked for in a text before it is split."""

ENDS: Final = ("<|endoftext|>", "<|im_end|>", "<|eot_id|>", "<|end_of_text|>")
"""Control tokens that end a text whether the file says so or not: it names one, models use more."""

GPT_2: Final = "gpt-2"


class Split(NamedTuple):
    """How text is cut before merges are applied inside the pieces."""

    pattern: str | None
    """None: the one that is built into ByteLevel, GPT-2's."""
    digits_alone: bool = False
    whole_words: bool = False
    """A piece that is a token is taken as it is, whatever the merges would make of it."""
    first_token: bool = False
    """A text begins with the BOS token, if the file does not say otherwise."""


def _words(digits: str) -> str:
    """Llama 3's pattern, which Qwen 2 took over but for the number of `digits` in a piece."""
    return (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
        + digits
        + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


SPLITS: Final[Mapping[str, Split]] = {
    GPT_2: Split(None),
    "smollm": Split(None, digits_alone=True),
    "llama-bpe": Split(_words("{1,3}"), whole_words=True, first_token=True),
    "qwen2": Split(_words("")),
}
"""By `tokenizer.ggml.pre`."""


def read_vocabulary(path: Path) -> tuple["Tokenizer", set[int]]:
    """The tokenizer, and the tokens that end a text.

    Raises:
        ConfigError: when it is not byte-level BPE, or splits text in a way that is not known.
    """
    fields = _Fields(path)
    kind, splitting = fields.get("model"), fields.get("pre", GPT_2)
    if kind != "gpt2":
        raise ConfigError(
            f"{path}: tokenizer.ggml.model is {kind!r}; only gpt2 (byte-level BPE) can be read:"
            " use the model's Hugging Face folder"
        )
    if splitting not in SPLITS:
        raise ConfigError(
            f"{path}: tokenizer.ggml.pre is {splitting!r}; supported: {', '.join(SPLITS)}"
        )
    return _built(fields, SPLITS[splitting]), _ends(fields)


class _Fields:
    """The tokenizer's part of a file's metadata."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._values = read_header(path).values
        self.tokens: list[str] = self.get("tokens", [])
        self.kinds: list[int] = self.get("token_type", [])

    def get(self, name: str, default: Any = None) -> Any:
        return self._values.get(f"tokenizer.ggml.{name}", default)

    def of_kind(self, kind: int) -> dict[str, int]:
        pairs = enumerate(zip(self.tokens, self.kinds, strict=False))
        return {token: number for number, (token, one) in pairs if one == kind}


def _built(fields: _Fields, split: Split) -> "Tokenizer":
    from tokenizers import AddedToken, Tokenizer, decoders, models, processors

    ids = {token: number for number, token in enumerate(fields.tokens)}
    merges = [tuple(merge.split(" ", 1)) for merge in fields.get("merges", [])]
    try:
        model = models.BPE(vocab=ids, merges=merges, ignore_merges=split.whole_words)
    except Exception as error:  # the library raises nothing narrower
        raise ConfigError(f"{fields.path}: merges and tokens do not fit: {error}") from error
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = _pre_tokenizer(split)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in fields.of_kind(CONTROL)]
    )
    tokenizer.add_tokens(
        [AddedToken(token, normalized=False) for token in fields.of_kind(USER_DEFINED)]
    )
    first = fields.get("bos_token_id")
    if first is not None and fields.get("add_bos_token", split.first_token):
        token = fields.tokens[first]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[token, "$A"], special_tokens=[(token, first)]
        )
    return tokenizer


def _pre_tokenizer(split: Split) -> "PreTokenizer":
    from tokenizers import Regex, pre_tokenizers

    bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split.pattern is None)
    if split.pattern is not None:
        cut = pre_tokenizers.Split(Regex(split.pattern), behavior="isolated")
        return pre_tokenizers.Sequence([cut, bytes_of])
    if split.digits_alone:
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), bytes_of])
    return bytes_of


def _ends(fields: _Fields) -> set[int]:
    stated = (fields.get(f"{name}_token_id") for name in ("eos", "eot", "eom"))
    control = fields.of_kind(CONTROL)
    return {
        *(token for token in stated if token is not None),
        *(control[token] for token in ENDS if token in control),
    }
