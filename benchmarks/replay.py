"""How fast the simulator replays: `python -m benchmarks.replay`.

Single process, one core, all records and metrics on (kept in memory); the time is that of the
replay, without start-up and without reading files. Each figure is the best of the repeats, as
other work on the machine only ever adds time; ratios are taken within the run. With the compiled
core built (`make compile`) the same jobs run on it too, in a process of their own.

Needs the public traces in the folder KVCAST_SHARED (default ../shared); see docs/log.md.
"""

import argparse
import datetime
import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent
COMPILED = PROJECT / "build" / "compiled"
SHARED = Path(os.environ.get("KVCAST_SHARED", PROJECT.parent / "shared"))
AZURE = SHARED / "traces/azure-2023/AzureLLMInferenceTrace_conv.csv"
MOONCAKE = SHARED / "traces/mooncake/conversation_trace.jsonl"
REFERENCE = SHARED / "vllm-scheduler/reference.py"
CASE = SHARED / "vllm-scheduler/golden/f_azure1000"

NS = 1000
"""Picoseconds in a nanosecond."""


def serve(
    requests: Iterable[Any],
    *,
    replicas: int,
    num_blocks: int,
    cost: tuple[int, int, int, int],
    max_num_seqs: int,
    max_num_batched_tokens: int,
    async_scheduling: bool = False,
) -> tuple[float, Any]:
    """Seconds that one replay takes, and the finished run."""
    from calibration.costs import LinearCost
    from engine.frames import MemorySink
    from sim.replay import Run
    from sim.scenario import scenario_of

    scenario = scenario_of(
        {
            "cluster": {"replicas": replicas},
            "memory": {"num_blocks": num_blocks},
            "scheduler": {
                "max_num_seqs": max_num_seqs,
                "max_num_batched_tokens": max_num_batched_tokens,
                "async_scheduling": async_scheduling,
            },
        }
    )
    run = Run(scenario, requests, LinearCost(*(nanoseconds * NS for nanoseconds in cost)))
    begin = time.perf_counter()
    run.serve(requests_to=MemorySink().take, segments_to=MemorySink().take)
    return time.perf_counter() - begin, run


# step, prefill token, decode, context token: nanoseconds
AZURE_COST = (6_000_000, 40_000, 30_000, 15)
MOONCAKE_COST = (6_000_000, 12_000, 15_000, 4)
on_azure = partial(
    serve, cost=AZURE_COST, num_blocks=8193, max_num_seqs=256, max_num_batched_tokens=2048
)
on_mooncake = partial(serve, cost=MOONCAKE_COST, max_num_seqs=128, max_num_batched_tokens=8192)


