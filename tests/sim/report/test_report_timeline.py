import gzip
import json
from collections import Counter, defaultdict

import pytest

from sim.report.timeline import Written, write_timeline


def read(path):
    return json.loads(gzip.decompress(path.read_bytes()))


@pytest.fixture(scope="module")
def trace(result, tmp_path_factory):
    path = tmp_path_factory.mktemp("timeline") / "timeline.json.gz"
    write_timeline(result, path)
    return read(path)


def test_every_event_is_well_formed(trace):
    for event in trace["traceEvents"]:
        assert event["ph"] in "MXCben"
        assert isinstance(event["pid"], int)
        if event["ph"] == "M":
            assert event["args"]
        else:
            assert event["ts"] >= 0
        if event["ph"] == "X":
            assert event["dur"] >= 0
        if event["ph"] in "ben":
            assert isinstance(event["id"], str)
            assert event["cat"]


def test_a_process_is_a_replica(trace):
    names = {
        e["pid"]: e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "process_name"
    }
    assert names == {i + 1: f"replica {i}" for i in range(4)}


def test_segments_are_the_results(trace, result):
    spans = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    assert len(spans) == result.segments.height
    first = result.segments.sort("start_s", "replica").row(0, named=True)
    assert spans[0]["ts"] == pytest.approx(first["start_s"] * 1e6, abs=1e-3)
    assert spans[0]["dur"] == pytest.approx((first["end_s"] - first["start_s"]) * 1e6, abs=2e-3)
    assert {name.split(" x")[0] for name in (span["name"] for span in spans)} <= {
        "prefill",
        "mixed",
        "decode",
    }
    for span in spans:
        if span["name"].startswith("decode"):
            assert span["name"] == f"decode x{span['args']['decodes']}"
            assert span["args"]["prefill_tokens"] == 0


def test_counters_return_to_zero(trace):
    last = {}
    for event in trace["traceEvents"]:
        if event["ph"] == "C":
            last[event["pid"], event["name"]] = event["args"]["value"]
    assert {name for _, name in last} == {"running", "waiting", "KV blocks"}
    assert set(last.values()) == {0}


def test_request_spans_nest_and_close(trace):
    open_ = defaultdict(list)
    for event in trace["traceEvents"]:
        if event["ph"] == "b":
            assert not open_[event["id"]] or event["ts"] >= open_[event["id"]][-1]["ts"]
            open_[event["id"]].append(event)
        elif event["ph"] == "e":
            begun = open_[event["id"]].pop()
            assert begun["name"] == event["name"]
            assert begun["ts"] <= event["ts"]
    assert not any(open_.values())


def test_phases_take_the_time_of_the_record(trace, result):
    row = result.requests.filter(result.requests["queue_s"] > 0).row(0, named=True)
    mine = [e for e in trace["traceEvents"] if e.get("id") == str(row["request_id"])]
    at = {(e["name"], e["ph"]): e["ts"] / 1e6 for e in mine}
    assert at["queue", "e"] - at["queue", "b"] == pytest.approx(row["queue_s"], abs=1e-8)
    assert at["prefill", "e"] == pytest.approx(row["first_token_s"], abs=1e-8)
    assert at["decode", "e"] == pytest.approx(row["finish_s"], abs=1e-8)


def test_a_rejected_request_is_an_instant(rejected, tmp_path):
    write_timeline(rejected, tmp_path / "t.json.gz")
    events = read(tmp_path / "t.json.gz")["traceEvents"]
    assert Counter(event["ph"] for event in events) == {"M": 3, "n": 50}
    assert events[0]["args"]["name"] == "no replica"


def test_only_the_first_requests_and_segments_are_kept(result, tmp_path):
    path = tmp_path / "t.json.gz"
    written = write_timeline(result, path, most_requests=10, most_segments=20)
    assert written == Written(10, result.requests.height, 20, result.segments.height)
    trace = read(path)
    assert trace["otherData"] == {
        "scenario": "toy fleet",
        "requests": 10,
        "of_requests": result.requests.height,
        "segments": 20,
        "of_segments": result.segments.height,
    }
    assert len({event["id"] for event in trace["traceEvents"] if "id" in event}) == 10


def test_same_input_same_bytes(result, tmp_path):
    write_timeline(result, tmp_path / "a.json.gz")
    write_timeline(result, tmp_path / "b.json.gz")
    assert (tmp_path / "a.json.gz").read_bytes() == (tmp_path / "b.json.gz").read_bytes()


def test_absent_frames_leave_tracks_out(result, tmp_path):
    path = tmp_path / "t.json.gz"
    assert write_timeline(result.without("requests", "segments"), path) == Written(0, 0, 0, 0)
    assert read(path)["traceEvents"] == []
