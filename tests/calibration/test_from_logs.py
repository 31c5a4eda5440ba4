"""Logs of engines that ran elsewhere become profiles."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from calibration.fitting.prediction import predicted_s
from calibration.from_logs import Described, profile_from_requests, profile_from_steps
from calibration.profile_files import load_steps
from calibration.profiles import load_profile
from tests.calibration.steps import GPU, design, timed
from tests.commands import Run
from traces.errors import ConfigError

WHAT = Described("llama-3.1-8b", "h100")


def measured(random: np.random.Generator) -> pl.DataFrame:
    """Steps of at most one chunk, whose pairs such a log tells."""
    return timed(GPU, design(random).filter(pl.col("prefills") < 2), 0.01, random)


def forward_pass_log(folder: Path, steps: pl.DataFrame) -> Path:
    """What an engine would have logged of these steps; chunks are whole prompts or one chunk."""
    path = folder / "metrics.jsonl"
    with path.open("w") as file:
        for step in steps.iter_rows(named=True):
            chunks, tokens = step["prefills"], step["prefill_tokens"]
            record = {
                "wall_time": step["time_s"],
                "num_prefill_requests": chunks,
                "sum_prefill_tokens": tokens,
                "var_prefill_length": 0.0,
                "sum_prefill_kv_tokens": step["prefill_context_tokens"] - tokens,
                "num_decode_requests": step["decodes"],
                "sum_decode_kv_tokens": step["decode_context_tokens"],
                "var_decode_kv_tokens": 0.0,
            }
            file.write(json.dumps(record) + "\n")
    return path


def test_forward_pass_metrics_give_back_the_cost_they_were_made_with(tmp_path: Path):
    random = np.random.default_rng(5)
    steps = measured(random)
    log = forward_pass_log(tmp_path, steps)
    profile, fit = profile_from_steps(log, tmp_path / "p.yaml", WHAT)
    assert load_profile(tmp_path / "p.yaml").cost == profile.cost
    assert profile.measured
    assert fit.report.all.median < 0.02
    kept = load_steps(tmp_path / "p.yaml")
    assert kept is not None
    assert kept.height == steps.height
    told = predicted_s(profile.cost_model(async_scheduling=False), kept)
    assert np.median(np.abs(told / kept["time_s"].to_numpy() - 1)) < 0.02


def test_request_logs_say_themselves_what_ran(shared: Path, tmp_path: Path):
    log = shared / "ground-truth" / "rtx4090-llama-3.1-8b-vllm" / "per_request.csv"
    profile, fit = profile_from_requests([log], tmp_path / "p.yaml", Described())
    assert (profile.gpu, profile.shape.name, profile.cost.kind) == (
        "rtx-4090",
        "llama-3.1-8b",
        "linear",
    )
    assert fit.held_out.median < 0.02
    assert "TTFT was not fitted" in load_profile(tmp_path / "p.yaml").note


def test_what_is_not_said_is_asked_for(tmp_path: Path):
    log = forward_pass_log(tmp_path, design(np.random.default_rng(1)))
    for what, message in (
        (Described(gpu="h100"), "--model: is missing"),
        (Described(model="llama-3.1-8b"), "--gpu: is missing"),
        (Described("llama-3.1-8b", "unheard-of"), "or state its memory"),
    ):
        with pytest.raises(ConfigError, match=message):
            profile_from_steps(log, tmp_path / "p.yaml", what)
    assert not list(tmp_path.glob("p.*"))


def test_from_the_command_line(kvcast: Run, tmp_path: Path):
    random = np.random.default_rng(6)
    log = forward_pass_log(tmp_path, measured(random))
    described = ("--model", "llama-3.1-8b", "--gpu", "h100", "--out", "p.yaml")
    code, out, err = kvcast("calibrate", "--from-steps", log, *described)
    assert (code, err) == (0, "")
    assert "error of held-out steps, all: median" in out
    assert kvcast("profile", "show", "p.yaml")[0] == 0
    assert kvcast("calibrate", "--from-steps", log, "--set", "x=1", *described)[0] == 2
    both = ("--from-steps", log, "--from-requests", log)
    code, _, err = kvcast("calibrate", *both, *described)
    assert code == 2
    assert err == ("error: --from-tables, --from-steps, --from-requests: expected one of them\n")


def test_tables_from_the_command_line(kvcast: Run, tmp_path: Path):
    from tests.calibration.imports.test_llmservingsim import write_bundle

    folder = write_bundle(tmp_path / "bundle")
    sizes = "graph_sizes=[1,2,4]"
    code, out, err = kvcast("calibrate", "--from-tables", folder, "--set", sizes, "--out", "p.yaml")
    assert (code, err) == (0, "")
    assert "no CPU time, no gaps between kernels" in out
    assert load_profile(tmp_path / "p.yaml").cost.graph_sizes == (1, 2, 4)
    for wrong, said in (
        (("--set", "graph_size=1"), "did you mean graph_sizes?"),
        (("--memory", "lots"), "--memory lots: expected a size above 0"),
        (("--tp", "0"), "--tp 0: expected a whole number"),
    ):
        code, _, err = kvcast("calibrate", "--from-tables", folder, *wrong, "--out", "q.yaml")
        assert (code, said in err, err.count("\n")) == (2, True, 1)