def best(measure: Callable[[], tuple[float, Any]], count: int, repeats: int) -> dict[str, Any]:
    """The fastest of `repeats` replays of `count` requests."""
    times: list[float] = []
    run: Any = None
    for _ in range(repeats):
        seconds, run = measure()
        times.append(seconds)
    times.sort()
    return {
        "requests": count,
        "requests_per_s": round(count / times[0]),
        "median_requests_per_s": round(count / times[len(times) // 2]),
        "us_per_request": round(times[0] / count * 1e6, 2),
        "segments_per_request": round(run.records.segments / count, 2),
        "steps_per_request": round(run.records.steps / count, 1),
        "preemptions": run.records.metrics.preemptions,
    }


class Stream:
    """Requests made anew for each pass, so that a long trace is not held in memory."""

    def __init__(self, make: Callable[[], Iterable[Any]]) -> None:
        self._make = make

    def __iter__(self) -> Any:
        return iter(self._make())


def speed(repeats: int) -> dict[str, Any]:
    """Requests replayed a second, job by job."""
    from traces.operations import tile, window
    from traces.reader import open_trace

    azure = list(open_trace(AZURE))
    mooncake = list(open_trace(MOONCAKE))
    busy = list(window(azure, 600.0, 720.0))
    jobs: dict[str, Any] = {}

    def job(
        name: str, requests: Iterable[Any], count: int, on: Any, times: int, **how: Any
    ) -> None:
        jobs[name] = best(lambda: on(requests, **how), count, times)
        show(name, jobs[name])

    job("azure, 1 replica", azure, len(azure), on_azure, repeats, replicas=1)
    job(
        "azure, 1 replica, async", azure, len(azure), on_azure, repeats,
        replicas=1, async_scheduling=True,
    )  # fmt: skip
    tiled = Stream(lambda: tile(azure, 16))
    job("azure x16, 16 replicas", tiled, 16 * len(azure), on_azure, 2, replicas=16)
    job("2 min of azure, 1 replica", busy, len(busy), on_azure, 8 * repeats, replicas=1)
    for copies in (16, 1024):
        tiled = Stream(partial(tile, busy, copies))
        name = f"2 min of azure x{copies:,}, {copies:,} replicas"
        times = repeats if copies == 16 else 1
        job(name, tiled, copies * len(busy), on_azure, times, replicas=copies)
    for name, blocks in (("mooncake", 40_001), ("mooncake, tight pool", 12_001)):
        for replicas in (1, 8):
            plural = "replica" if replicas == 1 else "replicas"
            job(
                f"{name}, {replicas} {plural}", mooncake, len(mooncake), on_mooncake, repeats,
                replicas=replicas, num_blocks=blocks,
            )  # fmt: skip
    for output_tokens in (16, 4096):
        requests = fixed_lengths(20_000, rate_per_s=1.0, output_tokens=output_tokens)
        job(
            f"fixed output of {output_tokens:,} tokens, 1 request/s", requests, len(requests),
            on_azure, repeats, replicas=1, num_blocks=65_537,
        )  # fmt: skip
    return jobs


def fixed_lengths(count: int, *, rate_per_s: float, output_tokens: int) -> list[Any]:
    """Poisson arrivals of equal requests."""
    import numpy as np

    from traces.request import Request

    gaps = np.random.default_rng(0).exponential(1 / rate_per_s, count)
    return [
        Request(i, at, prompt_tokens=256, output_tokens=output_tokens)
        for i, at in enumerate(np.cumsum(gaps).tolist())
    ]


def against_reference() -> dict[str, Any]:
    """Replay against the plain reading of the rules, on the requests of the case f_azure1000."""
    spec = importlib.util.spec_from_file_location("reference", REFERENCE)
    assert spec is not None and spec.loader is not None
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    rows = reference.rows(CASE / "requests.jsonl.gz")
    params = json.loads((CASE / "meta.json").read_text())["params"]
    begin = time.perf_counter()
    reference.decide(params, rows)
    reference_s = time.perf_counter() - begin
    from traces.operations import limit
    from traces.reader import open_trace

    requests = list(limit(open_trace(AZURE), len(rows)))
    seconds = min(on_azure(requests, replicas=1)[0] for _ in range(10))
    result = {
        "reference_s": round(reference_s, 3),
        "replay_s": round(seconds, 4),
        "times_as_fast": round(reference_s / seconds, 1),
    }
    show("1,000 azure requests against the reference", result)
    return result


def memory() -> dict[str, Any]:
    """Peak memory of the command line on a million synthetic requests and 64 replicas."""
    import tempfile

    kvcast = Path(sys.executable).with_name("kvcast")
    peaks: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "million.parquet"
        make = "--requests 1000000 --rate-per-s 320 --prompt-tokens 800 --output-tokens 200"
        subprocess.run([kvcast, "trace", "make", trace, *make.split()], check=True)
        for name, options in (
            ("everything written", []),
            ("without requests.parquet", ["--no-requests"]),
            ("without report", ["--no-report"]),
        ):
            command = [kvcast, "replay", "--trace", trace, "--replicas", "64", *options]
            begin = time.perf_counter()
            peak = peak_bytes([*command, "--out", str(Path(folder) / "run")])
            seconds = time.perf_counter() - begin
            peaks[name] = {"peak_mb": round(peak / 1e6), "seconds": round(seconds, 1)}
            show(f"1,000,000 requests on 64 replicas, {name}", peaks[name])
    return peaks


def peak_bytes(command: Sequence[str | Path]) -> int:
    """Peak resident memory of a command, in bytes."""
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"{command}: ended with status {status}")
    return usage.ru_maxrss * 1024


def show(name: str, figures: dict[str, Any]) -> None:
    """Print a job's figures as they come."""
    print(f"{name}: " + ", ".join(f"{key} {value:,}" for key, value in figures.items()), flush=True)


def machine() -> dict[str, Any]:
    """Where and with what this was measured."""
    cpu = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].partition(":")[2].strip() if names else cpu
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=PROJECT, capture_output=True, text=True
    ).stdout.strip()
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": cpu,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "commit": commit,
        "load_before": round(os.getloadavg()[0], 2),
    }


def core_is_compiled() -> bool:
    """Whether this process runs the compiled core."""
    import engine.scheduler

    return not str(engine.scheduler.__file__).endswith(".py")


def main() -> None:
    """Measure everything and write one JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--repeats", type=int, default=5, help="replays of each job; the best counts"
    )
    parser.add_argument("--out", type=Path, help="JSON file; default benchmarks/results/DATE.json")
    parser.add_argument("--no-memory", action="store_true", help="leave out the memory jobs")
    parser.add_argument("--speed-only", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not AZURE.exists():
        raise SystemExit(f"no traces at {SHARED}; set KVCAST_SHARED")
    if options.speed_only:
        assert core_is_compiled(), "the compiled core is not the one imported"
        options.out.write_text(json.dumps(speed(options.repeats)))
        return
    arguments = " ".join(sys.argv[1:])
    results: dict[str, Any] = {
        "machine": machine(),
        "command": f"python -m benchmarks.replay {arguments}".strip(),
    }
    if not options.no_memory:
        # first: a child's peak is never below what its parent held when it started
        results["memory"] = memory()
    results["pure python"] = speed(options.repeats)
    results["reference"] = against_reference()
    if (COMPILED / ".compiled").exists():
        print("compiled core:")
        results["compiled"] = in_compiled_core(options.repeats)
    out = (
        options.out
        or PROJECT / "benchmarks/results" / f"replay-{results['machine']['date'][:10]}.json"
    )
    out.write_text(json.dumps(results, indent=1) + "\n")
    print(out)


def in_compiled_core(repeats: int) -> dict[str, Any]:
    """The speed jobs in a process that imports the compiled core."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "speed.json"
        subprocess.run(
            [sys.executable, __file__, "--speed-only", "--repeats", str(repeats), "--out", out],
            env=os.environ | {"PYTHONPATH": str(COMPILED)},
            check=True,
        )
        return json.loads(out.read_text())


if __name__ == "__main__":
    main()
