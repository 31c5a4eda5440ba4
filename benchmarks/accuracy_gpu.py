"""How well the simulator foretells the engine on a GPU: `python -m benchmarks.accuracy_gpu`.

Dummy-weight Llama-3.1-8B on one GPU, for each KV format: calibrate, find by serving as fast as
possible how many requests a second the engine manages, then serve each trace at shares of that and
hold every figure of the simulation against what the engine did. Profiles, steps and numbers are
written to the output folder as they come.

Traces are Parquet files in kvcast's own format in --traces, such as minutes of the Azure and
Mooncake traces (`kvcast trace convert ... --op window:end_s=300`); without, the sample `chat`.
`--small` does it with a tiny model on whatever device there is: it proves the script.

Needs pydantic, polars and simpy besides PyTorch, Triton, safetensors, tokenizers, pyarrow, scipy,
pyyaml, typer and rich; wheels as for benchmarks.engine_gpu.
"""

import argparse
import json
from pathlib import Path
from typing import Any, Final

from benchmarks.accuracy_cpu import served_and_foretold
from benchmarks.engine_gpu import LLAMA, TINY
from calibration.measuring.calibrate import calibrate
from engine.config import EngineSettings
from engine.replay import replay
from engine.serve import ReplaySettings
from traces.describe import describe
from traces.reader import open_trace
from traces.settings import merged

LOADS: Final = (0.4, 0.7, 0.9, 1.1)
"""Shares of what the engine serves as fast as possible."""

SMALL: Final[dict[str, Any]] = {
    "device": "auto",
    "num_blocks": 128,
    "kernels": "torch",
    "scheduler": {"max_num_seqs": 4, "max_num_batched_tokens": 64, "max_model_len": 256},
}


def main() -> None:
    """Measure, print, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--traces", type=Path, default=None, help="folder of Parquet traces")
    parser.add_argument("--kv", default="bf16,fp8_token_head,int8", help="KV formats")
    parser.add_argument("--budget", type=float, default=150, help="seconds to calibrate")
    parser.add_argument("--seconds", type=float, default=60, help="of each load")
    parser.add_argument("--saturating", type=int, default=400, help="requests to find capacity")
    parser.add_argument("--loads", default=",".join(map(str, LOADS)))
    parser.add_argument("--small", action="store_true")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    model = asked.out / "model"
    model.mkdir(exist_ok=True)
    config = TINY if asked.small else LLAMA
    (model / "config.json").write_text(json.dumps(config))
    base = merged(
        {"model": str(model), "weights": "dummy"}, SMALL if asked.small else {"device": "cuda"}
    )
    traces = sorted(asked.traces.glob("*.parquet")) if asked.traces else ["sample:chat"]
    for kv_dtype in asked.kv.split(","):
        settings = merged(base, {"kv_dtype": kv_dtype})
        profile = asked.out / f"{kv_dtype}.yaml"
        done = calibrate(EngineSettings.model_validate(settings), profile, asked.budget, fresh=True)
        print(f"{kv_dtype}: held out {done.fit.report.all}", flush=True)
        for trace in traces:
            compare(asked, settings, profile, str(trace))


def compare(asked: argparse.Namespace, settings: dict[str, Any], profile: Path, trace: str) -> None:
    """Serve a trace at each load and write what was foretold beside what came."""
    capacity = requests_per_s(settings, trace, asked.saturating)
    rate = describe(open_trace(trace)).mean_rate_per_s
    name = f"{profile.stem}-{Path(trace).stem.removeprefix('sample:')}"
    found: dict[str, Any] = {"capacity_requests_per_s": capacity, "loads": {}}
    for load in map(float, asked.loads.split(",")):
        speed = load * capacity / rate
        chosen = merged(
            settings,
            {
                "speed": speed,
                "trace": {
                    "path": trace,
                    "operations": [{"window": {"end_s": round(asked.seconds * speed, 3)}}],
                },
            },
        )
        folder = asked.out / f"{name}-{load}"
        found["loads"][str(load)] = served_and_foretold(
            ReplaySettings.model_validate(chosen), profile, folder
        )
        errors = found["loads"][str(load)]["validation"]["figures"]
        shown = ("ttft.mean", "ttft.p99", "tpot.mean", "tpot.p99", "e2e.mean", "e2e.p99")
        told = ", ".join(f"{key} {100 * errors[key]['error']:+.1f} %" for key in shown)
        print(f"{name} at {load}: {told}", flush=True)
        (asked.out / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")


def requests_per_s(settings: dict[str, Any], trace: str, count: int) -> float:
    """What the engine serves when all of the first requests are there at once."""
    chosen = {"speed": None, "trace": {"path": trace, "operations": [{"limit": {"count": count}}]}}
    summary = replay(ReplaySettings.model_validate(merged(settings, chosen)))
    return summary["throughput"]["requests_per_s"]


if __name__ == "__main__":
    main()
