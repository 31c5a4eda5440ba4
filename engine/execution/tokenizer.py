"""Text to token ids and back, as the model's own files say."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from engine.execution.checkpoint import is_gguf
from engine.execution.folder import read_object
from traces.errors import ConfigError

if TYPE_CHECKING:
    import tokenizers

PROMPT_TAIL: Final = 8
"""Tokens of the prompt that the first words of an answer are decoded with."""


class Tokenizer:
    """A model's tokenizer."""

    def __init__(self, backend: "tokenizers.Tokenizer", eos: Iterable[int]) -> None:
        self._backend = backend
        self.vocab: int = backend.get_vocab_size()
        """Token ids are below this; a model's vocabulary may be padded beyond it."""
        self.eos: frozenset[int] = frozenset(eos)
        """Tokens that end a text."""

    def encode(self, text: str) -> list[int]:
        """Token ids, with the tokens that the model wants around a text (such as a first one).

        Special tokens that are written out, as `<|im_start|>`, become themselves.
        """
        return self._backend.encode(text).ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text, without special tokens; U+FFFD for bytes that are no UTF-8."""
        return self._backend.decode(ids, skip_special_tokens=True)

    def stream(self, prompt: Sequence[int] = ()) -> "TextStream":
        """Decodes an answer to `prompt` token by token."""
        return TextStream(self, prompt)


class TextStream:
    """Text as its tokens come; the pieces together are what all tokens decode to.

    A token alone does not have a text: characters may be spread over several tokens, and the space
    before a word depends on what stands before it. So tokens are decoded together with those
    before them, and an unfinished character waits for its rest.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._ids = list(prompt[-PROMPT_TAIL:])
        """From the first token on that the next text is decoded with."""
        self._said = len(self._ids)
        """How many of these have been turned into text."""

    def push(self, ids: Iterable[int]) -> str:
        """The text that these tokens complete; empty while a character is unfinished."""
        self._ids.extend(ids)
        text = self._text()
        return "" if text.endswith("\N{REPLACEMENT CHARACTER}") else self._say(text)

    def finish(self) -> str:
        """What is left when no token follows."""
        return self._say(self._text())

    def _text(self) -> str:
        before = self._tokenizer.decode(self._ids[: self._said])
        return self._tokenizer.decode(self._ids)[len(before) :]

    def _say(self, text: str) -> str:
        if text:
            del self._ids[: self._said]
            self._said = len(self._ids)
        return text


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer of a Hugging Face folder (tokenizer.json) or of a .gguf file.

    Raises:
        ConfigError: when there is none, or it is of a kind that cannot be read.
    """
    path = Path(path)
    if is_gguf(path):
        from engine.execution.gguf_vocabulary import read_vocabulary

        return Tokenizer(*read_vocabulary(path))
    return folder_tokenizer(path)


def folder_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer.json of a folder."""
    import tokenizers

    file = path / "tokenizer.json"
    if not file.is_file():
        old = path / "tokenizer.model"
        hint = f"; {old.name} alone is not read, save it as a fast tokenizer" * old.is_file()
        raise ConfigError(f"{path}: no tokenizer.json{hint}")
    try:
        backend = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing narrower
        raise ConfigError(f"{file}: is damaged or no tokenizer: {error}") from error
    return Tokenizer(backend, _stated_eos(path, backend))


def _stated_eos(path: Path, backend: "tokenizers.Tokenizer") -> Iterator[int]:
    """Whatever any of a folder's files calls the end: chat models state several in several."""
    for name in ("generation_config.json", "config.json"):
        stated = _optional(path / name).get("eos_token_id")
        for token in stated if isinstance(stated, list) else [stated]:
            if isinstance(token, int):
                yield token
    stated = _optional(path / "tokenizer_config.json").get("eos_token")
    text = stated.get("content") if isinstance(stated, Mapping) else stated
    token = backend.token_to_id(text) if isinstance(text, str) else None
    if token is not None:
        yield token


def _optional(file: Path) -> dict[str, Any]:
    return read_object(file) if file.is_file() else {}
