"""What each idea is worth: the same requests served with it and without it."""

import csv
import gc
import io
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Final

from engine.atomic import replacing
from engine.kvformats import ENCODINGS, KV_DTYPES
from engine.loading import Load, LoadedModel, load_model
from engine.metrics import ServiceMetrics
from engine.records import ServiceRecords
from engine.roofline import Roofline
from engine.serve import ReplaySettings, serve
from engine.shapes import ModelShape
from engine.work import Generation
from traces.errors import ConfigError
from traces.request import Request
from traces.settings import merged, settings_of

AS_IS: Final = "as is"

VARIANTS: Final[Mapping[str, Mapping[str, Any]]] = {
    AS_IS: {},
    "no KV cache": {
        "kv_reuse": False,
        "cache": {"prefix_caching": False},
        "scheduler": {"async_scheduling": False},
    },
    "static batching": {"scheduler": {"batching": "static"}},
    "contiguous": {"cache": {"allocation": "contiguous", "prefix_caching": False}},
    "FIFO eviction": {"cache": {"eviction": "fifo"}},
    "no prefix cache": {"cache": {"prefix_caching": False}},
    "KV in int8": {"kv_dtype": "int8"},
    "KV in int4": {"kv_dtype": "int4"},
    "KV in fp8": {"kv_dtype": "fp8"},
}
"""Settings put over one's own, by the name of the row."""

WARM_UP_TOKENS: Final = 2

ENOUGH_S: Final = 10.0
"""After so long a row is not measured again."""

Answers = dict[int, list[int]]
"""Output tokens by the number of the request."""

Watch = Callable[[str, int], None]
"""Told which row is being measured, and how many of its requests have ended."""


@dataclass(frozen=True, slots=True)
class Row:
    """One variant's results; None where it was refused or there is nothing to tell."""

    variant: str
    refused: str = ""
    """Why it cannot be had with this model and device."""
    output_tokens_per_s: float | None = None
    ratio: float | None = None
    """Of output_tokens_per_s to the first row's."""
    ttft_p50_s: float | None = None
    tpot_p50_s: float | None = None
    hit_rate: float | None = None
    """Of prompt tokens, found in the prefix cache."""
    preemptions: int | None = None
    num_blocks: int | None = None
    kv_dtype: str = ""
    answers: int | None = None
    same_answers: int | None = None
    """Answers that equal the first row's, token by token."""
    first_difference: int | None = None
    """Least number of an output token, from 0, in which an answer differs."""

    comparable: bool = False
    """This row's cache and the first row's hold 16- or 32-bit numbers: the answers should agree."""

    @property
    def differs(self) -> bool:
        """Answers should agree and do not: a fault, or rounding between two tokens that were about
        as likely."""
        return self.comparable and self.answers != self.same_answers


def compare(
    settings: ReplaySettings,
    *,
    limit: int = 16,
    max_tokens: int = 64,
    repeats: int = 3,
    variants: Mapping[str, Mapping[str, Any]] = VARIANTS,
    load: Load = load_model,
    watch: Watch | None = None,
) -> list[Row]:
    """Serve the first requests of a trace, all arriving at once, in every variant.

    Answers are the model's own greedy ones. A variant that settings, model or device refuse has a
    row that says why.

    Args:
        settings: what the first row has, and the others change.
        limit: requests to serve.
        max_tokens: most output tokens of each: without a KV cache the work grows with their square.
        repeats: how often each variant serves them, unless it is slow; its fastest run counts.
        variants: settings by the name of the row; the first is what others are held against.
        load: loads a model.
        watch: told how far it is.

    Raises:
        ConfigError, TraceError: the first variant cannot be had, or the trace not be read.
    """
    requests = [
        request._replace(output_tokens=min(request.output_tokens, max_tokens))
        for request in islice(settings.trace.open(settings.seed), limit)
    ]
    base = _with_room(settings, requests).model_dump(mode="json")
    rows: list[Row] = []
    first: Answers | None = None
    for name, changes in variants.items():
        try:
            chosen = settings_of(ReplaySettings, merged(base, changes), name)
            row, answers = _measured(name, load, chosen, requests, repeats, watch)
        except ConfigError as refused:
            if first is None:
                raise
            rows.append(Row(name, refused=str(refused).removeprefix(f"{name}: ")))
            continue
        if first is None:
            first = answers
        rows.append(_beside(row, rows[0] if rows else row, answers, first))
    return rows


