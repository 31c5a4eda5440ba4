"""The command, and small calibrations of the real engine."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest
import typer

from calibration.calibrate_cli import calibrate, seconds
from calibration.profiles import load_profile
from calibration.steps import STEP_FRAME
from tests.commands import ROOT
from tests.engine.toy import toy_model
from traces.errors import ConfigError

SMALL = (
    "weights=dummy",
    "num_blocks=80",
    "scheduler.max_num_seqs=8",
    "scheduler.max_num_batched_tokens=128",
    "scheduler.max_model_len=200",
)

PROGRAM = """
import signal; signal.signal(signal.SIGINT, signal.default_int_handler)
import torch; torch.set_num_threads(1)
import typer
from calibration.calibrate_cli import calibrate
app = typer.Typer(); app.command()(calibrate)
app(standalone_mode=False)
"""


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs `kvcast calibrate` in an empty folder; returns what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    app = typer.Typer()
    app.command()(calibrate)

    def run(*arguments: str, small: bool = True) -> str:
        settings = [word for setting in SMALL for word in ("--set", setting)] if small else []
        app([*arguments, *settings], standalone_mode=False)
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize("changes", [{}, {"kv_dtype": "int8"}])
def test_the_real_engine_is_calibrated(tmp_path, command, changes):
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    options = [
        word for name, value in changes.items() for word in (f"--{name.replace('_', '-')}", value)
    ]
    said = command(
        "--model", toy_model(tmp_path / "model"), "--device", "cpu", "--budget", "4s", *options
    )
    assert "error of held-out steps, all: median" in said
    profile = load_profile(tmp_path / "profile.yaml")
    assert profile.measured and profile.kv_dtype == changes.get("kv_dtype", "fp32")
    assert profile.weight_dtype == "fp32" and profile.stated_device is not None
    assert profile.stated_device.memory_bytes_per_s and profile.stated_device.flops_per_s
    assert profile.experiment is not None and profile.experiment.versions["torch"]
    assert profile.validity.max_tokens and profile.validity.max_tokens <= 128
    steps = pl.read_parquet(tmp_path / "profile.steps.parquet")
    assert set(STEP_FRAME) <= set(steps.columns)
    assert (steps["device_s"] > 0).all() and (steps["device_s"] < steps["time_s"]).all()
    assert steps.filter(pl.col("source").str.starts_with("serving")).height > 10
    assert {path.name for path in tmp_path.iterdir()} == {
        "model",
        "profile.yaml",
        "profile.steps.parquet",
    }


def test_ctrl_c_keeps_what_was_measured_and_says_how_to_go_on(tmp_path):
    pytest.importorskip("torch")
    model = toy_model(tmp_path / "model")
    settings = [word for setting in SMALL for word in ("--set", setting)]
    arguments = ["--model", model, "--device", "cpu", "--budget", "10min", *settings]
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        visits = tmp_path / "profile.yaml.part" / "visits.jsonl"
        while not visits.exists() and running.poll() is None:
            time.sleep(0.05)
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=60)
    assert running.returncode == 130, err
    assert out == ""
    kept = "profile.yaml.part is kept: the same command goes on from there"
    assert err == f"interrupted; {kept}\n"
    assert visits.read_text()
    assert not (tmp_path / "profile.yaml").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--model", "nowhere"), "model: nowhere: no such file or folder"),
        (("--model", "model", "--device", "tpu"), "device: must be 'auto', 'cpu' or 'cuda'"),
        (("--model", "model", "--kv-dtype", "fp9"), "unknown kv dtype 'fp9'"),
        (("--model", "model", "--tp", "0"), "tp: must be at least 1, got 0"),
        (("--model", "model", "--budget", "soon"), "--budget soon: expected a time above 0"),
        (("--model", "model", "--budget", "0s"), "--budget 0s: expected a time above 0"),
        (("--model", "model", "--out", "p.json"), "--out p.json: must be a .yaml file"),
        (("--model", "model", "--set", "tqp=2"), "tqp: unknown setting; did you mean tp?"),
        (("--model", "model", "--resume"), "--resume: there is nothing to go on from"),
        (("--budget", "9s"), "model: is required"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(tmp_path, command, options, said):
    pytest.importorskip("torch")
    toy_model(tmp_path / "model")
    with pytest.raises(ConfigError) as refused:
        command(*options)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "profile.yaml").exists()


def test_a_gpu_that_is_not_there_is_missed(tmp_path, command):
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(ConfigError, match="finds no CUDA device"):
        command("--model", toy_model(tmp_path / "model"), "--device", "cuda")


def test_a_folder_without_weights_says_so(tmp_path, command):
    pytest.importorskip("torch")
    with pytest.raises(ConfigError, match="safetensors"):
        command("--model", toy_model(tmp_path / "model"), "--device", "cpu", small=False)


def test_a_kv_format_that_the_model_cannot_have_is_refused(tmp_path, command):
    pytest.importorskip("torch")
    with pytest.raises(ConfigError, match="int4"):
        command("--model", toy_model(tmp_path / "model"), "--device", "cpu", "--kv-dtype", "int4")


@pytest.mark.parametrize(
    ("text", "wanted"), [("180s", 180), ("180", 180), ("1.5min", 90), ("2 h", 7200), (".5s", 0.5)]
)
def test_a_budget_is_a_time(text, wanted):
    assert seconds(text) == wanted
