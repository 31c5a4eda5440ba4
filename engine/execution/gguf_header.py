"""What stands at the head of a .gguf file: named values, and where each tensor's bytes are.

Read here rather than by the package `gguf`, which takes seconds over a vocabulary.
"""

import mmap
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

from traces.errors import ConfigError

MAGIC: Final = b"GGUF"
VERSIONS: Final = (2, 3)
NUMBERS: Final = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
"""Types of numbers, as `struct` writes them."""
STRING: Final = 8
ARRAY: Final = 9


class TensorInfo(NamedTuple):
    """A tensor in the file."""

    shape: tuple[int, ...]
    """As torch states it: rows first."""
    kind: int
    """Number of its GGML type."""
    offset: int
    """Of its first byte in the file."""


@dataclass(slots=True)
class Header:
    """Everything but the tensors' contents."""

    path: Path
    values: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, TensorInfo] = field(default_factory=dict)


def read_header(path: Path) -> Header:
    """The head of the file.

    Raises:
        ConfigError: when it is absent, damaged or no .gguf file.
    """
    try:
        with (
            path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as bytes_,
        ):
            return _Reader(bytes_).header(path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, struct.error, OverflowError) as error:
        raise ConfigError(f"{path}: is damaged or no .gguf file: {error}") from error


class _Reader:
    """Reads one thing after the other."""

    def __init__(self, content: mmap.mmap) -> None:
        self.content = content
        self.at = 0

    def header(self, path: Path) -> Header:
        if self.content[: len(MAGIC)] != MAGIC:
            raise ValueError(f"it does not begin with {MAGIC.decode()}")
        self.at = len(MAGIC)
        version, tensors, values = self.number("I"), self.number("Q"), self.number("Q")
        if version not in VERSIONS:
            raise ValueError(f"version {version} is not one of {VERSIONS}")
        header = Header(path)
        for _ in range(values):
            name = self.string()
            header.values[name] = self.value(self.number("I"))
        infos = [self.tensor() for _ in range(tensors)]
        alignment = header.values.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise ValueError(f"general.alignment is {alignment!r}")
        start = -(-self.at // alignment) * alignment
        for name, info in infos:
            header.tensors[name] = info._replace(offset=start + info.offset)
        return header

    def tensor(self) -> tuple[str, TensorInfo]:
        name = self.string()
        sizes = self.numbers("Q", self.number("I"))
        kind, offset = self.number("I"), self.number("Q")
        return name, TensorInfo(tuple(reversed(sizes)), kind, offset)

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.string()
        if kind != ARRAY:
            return self.number(NUMBERS[kind])
        kind, count = self.number("I"), self.number("Q")
        if kind in NUMBERS:
            return list(self.numbers(NUMBERS[kind], count))
        return [self.value(kind) for _ in range(count)]

    def string(self) -> str:
        size = self.number("Q")
        self.at += size
        return self.content[self.at - size : self.at].decode("utf-8")

    def number(self, form: str) -> Any:
        return self.numbers(form, 1)[0]

    def numbers(self, form: str, count: int) -> tuple[Any, ...]:
        found = struct.unpack_from(f"<{count}{form}", self.content, self.at)
        self.at += struct.calcsize(f"<{count}{form}")
        return found
