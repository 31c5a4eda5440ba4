"""The benchmark that is to run on a GPU runs here on a tiny model, and its kernels are right."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PARTS = "ceilings,check,steps,prefill,saturated,transformers"


@pytest.mark.slow
def test_the_gpu_benchmark_runs_on_a_tiny_model(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "benchmarks.engine_gpu", "--small"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path), "--parts", PARTS],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in PARTS.split(",")}
    assert all(figures["environment"]["small"] for figures in found.values())
    errors = found["check"]["relative_error"]
    assert len(errors) == 7
    assert max(errors.values()) < 1e-5
    assert found["saturated"]["output_tokens"] == 12 * 12
