"""What stall-free batching is worth: `python -m benchmarks.sarathi`.

Repeats the comparison of Agrawal et al., Taming Throughput-Latency Tradeoff in LLM Inference with
Sarathi-Serve, OSDI'24, section 5.1: Mistral-7B on one A100, Poisson arrivals, up to 128 requests at
once. Capacity is the greatest rate of arrivals at which the 99th percentile of the time between
tokens keeps its limit (0.1 s strict, 0.5 s relaxed; quoted from memory) and the median wait is
below 2 s. Lengths are those of the Azure conversation trace (2023), not of the paper's data sets.

Step times are analytic (data sheets with default efficiencies), not measured. Needs the public
traces in the folder KVCAST_SHARED (default ../shared).
"""

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.replay import AZURE, machine
from calibration.costs import CostModel
from sim.replay import replay
from sim.scenario import scenario_of
from traces.reader import open_trace
from traces.request import Request

PROFILE = "analytic:a100-80/mistral-7b-v0.3"
LIMITS_S = {"strict": 0.1, "relaxed": 0.5}
MEDIAN_WAIT_S = 2.0
LONGEST = 16_384

WAYS: dict[str, dict[str, Any]] = {
    "vllm-v0": {"preset": "vllm-v0", "scheduler": {"max_num_batched_tokens": LONGEST}},
    **{
        f"stall-free {tokens}": {"scheduler": {"chunking": f"stall-free:tokens={tokens}"}}
        for tokens in (512, 1024, 2048)
    },
    "latency-bounded": {"scheduler": {"chunking": "latency-bounded:tbt_s={limit_s}"}},
}
"""Ways of serving. Whole prompts need a step as long as the longest, as in vLLM without chunks."""


def scenario(way: str, limit_s: float, **changes: Any) -> Any:
    """The replica of a way of serving."""
    values = WAYS[way]
    settings = {"max_num_seqs": 128, "max_num_batched_tokens": 2 * 2048, "max_model_len": LONGEST}
    settings |= {"async_scheduling": False} | values["scheduler"]
    if "chunking" in settings:
        settings["chunking"] = settings["chunking"].format(limit_s=limit_s)
    stated = {
        "preset": values.get("preset", "vllm"),
        "profile": PROFILE,
        "scheduler": settings,
        "cache": {"prefix_caching": False},
    }
    return scenario_of(stated | changes)


def arriving(
    lengths: Sequence[tuple[int, int]], rate_per_s: float, seed: int = 0
) -> Iterable[Request]:
    """Requests of these lengths as a Poisson process; the same one at every rate, but faster."""
    gaps = np.random.default_rng(seed).exponential(1.0, len(lengths))
    for number, (arrival, (prompt, output)) in enumerate(
        zip(np.cumsum(gaps) / rate_per_s, lengths, strict=True)
    ):
        yield Request(number, float(arrival), prompt, output)


def latencies(
    way: str,
    lengths: Sequence[tuple[int, int]],
    rate_per_s: float,
    limit_s: float,
    *,
    cost: CostModel | None = None,
    **changes: Any,
) -> tuple[float, float]:
    """P99 of the time between tokens, and the median wait; seconds."""
    result = replay(
        scenario(way, limit_s, **changes),
        arriving(lengths, rate_per_s),
        cost=cost,
        keep_requests=False,
        keep_segments=False,
    )
    latency = result.summary["latency"]
    return latency["itl_s"]["p99"], latency["queue_s"]["p50"]


def capacity(
    way: str,
    lengths: Sequence[tuple[int, int]],
    limit_s: float,
    *,
    accuracy: float = 0.02,
    **how: Any,
) -> float:
    """Greatest rate of arrivals that keeps both limits, by bisection; requests a second.

    Returns 0 where not even a request in 50 s does.
    """

    def kept(rate_per_s: float) -> bool:
        tbt_s, wait_s = latencies(way, lengths, rate_per_s, limit_s, **how)
        return tbt_s <= limit_s and wait_s < MEDIAN_WAIT_S

    fits, fails = 0.02, 0.5
    if not kept(fits):
        return 0.0
    while kept(fails):
        fits, fails = fails, 2 * fails
    while fails / fits > 1 + accuracy:
        middle = (fits * fails) ** 0.5
        if kept(middle):
            fits = middle
        else:
            fails = middle
    return fits


def main() -> None:
    """Print the capacities, and write them to a file if one is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2000, help="requests of the trace")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    asked = parser.parse_args()
    trace = list(open_trace(AZURE))[: asked.count]
    lengths = [(request.prompt_tokens, request.output_tokens) for request in trace]
    found: dict[str, Any] = {
        "machine": machine(),
        "command": f"python -m benchmarks.sarathi --count {asked.count}",
        "profile": PROFILE,
        "trace": AZURE.name,
        "requests": len(lengths),
        "prompt_tokens": {"median": float(np.median([p for p, _ in lengths])),
                          "p90": float(np.quantile([p for p, _ in lengths], 0.9))},
        "output_tokens": {"median": float(np.median([o for _, o in lengths])),
                          "p90": float(np.quantile([o for _, o in lengths], 0.9))},
    }  # fmt: skip
    for name, limit_s in LIMITS_S.items():
        rates = {way: capacity(way, lengths, limit_s) for way in WAYS}
        least = rates["vllm-v0"]
        found[f"{name}, P99 TBT {limit_s:g} s"] = {
            way: {
                "requests_per_s": round(rate, 3),
                "of_vllm_v0": round(rate / least, 2) if least else None,
            }
            for way, rate in rates.items()
        }
    text = json.dumps(found, indent=1)
    print(text)
    if asked.out:
        asked.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
