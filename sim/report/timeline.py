"""The run as a Chrome trace: open timeline.json.gz in ui.perfetto.dev or chrome://tracing.

A process is a replica. It has a track of its segments, counters for what runs, waits and is held
in the KV cache, and one span a request with its queue, prefill and decode phases inside.
"""

import gzip
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import polars as pl

from engine.atomic import replacing
from sim.report.contract import RunResult, end_s
from sim.report.rows import blocks, height

Event = dict[str, Any]

MOST_REQUESTS = 5_000
MOST_SEGMENTS = 200_000
UNPLACED = 0
"""Process of the requests that no replica took; replica r is process r + 1."""
REQUEST_ARGS = (
    "outcome",
    "tenant",
    "session_id",
    "prompt_tokens",
    "generated_tokens",
    "cached_tokens",
    "preemptions",
)


@dataclass(frozen=True)
class Written:
    """How much of the run a timeline holds: its first requests and segments."""

    requests: int
    of_requests: int
    segments: int
    of_segments: int


def write_timeline(
    result: RunResult,
    path: Path | str,
    most_requests: int = MOST_REQUESTS,
    most_segments: int = MOST_SEGMENTS,
) -> Written:
    """Write the run's beginning as gzipped trace-event JSON, whole or not at all.

    The same result gives the same bytes. Events are written as they are made, so memory does not
    grow with their number.

    Arguments:
        result: the run; rows that are None leave their tracks out.
        path: usually timeline.json.gz.
        most_requests: the requests that arrive first, at most so many.
        most_segments: the segments that start first, at most so many.

    Returns:
        How many of how many were written; the file says so too, under otherData.
    """
    path = Path(path)
    requests = _first(result.request_rows, most_requests, "arrival_s", "request_id")
    segments = _first(result.segment_rows, most_segments, "start_s", "replica")
    written = Written(
        requests=requests.height,
        of_requests=0 if result.request_rows is None else height(result.request_rows),
        segments=segments.height,
        of_segments=0 if result.segment_rows is None else height(result.segment_rows),
    )
    about = {"scenario": str(result.summary["name"]), **asdict(written)}
    encode = json.JSONEncoder(separators=(",", ":")).encode
    with (
        replacing(path) as file,
        gzip.GzipFile("", "wb", compresslevel=6, fileobj=file, mtime=0) as packed,
        TextIOWrapper(packed, encoding="utf-8", newline="\n") as text,
    ):
        text.write(f'{{"displayTimeUnit":"ms","otherData":{json.dumps(about)},"traceEvents":[')
        comma = "\n"
        for event in _events(requests, segments, end_s(result)):
            text.write(comma + encode(event))
            comma = ",\n"
        text.write("\n]}\n")
    return written


def _first(rows: pl.LazyFrame | None, most: int, time_s: str, tie: str) -> pl.DataFrame:
    """The `most` first rows by time, then by `tie`: one pass for their keys, one for them."""
    if rows is None or not most:
        return pl.DataFrame()
    first = pl.DataFrame()
    for block in blocks(rows, time_s, tie):
        if first.height == most:
            block = block.filter(pl.col(time_s) <= first[time_s][-1])  # mostly none
        first = pl.concat([first, block]) if first.height else block
        first = first.sort(time_s, tie).head(most)
    if first.height:
        last_s, last = first.row(-1)
        earlier = pl.col(time_s) < last_s
        rows = rows.filter(earlier | ((pl.col(time_s) == last_s) & (pl.col(tie) <= last)))
    return rows.collect().sort(time_s, tie, maintain_order=True).head(most)


def _events(requests: pl.DataFrame, segments: pl.DataFrame, end_s: float) -> Iterator[Event]:
    yield from _processes(requests, segments)
    if segments.height:
        following = segments.with_columns(next_s=pl.col("start_s").shift(-1).over("replica"))
        for row in following.iter_rows(named=True):
            yield from _segment(row)
    for row in requests.iter_rows(named=True):
        yield from _request(row, end_s)


