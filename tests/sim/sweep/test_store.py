"""A store gives back what it was given, whoever died, shared or damaged it meanwhile."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.scenario import Scenario, scenario_of
from sim.sweep import store as sut
from sim.sweep.cells import Cell, Keys, code_version
from sim.sweep.index import INDEX
from sim.sweep.journal import PREFIX as JOURNAL
from sim.sweep.parts import BROKEN
from sim.sweep.store import FORMAT_FILE, Store
from sim.uncertainty import Figures
from traces.errors import ConfigError

ROOT = Path(__file__).parents[3]

FIGURES: Figures = {"a": 1 / 3, "b": 7, "c": 1e-300, "d": -0.0, "e": 2**53, "f": 3.0, "é ü": 0}


def parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/part-*.parquet"))


def journals(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*/{JOURNAL}*"))


def put(folder: Path, *numbers: int) -> None:
    """As a process does that ends well: one part."""
    store = Store(folder)
    for number in numbers:
        store.put(str(number), {"n": number})
    store.flush()


def held(folder: Path) -> list[int]:
    """What the Parquet files have, by DuckDB alone, as a user asks them."""
    if not parts(folder):
        return []
    found = duckdb.sql(
        f"SELECT figures['n'] FROM read_parquet('{folder}/*/*.parquet') ORDER BY 1"
    ).fetchall()
    return [int(n) for (n,) in found]


def test_a_store_gives_back_what_it_was_given(tmp_path: Path):
    store = Store(tmp_path)
    assert store.get("k") is None
    assert list(tmp_path.iterdir()) == []  # to look leaves nothing
    store.put("k", FIGURES)
    assert repr(store.get("k")) == repr(FIGURES)  # in order, whole numbers whole
    store.flush()
    for again in (store, Store(tmp_path)):
        assert repr(again.get("k")) == repr(FIGURES)
        assert again.get("l") is None
        assert again.of_others() == ""
    assert len(parts(tmp_path)) == 1 and not journals(tmp_path)


@settings(max_examples=25, deadline=None)
@given(
    st.dictionaries(
        st.text(min_size=1),
        st.one_of(st.floats(allow_nan=False, allow_infinity=False), st.integers(-(2**53), 2**53)),
    )
)
def test_any_figures_come_back_to_the_last_bit(
    tmp_path_factory: pytest.TempPathFactory, figures: Figures
):
    folder = tmp_path_factory.mktemp("s")
    store = Store(folder)
    store.put("k", figures)
    store.flush()
    assert repr(Store(folder).get("k")) == repr(figures)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("put"), st.integers(0, 2), st.integers(0, 30)),
            st.tuples(
                st.sampled_from(["flush", "kill", "torn", "no index", "bad index"]),
                st.integers(0, 2),
                st.just(0),
            ),
        ),
        max_size=40,
    )
)
def test_whatever_happens_each_result_is_there_once(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, int]]
):
    """Three processes put, flush, die and are begun again; the index goes or is spoilt."""
    folder = tmp_path_factory.mktemp("s")
    stores = [Store(folder) for _ in range(3)]
    expected: set[int] = set()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sut, "SMALL_PARTS", 3)
        patch.setattr(sut, "PART_CELLS", 8)
        for what, which, number in steps:
            store = stores[which]
            if what == "put":
                store.put(str(number), {"n": number})
                expected.add(number)
                assert store.get(str(number)) == {"n": number}
            elif what == "flush":
                store.flush()
            elif what in ("kill", "torn"):
                if what == "torn":
                    tear(store)
                die(store)
                stores[which] = Store(folder)
            elif what == "no index":
                (folder / INDEX).unlink(missing_ok=True)
            elif (folder / INDEX).exists():
                (folder / INDEX).write_bytes(b"what is this")
        for store in stores:
            die(store)
        last = Store(folder)
        assert held(folder) == sorted(expected)
        assert {n for n in range(31) if last.get(str(n)) == {"n": n}} == expected
        assert len(last) == len(expected) == len(last.frame())
        assert not journals(folder)


def die(store: Store) -> None:
    """What is left of a process that is killed: its files, without its locks."""
    if store._journal is not None:
        os.close(store._journal._file)
        store._journal = None
    store._recent.clear()


def tear(store: Store) -> None:
    """A last line that the end of its writer cut off."""
    if store._journal is not None:
        os.write(store._journal._file, b'["half", "{}", {"n": 1')


WRITER = """
import sys
from sim.sweep import store as sut
sut.FLUSH_CELLS, sut.SMALL_PARTS, sut.PART_CELLS = 5, 2, 40
store = sut.Store(sys.argv[1])
for number in range(int(sys.argv[2]), 10**6):
    store.put(str(number), {"n": number})
    print(number, flush=True)
