"""`kvcast` as a user types it: what is wrong is one line, exit code 2, and nothing half-written."""

import errno
import json
import os
import signal
import time
from itertools import chain
from pathlib import Path

import pytest

from calibration.profiles import shipped_profiles
from sim.folder import FILES
from tests.commands import Run, below, refused, start

HEAD = "arrival_s,prompt_tokens,output_tokens\n"
GOOD = HEAD + "0,10,5\n0.5,20,3\n1,10,1\n"


def write(**files: str) -> None:
    for name, text in files.items():
        Path(name.replace("_", ".")).write_text(text)


# ---- what works


def test_help_and_version(kvcast: Run):
    code, out, err = kvcast("--help")
    assert (code, err) == (0, "")
    assert all(command in out for command in ("replay", "trace", "profile"))
    code, out, err = kvcast("--version")
    assert (code, err) == (0, "")
    assert out.startswith("kvcast ")
    code, out, err = kvcast()
    assert code == 2
    assert "Usage" in out + err


def test_a_replay_says_and_writes(kvcast: Run, tmp_path: Path):
    write(good_csv=GOOD)
    code, out, err = kvcast("replay", "--trace", "good.csv", "--slo", "ttft=1s", "--out", "a/b")
    assert (code, err) == (0, "")
    assert "3 finished" in out
    assert "NOT MEASURED" in out
    assert {path.name for path in Path("a/b").iterdir()} == FILES
    assert below(tmp_path) == {"good.csv", "a", "a/b", *(f"a/b/{name}" for name in FILES)}
    summary = json.loads(Path("a/b/summary.json").read_text())
    assert summary["goodput"]["slo"] == {"ttft_s": 1.0}


def test_options_may_stand_in_any_order(kvcast: Run):
    write(good_csv=GOOD, run_yaml="cluster: {replicas: 2}\n")
    options = ["--trace", "good.csv"], ["--seed", "4"], ["--slo", "tpot=50ms"], ["--out", "a"]
    one = kvcast("replay", "run.yaml", *chain(*options))
    first = {path.name: path.read_bytes() for path in Path("a").iterdir()}
    other = kvcast("replay", *chain(*reversed(options)), "run.yaml")
    assert one == other
    assert one[0] == 0
    assert {path.name: path.read_bytes() for path in Path("a").iterdir()} == first


def test_a_run_folder_repeats_itself(kvcast: Run):
    write(good_csv=GOOD)
    assert kvcast("replay", "--trace", "good.csv", "--preset", "static", "--out", "a")[0] == 0
    assert kvcast("replay", "a/scenario.yaml", "--out", "b")[0] == 0
    for name in FILES:
        assert (Path("a") / name).read_bytes() == (Path("b") / name).read_bytes(), name


def test_what_is_not_wanted_is_not_written(kvcast: Run):
    write(good_csv=GOOD)
    kvcast("replay", "--trace", "good.csv", "--no-report", "--no-segments", "--out", "a")
    assert {p.name for p in Path("a").iterdir()} == {
        "scenario.yaml",
        "summary.json",
        "requests.parquet",
    }


