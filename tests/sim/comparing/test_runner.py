"""Cells are run once, by whomever, and one that fails is alone in it."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from sim.comparing.cells import Cell, Keys, code_version
from sim.comparing.runner import Failure, run_cells
from sim.comparing.store import FolderStore
from sim.comparing.traffic import Traffic
from sim.scenario import Scenario, scenario_of
from sim.uncertainty import Figures
from traces.errors import ConfigError


class Memory(dict[str, Figures]):
    """A store that counts."""

    puts = 0

    def put(self, key: str, figures: Figures) -> None:
        self.puts += 1
        self[key] = figures


def cells(*seeds: int) -> list[Cell]:
    return [Cell(Scenario(seed=seed)) for seed in seeds]


def seed_of(cell: Cell) -> Figures:
    return {"seed": cell.scenario.seed, "third": cell.scenario.seed / 3}


def troubled(cell: Cell) -> Figures:
    """Seed 2 is bad input, 3 a fault, 4 is killed, 5 hangs."""
    if cell.scenario.seed == 2:
        raise ConfigError("seed: 2 is bad")
    if cell.scenario.seed == 3:
        return {"never": 1 / (cell.scenario.seed - 3)}
    if cell.scenario.seed == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    if cell.scenario.seed == 5:
        time.sleep(600)
    return seed_of(cell)


@pytest.mark.parametrize("jobs", [1, 2])
def test_outcomes_come_in_order_whoever_runs_them(jobs: int):
    told: list[tuple[int, int]] = []
    found = run_cells(cells(5, 1, 4), jobs, progress=lambda *done: told.append(done), work=seed_of)
    assert found == [seed_of(cell) for cell in cells(5, 1, 4)]
    assert told == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_equal_cells_are_run_once_and_kept_ones_not_at_all():
    store = Memory()
    first = run_cells(cells(1, 2, 1), store=store, work=seed_of)
    assert store.puts == 2
    assert run_cells(cells(2, 1, 3), store=store, work=seed_of)[:2] == first[1::-1]
    assert store.puts == 3


@pytest.mark.parametrize("jobs", [1, 2])
def test_what_an_interrupt_leaves_is_not_run_again(tmp_path: Path, jobs: int):
    store = FolderStore(tmp_path)

    def interrupt(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as interrupted:
        run_cells(cells(*range(5)), jobs, store, interrupt, work=seed_of)
    assert multiprocessing.active_children() == [], interrupted  # which keeps every frame alive
    told: list[int] = []
    run_cells(cells(*range(5)), jobs, store, lambda done, _: told.append(done), work=seed_of)
    assert told == [2, 3, 4, 5]


def test_a_cell_that_fails_fails_alone():
    outcomes = run_cells(
        cells(1, 2, 3, 4, 5, 6, 7), 2, store := Memory(), timeout_s=1.0, work=troubled
    )
    assert [one for one in outcomes if not isinstance(one, Failure)] == [
        seed_of(cell) for cell in cells(1, 6, 7)
    ]
    said = [one.error for one in outcomes if isinstance(one, Failure)]
    assert said[0] == "seed: 2 is bad"
    assert said[1].startswith("ZeroDivisionError: division by zero (") and "test_runner" in said[1]
    assert said[2] == "its process ended (signal SIGKILL)"
    assert said[3] == "took longer than 1 s"
    assert store.puts == 3


def test_without_processes_bad_input_and_faults_are_told_too():
    good, bad, fault = run_cells(cells(1, 2, 3), work=troubled)
    assert isinstance(bad, Failure) and isinstance(fault, Failure)
    assert good == seed_of(cells(1)[0])


# ---- keys and the store


def test_a_key_is_all_that_can_change_a_figure(tmp_path: Path):
    trace = tmp_path / "t.csv"
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n0,5,5\n")
    policy = tmp_path / "mine.py"
    policy.write_text("x = 1\n")
    base = {"trace": {"path": str(trace)}}
    key = Keys().of(Cell(scenario_of(base)))
    assert Keys().of(Cell(scenario_of(base | {"name": "other"}))) == key
    others = {
        Keys().of(Cell(scenario_of(base), 1)),
        Keys().of(Cell(scenario_of(base), 1, Traffic("blocks"))),
        Keys().of(Cell(scenario_of(base), 1, Traffic("blocks", 7))),
        Keys().of(Cell(scenario_of(base | {"seed": 1}))),
        Keys().of(Cell(scenario_of(base | {"cluster": {"replicas": 2}}))),
    }
    assert len(others) == 5 and key not in others
    assert Keys().of(Cell(scenario_of(base), 0, Traffic("blocks"))) == key  # it draws nothing
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n0,5,6\n")
    assert Keys().of(Cell(scenario_of(base))) not in {key, *others}


def test_a_policys_file_is_part_of_the_key(tmp_path: Path):
    path = tmp_path / "mine.yaml"
    path.write_text("a: 1\n")
    named = Cell(Scenario(profile=f"{path}:attribute:weight=2"))
    key = Keys().of(named)
    path.write_text("a: 2\n")
    assert Keys().of(named) != key


def test_a_store_gives_back_what_it_was_given(tmp_path: Path):
    figures = {"a": 1 / 3, "b": 7, "c": 1e-300}
    store = FolderStore(tmp_path)
    assert store.get("k") is None
    store.put("k", figures)
    assert store.get("k") == figures
    assert store.of_others() == ""
    assert [path.name for path in tmp_path.rglob("*.json")] == ["k.json"]


def test_results_of_another_version_are_ignored_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    FolderStore(tmp_path).put("k", {"a": 1.0})
    (tmp_path / code_version()).rename(tmp_path / "0.0.9-abc")
    store = FolderStore(tmp_path)
    assert store.get("k") is None
    assert store.of_others() == (
        f"{tmp_path}: 1 results of kvcast 0.0.9-abc are ignored; this is {code_version()}"
    )


@pytest.mark.parametrize("text", ["", "{", "[]", '{"key": "other", "figures": {}}'])
def test_a_broken_file_of_a_store_is_no_result(tmp_path: Path, text: str):
    store = FolderStore(tmp_path)
    store.put("k", {"a": 1.0})
    (file,) = tmp_path.rglob("*.json")
    file.write_text(text)
    assert store.get("k") is None


def test_a_store_that_cannot_be_written_says_so(tmp_path: Path):
    (tmp_path / code_version()).write_text("in the way")
    with pytest.raises(ConfigError, match="cannot be written"):
        FolderStore(tmp_path).put("k", {"a": 1.0})
