"""Files that a browser sends: limited in size, kept under names of our own, read by a worker."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from sim.app.bounds import MIB
from traces.errors import ConfigError

MOST_UPLOADS: Final = 4
"""Traces that a page keeps; the oldest goes for a fifth."""

CHUNK_BYTES: Final = 1 << 16

LONGEST_NAME: Final = 80


@dataclass(frozen=True, slots=True)
class Upload:
    """A trace that was uploaded and read."""

    key: str
    name: str
    """What its user calls it: shown, never opened."""
    path: Path
    described: Mapping[str, Any]
    """The trace in numbers."""


def stored(stream: IO[bytes], folder: Path, most_bytes: int) -> Path:
    """A file in `folder`, under a name of our own, with what `stream` holds.

    Raises:
        ConfigError: it holds nothing, or more than `most_bytes`.
    """
    path = folder / secrets.token_hex(16)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    written = 0
    try:
        with os.fdopen(handle, "wb") as file:
            for chunk in _chunks(stream):
                written += len(chunk)
                if written > most_bytes:
                    raise ConfigError(
                        f"is larger than the {most_bytes / MIB:,.4g} MiB that may be uploaded"
                    )
                file.write(chunk)
        if not written:
            raise ConfigError("is empty")
    except BaseException:
        path.unlink()
        raise
    return path


def shown_name(stated: str) -> str:
    """A name for a reader, of the one that a browser states: its last part, plain characters."""
    last = re.split(r"[/\\]", stated)[-1]
    plain = re.sub(r"[^\w.+ -]", "_", last, flags=re.ASCII).strip(" .-")
    return plain[-LONGEST_NAME:].strip(" .-") or "upload"


def _chunks(stream: IO[bytes]) -> Iterator[bytes]:
    while chunk := stream.read(CHUNK_BYTES):
        yield chunk