def test_every_profile_is_listed_with_its_whole_name(kvcast: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = kvcast("profile", "list")
    assert code == 0
    assert [name for name in shipped_profiles() if name not in out] == []


@pytest.mark.parametrize(
    ("limit", "says"),
    [
        ([], "prompt leaves no room below max_model_len = 131072"),
        (["--set", "scheduler.max_model_len=50"], "prompt leaves no room below max_model_len = 50"),
        (["--set", "memory.num_blocks=5"], "prompt leaves no room below max_model_len = 64"),
        (
            ["--set", "scheduler.chunked_prefill=false"],
            "prompt leaves no room below max_model_len = 8192",
        ),
    ],
)
def test_a_prompt_that_can_never_be_served_is_rejected_and_said(
    kvcast: Run, limit: list[str], says: str
):
    write(long_csv=HEAD + "0,10,5\n1,200000,5\n2,10,5\n")
    code, out, err = kvcast("replay", "--trace", "long.csv", *limit)
    assert (code, err) == (0, "")
    assert "2 finished, 1 rejected" in out
    assert f"warning: 1 requests rejected: the {says}" in " ".join(out.split())


def test_an_answer_cut_short_is_said(kvcast: Run):
    write(good_csv=GOOD)
    _, out, _ = kvcast("replay", "--trace", "good.csv", "--set", "scheduler.max_model_len=22")
    assert "warning: 1 answers cut short at 22 tokens" in out
    assert "2 finished, 1 truncated" in out


# ---- uncertainty


ASSUMED = ("--trace", "good.csv", "--set", "uncertainty.cost_share=0.1")


@pytest.mark.parametrize(
    ("stated", "runs"),
    [
        (("--uncertainty", *ASSUMED), 20),
        ((*ASSUMED, "--uncertainty"), 20),
        (("--uncertainty", "7", *ASSUMED), 7),
        (("--uncertainty=8", "--jobs", "2", *ASSUMED), 8),
        (("--set", "uncertainty.replications=5", *ASSUMED), 5),
    ],
)
def test_uncertainty_may_be_stated_with_or_without_a_number(
    kvcast: Run, stated: tuple[str, ...], runs: int
):
    write(good_csv=GOOD)
    code, out, err = kvcast("replay", *stated, "--out", "out")
    assert (code, err) == (0, "")
    assert f"95 % intervals, {runs} replications: all step times, assumed known within" in out
    assert json.loads(Path("out/summary.json").read_text())["uncertainty"]["replications"] == runs
    assert kvcast("replay", "out/scenario.yaml", "--out", "again")[0] == 0
    for name in FILES:
        assert (Path("out") / name).read_bytes() == (Path("again") / name).read_bytes(), name


@pytest.mark.parametrize(
    ("stated", "says"),
    [
        (
            ["--uncertainty", "4"],
            "command line: uncertainty.replications: must be at least 5, got 4",
        ),
        (
            ["--uncertainty=x"],
            "command line: uncertainty.replications: must be a whole number, got 'x'",
        ),
        (["--uncertainty", "x"], "x: cannot be read: No such file or directory"),
        (
            ["--set", "noise=true"],
            "noise: profile h200-llama-3.1-8b has no measured scatter of step times to draw from;"
            " expected a calibrated profile, or noise: false",
        ),
    ],
)
def test_uncertainty_that_cannot_be(kvcast: Run, tmp_path: Path, stated: list[str], says: str):
    assert refused(kvcast("replay", "--out", "out", *stated)) == says
    assert below(tmp_path) == set()


def test_replications_need_a_process(kvcast: Run):
    said = refused(kvcast("replay", "--uncertainty", "--jobs", "0"))
    assert said.startswith("Invalid value for '--jobs'")


def test_a_profile_without_intervals_says_what_to_do(kvcast: Run):
    said = refused(kvcast("replay", "--uncertainty", "--profile", "analytic:h200/llama-3.1-8b"))
    assert said.startswith("uncertainty: profile analytic:h200/llama-3.1-8b: ")
    assert "no intervals" in said
    assert said.endswith("or state how well step times are known: uncertainty.cost_share")


# ---- traces


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (HEAD + "0,10,5\n1,x,5\n", "t.csv:3: prompt_tokens is 'x'; expected a whole number >= 1"),
        (HEAD + "0,10\n", "t.csv:2: the row is '0,10'; expected 3 columns, got 2"),
        (HEAD + "5,10,5\n1,10,5\n", "t.csv:3: arrival_s is '1.0'; expected no less than"),
        (HEAD + "-1,10,5\n", "t.csv:2: arrival_s is '-1.0'; expected a finite number >= 0"),
        (HEAD + "nan,10,5\n", "t.csv:2: arrival_s is 'nan'; expected a finite number"),
        (HEAD + "0,0,5\n", "t.csv:2: prompt_tokens is '0'; expected a whole number >= 1"),
        (HEAD + "0,10,0\n", "t.csv:2: output_tokens is '0'; expected a whole number >= 1"),
        (HEAD, "t.csv: no requests"),
        ("", "t.csv: no requests: the file is empty"),
        ("a,b\n1,2\n", "t.csv:1: unknown format; it begins 'a,b'; known: parquet"),
    ],
)
@pytest.mark.parametrize("command", ["replay", "info", "convert"])
def test_a_bad_trace(kvcast: Run, tmp_path: Path, command: str, text: str, says: str):
    write(t_csv=text)
    words = {
        "replay": ["replay", "--trace", "t.csv", "--out", "new"],
        "info": ["trace", "info", "t.csv"],
        "convert": ["trace", "convert", "t.csv", "new.parquet"],
    }
    assert refused(kvcast(*words[command])).startswith(says)
    assert below(tmp_path) == {"t.csv"}


