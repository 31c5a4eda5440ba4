"""One function that opens a trace of any known format."""

import csv
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from importlib.resources import files
from pathlib import Path

from traces.azure import COLUMNS as AZURE_COLUMNS
from traces.azure import read_azure
from traces.burstgpt import COLUMNS as BURSTGPT_COLUMNS
from traces.burstgpt import read_burstgpt
from traces.errors import TraceError
from traces.lengths import (
    ARRIVAL_COLUMN,
    OUTPUT_COLUMNS,
    PROMPT_COLUMNS,
    rate_needed,
    read_lengths,
)
from traces.mooncake import read_mooncake
from traces.native import REQUIRED, read_native_csv, read_parquet
from traces.request import Request
from traces.rows import Reading, Tally, open_text

_SAMPLE_PREFIX = "sample:"
_PARQUET_MAGIC = "PAR1"
_FIRST_LINE_CHARACTERS = 1 << 16


class Trace:
    """Requests in arrival order, to be iterated as often as one likes; nothing is kept in memory.

    `read(tally)` starts one pass. Iterating raises TraceError for a malformed row and when the
    trace turns out to hold no request.
    """

    def __init__(
        self,
        name: str,
        format: str,
        read: Callable[[Tally], Iterator[Request]],
        path: Path | None = None,
    ):
        self.name = name
        self.format = format
        self.path = path
        """Where it lies; None for one that is generated."""
        self.read = read
        self._tally = Tally()

    def __iter__(self) -> Iterator[Request]:
        self._tally = tally = Tally()
        where = self.path or self.name
        empty = True
        try:
            for request in self.read(tally):
                empty = False
                yield request
        except (csv.Error, EOFError, OSError, zlib.error) as error:
            raise TraceError(f"{where}: cannot be read: {error}") from None
        if empty:
            left_out = f" ({tally.skipped} skipped, {tally.failed} failed)"
            raise TraceError(f"{where}: no requests{left_out if tally != Tally() else ''}")

    def __repr__(self) -> str:
        return f"Trace({self.name!r}, format={self.format!r})"

    @property
    def skipped(self) -> int:
        """Malformed rows the latest pass left out so far."""
        return self._tally.skipped

    @property
    def failed(self) -> int:
        """Failed requests the latest pass left out so far."""
        return self._tally.failed


@dataclass(frozen=True)
class Format:
    """How a format is recognised by a file's first line, and read."""

    looks_like: str
    recognises: Callable[[str], bool]
    read: Callable[[Reading], Iterator[Request]]


def open_trace(
    path: str | Path,
    *,
    format: str | None = None,
    skip_bad_rows: bool = False,
    seed: int = 0,
    rate_per_s: float | None = None,
    hash_tokens: int = 512,
) -> Trace:
    """The trace at `path`, its format recognised by its first line unless `format` names it.

    `sample:NAME` opens a sample that comes with kvcast. `skip_bad_rows` counts malformed rows
    instead of raising. `rate_per_s` and `seed` draw arrivals for a trace that has lengths only;
    `hash_tokens` is the size of a Mooncake trace's blocks.

    Raises TraceError when the file is missing, unreadable or of no known format; a malformed row
    is found while iterating.
    """
    given, path = path, _located(str(path))
    if rate_per_s is not None and not 0 < rate_per_s < float("inf"):
        raise TraceError(f"{given}: rate_per_s is {rate_per_s}; expected a finite number > 0")
    if hash_tokens < 1:
        raise TraceError(f"{given}: hash_tokens is {hash_tokens}; expected a whole number >= 1")
    with open_text(path) as file:
        first_line = _first_line(path, file.readline)
    if format is None:
        format = _recognised(first_line, path)
    elif format not in FORMATS:
        raise TraceError(f"{given}: unknown format '{format}'; known: {', '.join(FORMATS)}")
    draws_arrivals = format == "lengths" and ARRIVAL_COLUMN not in _columns(first_line)
    if rate_per_s is not None and not draws_arrivals:
        raise TraceError(
            f"{given}: rate_per_s is {rate_per_s}, but the trace has arrivals of its own; "
            "expected none (operations change a trace's rate: thin, tile, compress_time)"
        )
    if rate_per_s is None and draws_arrivals:
        raise rate_needed(path)
    reading = Reading(path, skip_bad_rows, seed, rate_per_s, hash_tokens)
    return Trace(_name(path), format, partial(_read, format, reading), path)


