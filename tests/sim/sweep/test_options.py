"""The options of commands that sweep mean what they say; what cannot be is one line."""

import json
import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from sim.sweep.memory import parse_size, size
from sim.sweep.options import sweep_arguments
from sim.sweep.store import Store
from traces.errors import ConfigError

Run = Callable[..., tuple[int, str, str]]

ROOT = Path(__file__).parents[3]
COMPARE = ("compare", "--vary", "cluster.replicas=1,2", "--replications", "1")
FEW = ("--op", "limit:count=20")


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("4GiB", 4 << 30),
        ("4 gib", 4 << 30),
        ("500MB", 500_000_000),
        ("1.5KiB", 1536),
        ("1000000", 1_000_000),
        ("2TB", 2 * 10**12),
    ],
)
def test_sizes(text: str, count: int):
    assert parse_size(text) == count


@pytest.mark.parametrize("text", ["", "GiB", "-1GiB", "4 apples", "0", "0GiB", "1e9", "4Gi B"])
def test_what_is_no_size(text: str):
    with pytest.raises(ConfigError, match="--cell-memory: expected a size such as 4GiB"):
        parse_size(text)


def test_sizes_in_words():
    assert [size(n) for n in (4 << 30, 3 << 29, 512 << 20, 1 << 10, 12)] == [
        "4 GiB",
        "1.5 GiB",
        "512 MiB",
        "1 KiB",
        "12 bytes",
    ]


def test_the_store_is_where_it_is_asked_for_else_beside_the_results(tmp_path: Path):
    asked = sweep_arguments(2, None, tmp_path / "s", 3.0, "1GiB", beside=tmp_path / "out")
    assert asked["store"] is not None and asked["store"].folder == tmp_path / "s"
    assert (asked["jobs"], asked["timeout_s"], asked["memory_bytes"]) == (2, 3.0, 1 << 30)
    beside = sweep_arguments(1, None, None, None, None, beside=tmp_path / "out")["store"]
    assert beside is not None and beside.folder == tmp_path / "out"
    assert sweep_arguments(1, None, None, None, None)["store"] is None


def test_results_of_others_in_the_store_are_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    store = Store(tmp_path)
    store.put("1", {"n": 1})
    store.flush()
    next(tmp_path.glob("0.*")).rename(tmp_path / "0.0.9-abc")
    sweep_arguments(1, None, tmp_path, None, None)
    out, err = capsys.readouterr()
    assert out == "" and re.fullmatch(r".*: 1 results of kvcast 0\.0\.9-abc are ignored.*\n", err)


def test_two_comparisons_share_the_cells_of_a_store(kvcast: Run):
    assert kvcast(*COMPARE, *FEW, "--store", "s", "--out", "a")[0] == 0
    assert len(Store("s")) == 2 and not Path("a/store").exists()
    assert kvcast(*COMPARE, *FEW, "--store", "s", "--out", "a")[0] == 0  # replaces its own
    more = ("compare", "--vary", "cluster.replicas=1,2,3", "--replications", "1")
    assert kvcast(*more, *FEW, "--store", "s", "--jobs", "2")[0] == 0
    assert len(Store("s")) == 3
    assert {json.loads(cell)["replication"] for cell in Store("s").frame()["cell"]} == {0}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--ray", "localhost"), "--ray localhost: expected auto, or HOST:PORT"),
        (("--ray", "127.0.0.1:1"), "--ray 127.0.0.1:1: cannot be reached: "),
        (("--cell-memory", "much"), "--cell-memory: expected a size such as 4GiB or 500MB, got"),
        (("--store", "f"), "f: is a file; expected the folder of a store"),
        (("--store", "d"), "d: holds x.txt, which is not of a store"),
        (("--store", "later"), "later: is a store of format 9; this kvcast reads format 1"),
    ],
)
def test_bad_input_is_one_line(kvcast: Run, options: tuple[str, ...], said: str):
    if "--ray" in options and find_spec("ray") is None:
        pytest.skip("the package ray is not installed")
    Path("f").write_text("")
    Path("d").mkdir()
    Path("d/x.txt").write_text("")
    Path("later").mkdir()
    Path("later/format.json").write_text('{"format": 9}')
    code, out, err = kvcast(*COMPARE, *FEW, *options)
    assert (code, out) == (2, "")
    assert said in err and err.count("\n") == 1


def test_a_cell_beyond_its_memory_is_reported_with_its_settings(kvcast: Run):
    Path("mine.py").write_text(
        "def greedy(seq):\n    return (len(bytearray(4 << 30)), seq.arrival_s)\n"
    )
    code, out, _ = kvcast(
        "compare", "--vary", "scheduler.order=fcfs,mine.py:greedy", "--replications", "1",
        *FEW, "--cell-memory", "1GiB", "--out", "a",
    )  # fmt: skip
    assert code == 1
    good, greedy = json.loads(Path("a/comparison.json").read_text())["cells"]
    assert good["error"] is None
    assert greedy["settings"] == {"scheduler.order": "mine.py:greedy"}
    assert "memory" in greedy["error"].lower() and "failed" in out


def test_the_python_of_the_documentation_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "sweeps.md").read_text("utf-8").replace("jobs=2", "jobs=1")
    lead_back, *examples = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict[str, object] = {}
    for example in [*examples, lead_back]:
        exec(example, names)
    assert re.fullmatch(r"1 \d+\.\d+\n2 \d+\.\d+\n", capsys.readouterr().out)
    assert json.loads(Path("again.yaml").read_text())["cluster"]["replicas"] in (1, 2)
