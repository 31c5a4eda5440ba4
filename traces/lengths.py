"""Lists of request lengths: ShareGPT statistics, Vidur's processed traces and their like.

CSV with one column of prompt lengths and one of output lengths, under any of the names below; other
columns are ignored. Arrivals come from the column arrived_at (s, Vidur) where there is one;
otherwise they are drawn: a Poisson process of `rate_per_s`, from `seed`.
"""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from traces.errors import TraceError
from traces.request import Request
from traces.rows import (
    BadRow,
    Reading,
    Table,
    finite_number,
    in_order,
    open_table,
    whole_number,
)

PROMPT_COLUMNS = (
    "prompt_tokens",
    "num_prefill_tokens",
    "input_len",
    "input_tokens",
    "prompt_len",
    "input_length",
)
OUTPUT_COLUMNS = (
    "output_tokens",
    "num_decode_tokens",
    "output_len",
    "completion_tokens",
    "response_len",
    "output_length",
)
ARRIVAL_COLUMN = "arrived_at"


def read_lengths(reading: Reading) -> Iterator[Request]:
    """Requests of a table of lengths, in constant memory.

    Raises TraceError when it has no arrivals and no `rate_per_s` is given.
    """
    with open_table(reading.path) as table:
        prompt_column = _first_of(PROMPT_COLUMNS, table, reading)
        output_column = _first_of(OUTPUT_COLUMNS, table, reading)
        pick = table.columns(prompt_column, output_column)
        clock = _Recorded(table) if ARRIVAL_COLUMN in table.header else _Poisson(reading)
        request_id = 0
        for row in table:
            try:
                prompt, output = pick(row)
                prompt_tokens = whole_number(prompt_column, prompt)
                output_tokens = whole_number(output_column, output)
                arrival_s = clock.next_s(row)
            except BadRow as bad:
                reading.reject(table.line, bad)
                continue
            yield Request(request_id, arrival_s, prompt_tokens, output_tokens)
            request_id += 1


def rate_needed(path: Path) -> TraceError:
    """The error of a trace without arrivals that is opened without a rate."""
    return TraceError(
        f"{path}: has lengths but no arrivals; give the rate at which requests are to arrive "
        "(rate_per_s)"
    )


class _Recorded:
    """Arrivals from the table."""

    def __init__(self, table: Table):
        self._column = table.header.index(ARRIVAL_COLUMN)
        self._last_s = 0.0

    def next_s(self, row: list[str]) -> float:
        if len(row) <= self._column:
            raise BadRow(ARRIVAL_COLUMN, "", "seconds >= 0")
        now_s = finite_number(ARRIVAL_COLUMN, row[self._column])
        in_order(ARRIVAL_COLUMN, now_s, self._last_s)
        self._last_s = now_s
        return now_s


class _Poisson:
    """Arrivals drawn at a constant rate."""

    def __init__(self, reading: Reading):
        if reading.rate_per_s is None:
            raise rate_needed(reading.path)
        self._draw = random.Random(reading.seed)
        self._rate_per_s = reading.rate_per_s
        self._now_s = 0.0

    def next_s(self, row: list[str]) -> float:
        del row
        self._now_s += self._draw.expovariate(self._rate_per_s)
        return self._now_s


def _first_of(names: Sequence[str], table: Table, reading: Reading) -> str:
    for name in names:
        if name in table.header:
            return name
    saw = ", ".join(table.header) or "nothing"
    raise TraceError(f"{reading.path}:1: no column {' or '.join(names)}; the header is: {saw}")
