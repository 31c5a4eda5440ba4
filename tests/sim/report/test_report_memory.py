"""Drawing a run takes memory for blocks of its rows, not for all of them."""

import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.report.figures import figures
from sim.report.rows import blocks, height, sums
from sim.report.timeline import write_timeline

MEGABYTE = 1_000_000
REQUESTS, SEGMENTS = "requests.parquet", "segments.parquet"
TIMES = ("arrival_s", "scheduled_s", "first_token_s", "finish_s", "start_s", "end_s")
DRAW = """
import sys
from dataclasses import replace
from pathlib import Path
import polars as pl
from sim.report.html import write_report
from sim.report.timeline import write_timeline
from tests.sim.report.conftest import toy_result

def peak_kb():
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))

folder, out = map(Path, sys.argv[1:])
small = toy_result(2_000, replicas=16)
write_report(small, out / "small.html")
before = peak_kb()
rows = {name: pl.scan_parquet(folder / f"{name}.parquet") for name in ("requests", "segments")}
large = replace(small, **rows)
write_report(large, out / "report.html")
write_timeline(large, out / "timeline.json.gz", most_segments=1_000)
print(peak_kb() - before)
"""


@pytest.fixture(scope="module")
def folder(make_result, tmp_path_factory) -> Path:
    """A run of 200,000 requests and as many segments for each as a large fleet has."""
    folder = tmp_path_factory.mktemp("large")
    result = make_result(10_000, replicas=16)
    end_s = result.segments["end_s"].max()
    for rows, name, times in ((result.requests, REQUESTS, 20), (result.segments, SEGMENTS, 80)):
        later = (
            rows.lazy().with_columns(
                pl.col(column) + i * end_s * 20 / times for column in TIMES if column in rows
            )
            for i in range(times)
        )
        pl.concat(list(later)).sink_parquet(folder / name, row_group_size=16_384)
    return folder


def drawn(folder: Path, out: Path, threads: int) -> int:
    """Draw in a process of its own; bytes its memory grew by at most."""
    out.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", DRAW, folder, out],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"POLARS_MAX_THREADS": str(threads)},
    )
    return 1024 * int(done.stdout)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_memory_is_bounded_and_threads_change_nothing(folder, tmp_path):
    grown = [drawn(folder, tmp_path / str(threads), threads) for threads in (1, 4)]
    held = sum(pl.read_parquet(folder / name).estimated_size() for name in (REQUESTS, SEGMENTS))
    assert held > 190 * MEGABYTE
    assert max(grown) < 250 * MEGABYTE  # of 130 to 180; loaded and cut into bins at once, 750
    for name in ("report.html", "timeline.json.gz"):
        one, four = ((tmp_path / threads / name).read_bytes() for threads in "14")
        assert one == four


def test_the_size_of_blocks_changes_nothing_but_last_bits(result, tmp_path, monkeypatch):
    drawn: list[list[float]] = []
    for size in (100, 1_000_000):
        monkeypatch.setattr("sim.report.rows.BLOCK_ROWS", size)
        write_timeline(result, tmp_path / f"{size}", most_requests=150, most_segments=250)
        traces = [trace for picture in figures(result).values() for trace in picture.data]
        drawn.append([height for trace in traces for height in sorted(trace.y)])
    assert drawn[0] == pytest.approx(drawn[1], rel=1e-12, abs=1e-12)
    assert (tmp_path / "100").read_bytes() == (tmp_path / "1000000").read_bytes()


def test_no_picture_collects_more_segments_than_a_block(result, monkeypatch):
    monkeypatch.setattr("sim.report.rows.BLOCK_ROWS", 500)
    collected: list[pl.DataFrame] = []
    collect = pl.LazyFrame.collect

    def collecting(rows: pl.LazyFrame) -> pl.DataFrame:
        collected.append(collect(rows))
        return collected[-1]

    monkeypatch.setattr(pl.LazyFrame, "collect", collecting)
    assert result.segments.height > 2_000
    assert figures(result.without("requests"))
    assert max(frame.height for frame in collected) == 500
    collected.clear()
    assert figures(result.without("segments"))
    assert max(frame.width for frame in collected if frame.height > 500) == 4


@given(st.integers(0, 30), st.integers(1, 12))
def test_blocks_are_all_rows_in_order(total, size):
    rows = pl.LazyFrame({"a": range(total), "b": [i % 3 for i in range(total)]})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sim.report.rows.BLOCK_ROWS", size)
        read = list(blocks(rows, "b", twice=2 * pl.col("a")))
    assert height(rows) == total
    assert [block.height for block in read[:-1]] == [size] * (len(read) - 1)
    joined = pl.concat(read)
    assert joined.columns == ["b", "twice"]
    assert joined["twice"].to_list() == [2 * i for i in range(total)]
    added = sums(read, "b")
    assert dict(added.iter_rows()) == {
        i: sum(2 * j for j in range(i, total, 3)) for i in range(min(3, total))
    }
