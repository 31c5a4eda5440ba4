"""One request of a log: when it came, when it got its tokens, and whether that can be."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from calibration.imports.records import Record
from calibration.imports.request_columns import Columns
from traces.errors import ConfigError

ANSWERED: Final = ("finished", "truncated", "success", "completed", "ok")
"""Outcomes of requests that got their answer, where a log states outcomes."""

ROUNDING_S: Final = 1e-3
"""Times of one request may be out of order by this much: clocks are read and printed in steps."""


@dataclass(slots=True)
class Served:
    """A request while it is read; times in seconds on the log's clocks."""

    record: Record
    arrival_s: float
    queued_s: float | None
    scheduled_s: float | None
    first_token_s: float
    finish_s: float
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int | None
    hashes: tuple[int, ...]


def was_answered(record: Record, columns: Columns) -> bool:
    """Whether a request got its answer; a log may also list others.

    Raises:
        ConfigError: it says so and the opposite: a time per output token, but no tokens.
    """
    outcome, _ = columns.get("outcome", ("", 1.0))
    if outcome and str(record.values.get(outcome)).lower() not in ANSWERED:
        return False
    first = [columns[name][0] for name in ("first_token", "ttft") if name in columns]
    if first and not any(record.has(name) for name in first):
        return False
    output, tpot = columns["output"][0], columns.get("tpot", ("", 1.0))[0]
    if record.whole(output) == 0 and tpot and record.has(tpot) and record.number(tpot) > 0:
        raise record.error(output, f"at least 1, as {tpot} is {record.values[tpot]}")
    return record.whole(output) > 0


def read_row(record: Record, columns: Columns) -> Served:
    """The request that a row tells of; what a moment is missing follows from durations.

    Raises:
        ConfigError: naming the row and what is missing or cannot be in it.
    """

    def moment(quantity: str) -> float | None:
        name, factor = columns.get(quantity, ("", 1.0))
        return _clock_reading(record, name) * factor if record.has(name) else None

    def span(quantity: str) -> float | None:
        name, factor = columns.get(quantity, ("", 1.0))
        return record.number(name) * factor if record.has(name) else None

    arrival = moment("arrival")
    if arrival is None:
        raise record.error(columns["arrival"][0], "a time")
    output_tokens = record.whole(columns["output"][0], least=1)
    for part, whole in (("ttft", "e2e"), ("ttft_from_queued", "e2e_from_queued")):
        part_s, whole_s = span(part), span(whole)
        if part_s is not None and whole_s is not None and part_s > whole_s + ROUNDING_S:
            raise _contradiction(record, columns[part][0], columns[whole][0])
    queued = _either(moment("queued"), _after(arrival, span("arrival_to_queued")))
    waits_from = arrival if queued is None else queued
    first = _either(
        moment("first_token"),
        _after(arrival, span("ttft")),
        _after(queued, span("ttft_from_queued")),
    )
    finish = _either(
        moment("finish"),
        _after(arrival, span("e2e")),
        _after(queued, span("e2e_from_queued")),
        _after(first, _times(span("tpot"), output_tokens - 1)),
    )
    if first is None or finish is None:
        raise ConfigError(f"{record.place}: does not say when its tokens came")
    cached = columns.get("cached")
    return Served(
        record,
        arrival_s=arrival,
        queued_s=queued,
        scheduled_s=_either(moment("scheduled"), _after(waits_from, span("queue"))),
        first_token_s=first,
        finish_s=finish,
        prompt_tokens=record.whole(columns["prompt"][0], least=1),
        output_tokens=output_tokens,
        cached_tokens=record.whole(cached[0]) if cached and record.has(cached[0]) else None,
        hashes=_hashes(record, columns["hashes"][0]) if "hashes" in columns else (),
    )


def _either(*moments: float | None) -> float | None:
    return next((moment for moment in moments if moment is not None), None)


def _after(moment: float | None, span: float | None) -> float | None:
    return None if moment is None or span is None else moment + span


def _times(span: float | None, count: int) -> float | None:
    return None if span is None else span * count


def _clock_reading(record: Record, column: str) -> float:
    """Seconds: a number, or a date and time as ISO 8601 has it."""
    value = record.values.get(column)
    if isinstance(value, str) and value[:4].isdigit() and value[4:5] == "-":
        try:
            stated = datetime.fromisoformat(value)
            return (stated if stated.tzinfo else stated.replace(tzinfo=UTC)).timestamp()
        except ValueError:
            raise record.error(column, "a number or an ISO 8601 date and time") from None
    return record.number(column)


def _hashes(record: Record, column: str) -> tuple[int, ...]:
    value = record.values.get(column) or ""
    try:
        listed = value.split() if isinstance(value, str) else value
        hashes = tuple(int(one) for one in listed)
    except (TypeError, ValueError):
        hashes = (-1,)
    if hashes and not (min(hashes) >= 0 and max(hashes) < 1 << 63):
        raise record.error(column, "whole numbers in [0, 2**63) with spaces between")
    return hashes


def _contradiction(record: Record, part: str, whole: str) -> ConfigError:
    stated = record.values[whole]
    return record.error(part, f"at most {whole}, {stated}; is one in ms, the other in s?")


def refuse_disorder(request: Served) -> None:
    """Clocks go forward: arrival, queued, scheduled, first token, finish. Within ROUNDING_S the
    tokens' times are put in order.

    Raises:
        ConfigError: naming the row and what came too early.
    """
    steps = [
        ("arrival", request.arrival_s),
        ("queued", request.queued_s),
        ("scheduled", request.scheduled_s),
        ("first token", request.first_token_s),
        ("finish", request.finish_s),
    ]
    last_what, last_s = steps[0][0], request.arrival_s
    for what, moment_s in steps[1:]:
        if moment_s is None:
            continue
        if moment_s < last_s - ROUNDING_S:
            raise ConfigError(
                f"{request.record.place}: {what} is {last_s - moment_s:.6g} s before its"
                f" {last_what}; expected clocks that agree"
            )
        last_what, last_s = what, max(moment_s, last_s)
    request.first_token_s = max(request.first_token_s, request.arrival_s)
    request.finish_s = max(request.finish_s, request.first_token_s)
