"""A sweep on Ray, as a process that can be killed: says how many cells are done."""

import json
import sys
from pathlib import Path

from sim.scenario import scenario_of
from sim.sweep.cells import Cell
from sim.sweep.store import Store
from sim.sweep.sweep import Sweep

CELLS = 1000


def cells(trace: str) -> list[Cell]:
    """Tiny simulations, all unlike: memory and the router's luck differ."""
    base = {
        "trace": {"path": trace},
        "cluster": {"replicas": 3, "router": "random"},
    }
    return [
        Cell(scenario_of(base | {"seed": seed, "memory": {"num_blocks": 100 + seed % 7}}))
        for seed in range(CELLS)
    ]


def main(address: str, store: str, trace: str) -> None:
    with Sweep(ray=address, store=Store(Path(store))) as sweep:
        found = sweep.run(cells(trace), lambda done, total: print(done, flush=True))
    print(json.dumps([sweep.computed, found]), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