"""


def test_a_killed_process_loses_nothing_it_has_reported(tmp_path: Path):
    """Five times, wherever it is: it flushes every five results and merges every third time."""
    reported = -1
    for kill in range(5):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), str(reported + 1)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        ) as writer:
            assert writer.stdout is not None
            first = reported + 1
            for line in writer.stdout:
                reported = int(line)
                if reported == first + 7 * kill:
                    os.kill(writer.pid, signal.SIGKILL)
        store = Store(tmp_path)
        assert [n for n in range(reported + 1) if store.get(str(n)) != {"n": n}] == []
        assert held(tmp_path)[: reported + 1] == list(range(reported + 1))


@pytest.mark.parametrize("indexed", [True, False])
def test_who_dies_between_two_files_leaves_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, indexed: bool
):
    monkeypatch.setattr(sut, "SMALL_PARTS", 2)
    put(tmp_path, 1)
    put(tmp_path, 2)
    early = Store(tmp_path)
    old = {path: path.read_bytes() for path in parts(tmp_path)}
    store = Store(tmp_path)
    store.put("3", {"n": 3})
    (journaled,) = journals(tmp_path)
    old[journaled] = journaled.read_bytes()
    old[tmp_path / INDEX] = (tmp_path / INDEX).read_bytes()
    store.flush()  # merges the three
    assert len(parts(tmp_path)) == 1
    for path, content in old.items():  # it was killed before it removed these
        path.write_bytes(content)
    if not indexed:
        (tmp_path / INDEX).unlink()
    assert sorted(early.frame()["n"]) == [1, 2, 3]
    assert sorted(Store(tmp_path).frame()["n"]) == held(tmp_path) == [1, 2, 3]
    assert len(parts(tmp_path)) == 1 and not journals(tmp_path)


def test_changes_of_one_moment_are_not_missed(tmp_path: Path):
    """File systems give what happens within some milliseconds the same time."""
    put(tmp_path, 1)
    folder = parts(tmp_path)[0].parent
    moment_ns = time.time_ns()
    os.utime(folder, ns=(moment_ns, moment_ns))
    early = Store(tmp_path)
    put(tmp_path, 2)
    os.utime(folder, ns=(moment_ns, moment_ns))
    assert early.get("2") == {"n": 2}


SHARER = """
import sys
from sim.sweep import store as sut
sut.FLUSH_CELLS, sut.SMALL_PARTS = 7, 3
store = sut.Store(sys.argv[1])
for number in range(int(sys.argv[2]), 120, int(sys.argv[3])):
    store.put(str(number), {"n": number})