def test_bad_rows_may_be_skipped(kvcast: Run):
    write(t_csv=HEAD + "0,10,5\n1,x,5\n2,10,5\n")
    for asked in (["--skip-bad-rows"], ["--set", "trace.skip_bad_rows=true"]):
        code, out, err = kvcast("replay", "--trace", "t.csv", *asked)
        assert (code, err) == (0, "")
        assert "2 finished" in out
        assert "warning: 1 malformed rows of the trace skipped" in out


def test_a_trace_of_bad_rows_only_is_empty(kvcast: Run):
    write(t_csv=HEAD + "1,x,5\n")
    said = refused(kvcast("replay", "--trace", "t.csv", "--skip-bad-rows", "--out", "new"))
    assert said == "t.csv: no requests (1 skipped, 0 failed)"
    assert not Path("new").exists()


@pytest.mark.parametrize(
    ("trace", "says"),
    [
        ("none.csv", "none.csv: no such file"),
        (".", ".: cannot be read: Is a directory"),
        ("sample:caht", "sample:caht: no such sample; there are: agentic, chat"),
        ("", "command line: trace.path: must not be empty, got ''"),
    ],
)
def test_a_trace_that_is_not_there(kvcast: Run, tmp_path: Path, trace: str, says: str):
    assert refused(kvcast("replay", "--trace", trace, "--out", "new")) == says
    assert below(tmp_path) == set()


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_trace_that_may_not_be_read(kvcast: Run):
    write(t_csv=GOOD)
    Path("t.csv").chmod(0)
    assert (
        refused(kvcast("replay", "--trace", "t.csv")) == "t.csv: cannot be read: Permission denied"
    )


# ---- settings


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("--replicas 0", "command line: cluster.replicas: must be at least 1, got 0"),
        ("--replicas x", "command line: cluster.replicas: must be a whole number, got 'x'"),
        ("--seed -1", "command line: seed: must be at least 0, got -1"),
        ("--set cluster.replica=2", "command line: cluster.replica: unknown setting; did you"),
        ("--set replicas=2", "command line: replicas: unknown setting; did you mean cluster.repl"),
        ("--router least-request", "command line: cluster.router: unknown router 'least-request'"),
        ("--preset vlm", "command line: preset: unknown preset 'vlm'; did you mean vllm?"),
        ("--set scheduler.order=fcfss", "command line: scheduler.order: unknown policy 'fcfss'"),
        ("--set cache.eviction=lruu", "command line: cache.eviction: unknown policy 'lruu'; did"),
        (
            "--set trace.format=csvv",
            "sample:chat: unknown format 'csvv'; known: parquet, csv, azure",
        ),
        ("--set seed", "--set seed: expected NAME=VALUE, like scheduler.max_num_seqs=256"),
        ("--set seed=[", "--set seed=[: the value is no YAML"),
        ("--slo ttft=1", "--slo ttft=1: 'ttft=1' is no limit; expected ttft, tpot or e2e with a"),
        ("--slo itl=1s", "--slo itl=1s: 'itl=1s' is no limit"),
        ("--slo ttft=1.2.3s", "--slo ttft=1.2.3s: 'ttft=1.2.3s' is no limit"),
        ("--slo ttft=-1s", "--slo ttft=-1s: 'ttft=-1s' is no limit"),
        ("--slo ttft=0s", "command line: slo.ttft_s: must be above 0, got 0.0"),
        ("--slo ttft=1s,ttft=2s", "--slo ttft=1s,ttft=2s: ttft is limited twice"),
        ("--op foo:a=1", "--op foo:a=1: unknown operation 'foo'; known: window, thin, tile"),
        ("--op window:start=1", "--op window:start=1: window.start: unknown setting"),
        ("--op window:end_s=0", "--op window:end_s=0: window.end_s: must be above 0, got '0'"),
        ("--set scheduler.prefill_first=true", "command line: scheduler: prefill_first: needs"),
        ("--set cache.allocation=contiguous", "command line: cache: allocation: contiguous mem"),
        ("--set end_s=1 --set warmup_s=2", "command line: end_s must be after warmup_s"),
        ("--set trace.rate_per_s=3", "sample:chat: rate_per_s is 3.0, but the trace has arrivals"),
        (
            "--set scheduler.max_model_len=200000",
            "scheduler.max_model_len: 200,000 is more than the model's 131,072 (llama-3.1-8b)",
        ),
        (
            "--set scheduler.max_model_len=1000 --set memory.num_blocks=10",
            "scheduler.max_model_len: 1,000 is more than the 144 tokens of a replica's 9 KV blocks",
        ),
        ("--profile h200-lama-3.1-8b", "profile 'h200-lama-3.1-8b' is neither a file nor shipped;"),
        ("--profile analytic:h20/llama-3.1-8b", "profile analytic:h20/llama-3.1-8b: gpu 'h20' is"),
        ("--profile analytic:h200/lama-3.1-8b", "profile analytic:h200/lama-3.1-8b: model 'lama"),
        ("--set model=llama-3.1-70b", "profile h200-llama-3.1-8b: is of model llama-3.1-8b; asked"),
        (
            "--profile analytic:l4/llama-3.1-70b",
            "llama-3.1-70b (bf16, tp 1) does not fit: weights 131.42 GiB + activation peak",
        ),
        ("--foo", "No such option: --foo"),
        ("--seed", "Option '--seed' requires an argument"),
        ("a.yaml b.yaml", "Got unexpected extra argument"),
    ],
)
def test_a_bad_setting(kvcast: Run, tmp_path: Path, arguments: str, says: str):
    assert refused(kvcast("replay", "--out", "new", *arguments.split())).startswith(says)
    assert below(tmp_path) == set()


