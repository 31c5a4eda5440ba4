"""How fast requests are routed: `python -m benchmarks.routing`.

The Mooncake conversation trace from its tenth minute on, laid over itself as often as there are
replicas, so that each has the load of the whole trace; copies share no content. The time is that of
the whole replay, in processor seconds of one process, so other work on the machine matters little;
`round-robin` is what everything but routing takes. Also the memory of the fleet's index.

Needs the public traces in the folder KVCAST_SHARED (default ../shared); see docs/log.md.
"""

import argparse
import json
import time
import tracemalloc
from pathlib import Path
from typing import Any

from benchmarks.replay import MOONCAKE, MOONCAKE_COST, NS, PROJECT, machine

BLOCK_TOKENS = 16


def speeds(replicas: int, seconds: float, routers: list[str]) -> dict[str, Any]:
    """Requests replayed a processor second with each router, and what became of them."""
    from traces.operations import tile, window
    from traces.reader import open_trace

    busy = window(open_trace(MOONCAKE), 600.0, 600.0 + seconds)
    requests = list(tile(list(busy), replicas))
    found: dict[str, Any] = {"replicas": replicas, "requests": len(requests)}
    for router in routers:
        found[router] = replayed(router, replicas, requests)
        print(f"{replicas} replicas, {router}: {found[router]}", flush=True)
    return found


def replayed(router: str, replicas: int, requests: list[Any]) -> dict[str, Any]:
    """One replay."""
    from calibration.costs import LinearCost
    from sim.replay import Run
    from sim.scenario import scenario_of

    scenario = scenario_of(
        {
            "cluster": {"replicas": replicas, "router": router},
            "memory": {"num_blocks": 40_001},
            "scheduler": {
                "max_num_seqs": 128,
                "max_num_batched_tokens": 8192,
                "async_scheduling": False,
            },
        }
    )
    run = Run(scenario, requests, LinearCost(*(nanoseconds * NS for nanoseconds in MOONCAKE_COST)))
    begin = time.process_time()
    run.serve()
    taken = time.process_time() - begin
    summary = run.summary()
    ttft = summary["latency"]["ttft_s"]
    return {
        "requests_per_s": round(len(requests) / taken),
        "hit_rate": round(summary["cache"]["hit_rate"], 4),
        "ttft_p50_s": round(ttft["p50"], 3),
        "ttft_p99_s": round(ttft["p99"], 3),
        "utilization": round(summary["utilization"], 3),
    }


def index_megabytes(replicas: int, hash_tokens: int, holders: int) -> float:
    """Memory of the index for a million blocks, each content held by `holders` replicas."""
    from sim.routing.index import FleetIndex

    index = FleetIndex(replicas, BLOCK_TOKENS)
    units = 20
    chains = 1_000_000 * BLOCK_TOKENS // hash_tokens // holders // units
    tracemalloc.start()
    for chain in range(chains):
        hashes = tuple((chain * units + i) * 1_000_003 + 10**12 for i in range(units))
        for holder in range(holders):
            replica = (chain + holder) % replicas
            index.add(replica, hashes, hash_tokens, 0, units * hash_tokens // BLOCK_TOKENS)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return round(held / 1e6, 1)


def main() -> None:
    """Measure all routers and write one JSON file."""
    from sim.routing import ROUTERS

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replicas", type=int, default=512)
    parser.add_argument("--seconds", type=float, default=60.0, help="of the trace")
    parser.add_argument("--routers", default=",".join(ROUTERS))
    parser.add_argument("--out", type=Path, help="JSON file; default benchmarks/results/...")
    options = parser.parse_args()
    if not MOONCAKE.exists():
        raise SystemExit(f"no trace at {MOONCAKE}; set KVCAST_SHARED")
    results: dict[str, Any] = {"machine": machine(), "command": "python -m benchmarks.routing"}
    results["index, MB a million blocks of 16 tokens"] = {
        f"hashes of {hash_tokens} tokens, {replicas} replicas, held by {holders}": index_megabytes(
            replicas, hash_tokens, holders
        )
        for replicas, hash_tokens, holders in ((8, 512, 1), (512, 512, 1), (512, 512, 4),
                                               (8, 16, 1), (512, 16, 1))
    }  # fmt: skip
    results["mooncake"] = speeds(options.replicas, options.seconds, options.routers.split(","))
    date = results["machine"]["date"][:10]
    out = options.out or PROJECT / "benchmarks/results" / f"routing-{date}.json"
    out.write_text(json.dumps(results, indent=1) + "\n")
    print(out)


if __name__ == "__main__":
    main()