store.flush()
"""


def test_processes_share_a_store(tmp_path: Path):
    """Cells that two compute at once are kept once; small parts are merged under their feet."""
    begun = [
        subprocess.Popen([sys.executable, "-c", SHARER, str(tmp_path), *share], cwd=ROOT)
        for share in (("0", "2"), ("1", "2"), ("0", "3"))
    ]
    mine = Store(tmp_path)
    while any(one.poll() is None for one in begun):
        for number in range(120):
            assert mine.get(str(number)) in (None, {"n": number})
        time.sleep(0.05)
    assert [one.returncode for one in begun] == [0, 0, 0]
    assert held(tmp_path) == list(range(120))
    assert all(mine.get(str(number)) == {"n": number} for number in range(120))
    assert mine.of_others() == ""  # a part that has gone is not a broken one


def test_another_process_sees_what_is_in_a_part(tmp_path: Path):
    early = Store(tmp_path)
    put(tmp_path, 1)
    assert early.get("1") == {"n": 1}
    put(tmp_path, 2)
    assert early.get("2") == {"n": 2}


def test_many_small_parts_become_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sut, "SMALL_PARTS", 4)
    monkeypatch.setattr(sut, "PART_CELLS", 9)
    early = Store(tmp_path)
    for number in range(30):
        put(tmp_path, number)
        early.get(str(number))
        assert len(parts(tmp_path)) <= 4 + (number + 1) // 5
    assert held(tmp_path) == list(range(30))
    assert all(early.get(str(number)) == {"n": number} for number in range(30))
    assert early.of_others() == ""


# ---- the index


@pytest.mark.parametrize("spoil", ["gone", "garbage", "other format", "in use", "cut", "rotten"])
def test_the_index_is_only_an_index(tmp_path: Path, spoil: str):
    put(tmp_path, 1, 2)
    put(tmp_path, 3)
    index = tmp_path / INDEX
    user = None
    of_user = index.stat().st_ino
    match spoil:
        case "gone":
            index.unlink()
        case "garbage":
            index.write_bytes(b"\0" * 5000)
        case "other format":
            with duckdb.connect(str(index)) as connection:
                connection.execute("DROP TABLE cells; UPDATE format SET number = 99")
        case "in use":  # by a user who looks at it; DuckDB lets in one process
            code = f"import duckdb, sys; c = duckdb.connect({str(index)!r}); print(1, flush=True)"
            user = subprocess.Popen(
                [sys.executable, "-c", f"{code}; sys.stdin.read()"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            assert user.stdout is not None and user.stdout.readline()
        case "rotten":  # its header is all right
            content = index.read_bytes()
            index.write_bytes(content[:12288] + b"\xa5" * (len(content) - 12288))
        case _:
            with duckdb.connect(str(index)) as connection:
                connection.execute("DELETE FROM cells WHERE key = '2'")
    try:
        store = Store(tmp_path)
        assert len(store) == 3
        store.put("4", {"n": 4})
        store.flush()
        assert held(tmp_path) == [1, 2, 3, 4]
        assert user is None or index.stat().st_ino == of_user  # left to who has it open
    finally:
        if user is not None:
            user.communicate("")
    for _ in range(2):  # one finds out, the other makes it anew
        Store(tmp_path)
    with duckdb.connect(str(index)) as connection:
        found = connection.execute("SELECT key FROM cells ORDER BY key").fetchall()
    assert found == [("1",), ("2",), ("3",), ("4",)]


# ---- what is not its own


def test_results_of_another_version_are_ignored_and_said(tmp_path: Path):
    put(tmp_path, 1, 2)
    (tmp_path / code_version()).rename(tmp_path / "0.0.9-abc")
    for name in "xyz":
        (tmp_path / "0.0.8").mkdir(exist_ok=True)
        (tmp_path / "0.0.8" / f"{name}.json").write_text("{}")  # a file a cell: kvcast 0.1.0
    for _ in range(2):
        store = Store(tmp_path)
        assert store.get("1") is None and len(store) == 0
        assert store.of_others() == (
            f"{tmp_path}: 5 results of kvcast 0.0.8, 0.0.9-abc are ignored; this is"
            f" {code_version()}"
        )


@pytest.mark.parametrize("said", ['{"format": 2}', "{}", "[]", "", '{"format": "x"}'])
def test_a_store_of_another_format_is_refused(tmp_path: Path, said: str):
    put(tmp_path, 1)
    (tmp_path / FORMAT_FILE).write_text(said)
    with pytest.raises(ConfigError, match=r"is a store of format .*; this kvcast reads format 1$"):
        Store(tmp_path)


def test_a_folder_that_is_no_store_is_refused(tmp_path: Path):
    (tmp_path / "letter.txt").write_text("Dear")
    with pytest.raises(ConfigError, match=r"holds letter\.txt, which is not of a store"):
        Store(tmp_path)
    with pytest.raises(ConfigError, match="is a file"):
        Store(tmp_path / "letter.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


@pytest.mark.parametrize("size", [0, 3, 100, -1])
def test_a_broken_part_is_set_aside_and_its_cells_are_run_again(tmp_path: Path, size: int):
    put(tmp_path, 1, 2)
    put(tmp_path, 3)
    known = Store(tmp_path)
    broken = next(path for path in parts(tmp_path) if len(pl.read_parquet(path)) == 2)
    content = bytearray(broken.read_bytes())
    if size < 0:  # what the footer says is all right
        content[4 : len(content) // 2] = bytes(len(content) // 2 - 4)
    broken.write_bytes(content if size < 0 else content[:size])
    for store in (known, Store(tmp_path)):
        assert store.get("1") is None
        assert store.get("3") == {"n": 3}
        assert broken.name in store.of_others() or store is not known
    assert broken.with_name(broken.name + BROKEN).exists()
    put(tmp_path, 1)
    assert held(tmp_path) == [1, 3]


def test_a_store_that_cannot_be_written_says_so(tmp_path: Path):
    put(tmp_path, 1)
    store = Store(tmp_path)
    for path in parts(tmp_path):
        path.unlink()
    (tmp_path / code_version()).rmdir()
    (tmp_path / code_version()).write_text("in the way")
    with pytest.raises(ConfigError, match="cannot be written"):
        store.put("k", {"a": 1.0})


def test_a_lock_that_nobody_gives_back_is_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    put(tmp_path, 1)
    monkeypatch.setattr(sut, "PATIENCE_S", 0.05)
    with (
        Store(tmp_path)._locked(),
        pytest.raises(ConfigError, match=r"another process has held its lock for 0\.05 s"),
    ):
        Store(tmp_path)


# ---- what it is for


def test_a_result_leads_back_to_its_cell(tmp_path: Path):
    store = Store(tmp_path)
    keys = Keys()
    cells = [Cell(scenario_of({"seed": seed, "cluster": {"replicas": 2}})) for seed in range(3)]
    cells.append(Cell(Scenario(seed=9), 4))
    for cell in cells:
        figures: dict[str, Any] = {"latency.ttft_s.p99": cell.scenario.seed / 7, "steps": 3}
        if cell.replication:
            figures["more"] = 1.5
        store.put(keys.of(cell), figures, keys.content(cell))
    frame = store.frame()
    assert frame["key"].to_list() == sorted(keys.of(cell) for cell in cells)
    cells.sort(key=keys.of)
    frame_of_9 = frame.filter(pl.col("more").is_not_null())
    assert frame["replication"].to_list() == [cell.replication for cell in cells]
    assert frame["latency.ttft_s.p99"].to_list() == [cell.scenario.seed / 7 for cell in cells]
    assert frame["steps"].to_list() == [3] * 4 and frame["steps"].dtype == pl.Int64
    assert frame_of_9["replication"].to_list() == [4] and frame_of_9["more"].to_list() == [1.5]
    for cell, row in zip(cells, frame.iter_rows(named=True), strict=True):
        assert scenario_of(json.loads(row["cell"])["scenario"]) == cell.scenario
    assert len(Store(tmp_path / "none").frame()) == 0


def test_the_query_of_the_documentation_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    store = Store("store")
    for replicas in (1, 2):
        cell = Cell(scenario_of({"cluster": {"replicas": replicas}}))
        figures = {"latency.ttft_s.p99": 2.0 / replicas, "gpu_hours": 1.0 * replicas}
        store.put(Keys().of(cell), figures, Keys().content(cell))
    store.flush()
    text = (ROOT / "docs" / "sweeps.md").read_text("utf-8")
    query = text.partition("```sql\n")[2].partition("```")[0]
    assert duckdb.sql(query).fetchall() == [(1, 2.0, 1.0), (2, 1.0, 2.0)]
