"""kvcast's own formats lose nothing, and appear whole or not at all."""

import gzip
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from tests.traces.requests import plain, request_lists
from traces.errors import TraceError
from traces.reader import open_trace
from traces.request import Request
from traces.writer import write_trace

SUFFIXES = [".parquet", ".csv", ".csv.gz"]


@pytest.mark.parametrize("suffix", SUFFIXES)
@settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(requests=request_lists())
def test_round_trip_is_identity(tmp_path: Path, suffix: str, requests: list[Request]) -> None:
    path = tmp_path / f"trace{suffix}"
    assert write_trace(requests, path) == len(requests)
    first_bytes = path.read_bytes()
    trace = open_trace(path)
    assert list(trace) == requests
    assert list(trace) == requests
    write_trace(requests, path)
    assert path.read_bytes() == first_bytes


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_rows_beyond_one_batch_keep_their_order(tmp_path: Path, suffix: str) -> None:
    requests = [
        Request(i, i / 8, 10 + i % 7, 5, (i,) * (i % 3), 8, 8 * (i % 3))
        if i % 3
        else Request(i, i / 8, 10, 5)
        for i in range(40_000)
    ]
    requests = [r._replace(output_tokens=20) for r in requests]
    path = tmp_path / f"trace{suffix}"
    write_trace(iter(requests), path)
    assert list(open_trace(path)) == requests


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_failed_write_leaves_the_old_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"trace{suffix}"
    write_trace(plain([0.0, 1.0]), path)

    def breaks() -> Iterator[Request]:
        yield from plain([0.0])
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        write_trace(breaks(), path)
    assert len(list(open_trace(path))) == 2
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_says_why(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"out\.txt: cannot tell the format; end the name in"):
        write_trace(plain([0.0]), tmp_path / "out.txt")
    with pytest.raises(TraceError, match="there are no requests to write"):
        write_trace([], tmp_path / "out.csv")
    with pytest.raises(TraceError, match=r"request 2: arrival_s is '1.0'; expected no less than"):
        write_trace(plain([2.0, 1.0]), tmp_path / "out.csv")
    with pytest.raises(TraceError, match="a number does not fit 64 bits"):
        write_trace(plain([0.0], session_id=2**64), tmp_path / "out.parquet")
    with pytest.raises(TraceError, match="No such file or directory"):
        write_trace(plain([0.0]), tmp_path / "nowhere" / "out.parquet")
    assert not list(tmp_path.iterdir())


HEADER = "arrival_s,prompt_tokens,output_tokens"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{HEADER}\n0,x,1\n", ":2: prompt_tokens is 'x'; expected a whole number >= 1"),
        (f"{HEADER}\n0,1,1\n0,0,1\n", ":3: prompt_tokens is '0'; expected a whole number >= 1"),
        (f"{HEADER}\n0,1,0\n", ":2: output_tokens is '0'; expected a whole number >= 1"),
        (f"{HEADER}\nnan,1,1\n", ":2: arrival_s is 'nan'; expected a finite number"),
        (f"{HEADER}\n-1,1,1\n", ":2: arrival_s is '-1.0'; expected a finite number >= 0"),
        (f"{HEADER}\n2,1,1\n1,1,1\n", ":3: arrival_s is '1.0'; expected no less than the row"),
        (f"{HEADER}\n2,1\n", ":2: the row is '2,1'; expected 3 columns, got 2"),
        (f"{HEADER},tennant\n0,1,1,a\n", ":1: unknown column tennant; a kvcast trace has: arrival"),
        (f"{HEADER},hashes\n0,9,1,1 b\n", ":2: hashes is '1 b'; expected whole numbers separated"),
        (f"{HEADER},hashes\n0,9,1,1\n", ":2: hash_tokens is '0'; expected a whole number >= 1"),
        (
            f"{HEADER},hashes,hash_tokens,hashed_tokens\n0,9,1,1 2,4,9\n",
            ":2: hashes is '1 2'; expected 3, one for each 4 of 9 tokens; got 2",
        ),
        (
            f"{HEADER},hashes,hash_tokens,hashed_tokens\n0,9,1,1 2 3,4,11\n",
            ":2: hashed_tokens is '11'; expected at most prompt + output, 10",
        ),
        (f"{HEADER},turn\n0,1,1,-2\n", ":2: turn is '-2'; expected a whole number >= 0"),
        (f"{HEADER}\n", ": no requests"),
    ],
)
def test_bad_csv_names_the_place(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(TraceError) as caught:
        list(open_trace(path))
    assert str(caught.value).startswith(f"{path}{message}")
    assert "\n" not in str(caught.value)


def test_broken_files_are_trace_errors(tmp_path: Path) -> None:
    whole = tmp_path / "whole.parquet"
    write_trace(plain([float(i) for i in range(100)]), whole)
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(whole.read_bytes()[:-40])
    with pytest.raises(TraceError, match=r"broken\.parquet: cannot be read"):
        list(open_trace(broken))
    packed = gzip.compress(b"arrival_s,prompt_tokens,output_tokens\n" + b"1,2,3\n" * 10_000)
    (tmp_path / "cut.csv.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(TraceError, match=r"cut\.csv\.gz: cannot be read"):
        list(open_trace(tmp_path / "cut.csv.gz"))


def test_foreign_parquet(tmp_path: Path) -> None:
    import polars as pl

    path = tmp_path / "t.parquet"
    pl.DataFrame(
        {"arrival_s": [0, 1], "prompt_tokens": [5, 6], "output_tokens": [1, 2]}
    ).write_parquet(path)
    assert list(open_trace(path)) == [Request(0, 0.0, 5, 1), Request(1, 1.0, 6, 2)]
    pl.DataFrame({"arrival_s": [0.0], "prompt_tokens": [None], "output_tokens": [1]}).write_parquet(
        path
    )
    with pytest.raises(
        TraceError, match=r"t\.parquet:1: prompt_tokens is 'null'; expected a value"
    ):
        list(open_trace(path))
    pl.DataFrame({"arrival_s": [0.0], "prompt_tokens": ["x"], "output_tokens": [1]}).write_parquet(
        path
    )
    with pytest.raises(TraceError, match=r"t\.parquet: cannot be read"):
        list(open_trace(path))
    pl.DataFrame({"a": [0.0]}).write_parquet(path)
    with pytest.raises(TraceError, match="no column arrival_s; the columns are: a"):
        list(open_trace(path))
