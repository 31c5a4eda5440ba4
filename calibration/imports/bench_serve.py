"""Saved results of `vllm bench serve --save-result --save-detailed` and of SGLang's bench_serving:
one JSON object with a list a quantity."""

from __future__ import annotations

from typing import Any, Final

from calibration.imports.records import Record
from traces.errors import ConfigError

LISTS: Final = ("input_lens", "output_lens", "ttfts", "itls")
"""Lists that every saved result with details has: tokens and seconds, one entry a request."""


def is_bench_result(record: Record) -> bool:
    """Whether a JSON object looks like a saved result, with or without details."""
    return isinstance(record.values.get("ttfts"), list) or "mean_ttft_ms" in record.values


def bench_rows(record: Record) -> list[Record]:
    """One row a request that was answered: start_time_s, ttft_s, e2e_s, input_len, output_len.

    Where a result has no `start_times`, all requests started at once if it says that they came at
    an infinite rate without a limit of concurrency. Requests with an error, or without output, are
    left out.

    Raises:
        ConfigError: there are no details, start times are unknown, or lists differ in length.
    """
    lists: dict[str, list[Any]] = {}
    for name in LISTS:
        lists[name] = _listed(record, name, "save the result with --save-detailed")
    count = len(lists["ttfts"])
    if "start_times" in record.values:
        lists["start_times"] = _listed(record, "start_times", "one number a request")
    elif _all_at_once(record):
        lists["start_times"] = [0.0] * count
    else:
        raise ConfigError(
            f"{record.place}: has no start_times, so it is not known when requests arrived;"
            " a newer vllm bench serve saves them"
        )
    lists["latencies"] = record.values.get("latencies") or [
        ttft + sum(itl) for ttft, itl in zip(lists["ttfts"], lists["itls"], strict=False)
    ]
    for name, values in lists.items():
        if len(values) != count:
            raise ConfigError(
                f"{record.place}: {name} has {len(values)} entries, ttfts {count};"
                " expected one for each request"
            )
    errors = record.values.get("errors") or [""] * count
    return [
        Record(
            f"{record.place}: request {i}",
            {
                "start_time_s": lists["start_times"][i],
                "ttft_s": lists["ttfts"][i],
                "e2e_s": lists["latencies"][i],
                "input_len": lists["input_lens"][i],
                "output_len": lists["output_lens"][i],
            },
        )
        for i in range(count)
        if not errors[i] and lists["output_lens"][i]
    ]


def _listed(record: Record, name: str, hint: str) -> list[Any]:
    values = record.values.get(name)
    if not isinstance(values, list):
        raise ConfigError(f"{record.place}: has no list {name}; {hint}")
    return values


def _all_at_once(record: Record) -> bool:
    endless = str(record.values.get("request_rate")) in ("inf", "Infinity")
    return endless and record.values.get("max_concurrency") is None
