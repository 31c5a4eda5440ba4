"""Writing kvcast's own traces, whole or not at all."""

import csv
import gzip
import os
from collections.abc import Callable, Iterable, Iterator
from io import TextIOWrapper
from itertools import islice
from pathlib import Path

from traces.errors import TraceError
from traces.native import COLUMNS, csv_cells, parquet_schema
from traces.request import Request
from traces.rows import BadRow, check_request

_ROW_GROUP_ROWS = 16384


def write_trace(requests: Iterable[Request], path: str | Path) -> int:
    """Write requests to `path` (.parquet, .csv or .csv.gz) as they come; returns how many.

    The file appears, or replaces an older one, only when the last request is in it. The same
    requests give the same bytes. Raises TraceError for another suffix, for a request that breaks
    the contract of `Request`, for no requests at all and when the file cannot be written.
    """
    path = Path(path)
    write = _writer_for(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        count = write(_checked(requests, path), unfinished)
        if not count:
            raise TraceError(f"{path}: not written: there are no requests to write")
        unfinished.replace(path)
    except OSError as error:
        raise TraceError(f"{path}: cannot be written: {error.strerror or error}") from None
    except OverflowError:
        raise TraceError(f"{path}: not written: a number does not fit 64 bits") from None
    finally:
        unfinished.unlink(missing_ok=True)
    return count


def _writer_for(path: Path) -> Callable[[Iterator[Request], Path], int]:
    for suffix, write in _WRITERS.items():
        if path.name.endswith(suffix):
            return write
    raise TraceError(f"{path}: cannot tell the format; end the name in {', '.join(_WRITERS)}")


def _checked(requests: Iterable[Request], path: Path) -> Iterator[Request]:
    last_s = 0.0
    for position, request in enumerate(requests, 1):
        try:
            check_request(request, last_s)
        except BadRow as bad:
            raise TraceError(f"{path}: not written: request {position}: {bad}") from None
        last_s = request.arrival_s
        yield request


def _write_parquet(requests: Iterator[Request], path: Path) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = parquet_schema()
    count = 0
    with pq.ParquetWriter(
        path,
        schema,
        compression="zstd",
        use_dictionary=["tenant", "slo_class"],  # pyright: ignore[reportArgumentType]
        column_encoding={"hashes.list.element": "DELTA_BINARY_PACKED"},
    ) as file:
        while rows := list(islice(requests, _ROW_GROUP_ROWS)):
            _, *columns = zip(*rows, strict=True)
            arrays = [
                pa.array(values, type=field.type)
                for values, field in zip(columns, schema, strict=True)
            ]
            file.write_batch(pa.record_batch(arrays, schema=schema))
            count += len(rows)
    return count


def _write_csv(requests: Iterator[Request], path: Path) -> int:
    with path.open("w", encoding="utf-8", newline="") as file:
        return _write_rows(requests, file)


def _write_csv_gz(requests: Iterator[Request], path: Path) -> int:
    # No name and no time in the header: the same requests give the same bytes.
    with (
        path.open("wb") as file,
        gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed,
        TextIOWrapper(packed, encoding="utf-8", newline="") as text,
    ):
        return _write_rows(requests, text)


def _write_rows(requests: Iterator[Request], file: TextIOWrapper) -> int:
    rows = csv.writer(file, lineterminator="\n")
    quoted = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)
    rows.writerow(COLUMNS)
    count = 0
    for request in requests:
        # Python 3.11 leaves a lone carriage return unquoted, and could not read it back
        row = quoted if "\r" in request.tenant + request.slo_class else rows
        row.writerow(csv_cells(request))
        count += 1
    return count


_WRITERS: dict[str, Callable[[Iterator[Request], Path], int]] = {
    ".parquet": _write_parquet,
    ".csv": _write_csv,
    ".csv.gz": _write_csv_gz,
}
