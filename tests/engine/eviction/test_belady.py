"""Belady's policy is the bound: on streams of keys, as recorded and against all others."""

import base64
import gzip
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.eviction import EVICTION, eviction_policy
from engine.eviction.keystream import KeyStream
from engine.eviction.protocol import CacheView
from engine.future import KnownFuture, Uses, needs_future
from traces.errors import ConfigError
from traces.request import Request


def hit_bits(spec: str, capacity: int, keys: Sequence[int]) -> list[bool]:
    future = None
    if needs_future(spec):
        # the last token of a prompt is not asked for: two tokens, of which the first has content
        requests = [Request(number, 0.0, 2, 1, (key,), 1, 1) for number, key in enumerate(keys)]
        future = KnownFuture(Uses(requests, 1))
    stream = KeyStream(spec, capacity, future=future)
    hits: list[bool] = []
    for number, key in enumerate(keys):
        if future is not None:
            future.passed(number)
        hits.append(stream.access(key))
    return hits


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=120), st.integers(1, 10))
def test_no_policy_hits_more_of_a_stream_of_keys(keys: list[int], capacity: int):
    most = sum(hit_bits("belady", capacity, keys))
    for spec in EVICTION:
        assert sum(hit_bits(spec, capacity, keys)) <= most, spec


def recorded(path: Path) -> Any:
    with gzip.open(path, "rt") as file:
        return json.load(file)


def unpacked(bits: str, count: int) -> list[bool]:
    raw = zlib.decompress(base64.b64decode(bits))
    return [bool(raw[i // 8] >> i % 8 & 1) for i in range(count)]


def test_the_recorded_hits_of_short_streams(shared: Path):
    cases = recorded(shared / "cache-policies/objects_small.json.gz")["cases"]
    compared = 0
    for case in cases.values():
        for run in case["runs"]:
            if run["policy"] == "Belady":
                hits = hit_bits("belady", run["capacity"], case["keys"])
                assert hits == [bool(hit) for hit in run["hits"]]
                compared += 1
    assert compared >= len(cases)


def test_the_recorded_hits_of_the_zipf_stream(shared: Path):
    with gzip.open(shared / "cache-policies/keys_zipf.csv.gz", "rt") as file:
        keys = [int(line) for line in file if line.strip().isdecimal()]
    runs = recorded(shared / "cache-policies/objects_zipf.json.gz")
    assert compare(runs, keys) == 4


@pytest.mark.slow
def test_the_recorded_hits_of_the_mooncake_stream(shared: Path):
    path = shared / "traces/mooncake/conversation_trace.jsonl"
    keys = [key for line in path.read_text().splitlines() for key in json.loads(line)["hash_ids"]]
    runs = recorded(shared / "cache-policies/objects_mooncake_conversation.json.gz")
    assert compare(runs, keys) == 4


def compare(stream: Any, keys: Sequence[int]) -> int:
    """How many recorded runs of Belady's policy ours equals, access by access."""
    assert stream["requests"] == len(keys)
    runs = [run for run in stream["runs"] if run["policy"] == "Belady"]
    for run in runs:
        assert hit_bits("belady", run["capacity"], keys) == unpacked(run["hit_bits"], len(keys))
    return len(runs)


def test_without_a_future_it_says_what_it_needs():
    with pytest.raises(ConfigError, match="'belady': needs to know what is to come"):
        eviction_policy("belady", CacheView(4))


def test_what_was_asked_for_elsewhere_is_ranked_by_its_use_after_that():
    asked = [1, 2, 1, 3, 2, 1]
    requests = [Request(number, 0.0, 2, 1, (key,), 1, 1) for number, key in enumerate(asked)]
    future = KnownFuture(Uses(requests, 1))
    stream = KeyStream("belady", 2, future=future)
    for number in (0, 1):
        future.passed(number)
        stream.access(asked[number])
    future.passed(2)  # another cache served it: 1 is asked for last now
    future.passed(3)
    stream.access(3)
    assert sorted(stream.resident) == [2, 3]