def write_rows(rows: Sequence[Row], path: Path) -> None:
    """Write rows as .csv or .json, whole or not at all.

    Raises:
        ConfigError: for another suffix (see `check_suffix`), or a file that cannot be written.
    """
    check_suffix(path)
    values = [asdict(row) for row in rows]
    if path.suffix == ".json":
        text = json.dumps(values, indent=2, allow_nan=False) + "\n"
    else:
        lines = io.StringIO()
        table = csv.DictWriter(lines, list(values[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(values)
        text = lines.getvalue()
    try:
        with replacing(path) as file:
            file.write(text.encode())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror or error}") from None


def check_suffix(path: Path) -> None:
    """Raises ConfigError for a name that ends neither in .csv nor in .json."""
    if path.suffix not in (".csv", ".json"):
        raise ConfigError(f"{path}: cannot tell the format; end the name in .csv or .json")


def _with_room(settings: ReplaySettings, requests: Sequence[Request]) -> ReplaySettings:
    """Sequences as long as these requests need and no longer, unless the settings say so: with
    contiguous memory each gets room for the longest."""
    scheduler = settings.scheduler
    if scheduler.max_model_len is not None:
        return settings
    longest = max(request.prompt_tokens + request.output_tokens for request in requests)
    if Path(settings.model).is_dir():
        longest = min(longest, ModelShape.from_hf_config(settings.model).max_position)
    filled = scheduler.model_copy(update={"max_model_len": longest})
    return settings.model_copy(update={"scheduler": filled})


def _measured(
    name: str,
    load: Load,
    settings: ReplaySettings,
    requests: Sequence[Request],
    repeats: int,
    watch: Watch | None,
) -> tuple[Row, Answers]:
    """The fastest of the runs: other work on the machine only ever adds time.

    The model is gone, and its memory free for the next, on return.
    """
    told = watch and partial(watch, name)
    gc.collect()
    with closing(load(settings)) as model:
        _served(model, [requests[0]._replace(output_tokens=WARM_UP_TOKENS)], None)
        runs = [_served(model, requests, told)]
        while len(runs) < repeats and sum(run[0]["duration_s"] for run in runs) < ENOUGH_S:
            runs.append(_served(model, requests, told))
    summary, answers = min(runs, key=lambda run: run[0]["duration_s"])
    latency = summary["latency"]
    row = Row(
        name,
        output_tokens_per_s=summary["throughput"]["output_tokens_per_s"],
        ttft_p50_s=latency["ttft_s"] and latency["ttft_s"]["p50"],
        tpot_p50_s=latency["tpot_s"] and latency["tpot_s"]["p50"],
        hit_rate=summary["cache"]["hit_rate"],
        preemptions=summary["preemptions"],
        num_blocks=model.executor.num_blocks,
        kv_dtype=model.settings.kv_dtype,
    )
    return row, answers


def _served(
    model: LoadedModel, requests: Sequence[Request], told: Callable[[int], None] | None
) -> tuple[dict[str, Any], Answers]:
    engine = model.engine()
    records = ServiceRecords(engine, ServiceMetrics(), Roofline(None, None))
    answers: Answers = {}

    def keep(generation: Generation) -> None:
        answers[generation.seq.request.request_id] = generation.output

    serve(
        engine,
        requests,
        records,
        speed=None,
        forced=False,
        on_end=keep,
        progress=None if told is None else lambda records: told(records.ended),
    )
    return records.summary(), answers


def _beside(row: Row, first: Row, answers: Answers, expected: Answers) -> Row:
    """The row with what it is beside the first one."""
    places = [_difference(answers.get(number, []), tokens) for number, tokens in expected.items()]
    ratio = None
    if row.output_tokens_per_s is not None and first.output_tokens_per_s:
        ratio = row.output_tokens_per_s / first.output_tokens_per_s
    return replace(
        row,
        ratio=ratio,
        answers=len(places),
        same_answers=places.count(None),
        first_difference=min((place for place in places if place is not None), default=None),
        comparable=_keeps_numbers(row.kv_dtype) and _keeps_numbers(first.kv_dtype),
    )


def _difference(tokens: Sequence[int], expected: Sequence[int]) -> int | None:
    """The first place in which two answers differ; None if they are the same."""
    for place, (one, other) in enumerate(zip(tokens, expected, strict=False)):
        if one != other:
            return place
    return None if len(tokens) == len(expected) else min(len(tokens), len(expected))


def _keeps_numbers(kv_dtype: str) -> bool:
    return all(ENCODINGS[name].bits >= 16 for name in KV_DTYPES[kv_dtype])