@pytest.mark.parametrize(
    ("arguments", "nearest"),
    [
        ("--router least-request", "least-requests"),
        ("--profile h200-lama-3.1-8b", "h200-llama-3.1-8b"),
        ("--profile analytic:h20/llama-3.1-8b", "h200"),
        ("--profile analytic:h200/lama-3.1-8b", "llama-3.1-8b"),
        ("--set model=lama-3.1-8b", "llama-3.1-8b"),
        ("--preset vllm-v1", "vllm-v0"),
    ],
)
def test_the_nearest_name_is_offered(kvcast: Run, arguments: str, nearest: str):
    said = refused(kvcast("replay", *arguments.split()))
    assert f"did you mean {nearest}" in said
    assert "known: " in said or "shipped: " in said


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("- a\n", "run.yaml: expected a mapping of settings, got ['a']"),
        ("a: [1\n", "run.yaml: is no YAML: "),
        ("cluster: {replica: 2}\n", "run.yaml: cluster.replica: unknown setting; did you mean"),
        ("scheduler: {prefill_first: true}\n", "run.yaml: scheduler: prefill_first: needs chunk"),
    ],
)
def test_a_bad_scenario_file(kvcast: Run, tmp_path: Path, text: str, says: str):
    write(run_yaml=text)
    assert refused(kvcast("replay", "run.yaml", "--out", "new")).startswith(says)
    assert below(tmp_path) == {"run.yaml"}


def test_a_scenario_file_that_is_not_there(kvcast: Run):
    said = refused(kvcast("replay", "none.yaml"))
    assert said == "none.yaml: cannot be read: No such file or directory"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("replayy", "No such command 'replayy'. Did you mean 'replay'?; see 'kvcast --help'"),
        ("profile show h200", "profile 'h200' is neither a file nor shipped"),
        ("profile show analytic:l4/llama-3.1-70b", "llama-3.1-70b (bf16, tp 1) does not fit"),
        ("profile list x", "Got unexpected extra argument"),
        ("trace convert sample:chat new.txt", "new.txt: cannot tell the format; end the name in"),
        ("trace make new.csv", "kvcast trace make: arrivals: is required"),
        ("trace make", "Missing argument"),
        ("trace info sample:chat --hash-tokens x", "Invalid value for '--hash-tokens'"),
    ],
)
def test_the_other_commands_err_alike(kvcast: Run, tmp_path: Path, arguments: str, says: str):
    assert refused(kvcast(*arguments.split())).startswith(says)
    assert below(tmp_path) == set()


# ---- the folder


