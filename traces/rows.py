"""Rows of a trace file: opening it, reading numbers from it, and what to do with a bad row."""

import csv
import gzip
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any, TextIO

from traces.errors import TraceError
from traces.request import Request

_GZIP_MAGIC = b"\x1f\x8b"
_SHOWN_CHARACTERS = 60


class BadRow(Exception):  # noqa: N818  (a signal inside the readers, never a user's error)
    """A row that is no request: which column, what it holds, what would be right."""

    def __init__(self, column: str, value: object, expected: str):
        super().__init__(f"{column} is '{_shortened(value)}'; expected {expected}")


@dataclass
class Tally:
    """Rows one reading left out."""

    skipped: int = 0
    """Malformed rows, with `skip_bad_rows`."""
    failed: int = 0
    """Requests the trace records as failed (no answer)."""


@dataclass(frozen=True)
class Reading:
    """One pass over one file: where, how, and the tally it keeps."""

    path: Path
    skip_bad_rows: bool = False
    seed: int = 0
    rate_per_s: float | None = None
    hash_tokens: int = 512
    tally: Tally = field(default_factory=Tally)

    def reject(self, line: int, row: BadRow) -> None:
        """Count the row as skipped, or raise TraceError naming file and line."""
        if not self.skip_bad_rows:
            raise TraceError(f"{self.path}:{line}: {row}") from None
        self.tally.skipped += 1


@contextmanager
def open_text(path: Path) -> Generator[TextIO]:
    """A text file, gzip-compressed or not; bytes that are no UTF-8 become replacement characters.

    Raises TraceError when it is missing or unreadable.
    """
    try:
        with path.open("rb") as probe:
            compressed = probe.read(2) == _GZIP_MAGIC
        opener: Callable[..., Any] = gzip.open if compressed else open
        file: TextIO = opener(path, "rt", encoding="utf-8-sig", errors="replace", newline="")
    except FileNotFoundError:
        raise TraceError(f"{path}: no such file") from None
    except OSError as error:
        raise TraceError(f"{path}: cannot be read: {error.strerror or error}") from None
    with file:
        yield file


class Table:
    """The rows of a CSV file as lists of text; blank lines are passed over.

    `line` is the number of the line read last, from 1.
    """

    def __init__(self, file: TextIO, path: Path):
        self._reader = csv.reader(file)
        self._path = path
        self.header: list[str] = [name.strip() for name in next(self._reader, [])]

    def __iter__(self) -> Iterator[list[str]]:
        return filter(None, self._reader)

    @property
    def line(self) -> int:
        """Line number of the row read last."""
        return self._reader.line_num

    def columns(self, *names: str) -> Callable[[list[str]], tuple[str, ...]]:
        """A function that takes the named columns out of a row; raises BadRow for a short one.

        Raises TraceError when the header lacks a name.
        """
        for name in names:
            if name not in self.header:
                saw = ", ".join(self.header) or "nothing"
                raise TraceError(f"{self._path}:1: no column {name}; the header is: {saw}")
        pick = itemgetter(*(self.header.index(name) for name in names))

        def picked(row: list[str]) -> tuple[str, ...]:
            try:
                return pick(row)
            except IndexError:
                raise BadRow(
                    "the row", ",".join(row), f"{len(self.header)} columns, got {len(row)}"
                ) from None

        return picked


@contextmanager
def open_table(path: Path) -> Generator[Table]:
    """A CSV file, gzip-compressed or not, with its header read."""
    with open_text(path) as file:
        yield Table(file, path)


def whole_number(column: str, text: str, *, at_least: int = 1) -> int:
    """The integer `text` states; BadRow when it is none or below `at_least`."""
    try:
        number = int(text)
    except ValueError:
        number = at_least - 1
    if number < at_least:
        raise BadRow(column, text, f"a whole number >= {at_least}")
    return number


def finite_number(column: str, text: str) -> float:
    """The number `text` states; BadRow when it is none, infinite or NaN."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise BadRow(column, text, "a finite number")
    return number


def in_order(column: str, value: float, previous: float) -> None:
    """BadRow unless `value` is at least `previous`, the row before's (or the trace's start)."""
    if value < previous:
        raise BadRow(column, value, f"no less than the row before's, {previous}; sort the file")


def check_request(request: Request, previous_arrival_s: float) -> None:
    """BadRow unless the request keeps the contract of `Request` and arrives in order."""
    arrival_s, think_s = request.arrival_s, request.think_s
    if not (math.isfinite(arrival_s) and arrival_s >= 0):
        raise BadRow("arrival_s", arrival_s, "a finite number >= 0")
    in_order("arrival_s", arrival_s, previous_arrival_s)
    _at_least("prompt_tokens", request.prompt_tokens, 1)
    _at_least("output_tokens", request.output_tokens, 1)
    if request.hashes or request.hash_tokens or request.hashed_tokens:
        _check_hashes(request)
    _at_least("session_id", request.session_id, -1)
    _at_least("turn", request.turn, 0)
    if not (math.isfinite(think_s) and think_s >= 0):
        raise BadRow("think_s", think_s, "a finite number >= 0")


def _check_hashes(request: Request) -> None:
    _at_least("hash_tokens", request.hash_tokens, 1)
    _at_least("hashed_tokens", request.hashed_tokens, 0)
    tokens = request.prompt_tokens + request.output_tokens
    if request.hashed_tokens > tokens:
        raise BadRow("hashed_tokens", request.hashed_tokens, f"at most prompt + output, {tokens}")
    expected = blocks_of(request.hashed_tokens, request.hash_tokens)
    if len(request.hashes) != expected:
        raise BadRow(
            "hashes",
            _listed(request.hashes),
            f"{expected}, one for each {request.hash_tokens} of {request.hashed_tokens} tokens; "
            f"got {len(request.hashes)}",
        )
    if request.hashes and not (min(request.hashes) >= 0 and max(request.hashes) < 1 << 63):
        raise BadRow("hashes", _listed(request.hashes), "whole numbers in [0, 2**63)")


def blocks_of(tokens: int, block_tokens: int) -> int:
    """Blocks that hold so many tokens, the last perhaps in part."""
    return -(-tokens // block_tokens)


def _at_least(column: str, value: int, minimum: int) -> None:
    if value < minimum:
        raise BadRow(column, value, f"a whole number >= {minimum}")


def _listed(numbers: Sequence[int]) -> str:
    return " ".join(map(str, numbers[:8]))


def _shortened(value: object) -> str:
    text = str(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 3] + "..."
