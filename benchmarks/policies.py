"""What each policy costs the simulator: seconds a request, over those of LRU and FCFS.

    python -m benchmarks.policies [--repeats N] [--out FILE]

One replica with a pool of 3 million tokens serves Mooncake's conversation trace (12,031 requests of
an hour) under every order of service, victim, chunking and eviction policy. Each measurement stands
between two of the baseline in the same process, and its ratio is to their mean.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.replay import MOONCAKE_COST, machine
from calibration.costs import LinearCost
from engine.eviction import EVICTION
from engine.named import parameters
from engine.policies import CHUNKING, ORDER, VICTIM
from sim.replay import Run
from sim.scenario import scenario_of
from traces.reader import open_trace
from traces.request import Request

SHARED = Path(os.environ.get("KVCAST_SHARED", "../shared"))
MOONCAKE = SHARED / "traces/mooncake/conversation_trace.jsonl"
POOL_TOKENS = 3_000_000
BLOCK_TOKENS = 16

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "order": ("scheduler", ORDER),
    "victim": ("scheduler", VICTIM),
    "chunking": ("scheduler", CHUNKING),
    "eviction": ("cache", EVICTION),
}


def serve(requests: list[Request], settings: dict[str, dict[str, Any]]) -> tuple[float, Any]:
    """CPU seconds that one replay takes, and its summary."""
    limits = {"max_num_seqs": 128, "max_num_batched_tokens": 8192, "async_scheduling": False}
    scenario = scenario_of(
        {
            "memory": {"num_blocks": POOL_TOKENS // BLOCK_TOKENS + 1},
            "scheduler": limits | settings.get("scheduler", {}),
            "cache": {"block_tokens": BLOCK_TOKENS} | settings.get("cache", {}),
        }
    )
    run = Run(scenario, requests, LinearCost(*(1000 * ns for ns in MOONCAKE_COST)))
    begin = time.process_time()
    run.serve()
    return time.process_time() - begin, run.summary()


def against(baseline: Callable[[], float], measure: Callable[[], float], repeats: int) -> float:
    """The least ratio of a measurement to the baselines before and after it."""
    ratios: list[float] = []
    before = baseline()
    for _ in range(repeats):
        measured = measure()
        after = baseline()
        ratios.append(2 * measured / (before + after))
        before = after
    return min(ratios)


def main() -> None:
    """Measure every policy and write a dated JSON file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--kind", choices=sorted(KINDS), action="append", help="default: all")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    requests = list(open_trace(MOONCAKE))
    plain_s = min(serve(requests, {})[0] for _ in range(asked.repeats))
    print(f"lru and fcfs: {len(requests) / plain_s:,.0f} requests/s")
    figures: dict[str, dict[str, Any]] = {}
    for kind in asked.kind or KINDS:
        section, table = KINDS[kind]
        figures[kind] = {}
        for name in table:
            settings = {section: {kind: name}}
            summary: dict[str, Any] = {}

            def measured(settings: Any = settings, kept: dict[str, Any] = summary) -> float:
                seconds, its = serve(requests, settings)
                kept.update(its)
                return seconds

            ratio = against(lambda: serve(requests, {})[0], measured, asked.repeats)
            figures[kind][name] = {
                "times_lru_fcfs": round(ratio, 2),
                "hit_rate": round(summary["cache"]["hit_rate"], 4),
                "ttft_mean_s": round(summary["latency"]["ttft_s"]["mean"], 4),
                "segments": summary["segments"],
                "parameters": {key: str(value) for key, value in parameters(table[name]).items()},
            }
            print(f"{kind:9} {name:22} x{ratio:.2f}  hits {figures[kind][name]['hit_rate']:.3f}")
    result = {
        "machine": machine(),
        "command": "python -m benchmarks.policies",
        "trace": MOONCAKE.name,
        "pool_tokens": POOL_TOKENS,
        "lru_fcfs_requests_per_s": round(len(requests) / plain_s),
        "policies": figures,
    }
    if asked.out is not None:
        asked.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
