"""How long a plan takes: `python -m benchmarks.plan`.

A space of 5,040 candidates, Llama-3.1-70B on five GPUs, and the Azure hour: search, confidence,
fronts, sensitivities, head-room and growth, all as they are by default, with a store in a temporary
folder. Wall time, CPU time of all processes together (other work on the machine makes only the
former longer), and replays, by what they were for.

Also: how many of brute force's replays the search needs on 20 random small spaces, those of
tests/sim/planning/test_plan_brute_force.py, whose winners are brute force's.

Needs the public traces in the folder KVCAST_SHARED (default ../shared); see docs/log.md.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.replay import AZURE, PROJECT, SHARED, machine, show

LIMIT_S = 300.0
"""What a plan of this size may take on two cores."""

PLAN: dict[str, Any] = {
    "name": "5,040 candidates",
    "scenario": {"trace": {"path": str(AZURE)}},
    "space": {
        "gpu": ["a100-80", "h100", "h200", "b200", "l40s"],
        "model": "llama-3.1-70b",
        "tp": [2, 4, 8],
        "weight_dtype": ["bf16", "fp8"],
        "kv_dtype": ["bf16", "fp8"],
        "scheduler.max_num_batched_tokens": [2048, 8192],
        "cluster.router": ["round-robin", "least-requests"],
        "replicas": {"from": 1, "to": 21},
    },
    "objectives": ["p99 ttft <= 2s", "p99 tpot <= 60ms"],
}


def planned(jobs: int) -> dict[str, Any]:
    """One plan, and what it took."""
    from sim.planning.plan import plan
    from sim.sweep.store import Store

    begun: dict[str, float] = {}
    before, begin = os.times(), time.perf_counter()

    def told(purpose: str, replays: int) -> None:
        begun.setdefault(purpose, time.perf_counter() - begin)

    with tempfile.TemporaryDirectory() as folder:
        found = plan(PLAN, jobs=jobs, store=Store(Path(folder) / "store"), progress=told)
    seconds = time.perf_counter() - begin
    after = os.times()
    cpu_s = sum(after[:4]) - sum(before[:4])
    winner = found.winner.candidate
    return {
        "jobs": jobs,
        "candidates": found.stated,
        "configurations": found.configurations,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_s, 1),
        "replays": sum(found.replays.values()),
        "replays_by_purpose": dict(found.replays),
        "begun_s": {purpose: round(at, 1) for purpose, at in begun.items()},
        "winner": winner.label,
        "usd_per_hour": winner.usd_per_hour,
        "front_gaps": {name: round(front.gap, 3) for name, front in found.fronts.items()},
    }


def against_brute_force(spaces: int = 20) -> dict[str, Any]:
    """Replays of the search and of brute force, on random small spaces."""
    from sim.planning.plan import plan
    from tests.sim.planning.fleets import brute_force
    from tests.sim.planning.test_plan_brute_force import random_plan

    searched, brute, shares = 0, 0, list[float]()
    for seed in range(spaces):
        settings = random_plan(seed)
        best, replays = brute_force(settings)
        found = plan(settings)
        assert best is not None and found.winner.candidate.label == best.label
        searched += found.replays["search"]
        brute += replays
        shares.append(found.replays["search"] / replays)
    return {
        "spaces": spaces,
        "replays_of_the_search": searched,
        "replays_of_brute_force": brute,
        "share": round(searched / brute, 3),
        "largest_share": round(max(shares), 3),
    }


def main() -> None:
    """Measure everything and write one JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--jobs", type=int, default=2, help="processes; default 2")
    parser.add_argument("--out", type=Path, help="JSON file; default benchmarks/results/DATE.json")
    options = parser.parse_args()
    if not AZURE.exists():
        raise SystemExit(f"no traces at {SHARED}; set KVCAST_SHARED")
    results: dict[str, Any] = {"machine": machine(), "command": "python -m benchmarks.plan"}
    results["plan"] = planned(options.jobs)
    results["plan"]["limit_seconds"] = LIMIT_S
    said = {key: one for key, one in results["plan"].items() if isinstance(one, (int, float))}
    show("plan", said)
    results["against brute force"] = against_brute_force()
    show("against brute force", results["against brute force"])
    results["machine"]["load_after"] = round(os.getloadavg()[0], 2)
    name = f"plan-{results['machine']['date'][:10]}.json"
    out = options.out or PROJECT / "benchmarks/results" / name
    out.write_text(json.dumps(results, indent=1) + "\n")
    print(out)


if __name__ == "__main__":
    main()
