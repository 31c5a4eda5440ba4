"""What a sweep costs over the simulations themselves: `python -m benchmarks.sweep`.

Overhead: wall time a cell takes in a sweep, store and all, less the time that the same simulations
take in a loop; and the CPU time of the process that leads a sweep of two others, a cell. Efficiency
of two processes: time of the loop, over twice the time of the sweep from when both are there (what
starting them takes is given apart); and against two bare loops side by side, each with half of the
cells: on a machine that others use too, two processes get less than twice what one gets, and only
this one says what the sweep itself loses. Loops and sweeps are repeated in turn, medians taken.

Also: keys and the store's own operations, and, where Ray is installed, a cluster of this machine.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.replay import PROJECT, machine, show
from sim.sweep.cells import Cell, Keys, Simulator
from sim.sweep.store import Store
from sim.sweep.sweep import Sweep

CELLS = 100


def cells(requests: int, count: int = CELLS, seed: int = 0) -> list[Cell]:
    """Simulations of the first requests of the sample chat load, each with a memory of its own."""
    from sim.scenario import scenario_of

    base = {"trace": {"path": "sample:chat", "operations": [{"limit": {"count": requests}}]}}
    return [
        Cell(scenario_of(base | {"seed": seed, "memory": {"num_blocks": 3000 + number}}))
        for number in range(count)
    ]


def loop(asked: Sequence[Cell]) -> float:
    """Seconds that the bare simulations take."""
    simulate = Simulator()
    begin = time.perf_counter()
    for cell in asked:
        simulate(cell)
    return time.perf_counter() - begin


def sweep(asked: Sequence[Cell], warm: Sequence[Cell], **how: Any) -> tuple[float, float]:
    """Seconds that a sweep takes whose workers are there, and those until they are."""
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        with Sweep(store=Store(Path(folder) / "store"), **how) as running:
            running.run(warm)
            ready = time.perf_counter()
            running.run(asked)
            done = time.perf_counter() - ready
            begun = ready - begin
            ready = time.perf_counter()
        return done + time.perf_counter() - ready, begun  # with the end, which writes the store


def side_by_side(asked: Sequence[Cell]) -> float:
    """Seconds that two bare loops take which share the cells, from when both are there."""
    context = get_context("spawn")
    there = context.Barrier(2)
    took = context.Queue()
    halves = [context.Process(target=half, args=(asked[start::2], there, took)) for start in (0, 1)]
    for one in halves:
        one.start()
    seconds = max(took.get() for _ in halves)
    for one in halves:
        one.join()
    return seconds


def half(asked: Sequence[Cell], there: Any, took: Any) -> None:
    """One of them."""
    loop(asked[:4])
    there.wait()
    took.put(loop(asked))


def costs(requests: int, repeats: int) -> dict[str, Any]:
    """A loop, and sweeps of the same cells, in turn."""
    asked = cells(requests)
    warm = cells(requests, 8, seed=1)
    bare: list[float] = []
    halves: list[float] = []
    here: list[float] = []
    apart: list[float] = []
    two: list[float] = []
    starts: list[float] = []
    leading: list[float] = []
    for _ in range(repeats):
        bare.append(loop(asked))
        here.append(sweep(asked, warm)[0])
        apart.append(sweep(asked, warm, timeout_s=600.0)[0])
        cpu = time.process_time()
        took, start = sweep(asked, warm, jobs=2)
        leading.append((time.process_time() - cpu) / (len(asked) + len(warm)))
        two.append(took)
        starts.append(start)
        halves.append(side_by_side(asked))
    found = {
        "bare_ms_per_cell": round(statistics.median(bare) / len(asked) * 1e3, 2),
        "overhead_ms_per_cell_in_process": overhead(here, bare, len(asked)),
        "overhead_ms_per_cell_own_process": overhead(apart, bare, len(asked)),
        "leading_cpu_ms_per_cell": round(statistics.median(leading) * 1e3, 3),
        "efficiency_2_processes": ratio([one / 2 for one in bare], two),
        "efficiency_against_2_loops": ratio(halves, two),
        "start_of_2_processes_s": round(statistics.median(starts), 2),
    }
    show(f"{len(asked)} cells of {requests:,} requests", found)
    return found


def overhead(swept: Sequence[float], bare: Sequence[float], count: int) -> float:
    """Milliseconds a cell, the median of neighbours on the clock."""
    found = statistics.median(a - b for a, b in zip(swept, bare, strict=True))
    return round(found / count * 1e3, 3)


def ratio(ideal: Sequence[float], swept: Sequence[float]) -> float:
    """The median of neighbours on the clock."""
    return round(statistics.median(a / b for a, b in zip(ideal, swept, strict=True)), 3)


def parts_of_it() -> dict[str, Any]:
    """Microseconds a cell of what a sweep does beside simulating."""
    many = cells(10, 5000)
    figures = Simulator()(many[0])
    keys = Keys()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "store"
        contents: list[str] = []
        found: dict[str, Any] = {"cells": len(many), "figures_per_cell": len(figures)}
        named = [(keys.of(cell), keys.content(cell)) for cell in many[:1]]
        store = Store(folder)

        def name_them() -> None:
            contents.extend(keys.content(cell) for cell in many)

        def put_them() -> None:
            nonlocal named
            named = [(keys.of(cell), text) for cell, text in zip(many, contents, strict=True)]
            for key, text in named:
                store.put(key, figures, text)
            store.flush()

        def open_it() -> None:
            nonlocal store
            store = Store(folder)

        def get_them() -> None:
            for key, _ in named:
                assert store.get(key) is not None

        for what, do in (
            ("key", name_them),
            ("key_and_put", put_them),
            ("open", open_it),
            ("get", get_them),
        ):
            found[f"{what}_us_per_cell"] = round(timed(do) / len(many) * 1e6, 1)
        found["bytes_per_cell"] = round(
            sum(path.stat().st_size for path in folder.glob("*/*.parquet")) / len(many)
        )
        (folder / "index.duckdb").unlink()
        found["open_without_index_us_per_cell"] = round(timed(open_it) / len(many) * 1e6, 1)
    show("parts of it", found)
    return found


def timed(do: Callable[[], None]) -> float:
    """Seconds that something takes."""
    begin = time.perf_counter()
    do()
    return time.perf_counter() - begin


def on_ray(requests: int, repeats: int) -> dict[str, Any]:
    """A cluster of two nodes with a CPU each, on this machine, against the bare loop."""
    asked = cells(requests)
    warm = cells(requests, 8, seed=1)
    cluster = subprocess.Popen(
        [sys.executable, "-m", "tests.sim.sweep.ray_cluster", "2"],
        cwd=PROJECT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert cluster.stdout is not None
    try:
        address = next(line for line in cluster.stdout if line.startswith("address "))
        bare: list[float] = []
        halves: list[float] = []
        swept: list[float] = []
        starts: list[float] = []
        for _ in range(repeats):
            bare.append(loop(asked))
            took, start = sweep(asked, warm, ray=address.split()[1])
            swept.append(took)
            starts.append(start)
            halves.append(side_by_side(asked))
    finally:
        cluster.communicate()
    found = {
        "bare_ms_per_cell": round(statistics.median(bare) / len(asked) * 1e3, 2),
        "efficiency_2_nodes_of_1_cpu": ratio([one / 2 for one in bare], swept),
        "efficiency_against_2_loops": ratio(halves, swept),
        "join_and_start_s": round(statistics.median(starts), 2),
    }
    show(f"{len(asked)} cells of {requests:,} requests on Ray", found)
    return found


def main() -> None:
    """Measure everything and write one JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="JSON file; default benchmarks/results/DATE.json")
    options = parser.parse_args()
    results: dict[str, Any] = {
        "machine": machine(),
        "command": f"python -m benchmarks.sweep {' '.join(sys.argv[1:])}".strip(),
    }
    for requests in (100, 500):
        results[f"{CELLS} cells of {requests} requests"] = costs(requests, options.repeats)
    results["parts"] = parts_of_it()
    if find_spec("ray") is not None:
        results["ray"] = on_ray(100, options.repeats)
    date = results["machine"]["date"][:10]
    out = options.out or PROJECT / "benchmarks/results" / f"sweep-{date}.json"
    out.write_text(json.dumps(results, indent=1) + "\n")
    print(out)


if __name__ == "__main__":
    main()
