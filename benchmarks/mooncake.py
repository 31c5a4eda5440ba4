"""Mooncake's published figures on prefix caches, computed anew: `python -m benchmarks.mooncake`.

Source: Qin et al., "Mooncake: Trading more storage for less computation", FAST'25: tables 1 and 2,
figures 9 and 10; the traces that came with it. Caches of 512-token blocks, as there. Also measured:
how long a study takes, and the memory of what Belady's policy knows.

Needs the public traces in the folder KVCAST_SHARED (default ../shared); see docs/cache-study.md.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.replay import machine

PROJECT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("KVCAST_SHARED", PROJECT.parent / "shared"))
TRACES = {
    name: SHARED / "traces/mooncake" / f"{name}_trace.jsonl"
    for name in ("conversation", "synthetic")
}

BLOCK_TOKENS = 512
NODE_TOKENS = 3_000_000
"""KV cache of a node, in tokens (section 5.3.1)."""
NODES = 10
LLAMA3_70B_CONTEXT_TOKENS = 22 * 8192 // (2 * 4)
"""Equation 1 makes the work for n tokens a n² d + b n d² in every layer; table 1 has a = 4, b = 22,
d = 8192. So b d / 2a tokens of context cost as much as the rest of a token."""

PUBLISHED: dict[str, dict[str, Any]] = {
    "conversation": {
        "reusable": 0.40,
        "of_most_at_3M": 0.41,
        "global_by_local_hits": 2.22,
        "global_by_local_prefill": 0.76,
    },
    "synthetic": {
        "reusable": 0.66,
        "of_most_at_3M": 0.46,
        "global_by_local_hits": 2.36,
        "global_by_local_prefill": 0.52,
    },
}
"""Table 2 (cache ratio), figure 9 (LRU at 3M tokens of the most), figure 10."""

POLICIES = ("lru", "fifo", "lfu", "lfu:history=true", "s3fifo", "belady")
ROUTERS = ("longest-match", "better-of-two", "round-robin", "random")


def ratios(row: Any) -> dict[str, Any]:
    """What is said of a cache."""
    found = row.total.ratios() | {"of_bound": row.of_bound}
    return {name: round(value, 5) for name, value in found.items() if value is not None}


def study(requests: list[Any], **how: Any) -> Any:
    """A study of blocks of 512 tokens."""
    from sim.study.study import StudySettings, cache_study

    settings = StudySettings.model_validate(
        {"block_tokens": BLOCK_TOKENS, "context_tokens": LLAMA3_70B_CONTEXT_TOKENS, **how}
    )
    return cache_study(settings, requests)


def one_cache(requests: list[Any]) -> dict[str, Any]:
    """Figure 9 and table 2: every policy at some capacities."""
    from sim.study.study import capacity

    capacities = (1_000_000, NODE_TOKENS, 10_000_000, 30_000_000, 50_000_000, None)
    found = study(requests, eviction=POLICIES, capacity_tokens=capacities)
    most = found.row("lru", None).total.ratios()
    at_3m = found.row("lru", NODE_TOKENS).total.ratios()
    return {
        "policies": {
            f"{row.eviction} at {capacity(row.capacity_tokens)}": ratios(row) for row in found.rows
        },
        "flips": [str(flip) for flip in found.flips],
        "reusable": {
            "of whole blocks": round(most["block_hit_ratio"], 4),
            "of tokens": round(most["token_hit_ratio"], 4),
            "mean over requests": round(most["mean_request_hit_ratio"], 4),
        },
        "of_most_at_3M": round(at_3m["token_hit_ratio"] / most["token_hit_ratio"], 4),
    }


def many_caches(requests: list[Any]) -> dict[str, Any]:
    """Figure 10: ten caches against one of their size, by router."""
    room = {"eviction": ("lru",), "capacity_tokens": (NODES * NODE_TOKENS,)}
    together = study(requests, **room).rows[0].total.ratios()
    found: dict[str, Any] = {"global": {name: round(one, 5) for name, one in together.items()}}
    for router in ROUTERS:
        row = study(
            requests,
            eviction=("lru",),
            capacity_tokens=(NODE_TOKENS,),
            replicas=NODES,
            router=router,
        ).rows[0]
        local = row.total.ratios()
        found[router] = ratios(row) | {
            "global_by_local_hits": round(
                together["token_hit_ratio"] / local["token_hit_ratio"], 3
            ),
            "global_by_local_prefill": round(
                together["prefill_work_left"] / local["prefill_work_left"], 3
            ),
        }
    return found


def speed(requests: list[Any], repeats: int) -> dict[str, Any]:
    """Best seconds to serve the trace at 3M tokens, and what a future takes."""
    from engine.future import KnownFuture, Uses
    from sim.study.caches import BlockCache

    found: dict[str, Any] = {}
    for block_tokens in (16, BLOCK_TOKENS):
        times: list[float] = []
        for _ in range(repeats):
            begin = time.perf_counter()
            uses = Uses(requests, block_tokens)
            times.append(time.perf_counter() - begin)
        found[f"future, blocks of {block_tokens}"] = {
            "s": round(min(times), 3),
            "bytes": uses.size_bytes,
            "shared_mentions": uses.mentions,
            "bytes_per_shared_mention": round(uses.size_bytes / uses.mentions, 2),
        }
        for policy in POLICIES:
            times = []
            for _ in range(repeats):
                future = KnownFuture(uses) if policy == "belady" else None
                cache = BlockCache(NODE_TOKENS, block_tokens, policy, future=future)
                begin = time.perf_counter()
                for request in requests:
                    cache.serve(request)
                times.append(time.perf_counter() - begin)
            found[f"{policy}, blocks of {block_tokens}"] = {
                "s": round(min(times), 3),
                "requests_per_s": round(len(requests) / min(times)),
            }
    return found


def main() -> None:
    """Print all figures beside the published ones, and write them."""
    from traces.reader import open_trace

    parser = argparse.ArgumentParser(description="Mooncake's figures on prefix caches")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    result: dict[str, Any] = {
        "machine": machine(),
        "command": f"python -m benchmarks.mooncake --repeats {asked.repeats}",
        "block_tokens": BLOCK_TOKENS,
        "context_tokens": LLAMA3_70B_CONTEXT_TOKENS,
        "published": PUBLISHED,
    }
    for name, path in TRACES.items():
        requests = list(open_trace(path))
        result[name] = {"one cache": one_cache(requests), "ten caches": many_caches(requests)}
        if name == "conversation":
            result[name]["speed"] = speed(requests, asked.repeats)
        print(name, json.dumps(result[name], indent=1), flush=True)
    if asked.out is not None:
        text = json.dumps(result, indent=1) + "\n"
        assert str(SHARED) not in text
        asked.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
