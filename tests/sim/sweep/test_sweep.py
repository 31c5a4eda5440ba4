"""Cells are run once, by whomever, and one that fails is alone in it."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.scenario import Scenario
from sim.sweep import outcomes
from sim.sweep.cells import Cell, Keys
from sim.sweep.outcomes import Failure, Outcome
from sim.sweep.store import Store
from sim.sweep.sweep import Sweep, run_cells
from sim.uncertainty import Figures
from traces.errors import ConfigError

GIB = 1 << 30


def cells(*seeds: int) -> list[Cell]:
    return [Cell(Scenario(seed=seed)) for seed in seeds]


def seed_of(cell: Cell) -> Figures:
    return {"seed": cell.scenario.seed, "third": cell.scenario.seed / 3}


def troubled(cell: Cell) -> Figures:
    """Seed 2 is bad input, 3 a fault, 4 is killed, 5 hangs, 6 takes 4 GiB, 7 ends its process."""
    match cell.scenario.seed:
        case 2:
            raise ConfigError("seed: 2 is bad")
        case 3:
            return {"never": 1 / (cell.scenario.seed - 3)}
        case 4:
            os.kill(os.getpid(), signal.SIGKILL)
        case 5:
            time.sleep(600)
        case 6:
            return {"many": float(np.ones(GIB // 2).sum())}
        case 7:
            os._exit(3)
        case _:
            pass
    return seed_of(cell)


def errors(found: list[Outcome]) -> list[str]:
    return [one.error for one in found if isinstance(one, Failure)]


@pytest.mark.parametrize("jobs", [1, 2])
def test_outcomes_come_in_order_whoever_runs_them(jobs: int):
    told: list[tuple[int, int]] = []
    found = run_cells(cells(5, 1, 4), jobs, progress=lambda *done: told.append(done), work=seed_of)
    assert found == [seed_of(cell) for cell in cells(5, 1, 4)]
    assert told == [(0, 3), (1, 3), (2, 3), (3, 3)]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.integers(0, 9), max_size=12), max_size=4), st.booleans())
def test_equal_cells_are_run_once_and_kept_ones_not_at_all(
    tmp_path_factory: pytest.TempPathFactory, waves: list[list[int]], kept: bool
):
    store = Store(tmp_path_factory.mktemp("s")) if kept else None
    run: list[int] = []

    def counted(cell: Cell) -> Figures:
        run.append(cell.scenario.seed)
        return seed_of(cell)

    with Sweep(store=store, work=counted) as sweep:
        for wave in waves:
            assert sweep.run(cells(*wave)) == [seed_of(cell) for cell in cells(*wave)]
    asked = [seed for wave in waves for seed in wave]
    assert run == list(dict.fromkeys(asked))
    assert sweep.computed == len(run)
    if store is not None:
        assert run_cells(cells(*asked), store=Store(store.folder), work=counted) == [
            seed_of(cell) for cell in cells(*asked)
        ]
        assert len(run) == sweep.computed


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.one_of(st.integers(0, 9), st.sampled_from(["next", "drop", "run"])),
        max_size=40,
    )
)
def test_a_search_gets_each_cell_it_submits(steps: list[int | str]):
    """Against what a set would do: whatever is submitted comes once, unless it is dropped."""
    expected: set[int] = set()
    with Sweep(work=seed_of) as sweep:
        for step in steps:
            if isinstance(step, int):
                assert sweep.submit(*cells(step)) == Keys().of(*cells(step))
                expected.add(step)
            elif step == "next" and expected:
                cell, outcome = sweep.next()
                assert outcome == seed_of(cell)
                expected.remove(cell.scenario.seed)
            elif step == "drop":
                sweep.drop()  # all but what is done and was asked for again
                left: set[int] = set()
                for _ in range(sweep.pending):
                    left.add(sweep.next()[0].scenario.seed)
                assert left <= expected
                expected.clear()
            elif step == "run":
                assert sweep.run(cells(3, 1)) == [seed_of(cell) for cell in cells(3, 1)]
            assert sweep.pending == len(expected)
        with pytest.raises(LookupError):
            for _ in range(len(expected) + 1):
                sweep.next()


def test_workers_live_as_long_as_the_sweep_and_no_longer():
    with Sweep(jobs=2, work=process) as sweep:
        first = {figures["pid"] for figures in sweep.run(cells(*range(20))) if figures}
        for cell in cells(*range(20, 40)):
            sweep.submit(cell)
        then = {sweep.next()[1]["pid"] for _ in range(20)}
        assert len(first | then) <= 2 and os.getpid() not in first | then
        assert sweep.pending == 0 and sweep.computed == 40
    assert multiprocessing.active_children() == []


def process(cell: Cell) -> Figures:
    return {"pid": os.getpid()}


def test_what_a_drop_leaves_is_what_has_begun():
    with Sweep(jobs=2, work=seed_of) as sweep:
        for cell in cells(*range(50)):
            sweep.submit(cell)
        sweep.next()
        sweep.drop()
        assert sweep.pending <= 6
        while sweep.pending:
            sweep.next()
        assert sweep.run(cells(49)) == [seed_of(*cells(49))]


@pytest.mark.parametrize("jobs", [1, 2])
def test_what_an_interrupt_leaves_is_not_run_again(tmp_path: Path, jobs: int):
    def interrupt(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as interrupted:
        run_cells(cells(*range(5)), jobs, Store(tmp_path), interrupt, work=seed_of)
    assert multiprocessing.active_children() == [], interrupted  # which keeps every frame alive
    told: list[int] = []
    again = Store(tmp_path)
    kept = len(again)
    run_cells(cells(*range(5)), jobs, again, lambda done, _: told.append(done), work=seed_of)
    assert kept >= 2 and told == list(range(kept, 6))


def test_a_cell_that_fails_fails_alone(tmp_path: Path):
    with Sweep(
        jobs=2, store=Store(tmp_path), timeout_s=2.0, memory_bytes=GIB, work=troubled
    ) as sweep:
        found = sweep.run(cells(*range(1, 12)))
        assert sweep.computed == 11
        assert [one for one in found if not isinstance(one, Failure)] == [
            seed_of(cell) for cell in cells(1, 8, 9, 10, 11)
        ]
        bad, fault, killed, hung, large, ended = errors(found)
        assert bad == "seed: 2 is bad"
        assert fault.startswith("ZeroDivisionError: division by zero (") and "test_sweep" in fault
        assert killed == "its process ended (signal SIGKILL; it may take 1 GiB)"
        assert hung == "took longer than 2 s"
        assert large == "wanted more than the 1 GiB of memory that it may take"
        assert ended == "its process ended (exit code 3; it may take 1 GiB)"
        assert sweep.run(cells(3, 5)) == [found[2], found[4]]  # not tried again
        assert sweep.computed == 11
    assert len(Store(tmp_path)) == 5


def test_a_bound_that_nothing_can_live_with_fails_every_cell():
    found = run_cells(cells(1, 8), memory_bytes=1, work=large)
    assert len(errors(found)) == 2 and all("1 byte" in said for said in errors(found))


def large(cell: Cell) -> Figures:
    return {"n": len(bytearray(1 << 26))}


def test_a_failure_says_which_cell_it_befell():
    named = Cell(Scenario.model_validate({"seed": 2, "cluster": {"replicas": 3}}), 4)
    (found,) = run_cells([named], work=troubled)
    key = Keys().of(named)
    assert found == Failure("seed: 2 is bad", key, "seed=2, cluster.replicas=3, replication 4")
    assert str(found) == (
        f"seed: 2 is bad (cell {key[:12]}: seed=2, cluster.replicas=3, replication 4)"
    )


def test_without_processes_bad_input_and_faults_are_told_too():
    good, bad, fault = run_cells(cells(1, 2, 3), work=troubled)
    assert isinstance(bad, Failure) and isinstance(fault, Failure)
    assert good == seed_of(cells(1)[0])


def test_what_lies_ready_behind_a_cell_that_kills_is_run_by_another():
    order = [1, 8, 4, 9, 4, 10, 7, 11, 12, 13, 14, 15]
    with Sweep(jobs=1, timeout_s=60.0, work=troubled) as sweep:
        found = sweep.run(cells(*order))
    assert len(errors(found)) == 3
    assert [one for one in found if not isinstance(one, Failure)] == [
        seed_of(cell) for cell in cells(*order) if cell.scenario.seed not in (4, 7)
    ]


def test_figures_are_numbers_that_a_store_can_keep():
    for wrong in ({"x": float("nan")}, {"x": float("inf")}, {"x": object()}):
        assert isinstance(outcomes.attempt(lambda _, wrong=wrong: wrong, cells(0)[0]), Failure)  # type: ignore
    large = outcomes.attempt(lambda _: {"x": 2**53 + 1, "y": 2**53}, cells(0)[0])
    assert large == {"x": float(2**53 + 1), "y": 2**53}
    assert isinstance(large, dict) and isinstance(large["x"], float)
