"""Foreign formats: recognised, read exactly, and refused with the place and the way out."""

import gzip
import pickle
from pathlib import Path

import pytest

from traces.describe import describe
from traces.errors import TraceError
from traces.reader import open_trace
from traces.request import Request

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
BURST = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"


def written(tmp_path: Path, name: str, text: str) -> Path:
    path = tmp_path / name
    path.write_bytes(text.encode())
    return path


@pytest.mark.parametrize(
    ("file", "format", "requests"),
    [
        ("azure-2023/AzureLLMInferenceTrace_conv.csv", "azure", 19_366),
        ("azure-2023/AzureLLMInferenceTrace_code.csv", "azure", 8_819),
        ("mooncake/conversation_trace.jsonl", "mooncake", 12_031),
        ("mooncake/synthetic_trace.jsonl", "mooncake", 3_993),
    ],
)
def test_published_traces(shared: Path, file: str, format: str, requests: int) -> None:
    trace = open_trace(shared / "traces" / file)
    read = list(trace)
    assert trace.format == format
    assert len(read) == requests
    assert [request.request_id for request in read] == list(range(requests))
    assert read[0].arrival_s == 0.0
    assert trace.skipped == trace.failed == 0


@pytest.mark.parametrize(("name", "share"), [("conversation", 0.374), ("synthetic", 0.651)])
def test_mooncake_reuse_in_an_endless_cache(shared: Path, name: str, share: float) -> None:
    trace = open_trace(shared / "traces" / "mooncake" / f"{name}_trace.jsonl")
    assert describe(trace).reuse.token_share == pytest.approx(share, abs=0.01)


def test_azure_times_are_exact_to_a_tick(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "a.csv",
        AZURE
        + "2023-12-31 23:59:59.9999999,5,6\r\n"
        + "2024-01-01 00:00:00.0000001+00:00,7,8\r\n"
        + "2024-01-01 00:00:01+00:00,7,8\r\n"
        + "2024-02-29 00:00:00.5Z,7,8",
    )
    arrivals = [request.arrival_s for request in open_trace(path)]
    assert arrivals == [0.0, 2e-7, 1.0000001, 59 * 86400 + 0.5000001]


def test_burstgpt_counts_failures_and_keeps_sessions(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "b.csv",
        "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,"
        "Log Type\n"
        "5,12,2.5,ChatGPT,472,18,490,Conversation log\n"
        "6,,1.0,GPT-4,0,0,0,API log\n"
        "7,,1.0,GPT-4,9,3,12,API log\n"
        "10,12,3.0,ChatGPT,500,20,520,Conversation log\n",
    )
    trace = open_trace(path)
    assert list(trace) == [
        Request(0, 0.0, 472, 18, session_id=12, tenant="ChatGPT"),
        Request(1, 2.0, 9, 3, tenant="GPT-4"),
        Request(2, 5.0, 500, 20, session_id=12, turn=1, think_s=2.5, tenant="ChatGPT"),
    ]
    assert (trace.failed, trace.skipped) == (1, 0)
    list(trace)
    assert trace.failed == 1


def test_mooncake_ids_only_match_behind_a_match(tmp_path: Path) -> None:
    row = '{{"timestamp": {}, "input_length": 10, "output_length": 2, "hash_ids": {}}}\n'
    path = written(
        tmp_path,
        "m.jsonl",
        row.format(0, [1, 2, 3]) + row.format(1, [1, 2, 4]) + row.format(2, [9, 2, 3]),
    )
    one, two, three = open_trace(path, hash_tokens=4)
    assert one.hashes[:2] == two.hashes[:2]
    assert one.hashes[2] != two.hashes[2]
    assert not set(one.hashes) & set(three.hashes)
    assert (one.hash_tokens, one.hashed_tokens) == (4, 10)


@pytest.mark.parametrize("columns", ["prompt_tokens,output_tokens", "input_len,output_len"])
def test_lengths_arrive_as_poisson_of_the_rate_given(tmp_path: Path, columns: str) -> None:
    path = written(tmp_path, "l.csv", columns + "\n" + "7,3\n" * 20_000)
    with pytest.raises(TraceError, match=r"no arrivals; give the rate .* \(rate_per_s\)"):
        open_trace(path)
    found = describe(open_trace(path, rate_per_s=4.0, seed=1))
    assert found.mean_rate_per_s == pytest.approx(4.0, rel=0.03)
    assert found.interarrival_cv == pytest.approx(1.0, abs=0.03)
    assert list(open_trace(path, rate_per_s=4.0, seed=1)) == list(
        open_trace(path, rate_per_s=4.0, seed=1)
    )


def test_a_trace_can_be_pickled(tmp_path: Path) -> None:
    path = written(tmp_path, "l.csv", "input_len,output_len\n7,3\n1,2\n")
    trace = open_trace(path, rate_per_s=2.0)
    assert list(pickle.loads(pickle.dumps(trace))) == list(trace)


