"""Rows of other people's logs, each with the place it stands at, whatever file they come in."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from traces.errors import ConfigError
from traces.rows import open_text

_SHOWN_CHARACTERS = 60


@dataclass(frozen=True, slots=True)
class Record:
    """One row: its values by column, and where it stands, as `file:line`."""

    place: str
    values: Mapping[str, Any]

    def has(self, column: str) -> bool:
        """Whether the row states a value there."""
        return self.values.get(column) not in (None, "")

    def number(self, column: str, least: float = 0.0) -> float:
        """A finite number of at least `least`.

        Raises:
            ConfigError: naming place, column and value.
        """
        value = self.values.get(column)
        try:
            number = math.nan if value is None or isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not (math.isfinite(number) and number >= least):
            raise self.error(column, f"a finite number >= {least:g}")
        return number

    def whole(self, column: str, least: int = 0) -> int:
        """A whole number of at least `least`; raises as `number`."""
        number = self.number(column, -math.inf)
        if number != int(number) or number < least:
            raise self.error(column, f"a whole number >= {least}")
        return int(number)

    def error(self, column: str, expected: str) -> ConfigError:
        """What is wrong with the value of a column, in one line."""
        value = str(self.values.get(column, "missing"))
        if len(value) > _SHOWN_CHARACTERS:
            value = value[: _SHOWN_CHARACTERS - 3] + "..."
        return ConfigError(f"{self.place}: {column} is '{value}'; expected {expected}")


def read_records(path: Path) -> list[Record]:
    """The rows of a CSV, JSON-lines, JSON or Parquet file; text may be gzip-compressed.

    A JSON file holds one object or a list of them. Rows of CSV have text as values.

    Raises:
        ConfigError: the file has no rows, or one of them cannot be read.
        TraceError: there is no such file.
    """
    if path.suffix == ".parquet":
        records = _parquet_rows(path)
    else:
        with open_text(path) as file:
            text = file.read()
        rows = _json_rows if text.lstrip()[:1] in ("{", "[") else _csv_rows
        records = list(rows(text, path))
    if not records:
        raise ConfigError(f"{path}: has no rows")
    return records


def _csv_rows(text: str, path: Path) -> Iterator[Record]:
    reader = csv.reader(StringIO(text, newline=""))
    header = [name.strip() for name in next(reader, [])]
    for row in filter(None, reader):
        place = f"{path}:{reader.line_num}"
        if len(row) != len(header):
            raise ConfigError(f"{place}: has {len(row)} columns; expected {len(header)}")
        yield Record(place, dict(zip(header, row, strict=True)))


def _json_rows(text: str, path: Path) -> Iterator[Record]:
    lines = [(i, line) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
    first = lines[0][1].rstrip()
    if first in ("{", "[") or (first.startswith("[") and len(lines) == 1):
        document = _parsed(text, str(path))
        for i, row in enumerate(document if isinstance(document, list) else [document], 1):
            yield _record(f"{path}: object {i}", row)
        return
    for number, line in lines:
        place = f"{path}:{number}"
        yield _record(place, _parsed(line, place))


def _parsed(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{place}: is no JSON: {error}") from None


def _record(place: str, row: Any) -> Record:
    if not isinstance(row, dict):
        raise ConfigError(f"{place}: is no JSON object but {type(row).__name__}")
    return Record(place, row)


def _parquet_rows(path: Path) -> list[Record]:
    import polars as pl

    try:
        frame = pl.read_parquet(path)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (OSError, pl.exceptions.PolarsError) as error:
        raise ConfigError(f"{path}: cannot be read: {' '.join(str(error).split())}") from None
    return [Record(f"{path}: row {i}", row) for i, row in enumerate(frame.to_dicts(), 1)]
