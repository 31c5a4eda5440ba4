"""kvcast's own traces: Parquet for programs, CSV for people; both keep every field of a request.

Columns are named as the fields of `Request`; `request_id` is the row's position and not stored.
arrival_s, prompt_tokens and output_tokens must be there, the others take the field's default.
"""

from collections.abc import Callable, Iterator
from typing import Any

from traces.errors import TraceError
from traces.request import Request
from traces.rows import (
    BadRow,
    Reading,
    check_request,
    finite_number,
    open_table,
    whole_number,
)

REQUIRED = ("arrival_s", "prompt_tokens", "output_tokens")
COLUMNS = Request._fields[1:]
DEFAULTS: dict[str, Any] = Request._field_defaults

_BATCH_ROWS = 8192


def read_native_csv(reading: Reading) -> Iterator[Request]:
    """Requests of a kvcast CSV (gzip-compressed or not), in constant memory."""
    with open_table(reading.path) as table:
        _check_columns(table.header, f"{reading.path}:1")
        present = [name for name in COLUMNS if name in table.header]
        pick = table.columns(*present)
        parsers = [_PARSERS[name] for name in present]
        request_id, last_s = 0, 0.0
        for row in table:
            try:
                cells = zip(present, parsers, pick(row), strict=True)
                request = Request(
                    request_id, **{name: parse(name, cell) for name, parse, cell in cells}
                )
                check_request(request, last_s)
            except BadRow as bad:
                reading.reject(table.line, bad)
                continue
            last_s = request.arrival_s
            yield request
            request_id += 1


def read_parquet(reading: Reading) -> Iterator[Request]:
    """Requests of a kvcast Parquet file, a few thousand rows in memory at a time.

    Errors count rows from 1 where a text file's count lines.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(reading.path, pre_buffer=False) as file:
            present = file.schema_arrow.names
            _check_columns(present, str(reading.path))
            yield from _rows(file.iter_batches(_BATCH_ROWS, use_threads=False), reading)
    except (pa.ArrowException, OSError) as error:
        raise TraceError(f"{reading.path}: cannot be read: {_first_line(error)}") from None


def _rows(batches: Iterator[Any], reading: Reading) -> Iterator[Request]:
    request_id, row, last_s = 0, 0, 0.0
    for batch in batches:
        columns = [_values(batch, name) for name in COLUMNS]
        for values in zip(*columns, strict=True):
            row += 1
            request = Request(request_id, *values)
            try:
                if None in values:
                    raise BadRow(COLUMNS[values.index(None)], "null", "a value")
                check_request(request, last_s)
            except BadRow as bad:
                reading.reject(row, bad)
                continue
            last_s = request.arrival_s
            yield request
            request_id += 1


def _values(batch: Any, name: str) -> list[Any]:
    """One column as Python values, cast to its type; the field's default where it is absent."""
    if name not in batch.schema.names:
        return [DEFAULTS[name]] * batch.num_rows
    column = batch.column(name).cast(parquet_schema().field(name).type)
    if name != "hashes":
        return column.to_pylist()
    flat = column.flatten().to_pylist()
    ends = iter(column.value_lengths().fill_null(0).to_pylist())
    hashes: list[tuple[int, ...]] = []
    start = 0
    for length in ends:
        hashes.append(tuple(flat[start : start + length]))
        start += length
    return hashes


def parquet_schema() -> Any:
    """The columns of a kvcast Parquet trace, a `pyarrow.Schema`."""
    import pyarrow as pa

    return pa.schema(
        [
            ("arrival_s", pa.float64()),
            ("prompt_tokens", pa.int64()),
            ("output_tokens", pa.int64()),
            ("hashes", pa.list_(pa.int64())),
            ("hash_tokens", pa.int64()),
            ("hashed_tokens", pa.int64()),
            ("session_id", pa.int64()),
            ("turn", pa.int64()),
            ("think_s", pa.float64()),
            ("tenant", pa.string()),
            ("priority", pa.int64()),
            ("slo_class", pa.string()),
        ]
    )


def csv_cells(request: Request) -> list[Any]:
    """A request as the cells of a CSV row, in the order of COLUMNS."""
    _, arrival_s, prompt_tokens, output_tokens, hashes, *others = request
    return [arrival_s, prompt_tokens, output_tokens, " ".join(map(str, hashes)), *others]


def _check_columns(names: list[str], where: str) -> None:
    for name in REQUIRED:
        if name not in names:
            raise TraceError(f"{where}: no column {name}; the columns are: {', '.join(names)}")
    for name in names:
        if name not in COLUMNS:
            raise TraceError(
                f"{where}: unknown column {name}; a kvcast trace has: {', '.join(COLUMNS)}"
            )


def _integer(column: str, text: str) -> int:
    return whole_number(column, text, at_least=-(1 << 63))


def _hashes(column: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(map(int, text.split()))
    except ValueError:
        raise BadRow(column, text, "whole numbers separated by spaces") from None


def _text(column: str, text: str) -> str:
    del column
    return text


_PARSERS: dict[str, Callable[[str, str], Any]] = {
    "arrival_s": finite_number,
    "prompt_tokens": whole_number,
    "output_tokens": whole_number,
    "hashes": _hashes,
    "hash_tokens": _integer,
    "hashed_tokens": _integer,
    "session_id": _integer,
    "turn": _integer,
    "think_s": finite_number,
    "tenant": _text,
    "priority": _integer,
    "slo_class": _text,
}


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