def test_vidur_arrivals(tmp_path: Path) -> None:
    path = written(
        tmp_path, "v.csv", "arrived_at,num_prefill_tokens,num_decode_tokens\n0.5,374,44\n2,1,1\n"
    )
    assert list(open_trace(path)) == [Request(0, 0.5, 374, 44), Request(1, 2.0, 1, 1)]
    with pytest.raises(TraceError, match=r"rate_per_s is 2.0, but the trace has arrivals"):
        open_trace(path, rate_per_s=2.0)


def test_gzip_is_transparent(tmp_path: Path) -> None:
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress(f"{AZURE}2024-05-10 00:00:00.009930+00:00,5,6\n".encode()))
    trace = open_trace(path)
    assert (trace.name, list(trace)) == ("a", [Request(0, 0.0, 5, 6)])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{AZURE}2023-11-16 18:15:46.68,374,x\n", ":2: GeneratedTokens is 'x'; expected a whole"),
        (f"{AZURE}2023-11-16 18:15:46.68,0,1\n", ":2: ContextTokens is '0'; expected a whole"),
        (f"{AZURE}2023-11-16 18:15:76.68,1,1\n", ":2: TIMESTAMP is '2023-11-16 18:15:76.68'; exp"),
        (f"{AZURE}2023-13-16 18:15:06.68,1,1\n", ":2: TIMESTAMP is '2023-13-16 18:15:06.68'; exp"),
        (f"{AZURE}yesterday,1,1\n", ":2: TIMESTAMP is 'yesterday'; expected UTC as YYYY-mm-dd"),
        (
            f"{AZURE}2023-11-16 18:15:46,1,1\n\n2023-11-16 18:15:45,1,1\n",
            ":4: TIMESTAMP is '2023-11-16 18:15:45'; expected no earlier than the row before's",
        ),
        (f"{AZURE}2023-11-16 18:15:46\n", ":2: the row is '2023-11-16 18:15:46'; expected 3 col"),
        (f"{AZURE}", ": no requests"),
        ("", ": no requests: the file is empty"),
        ("a,b\n1,2\n", ":1: unknown format; it begins 'a,b'; known: parquet (kvcast's own"),
        (f"{BURST}5,GPT-4,9,-1,8,API log\n", ":2: Response tokens is '-1'; expected a whole numb"),
        (f"{BURST}inf,GPT-4,9,1,8,API log\n", ":2: Timestamp is 'inf'; expected a finite number"),
        (f"{BURST}5,GPT-4,0,1,8,API log\n", ":2: Request tokens is '0'; expected a whole number"),
        (f"{BURST}5,GPT-4,0,0,0,API log\n", ": no requests (0 skipped, 1 failed)"),
        ('{"timestamp": 0, "input_length": 5}\n', ":1: output_length is 'missing'; expected a wh"),
        (
            '{"timestamp": 0, "input_length": 5, "output_length": 1, "hash_ids": [1, 2]}\n',
            ":1: hash_ids is '[1, 2]'; expected 1 ids, got 2 (see hash_tokens)",
        ),
        (
            '{"timestamp": 0, "input_length": 5, "output_length": 1, "hash_ids": ["a"]}\n',
            ":1: hash_ids is '['a']'; expected a list of whole numbers",
        ),
        (
            '{"timestamp": -1, "input_length": 5, "output_length": 1, "hash_ids": [1]}\n',
            ":1: timestamp is '-1'; expected milliseconds >= 0",
        ),
        ('{"input_length": \n', ":1: the row is '{\"input_length\":'; expected a JSON object"),
    ],
)
def test_bad_input_names_the_place(tmp_path: Path, text: str, message: str) -> None:
    path = written(tmp_path, "bad.csv", text)
    with pytest.raises(TraceError) as caught:
        list(open_trace(path))
    assert str(caught.value).startswith(f"{path}{message}")
    assert "\n" not in str(caught.value)


def test_bad_rows_can_be_skipped(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "a.csv",
        AZURE
        + "broken\n"
        + "2023-11-16 18:15:46,1,1\n"
        + "2023-11-16 18:15:45,1,1\n"
        + "2023-11-16 18:15:47,1,0\n"
        + "2023-11-16 18:15:48,2,1\n",
    )
    trace = open_trace(path, skip_bad_rows=True)
    assert list(trace) == [Request(0, 0.0, 1, 1), Request(1, 2.0, 2, 1)]
    assert trace.skipped == 3


def test_what_cannot_be_opened_says_why(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"none\.csv: no such file"):
        open_trace(tmp_path / "none.csv")
    with pytest.raises(TraceError, match="cannot be read: Is a directory"):
        open_trace(tmp_path)
    path = written(tmp_path, "a.csv", AZURE)
    with pytest.raises(TraceError, match="unknown format 'x'; known: parquet, csv, azure"):
        open_trace(path, format="x")
    with pytest.raises(TraceError, match="no column Timestamp; the header is: TIMESTAMP"):
        list(open_trace(path, format="burstgpt"))
    with pytest.raises(TraceError, match="rate_per_s is -1; expected a finite number > 0"):
        open_trace(path, rate_per_s=-1)
    with pytest.raises(TraceError, match="sample:x: no such sample; there are: agentic, chat"):
        open_trace("sample:x")
