"""What a fair order costs and gives: `python -m benchmarks.fairness [--artifact FOLDER]`.

Repeats Sheng et al., Fairness in Serving Large Language Models, OSDI'24 (VTC), sections 5.2 and
5.3: Llama-2-7B on an A10G with room for 10,000 tokens. Two tenants of which one asks twice as much
as the other, both more than there is; and the published log of 27 tenants, where the folder of
github.com/Ying1123/VTC-artifact is given. Service is counted as theirs: a request's weighted
tokens, spread evenly from its first token to its end; throughput as theirs: tokens in and out over
the time until the last is done.

Step times are the analytic ones of data sheets (`roofline_cost`), not measured: absolute rates are
those of that GPU, ratios are what is compared.
"""

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from benchmarks.replay import machine
from calibration.hardware import gpu
from calibration.roofline import RooflineCost, roofline_cost
from engine.shapes import ModelShape
from sim.replay import replay
from sim.scenario import scenario_of
from traces.request import Request

LLAMA_2_7B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
}
"""config.json of huggyllama/llama-7b and meta-llama/Llama-2-7b, the fields that matter."""

POOL_TOKENS = 10_000
INPUT_WEIGHT, OUTPUT_WEIGHT = 1.0, 2.0
OVERLOAD_S = 360.0
TENANTS = {"one": 1.5, "other": 3.0}
"""Requests a second, evenly spaced: 90 and 180 a minute; prompts and answers of 256 tokens."""

WATERMARK = 0.3
"""Share of the pool that admissions leave free. Their server knows each answer's length and admits
only what will never be preempted; this comes near."""

PAPER: dict[str, Any] = {
    "service ratio": {"fcfs": 2.00, "vtc": 1.006},
    "tokens per second": {
        "fcfs": 777, "vtc": 779, "rpm:requests=5": 340, "rpm:requests=10": 532,
        "rpm:requests=15": 626, "rpm:requests=20": 694, "rpm:requests=30": 747,
    },
}  # fmt: skip
"""What the artifact's recorded runs come to, by its own definitions."""


def cost() -> RooflineCost:
    """Llama-2-7B on an A10G, by data sheets."""
    return roofline_cost(ModelShape.from_hf_config(LLAMA_2_7B, "llama-2-7b"), gpu("a10g"))


def overload(seconds: float = OVERLOAD_S) -> list[Request]:
    """The constant overload of section 5.2."""
    arrivals = sorted(
        ((number + 0.5) / rate, tenant)
        for tenant, rate in TENANTS.items()
        for number in range(int(rate * seconds))
    )
    return [
        Request(number, arrival, 256, 256, tenant=tenant)
        for number, (arrival, tenant) in enumerate(arrivals)
    ]


def recorded(folder: Path) -> list[Request]:
    """The 1,500 requests of 27 tenants that the artifact's own run logged."""
    log = json.loads((folder / "fair_bench/VTC/all_results_real.jsonl").read_text())
    rows = sorted(log["result"]["responses"], key=lambda row: row["req_time"])
    return [
        Request(
            number,
            row["req_time"],
            row["prompt_len"],
            row["output_len"],
            tenant=row["adapter_dir"].rpartition("-")[2],
        )
        for number, row in enumerate(rows)
    ]


def served(
    requests: Iterable[Request], *, order: str = "fcfs", admission: str = "everybody"
) -> pl.DataFrame:
    """Request rows of a run as theirs: whole prompts first, memory by the token."""
    scenario = scenario_of(
        {
            "preset": "vllm-v0",
            "cluster": {"admission": admission},
            "memory": {"num_blocks": POOL_TOKENS + 1},
            "scheduler": {
                "order": order,
                "max_num_seqs": 1000,
                "max_num_batched_tokens": POOL_TOKENS,
                "max_model_len": 4096,
                "watermark": WATERMARK,
            },
            "cache": {"block_tokens": 1, "prefix_caching": False},
        }
    )
    result = replay(scenario, requests, cost=cost(), keep_segments=False)
    assert result.requests is not None
    return result.requests


