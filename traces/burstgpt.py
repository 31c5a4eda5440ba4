"""BurstGPT traces: ChatGPT and GPT-4 requests of a university, over months.

CSV with the columns Timestamp (s), Model, Request tokens, Response tokens, Total tokens, Log Type;
releases from 2.0 on add Session ID and Elapsed time (s, submission to the last token). Arrivals are
counted from the first row. Requests without an answer (0 response tokens) failed: they are counted
and left out. `Model` becomes the tenant.
"""

from collections.abc import Iterator
from hashlib import blake2b

from traces.request import Request
from traces.rows import BadRow, Reading, finite_number, in_order, open_table, whole_number

COLUMNS = ("Timestamp", "Model", "Request tokens", "Response tokens")

_SESSION = "Session ID"
_ELAPSED = "Elapsed time"


def read_burstgpt(reading: Reading) -> Iterator[Request]:
    """Requests of a BurstGPT trace; memory grows with the number of sessions alone."""
    with open_table(reading.path) as table:
        pick = table.columns(*COLUMNS)
        has_sessions = _SESSION in table.header
        pick_session = table.columns(_SESSION) if has_sessions else None
        pick_elapsed = table.columns(_ELAPSED) if _ELAPSED in table.header else None
        sessions: dict[int, tuple[int, float]] = {}
        first_s = last_s = None
        request_id = 0
        for row in table:
            try:
                timestamp, model, sent, answered = pick(row)
                now_s = finite_number("Timestamp", timestamp)
                in_order("Timestamp", now_s, now_s if last_s is None else last_s)
                output_tokens = whole_number("Response tokens", answered, at_least=0)
                prompt_tokens = whole_number(
                    "Request tokens", sent, at_least=1 if output_tokens else 0
                )
                elapsed_s = _elapsed_s(pick_elapsed(row)) if pick_elapsed else 0.0
                session = _session(pick_session(row)) if pick_session else -1
            except BadRow as bad:
                reading.reject(table.line, bad)
                continue
            last_s = now_s
            first_s = now_s if first_s is None else first_s
            if not output_tokens:
                reading.tally.failed += 1
                continue
            turn, think_s = 0, 0.0
            if session >= 0:
                turn, answered_s = sessions.get(session, (0, now_s))
                think_s = max(0.0, now_s - answered_s)
                sessions[session] = (turn + 1, now_s + elapsed_s)
            yield Request(
                request_id,
                now_s - first_s,
                prompt_tokens,
                output_tokens,
                session_id=session,
                turn=turn,
                think_s=think_s,
                tenant=model,
            )
            request_id += 1


def _elapsed_s(cell: str | tuple[str, ...]) -> float:
    text = str(cell).strip()
    return max(0.0, finite_number(_ELAPSED, text)) if text else 0.0


def _session(cell: str | tuple[str, ...]) -> int:
    """A session's number: its own where it is one, else a hash of its name; -1 for none."""
    text = str(cell).strip()
    if not text:
        return -1
    if text.isdecimal() and len(text) < 19:
        return int(text)
    # 56 bits: as good as never the same for two names, and room to multiply (see tile)
    return int.from_bytes(blake2b(text.encode(), digest_size=7).digest(), "big")
