"""`kvcast engine ...` as a user types it, and that the rest of kvcast does without torch."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from engine.replay import FILES
from tests.commands import ROOT, Run, below, refused
from tests.engine.guard.own import QUEUE, own
from tests.engine.toy import save_tokenizer, toy_model

HEAD = "arrival_s,prompt_tokens,output_tokens\n"


DUMMY = ["--set", "weights=dummy", "--set", "device=cpu", "--set", "num_blocks=60"]


# ---- without torch

REPLAY_ONLY = """
import sys
sys.argv = ["kvcast", *{arguments!r}]
from sim.cli import main
try:
    main()
except SystemExit as left:
    code = left.code
print(code, sorted({{"torch", "triton", "tokenizers"}} & set(sys.modules)), file=sys.stderr)
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["engine", "--help"],
        ["engine", "replay", "--help"],
        ["replay", "--trace", "t.csv"],
        ["engine", "replay", "--model", "none"],
    ],
    ids=" ".join,
)
def test_torch_is_left_alone_until_a_model_is_loaded(tmp_path: Path, arguments: list[str]):
    (tmp_path / "t.csv").write_text(HEAD + "0,10,5\n")
    done = subprocess.run(
        [sys.executable, "-c", REPLAY_ONLY.format(arguments=arguments)],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    code = 2 if "none" in arguments else 0
    assert done.stderr.splitlines()[-1] == f"{code} []", done.stderr


def test_every_module_of_the_torch_free_half_imports_without_torch():
    program = """
import sys, importlib, pathlib
sys.modules["torch"] = None
for path in sorted(pathlib.Path("engine").glob("*.py")):
    importlib.import_module(f"engine.{path.stem}")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_without_torch_the_engine_says_what_to_install(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    program = "import sys; sys.modules['torch'] = None\n" + REPLAY_ONLY.format(
        arguments=["engine", "replay", "--model", "."]
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr.splitlines()[0] == (
        "error: model: needs torch, which is not there: pip install 'kvcast[engine]'"
    )


# ---- what is wrong


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("replay", "command line: model: is required"),
        ("replay --model none", "model: none: no such file or folder; expected a Hugging Face"),
        ("compare --model none", "model: none: no such file or folder; expected a Hugging Face"),
        ("generate --model none --prompt x", "model: none: no such file or folder; expected a"),
        ("generate --model toy", "--prompt: is missing; expected --prompt TEXT or --prompt-file"),
        ("generate --model toy --prompt-file none.txt", "--prompt-file none.txt: cannot be read:"),
        ("generate --model toy --prompt-file b.txt", "--prompt-file b.txt: cannot be read: is no"),
        ("generate --model toy --prompt x --max-tokens 0", "Invalid value for '--max-tokens'"),
        ("generate --model toy --prompt x --temperature -1", "Invalid value for '--temperature'"),
        ("generate --model toy --prompt x --temperature inf", "--temperature: must be a finite"),
        ("replay --model toy --set dtpe=bf16", "command line: dtpe: unknown setting; did you mean"),
        ("replay --model toy --set max_num_seqs=1", "command line: max_num_seqs: unknown setting;"),
        ("replay --model toy --set kv_dtype=int9", "command line: kv_dtype: unknown kv dtype 'in"),
        ("replay --model toy --set trace.pth=x", "command line: trace.pth: unknown setting; did"),
        ("replay --model toy --speed 0", "command line: speed: must be above 0, got 0"),
        ("replay --model toy --speed 2 --asap", "--asap: goes without --speed, got --speed 2"),
        ("replay --model toy --limit 0", "Invalid value for '--limit'"),
        ("replay --model toy --slo ttft=1", "--slo ttft=1: 'ttft=1' is no limit; expected"),
        ("replay --model toy --op cut:a=1", "--op cut:a=1: unknown operation 'cut'; known:"),
        ("replay --model toy --trace none.csv", "none.csv: no such file"),
        ("replay none.yaml", "none.yaml: cannot be read: No such file or directory"),
        ("replay a.yaml", "a.yaml: cache.block_token: unknown setting; did you mean cache.block_"),
        ("replay --model toy --out mine", "mine: holds notes.txt, which is not from an earlier"),
        ("compare --model toy --out rows.txt", "rows.txt: cannot tell the format; end the name"),
        ("compare --model toy --trace sample:caht", "sample:caht: no such sample; there are:"),
        ("replayy", "No such command 'replayy'. Did you mean 'replay'?"),
    ],
)
def test_what_is_wrong_is_one_line_and_leaves_nothing(
    kvcast: Run, tmp_path: Path, arguments: str, says: str
):
    toy_model(Path("toy"))
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("mine")
    Path("b.txt").write_bytes(b"\xff\xfe")
    Path("a.yaml").write_text("model: toy\ncache: {block_token: 4}\n")
    before = below(tmp_path)
    assert refused(kvcast("engine", *arguments.split())).startswith(says)
    assert below(tmp_path) == before


# ---- with torch


def test_a_trace_is_replayed_and_compared_on_a_real_model(kvcast: Run):
    pytest.importorskip("torch")
    Path("t.csv").write_text(HEAD + "0,10,5\n0.05,300,5\n0.1,20,3\n0.15,40,9\n")
    model = [toy_model(Path("toy")), *DUMMY]
    code, out, err = kvcast(
        "engine", "replay", "--trace", "t.csv", "--model", *model, "--out", "a/out"
    )
    assert (code, err) == (0, "")
    assert {path.name for path in Path("a/out").iterdir()} == FILES
    assert "toy on cpu" in out
    assert "3 finished, 1 rejected" in out
    assert "1 requests rejected: the prompt leaves no room below max_model_len = 256" in out
    assert re.search(r"FLOP/s .* of peak", out)
    summary = json.loads(Path("a/out/summary.json").read_text())
    assert summary["duration_s"] > 0.15  # it waited for the last one
    assert 0 < summary["engine"]["device_share"] <= 1
    assert 0 < summary["engine"]["roofline"]["ceilings"]["roof_share"] < 1.5
    code, again, _ = kvcast("engine", "replay", "a/out/settings.yaml", "--asap", "--out", "b")
    assert code == 0
    assert "3 finished, 1 rejected" in again
    assert json.loads(Path("b/summary.json").read_text())["speed"] is None
    filled = yaml.safe_load(Path("a/out/settings.yaml").read_text())
    assert (filled["kv_dtype"], filled["kernels"], filled["speed"]) == ("fp32", "torch", 1.0)
    assert filled["scheduler"]["max_model_len"] == 256
    words = ["--limit", "3", "--max-tokens", "4", "--repeats", "1", "--out", "rows.json"]
    code, out, err = kvcast("engine", "compare", "--trace", "t.csv", "--model", *model, *words)
    assert (code, err) == (0, "")
    assert "all 6 variants without quantised KV gave the same answers" in out
    assert "KV in int8: not possible" not in out
    assert "KV in int4: not possible" in out  # heads of 16 channels cannot be packed
    rows = json.loads(Path("rows.json").read_text())
    assert len(rows) == 9


def test_an_order_of_ones_own_serves_a_real_model(kvcast: Run, tmp_path: Path):
    """Last come, first served: of six that arrive at once and run one after the other."""
    pytest.importorskip("torch")
    rows = "".join(f"0,{10 + number},{3 + number}\n" for number in range(6))
    Path("t.csv").write_text(HEAD + rows)
    own(tmp_path, QUEUE.replace("return self.waiting[0]", "return self.waiting[-1]"))
    line = ["engine", "replay", "--trace", "t.csv", "--model", toy_model(Path("toy")), *DUMMY]
    line += ["--set", "scheduler.max_num_seqs=1", "--asap"]
    code, out, err = kvcast(*line, "--policy", "order=mine.py:Mine", "--out", "own")
    assert (code, err) == (0, "")
    assert "6 finished" in out
    settings = yaml.safe_load(Path("own/settings.yaml").read_text())
    assert settings["scheduler"]["order"] == "mine.py:Mine"
    assert kvcast(*line, "--policy", "order=fcfs", "--out", "fcfs")[0] == 0
    ends = [finished(Path(folder)) for folder in ("own", "fcfs")]
    assert ends == [[5, 4, 3, 2, 1, 0], [0, 1, 2, 3, 4, 5]]


def test_what_an_order_of_ones_own_breaks_is_one_line(kvcast: Run, tmp_path: Path):
    pytest.importorskip("torch")
    Path("t.csv").write_text(HEAD + "0,10,5\n0,11,5\n")
    own(tmp_path, QUEUE.replace("return self.waiting[0]", "return None"))
    line = ["engine", "replay", "--trace", "t.csv", "--model", toy_model(Path("toy")), *DUMMY]
    said = refused(kvcast(*line, "--policy", "order=mine.py:Mine", "--out", "out"))
    assert said.startswith("order 'mine.py:Mine': first() returned None; expected one of the ")
    assert not Path("out").exists()
    assert refused(kvcast(*line, "--policy", "order=mime.py:Mine")).endswith(
        "there is no file mime.py"
    )


def finished(folder: Path) -> list[int]:
    """Requests of a run folder in the order of their ends."""
    import polars as pl

    return pl.read_parquet(folder / "requests.parquet").sort("finish_s")["request_id"].to_list()


def test_text_is_generated_from_a_real_model(kvcast: Run):
    pytest.importorskip("torch")
    pytest.importorskip("tokenizers")
    model = ["--model", toy_model(Path("toy")), *DUMMY, "--max-tokens", "6"]
    save_tokenizer(Path("toy"))
    code, alone, err = kvcast("engine", "generate", *model, "--prompt", "w5 w6 w7")
    assert code == 0
    assert re.fullmatch(r"(\s?w\d+){6}\n", alone)
    assert err.startswith("6 tokens in ")
    Path("two.txt").write_text("w1 w2")
    both = ["--prompt", "w5 w6 w7", "--prompt-file", "two.txt"]
    code, out, err = kvcast("engine", "generate", *model, *both)
    assert code == 0
    assert out.splitlines()[0].split() == ["[1]", *alone.split()]
    assert re.fullmatch(r"\[2\](\s*w\d+){6}", out.splitlines()[1])
    sampled = [kvcast("engine", "generate", *model, *both, "--temperature", "1") for _ in "ab"]
    assert sampled[0][1] == sampled[1][1] != out
    other = kvcast("engine", "generate", *model, *both, "--temperature", "1", "--seed", "9")
    assert other[1] != sampled[0][1]
    long = " ".join(["w1"] * 300)
    said = refused(kvcast("engine", "generate", *model, "--prompt", long))
    assert said.startswith("prompt of 300 tokens: the prompt leaves no room below max_model_len")