def service(rows: pl.DataFrame, begin_s: float, end_s: float) -> dict[str, float]:
    """Weighted tokens of each tenant between two moments."""
    first, last = pl.col("first_token_s"), pl.col("finish_s")
    within = pl.min_horizontal(last, pl.lit(end_s)) - pl.max_horizontal(first, pl.lit(begin_s))
    share = within.clip(lower_bound=0.0) / (last - first)
    tokens = INPUT_WEIGHT * pl.col("prompt_tokens") + OUTPUT_WEIGHT * pl.col("generated_tokens")
    sums = (
        rows.filter((pl.col("outcome") == "finished") & (last > first))
        .group_by("tenant")
        .agg((tokens * share).sum().alias("service"))
        .sort("tenant")
    )
    return dict(zip(sums["tenant"], sums["service"], strict=True))


def ratio(rows: pl.DataFrame, end_s: float = OVERLOAD_S) -> float:
    """Service of who has had most over that of who has had least, until arrivals end."""
    had = service(rows, 0.0, end_s).values()
    return max(had) / min(had)


def windows(rows: pl.DataFrame, every_s: float = 60.0) -> list[dict[str, float]]:
    """Service a second in windows of a minute."""
    return [
        {
            tenant: round(tokens / every_s, 1)
            for tenant, tokens in service(rows, begin, begin + every_s).items()
        }
        for begin in (every_s * number for number in range(int(OVERLOAD_S / every_s)))
    ]


def tokens_per_s(rows: pl.DataFrame) -> float:
    """Tokens of all that were served, in and out, over the time until the last is done."""
    done = rows.filter(pl.col("outcome") == "finished")
    tokens = int((done["prompt_tokens"] + done["generated_tokens"]).sum())
    return tokens / float(done["finish_s"].max())  # type: ignore[arg-type]


def figures(rows: pl.DataFrame) -> dict[str, Any]:
    """What is told of a run."""
    return {
        "tokens_per_s": round(tokens_per_s(rows), 1),
        "served": rows.filter(pl.col("outcome") == "finished").height,
        "rejected": rows.filter(pl.col("outcome") == "rejected").height,
        "preemptions": int(rows["preemptions"].sum()),
    }


def two_tenants() -> dict[str, Any]:
    """Section 5.2."""
    found: dict[str, Any] = {}
    for order in ("fcfs", "vtc", "deficit-round-robin"):
        rows = served(overload(), order=order)
        found[order] = {"service_ratio": round(ratio(rows), 4)} | figures(rows)
        found[order]["service_per_s_by_minute"] = windows(rows)
        found[order]["paper_service_ratio"] = PAPER["service ratio"].get(order)
    return found


def many_tenants(requests: Sequence[Request]) -> dict[str, Any]:
    """Section 5.3: fair orders lose no throughput, limits on requests a minute do."""
    paper = PAPER["tokens per second"]
    found: dict[str, Any] = {}
    for name in paper:
        limited = name.startswith("rpm")
        how = {"admission": name} if limited else {"order": name}
        found[name] = figures(served(requests, **how)) | {"paper_tokens_per_s": paper[name]}
    for row in found.values():
        row["of_fcfs"] = round(row["tokens_per_s"] / found["fcfs"]["tokens_per_s"], 4)
        row["paper_of_fcfs"] = round(row["paper_tokens_per_s"] / paper["fcfs"], 4)
    return found


def main() -> None:
    """Print the figures, and write them to a file if one is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--artifact", type=Path, help="folder of github.com/Ying1123/VTC-artifact")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    asked = parser.parse_args()
    found: dict[str, Any] = {
        "machine": machine(),
        "command": "python -m benchmarks.fairness" + (" --artifact FOLDER" * bool(asked.artifact)),
        "step times": "roofline_cost of Llama-2-7B on a10g, analytic",
        "two tenants, overload": two_tenants(),
    }
    if asked.artifact:
        found["27 tenants, recorded"] = many_tenants(recorded(asked.artifact))
    text = json.dumps(found, indent=1)
    print(text)
    if asked.out:
        asked.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