def _processes(requests: pl.DataFrame, segments: pl.DataFrame) -> Iterator[Event]:
    replicas = {
        replica for frame in (requests, segments) if frame.height for replica in frame["replica"]
    }
    for process in sorted(_process(replica) for replica in replicas):
        name = "no replica" if process == UNPLACED else f"replica {process - 1}"
        yield {"ph": "M", "pid": process, "name": "process_name", "args": {"name": name}}
        yield {
            "ph": "M",
            "pid": process,
            "name": "process_sort_index",
            "args": {"sort_index": process},
        }
        yield {
            "ph": "M",
            "pid": process,
            "tid": 0,
            "name": "thread_name",
            "args": {"name": "steps"},
        }


def _process(replica: int | None) -> int:
    return UNPLACED if replica is None else replica + 1


def _us(seconds: float) -> float:
    """Microseconds to the nanosecond, as the format has them."""
    return round(seconds * 1e6, 3)


def _segment(row: dict[str, Any]) -> Iterator[Event]:
    process = _process(row["replica"])
    decodes, prefills = row["decodes"], row["prefill_tokens"]
    name = "mixed" if decodes and prefills else "prefill" if prefills else f"decode x{decodes}"
    yield {
        "ph": "X",
        "pid": process,
        "tid": 0,
        "cat": "steps",
        "name": name,
        "ts": _us(row["start_s"]),
        "dur": round(_us(row["end_s"]) - _us(row["start_s"]), 3),
        "args": {
            "steps": row["steps"],
            "first_step_ms": round(row["first_step_s"] * 1e3, 6),
            "decodes": decodes,
            "decode_context_tokens": row["decode_context_tokens"],
            "prefill_sequences": row["prefill_sequences"],
            "prefill_tokens": prefills,
            "preempted": row["preempted"],
        },
    }
    counters = {
        "running": row["running"],
        "waiting": row["waiting"],
        "KV blocks": row["kv_blocks_used"],
    }
    yield from _counters(process, row["start_s"], counters)
    if row["next_s"] is None or row["next_s"] > row["end_s"] + 1e-9:
        yield from _counters(process, row["end_s"], dict.fromkeys(counters, 0))


def _counters(process: int, at_s: float, counters: dict[str, int]) -> Iterator[Event]:
    for name, value in counters.items():
        yield {"ph": "C", "pid": process, "name": name, "ts": _us(at_s), "args": {"value": value}}


def _request(row: dict[str, Any], end_s: float) -> Iterator[Event]:
    """Nested spans, outer first; a request turned away at the door is an instant.

    A request that gave up, or that the end of the run cut short, is in its last phase until then.
    """
    common = {
        "pid": _process(row["replica"]),
        "tid": 0,
        "cat": "request",
        "id": str(row["request_id"]),
    }
    args = {key: row[key] for key in REQUEST_ARGS}
    name = f"request {row['request_id']}"
    arrival_s = row["arrival_s"]
    if row["outcome"] == "rejected" and row["scheduled_s"] is None:
        yield {"ph": "n", **common, "name": name, "ts": _us(arrival_s), "args": args}
        return
    finish_s = end_s if row["finish_s"] is None else row["finish_s"]
    moments = [arrival_s, row["scheduled_s"], row["first_token_s"], finish_s]
    yield {"ph": "b", **common, "name": name, "ts": _us(arrival_s), "args": args}
    for i, phase in enumerate(("queue", "prefill", "decode")):
        start_s = moments[i]
        if start_s is None:
            break
        close_s = finish_s if moments[i + 1] is None else moments[i + 1]
        if close_s > start_s:
            yield {"ph": "b", **common, "name": phase, "ts": _us(start_s)}
            yield {"ph": "e", **common, "name": phase, "ts": _us(close_s)}
    yield {"ph": "e", **common, "name": name, "ts": _us(finish_s)}