def sample_trace(name: str) -> Trace:
    """A sample trace that comes with kvcast; raises TraceError for an unknown name."""
    return open_trace(f"{_SAMPLE_PREFIX}{name}")


def sample_names() -> list[str]:
    """The samples that come with kvcast."""
    samples = files("traces").joinpath("samples").iterdir()
    return sorted(entry.name[:-8] for entry in samples if entry.name.endswith(".parquet"))


def _located(path: str) -> Path:
    """Where a trace lies, samples inside the installed package."""
    if not path.startswith(_SAMPLE_PREFIX):
        return Path(path)
    name = path.removeprefix(_SAMPLE_PREFIX)
    if name not in sample_names():
        raise TraceError(f"{path}: no such sample; there are: {', '.join(sample_names())}")
    return Path(str(files("traces").joinpath("samples"))) / f"{name}.parquet"


def _read(format: str, reading: Reading, tally: Tally) -> Iterator[Request]:
    return FORMATS[format].read(replace(reading, tally=tally))


def _first_line(path: Path, readline: Callable[[int], str]) -> str:
    try:
        return readline(_FIRST_LINE_CHARACTERS).strip()
    except (OSError, EOFError, zlib.error) as error:
        raise TraceError(f"{path}: cannot be read: {error}") from None


def _recognised(first_line: str, path: Path) -> str:
    if not first_line:
        raise TraceError(f"{path}: no requests: the file is empty or begins with a blank line")
    for name, format in FORMATS.items():
        if format.recognises(first_line):
            return name
    known = "; ".join(f"{name} ({format.looks_like})" for name, format in FORMATS.items())
    raise TraceError(f"{path}:1: unknown format; it begins '{first_line[:60]}'; known: {known}")


def _columns(first_line: str) -> set[str]:
    return {name.strip() for name in next(csv.reader([first_line]), [])}


def _has(*names: str) -> Callable[[str], bool]:
    return lambda first_line: _columns(first_line).issuperset(names)


def _is_mooncake(first_line: str) -> bool:
    return first_line.startswith("{") and '"input_length"' in first_line


def _is_lengths(first_line: str) -> bool:
    columns = _columns(first_line)
    return not columns.isdisjoint(PROMPT_COLUMNS) and not columns.isdisjoint(OUTPUT_COLUMNS)


def _name(path: Path) -> str:
    return path.name.removesuffix(".gz").rpartition(".")[0] or path.name


FORMATS: dict[str, Format] = {
    "parquet": Format(
        "kvcast's own Parquet", lambda line: line.startswith(_PARQUET_MAGIC), read_parquet
    ),
    "csv": Format(f"kvcast's own: {','.join(REQUIRED)},...", _has(*REQUIRED), read_native_csv),
    "azure": Format(",".join(AZURE_COLUMNS), _has(*AZURE_COLUMNS), read_azure),
    "burstgpt": Format(",".join(BURSTGPT_COLUMNS) + ",...", _has(*BURSTGPT_COLUMNS), read_burstgpt),
    "mooncake": Format('{"timestamp":...,"input_length":...', _is_mooncake, read_mooncake),
    "lengths": Format(
        "columns such as prompt_tokens,output_tokens or num_prefill_tokens,num_decode_tokens",
        _is_lengths,
        read_lengths,
    ),
}
"""A trace format: a reader and how to know it. The first that recognises a file reads it."""
