"""Mooncake traces (FAST'25 release) and the many made in their likeness.

JSON lines with timestamp (ms), input_length, output_length (tokens) and hash_ids: one id for each
block of 512 tokens of the prompt, the last perhaps partial. In the published traces an id stands
for everything up to its block's end; not all traces made since are so careful. Each id is therefore
chained to the one before it here: a published trace keeps its sharing, a careless one cannot claim
a match behind a mismatch.
"""

import json
import math
from collections.abc import Iterator
from typing import Any

from traces.request import Request
from traces.rows import BadRow, Reading, blocks_of, in_order, open_text

_HASH_BITS = (1 << 63) - 1
_INTEGERS = {int}


def read_mooncake(reading: Reading) -> Iterator[Request]:
    """Requests of a Mooncake trace, in constant memory; blocks of `reading.hash_tokens` tokens."""
    hash_tokens = reading.hash_tokens
    with open_text(reading.path) as file:
        request_id, last_ms = 0, 0
        for line, text in enumerate(file, 1):
            if text.isspace():
                continue
            try:
                row = _parsed(text)
                now_ms = _timestamp_ms(row)
                in_order("timestamp", now_ms, last_ms)
                prompt_tokens = _tokens(row, "input_length")
                output_tokens = _tokens(row, "output_length")
                hashes = _chained(_hash_ids(row, blocks_of(prompt_tokens, hash_tokens)))
            except BadRow as bad:
                reading.reject(line, bad)
                continue
            last_ms = now_ms
            yield Request(
                request_id,
                now_ms / 1000,
                prompt_tokens,
                output_tokens,
                hashes,
                hash_tokens,
                prompt_tokens,
            )
            request_id += 1


def _parsed(text: str) -> dict[str, Any]:
    try:
        row: Any = json.loads(text)
    except ValueError:
        row = None
    if not isinstance(row, dict):
        raise BadRow("the row", text.strip(), "a JSON object")
    return row


def _timestamp_ms(row: dict[str, Any]) -> float:
    value = row.get("timestamp", "missing")
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (number and math.isfinite(value) and value >= 0):
        raise BadRow("timestamp", value, "milliseconds >= 0")
    return value


def _tokens(row: dict[str, Any], column: str) -> int:
    value = row.get(column, "missing")
    if type(value) is not int or value < 1:
        raise BadRow(column, value, "a whole number >= 1")
    return value


def _hash_ids(row: dict[str, Any], expected: int) -> list[int]:
    ids = row.get("hash_ids", "missing")
    if not isinstance(ids, list) or set(map(type, ids)) != _INTEGERS:
        raise BadRow("hash_ids", ids, "a list of whole numbers")
    if len(ids) != expected:
        raise BadRow("hash_ids", ids, f"{expected} ids, got {len(ids)} (see hash_tokens)")
    return ids


def _chained(ids: list[int]) -> tuple[int, ...]:
    """Each id hashed with all before it; the same in every run of 64-bit CPython."""
    chain: list[int] = []
    parent = -1
    for block in ids:
        parent = hash((parent, block)) & _HASH_BITS
        chain.append(parent)
    return tuple(chain)
