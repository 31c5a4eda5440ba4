"""Azure LLM inference traces of 2023 and 2024 (Azure Public Dataset).

CSV with the columns TIMESTAMP (UTC, up to 100 ns; 2024 adds `+00:00`), ContextTokens,
GeneratedTokens. Arrivals are counted from the first row, exactly to 100 ns.
"""

from collections.abc import Iterator
from datetime import datetime

from traces.request import Request
from traces.rows import BadRow, Reading, open_table, whole_number

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")

_TICKS_PER_S = 10**7


def read_azure(reading: Reading) -> Iterator[Request]:
    """Requests of an Azure trace, in constant memory."""
    with open_table(reading.path) as table:
        pick = table.columns(*COLUMNS)
        clock = _Clock()
        request_id = first_ticks = last_ticks = 0
        for row in table:
            try:
                timestamp, context, generated = pick(row)
                ticks = clock.ticks(timestamp)
                prompt_tokens = whole_number("ContextTokens", context)
                output_tokens = whole_number("GeneratedTokens", generated)
                if request_id == 0:
                    first_ticks = last_ticks = ticks
                if ticks < last_ticks:
                    raise BadRow(
                        "TIMESTAMP", timestamp, "no earlier than the row before's; sort the file"
                    )
            except BadRow as bad:
                reading.reject(table.line, bad)
                continue
            last_ticks = ticks
            arrival_s = (ticks - first_ticks) / _TICKS_PER_S
            yield Request(request_id, arrival_s, prompt_tokens, output_tokens)
            request_id += 1


class _Clock:
    """Time stamps to ticks of 100 ns; remembers the minute, which most rows share with the last."""

    def __init__(self) -> None:
        self._minute = ""
        self._minute_ticks = 0

    def ticks(self, timestamp: str) -> int:
        """`2023-11-16 18:15:46.6805900` (perhaps `+00:00` or `Z`) in ticks since year 1."""
        whole, _, fraction = timestamp.strip().removesuffix("+00:00").rstrip("Z").partition(".")
        digits = whole[17:] + fraction.ljust(7, "0")
        if len(whole) != 19 or whole[16] != ":" or len(digits) != 9 or not digits.isdecimal():
            raise _bad(timestamp)
        if whole[17] > "5":
            raise _bad(timestamp)
        if whole[:16] != self._minute:
            self._minute_ticks = _minute_ticks(whole[:16], timestamp)
            self._minute = whole[:16]
        return self._minute_ticks + int(digits)


def _minute_ticks(minute: str, timestamp: str) -> int:
    try:
        moment = datetime.fromisoformat(minute)
    except ValueError:
        raise _bad(timestamp) from None
    minutes = moment.toordinal() * 1440 + moment.hour * 60 + moment.minute
    return minutes * 60 * _TICKS_PER_S


def _bad(timestamp: str) -> BadRow:
    return BadRow("TIMESTAMP", timestamp, "UTC as YYYY-mm-dd HH:MM:SS.fffffff")
