"""Which column of a request log holds what, and in which unit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from calibration.imports.records import Record
from traces.errors import ConfigError

UNITS: Final = {"s": 1.0, "sec": 1.0, "seconds": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
"""Endings of a column's name, and seconds in one of them."""

MOMENTS: Final[dict[str, tuple[str, ...]]] = {
    "arrival": (
        "actual_arrival",
        "arrival",
        "arrival_time",
        "arrival_timestamp",
        "start_time",
        "start",
        "request_start",
        "timestamp",
        "scheduled_arrival",
    ),
    "queued": ("queued", "queued_ts", "queued_time"),
    "scheduled": ("admitted", "scheduled", "scheduled_ts", "scheduled_time"),
    "first_token": ("first_token", "first_token_ts", "first_token_time"),
    "finish": ("finish", "finish_ts", "finish_time", "last_token_ts", "end", "end_time"),
}
"""Points in time, and the names that logs have for them; seconds unless the name says else."""

SPANS: Final[dict[str, tuple[str, ...]]] = {
    "arrival_to_queued": ("arrival_to_queued",),
    "queue": ("queue_wait", "queue", "queue_time"),
    "ttft": ("ttft", "time_to_first_token"),
    "ttft_from_queued": ("ttft_from_queued",),
    "e2e": ("e2e", "e2e_latency", "e2el", "latency", "request_latency", "total_latency"),
    "e2e_from_queued": ("latency_from_queued",),
    "tpot": ("tpot", "time_per_output_token"),
}
"""Durations, and the names that logs have for them; the name must say the unit."""

COUNTS: Final[dict[str, tuple[str, ...]]] = {
    "prompt": (
        "prompt_tokens",
        "input_tokens",
        "input_toks",
        "input_length",
        "input_len",
        "prompt_len",
        "isl",
    ),
    "output": (
        "generated_tokens",
        "output_tokens",
        "completion_tokens",
        "output_toks",
        "output_length",
        "output_len",
        "osl",
    ),
    "cached": ("cached_tokens", "num_cached_tokens"),
    "id": ("request_id", "request", "id"),
    "hashes": ("block_hashes",),
    "outcome": ("outcome",),
}
"""Whatever else is read, and the names that logs have for it."""

Columns = Mapping[str, tuple[str, float]]
"""What a log has: its column and the factor to seconds, by quantity."""


def recognised(records: Iterable[Record], log: Path) -> Columns:
    """Which of the log's columns hold what.

    Raises:
        ConfigError: there is none for something that is needed, or its unit is not known.
    """
    header = {name: None for record in records for name in record.values}
    plain = {_plain(name): name for name in header}
    found: dict[str, tuple[str, float]] = {}
    for quantity, names in {**MOMENTS, **SPANS}.items():
        for name in names:
            for unit, factor in UNITS.items():
                if f"{name}_{unit}" in plain:
                    found.setdefault(quantity, (plain[f"{name}_{unit}"], factor))
            if name in plain and quantity in MOMENTS:
                found.setdefault(quantity, (plain[name], 1.0))
    for quantity, names in COUNTS.items():
        for name in names:
            if name in plain:
                found.setdefault(quantity, (plain[name], 1.0))
    _require(found, plain, log)
    return found


def _plain(name: str) -> str:
    """TTFT (ms) -> ttft_ms."""
    words = name.lower().replace("(", " ").replace(")", " ").replace("-", " ").replace("[", " ")
    return "_".join(words.replace("]", " ").replace(".", " ").split())


def _require(found: Columns, plain: Mapping[str, str], log: Path) -> None:
    ways = {
        "an arrival time (arrival_s)": ({"arrival"},),
        "prompt tokens (prompt_tokens)": ({"prompt"},),
        "output tokens (output_tokens)": ({"output"},),
        "a first token (ttft_s, ttft_ms or first_token_s)": (
            {"first_token"},
            {"ttft"},
            {"ttft_from_queued", "arrival_to_queued"},
            {"ttft_from_queued", "queued"},
        ),
        "an end (e2e_s, finish_s or tpot_s, or in ms)": (
            {"finish"},
            {"e2e"},
            {"tpot"},
            {"e2e_from_queued", "arrival_to_queued"},
            {"e2e_from_queued", "queued"},
        ),
    }
    missing = [
        what
        for what, any_of in ways.items()
        if not any(quantities <= found.keys() for quantities in any_of)
    ]
    if not missing:
        return
    has = ", ".join(plain.values())
    unitless = [plain[name] for names in SPANS.values() for name in names if name in plain]
    hint = f"; {unitless[0]} has no unit: name it {unitless[0]}_s or _ms" if unitless else ""
    raise ConfigError(f"{log}: no column for {missing[0]}; it has {has}{hint}")
