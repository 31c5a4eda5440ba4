"""The benchmark that is to run on a GPU runs here on a tiny model, and its kernels are right."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from traces.request import Request
from traces.writer import write_trace

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


@pytest.mark.slow
def test_the_gpu_accuracy_benchmark_runs_on_a_tiny_model(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    trace = tmp_path / "traces" / "one.parquet"
    trace.parent.mkdir()
    write_trace([Request(i, 0.05 * i, 20 + i, 8) for i in range(40)], trace)
    command = [sys.executable, "-m", "benchmarks.accuracy_gpu", "--small", "--kv", "fp32,int8"]
    command += ["--budget", "12", "--seconds", "1", "--saturating", "10", "--loads", "0.5"]
    done = subprocess.run(
        [*command, "--traces", str(trace.parent), "--out", str(tmp_path / "out")],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for kv_dtype in ("fp32", "int8"):
        assert (tmp_path / "out" / f"{kv_dtype}.yaml").is_file()
        found = json.loads((tmp_path / "out" / f"{kv_dtype}-one.json").read_text())
        validation = found["loads"]["0.5"]["validation"]
        assert validation["decisions"]["largest_error_s"] < 1e-6