def test_a_file_is_no_folder(kvcast: Run):
    write(out="mine", good_csv=GOOD)
    said = refused(kvcast("replay", "--trace", "good.csv", "--out", "out"))
    assert said == "out: is a file; expected a folder to write"
    said = refused(kvcast("replay", "--trace", "good.csv", "--out", "out/new"))
    assert said == "out/new: cannot be written: Not a directory"
    assert Path("out").read_text() == "mine"


@pytest.mark.parametrize(
    ("held", "named"),
    [
        (["notes.txt"], "notes.txt"),
        (["scenario.yaml"], "scenario.yaml"),
        (["scenario.yaml", "summary.json", "notes.txt"], "notes.txt"),
        (["scenario.yaml", "data/trace.csv"], "data"),
    ],
)
def test_what_kvcast_did_not_write_is_never_replaced(
    kvcast: Run, tmp_path: Path, held: list[str], named: str
):
    write(good_csv=GOOD)
    for name in held:
        path = Path("out") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    before = below(tmp_path)
    said = refused(kvcast("replay", "--trace", "good.csv", "--out", "out"))
    assert said.startswith(f"out: holds {named}, which is not from an earlier run; expected a new")
    assert below(tmp_path) == before


def test_an_earlier_run_is_replaced_and_only_when_the_new_one_is_whole(kvcast: Run, tmp_path: Path):
    write(good_csv=GOOD, bad_csv=HEAD + "0,10,5\n1,x,5\n")
    kvcast("replay", "--trace", "good.csv", "--out", "out")
    before = {path.name: path.read_bytes() for path in Path("out").iterdir()}
    refused(kvcast("replay", "--trace", "bad.csv", "--out", "out"))
    assert {path.name: path.read_bytes() for path in Path("out").iterdir()} == before
    code, _, _ = kvcast("replay", "--trace", "good.csv", "--no-report", "--out", "out")
    assert code == 0
    assert not Path("out/report.html").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"out", "good.csv", "bad.csv"}


def test_a_link_to_a_folder_stays_a_link(kvcast: Run):
    write(good_csv=GOOD)
    Path("real").mkdir()
    Path("out").symlink_to("real")
    assert kvcast("replay", "--trace", "good.csv", "--out", "out")[0] == 0
    assert Path("out").is_symlink()
    assert Path("real/summary.json").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_folder(kvcast: Run):
    write(good_csv=GOOD)
    Path("ro").mkdir(mode=0o500)
    said = refused(kvcast("replay", "--trace", "good.csv", "--out", "ro/new"))
    assert said == "ro/new: cannot be written: Permission denied"


@pytest.mark.parametrize("problem", [errno.ENOSPC, errno.EACCES, errno.EROFS])
@pytest.mark.parametrize(
    "at", ["sim.folder.to_yaml", "sim.folder._draw", "engine.frames.pq.ParquetWriter"]
)
def test_a_disk_that_refuses(
    kvcast: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, problem: int, at: str
):
    def fail(*_: object, **__: object) -> None:
        raise OSError(problem, os.strerror(problem))

    write(good_csv=GOOD)
    monkeypatch.setattr(at, fail)
    said = refused(kvcast("replay", "--trace", "good.csv", "--out", "a/b"))
    assert said == f"a/b: cannot be written: {os.strerror(problem)}"
    assert below(tmp_path) == {"good.csv"}


# ---- the process


def test_a_process_ends_with_the_code_and_one_line(tmp_path: Path):
    with start("replay", "--trace", "none.csv", "--out", "new", folder=tmp_path) as process:
        assert process.communicate(timeout=60) == ("", "error: none.csv: no such file\n")
    assert process.returncode == 2
    with start("profile", "list", folder=tmp_path) as process:
        out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert "h200-llama-3.1-8b" in out


def test_ctrl_c_leaves_nothing_behind(tmp_path: Path):
    words = ["replay", "--op", "tile:copies=2000", "--out", "a/b"]
    with start(*words, folder=tmp_path) as process:
        try:
            deadline = time.monotonic() + 60
            while not list(tmp_path.glob("a/.b.*.part/*")) and time.monotonic() < deadline:
                time.sleep(0.02)
            time.sleep(0.1)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    assert out == ""
    assert err.split("\n")[-2:] == ["interrupted; nothing was written", ""]
    assert "Traceback" not in err
    assert below(tmp_path) == set()
