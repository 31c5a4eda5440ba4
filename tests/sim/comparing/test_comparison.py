"""Settings compared: the same differ by nothing, the better is found, a cell repeats itself."""

import json
import re
import shutil
import signal
import time
from dataclasses import replace
from io import StringIO
from itertools import accumulate
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from rich.console import Console

import sim
from sim.comparing import tables
from sim.comparing.comparison import Comparison, compare
from sim.comparing.folder import FILES, check_folder, write_folder
from sim.comparing.grid import parse_vary, values_of, variants
from sim.comparing.judging import Flip
from sim.comparing.metrics import HIT_RATE
from sim.comparing.page import page
from sim.comparing.tables import comparison_table
from sim.replay import replay
from sim.scenario import load_scenario, scenario_of
from sim.sweep.store import Store
from sim.uncertainty import Figures, figures
from tests.commands import ROOT, Run, below, refused, start
from tests.engine.guard.own import own
from traces.errors import ConfigError

HEAD = "arrival_s,prompt_tokens,output_tokens\n"
GAPS_S = [0.005 if i // 15 % 2 else 0.035 for i in range(120)]
TRACE = HEAD + "".join(
    f"{at_s:.3f},{100 + 37 * i % 900},{5 + i % 60}\n" for i, at_s in enumerate(accumulate(GAPS_S))
)
"""Bursts and calms in turn, so that blocks of it differ in their number of requests."""
COST = {
    "kind": "linear",
    "step_s": 5e-3,
    "prefill_token_s": 4e-5,
    "decode_s": 2e-4,
    "context_token_s": 1e-8,
}
PROFILE = {
    "name": "made-up",
    "measured": True,
    "provenance": "made up",
    "model": "llama-3.1-8b",
    "gpu": "h200",
    "cost": COST,
}
TTFT = "latency.ttft_s.p99"


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(tmp_path)
    Path("t.csv").write_text(TRACE)
    Path("p.yaml").write_text(json.dumps(PROFILE))
    stated = {
        "trace": {"path": "t.csv"},
        "profile": "p.yaml",
        "scheduler": {"max_num_seqs": 12},
        "memory": {"num_blocks": 4000},
    }
    Path("run.yaml").write_text(json.dumps(stated))
    return stated


def compared(base: dict[str, Any], vary: dict[str, Any], **options: Any) -> Comparison:
    return compare(base, vary, **{"replications": 5} | options)


# ---- what it finds


def test_the_same_settings_differ_by_exactly_nothing(base: dict[str, Any]):
    """The eviction of tiers that are not there changes nothing, but is another cell."""
    found = compared(base, {"offload.eviction": ["lru", "fifo"]})
    assert len(found.rows) == len(found.metrics)
    for row in found.rows:
        one = row.difference
        assert (one.difference, one.low, one.high) == (0.0, 0.0, 0.0)
        assert row.verdict == "not distinguishable"
    assert len({json.dumps(figures) for figures in found.entries[0].replications}) == 5


def test_the_better_is_found_better_and_the_worse_worse(base: dict[str, Any]):
    found = compared(base, {"cluster.replicas": [2, 1, 4]}, metrics=[TTFT, "utilization"])
    one, four = (found.row(label, TTFT) for label in ("1", "4"))
    assert one and one.verdict == "worse" and one.difference.low and one.difference.low > 0
    assert four and four.verdict == "better" and four.difference.high and four.difference.high < 0
    busy = found.row("4", "utilization")
    assert busy and busy.verdict == "lower"  # which is neither good nor bad


def test_the_opposite_baseline_gives_the_opposite_verdict(base: dict[str, Any]):
    vary = {"cluster.replicas": [1, 2]}
    one = compared(base, vary, metrics=[TTFT]).rows[0]
    other = compared(base, vary, metrics=[TTFT], baseline={"cluster.replicas": 2}).rows[0]
    assert (one.verdict, other.verdict) == ("better", "worse")
    assert other.entry.variant.label == "1"
    assert one.difference.difference == pytest.approx(-other.difference.difference)


def test_pairs_serve_the_same_requests_and_see_more_than_spreads_do(base: dict[str, Any]):
    """The means' own intervals overlap widely where the paired one is sure."""
    found = compared(base, {"scheduler.max_num_seqs": [12, 11]}, replications=8, metrics=[TTFT])
    one, other = ([f["requests.total"] for f in e.replications] for e in found.entries)
    assert one == other and len(set(one)) > 3
    slow, fast = (found.entries[i].values(TTFT) or [] for i in (1, 0))
    assert min(slow) < max(fast)
    assert found.rows[0].verdict == "worse"


def test_one_run_each_gives_plain_differences(base: dict[str, Any]):
    found = compared(base, {"cluster.replicas": [1, 2]}, replications=1)
    assert not found.spread and found.drawn == []
    for row in found.rows:
        assert row.verdict == "" and row.difference.low is None and row.adjusted is None
    mine = found.entries[1].values(TTFT)
    itself = replay(scenario_of(base | {"cluster": {"replicas": 2}}))
    assert mine == [figures(itself.summary)[TTFT]]


def test_the_run_itself_is_what_replay_gives(base: dict[str, Any]):
    found = compared(base, {"cluster.router": ["random", "round-robin"], "cluster.replicas": [3]})
    for entry in found.entries:
        assert entry.variant.scenario is not None
        assert entry.itself == figures(replay(entry.variant.scenario).summary)


def test_a_curve_compares_at_each_of_its_values(base: dict[str, Any]):
    found = compared(base, {"cluster.replicas": [1, 2]}, curve={"load": [2, 0.25, 1]})
    assert found.ats == (0.25, 1, 2)
    assert [(e.variant.at, e.variant.label) for e in found.entries] == [
        (at, label) for at in (0.25, 1, 2) for label in ("1", "2")
    ]
    lengths = [found.entry("1", at).itself or {} for at in found.ats]
    totals = [one["requests.total"] for one in lengths]
    assert totals == [120] * 3
    waits = [one[TTFT] for one in lengths]
    assert waits == sorted(waits) and waits[0] < waits[2] / 2
    # the same blocks at every load
    fast, slow = (
        [f["requests.total"] for f in found.entry("1", at).replications] for at in (2, 0.25)
    )
    assert fast == slow and len(set(fast)) > 1


def test_a_load_of_one_changes_nothing(base: dict[str, Any]):
    plain = compared(base, {"cluster.replicas": [1]}, replications=1)
    scaled = compared(base, {"cluster.replicas": [1]}, curve={"load": [1]}, replications=1)
    assert scaled.entries[0].itself == plain.entries[0].itself


def test_a_load_comes_after_the_other_operations():
    window = {"window": {"start_s": 1.0, "end_s": 5.0}}
    stated = {"trace": {"operations": [window]}}
    (made,) = variants(stated, {"load": [2]})
    assert made.scenario == scenario_of(
        {"trace": {"operations": [window, {"compress_time": {"factor": 2}}]}}
    )


def test_prefix_hits_are_shown_where_eviction_is_varied(base: dict[str, Any]):
    found = compared(base, {"cache.eviction": ["lru", "fifo"]}, replications=1, metrics=[TTFT])
    assert found.metrics == (TTFT, HIT_RATE)


def test_goodput_is_shown_where_there_are_objectives(base: dict[str, Any]):
    stated = base | {"slo": {"ttft_s": 1}}
    found = compared(stated, {"cluster.replicas": [1, 2]}, replications=1)
    assert "goodput.share" in found.metrics


def test_routers_draw_anew_in_every_replication(base: dict[str, Any]):
    """All else is alike: the trace as it is, and costs known to a hair."""
    stated = base | {
        "uncertainty": {"cost_share": 1e-12},
        "cluster": {"replicas": 3, "router": "random"},
    }
    found = compared(stated, {"scheduler.max_num_seqs": [12]}, traffic="same")
    assert len({round(f[TTFT], 4) for f in found.entries[0].replications}) == 5


def test_assumed_costs_are_drawn_too(base: dict[str, Any]):
    stated = base | {"uncertainty": {"cost_share": 0.2}}
    found = compared(stated, {"cluster.replicas": [1, 2]}, traffic="same")
    assert found.drawn == [
        "all step times, assumed known within 20 %",
        "routers' random numbers",
    ]
    assert len({f[TTFT] for f in found.entries[0].replications}) == 5
    assert len({f["requests.total"] for f in found.entries[0].replications}) == 1


# ---- cells that fail


def test_a_combination_that_cannot_be_is_told_in_its_place(base: dict[str, Any]):
    found = compared(
        base,
        {"cache.allocation": ["paged", "contiguous"], "cache.prefix_caching": [True, False]},
        replications=2,
    )
    (failed,) = found.failed
    assert failed.variant.label == "contiguous · true"
    assert "contiguous memory shares nothing" in failed.error
    assert len({row.entry.variant.label for row in found.rows}) == 2


def test_a_cell_that_breaks_leaves_the_others_alone(base: dict[str, Any]):
    found = compared(base, {"trace.path": ["t.csv", "gone.csv"]}, replications=2)
    (failed,) = found.failed
    assert "gone.csv" in failed.error
    assert found.entries[0].replications and not found.rows
    assert "failed" in page(found)


def test_a_broken_baseline_leaves_figures_and_a_warning(base: dict[str, Any]):
    found = compared(base, {"trace.path": ["gone.csv", "t.csv"]}, replications=2)
    assert not found.rows and found.entries[1].itself
    assert any("the baseline gone.csv failed" in text for text in found.warnings)


BROKEN = """
class Mine:
    def __init__(self, view):
        self.waiting = []

    def add(self, seq, again):
        if seq.request.request_id == 30:
            raise LookupError("no such class")
        self.waiting.append(seq)

    def first(self):
        return self.waiting[0]

    def remove(self, seq):
        self.waiting.remove(seq)
"""


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_policy_that_raises_fails_its_cell_alone(
    kvcast: Run, base: dict[str, Any], tmp_path: Path, jobs: str
):
    """The broken one is in the middle, so that another comes after it."""
    own(tmp_path, BROKEN)
    code, out, err = kvcast(
        *("compare", "run.yaml", "--policy", "fcfs", "--policy", "mine.py:Mine"),
        *("--policy", "vtc", "--replications", "2", "--jobs", jobs, "--out", "out"),
    )
    assert (code, err) == (1, "")
    said = " ".join(out.split())
    assert "failed: scheduler.order=mine.py:Mine: order 'mine.py:Mine': add() raised" in said
    assert "LookupError: no such class in line 8, at request 30, at " in said
    good, broken, other = json.loads(Path("out/comparison.json").read_text())["cells"]
    assert broken["itself"] is None and "no such class" in broken["error"]
    for one in (good, other):
        assert one["error"] is None and len(one["replications"]) == 2
    assert {row["cell"] for row in cells_csv("out")} == {"fcfs", "mine.py:Mine", "vtc"}


def cells_csv(folder: str) -> list[dict[str, Any]]:
    return pl.read_csv(Path(folder) / "cells.csv").to_dicts()


# ---- nothing to compare


def test_a_curve_alone_is_shown_with_intervals_and_compared_with_nothing(
    kvcast: Run, base: dict[str, Any]
):
    line = ("compare", "run.yaml", "--curve", "scheduler.max_num_seqs=8,12", "--metric", TTFT)
    code, out, err = kvcast(*line, "--replications", "3", "--out", "out")
    assert (code, err) == (0, "")
    said = " ".join(out.split())
    assert "One scenario at 2 values of scheduler.max_num_seqs, 3 replications each" in said
    assert "Nothing is varied, so nothing is compared; --vary" in said
    assert "comparisons together" not in said and "baseline" not in said
    assert "max_num_seqs mean 95 % interval" in said and "verdict" not in said
    text = Path("out/comparison.html").read_text().partition("<body>")[2].split("<script>")[0]
    assert "baseline" not in text and "as stated" not in text and "not distinguish" not in text
    code, out, _ = kvcast(*line, "--replications", "1")
    assert code == 0 and "One run at each value: " in " ".join(out.split())


def test_a_setting_of_one_value_has_no_column(base: dict[str, Any]):
    found = compared(
        base, {"cluster.replicas": [1, 2], "scheduler.order": ["fcfs"]}, metrics=[TTFT]
    )
    assert tables.head(found)[:2] == ["replicas", "mean"]
    assert [cells[0] for cells, _ in tables.rows(found, TTFT)] == ["1", "2"]
    assert tables.design(found).startswith(
        "2 settings of cluster.replicas with scheduler.order=fcfs, "
    )
    assert '<th class="set">order</th>' not in page(found)
    assert (found.name, found.labels, found.baseline) == ("cluster.replicas", ["1", "2"], "1")
    assert found.cells["scheduler.order"].unique().to_list() == ["fcfs"]
    assert "The verdict holds with 95 %." in tables.method(found)


def test_whole_numbers_of_a_curve_stay_whole(base: dict[str, Any]):
    curve = {"scheduler.max_num_seqs": [8, 12]}
    found = compared(base, {"cluster.replicas": [1, 2]}, curve=curve, replications=2)
    for frame in (found.cells, found.differences):
        assert frame.schema["scheduler.max_num_seqs"] == pl.Int64()
        assert set(frame["scheduler.max_num_seqs"]) == {8, 12}
    mixed = compared(base, {"cluster.replicas": [1]}, curve={"load": [1, 0.5]}, replications=1)
    assert mixed.cells["load"].to_list() == [0.5, 1.0]


def test_in_text_a_comparison_is_one_short_line(base: dict[str, Any]):
    found = compared(base, {"cluster.replicas": [1, 2]}, replications=2)
    assert repr(found) == (
        "Comparison(name='cluster.replicas', baseline='1', replications=2, level=0.95)"
    )


# ---- settings


def test_presets_that_are_varied_do_not_stick():
    static = scenario_of({"preset": "static", "cluster": {"replicas": 3}})
    made = variants(values_of(static, ["preset"]), {"preset": ["static", "vllm"]})
    assert made[0].scenario == static
    assert made[1].scenario == scenario_of({"preset": "vllm", "cluster": {"replicas": 3}})


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("a.b=lru,fifo", ("lru", "fifo")),
        ("a=1000,2000", (1000, 2000)),
        ("a=noisy-sjf:error=0.5,fcfs", ("noisy-sjf:error=0.5", "fcfs")),
        ("a=null,true", (None, True)),
        ("a=[1, 2],[]", ([1, 2], [])),
        ("a=[{limit: {count: 5}}],x", ([{"limit": {"count": 5}}], "x")),
    ],
)
def test_values_are_read_as_yaml(text: str, values: tuple[Any, ...]):
    assert parse_vary(text)[1] == values


# ---- folders


VARY = ("--vary", "cluster.replicas=1,2", "--vary", "cluster.router=round-robin,random")
QUICK = ("--replications", "3", "--metric", TTFT)


def test_a_second_run_computes_nothing_and_gives_the_same_bytes(
    kvcast: Run, base: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    puts: list[str] = []
    put = Store.put

    def counted(self: Store, key: str, figures: Figures, cell: str) -> None:
        puts.append(key)
        put(self, key, figures, cell)

    monkeypatch.setattr(Store, "put", counted)
    code, first, err = kvcast("compare", "run.yaml", *VARY, *QUICK, "--out", "a")
    assert (code, err) == (0, "")
    assert len(puts) == len(set(puts)) == 4 * (1 + 3)
    before = contents(Path("a"))
    assert kvcast("compare", "run.yaml", *VARY, *QUICK, "--out", "a")[1] == first
    assert len(puts) == 16 and contents(Path("a")) == before
    # more of the same computes only what lacks
    more = (*VARY[:1], "cluster.replicas=1,2,3", *VARY[2:])
    kvcast("compare", "run.yaml", *more, "--replications", "4", "--metric", TTFT, "--out", "a")
    assert len(puts) == len(set(puts)) == 6 * (1 + 4)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_an_interrupted_run_goes_on_where_it_was(
    kvcast: Run, base: dict[str, Any], tmp_path: Path, jobs: str
):
    Path("t.csv").write_text(HEAD + "".join(f"{i / 9:.3f},90,{9 + i % 50}\n" for i in range(4000)))
    command = ("compare", "run.yaml", *VARY, *QUICK, "--jobs", jobs, "--out", "a")
    running = start(*command, folder=tmp_path)
    while running.poll() is None and not any(
        path.stat().st_size for path in Path().glob("a/store/*/journal-*")
    ):
        time.sleep(0.02)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert (running.returncode, out) == (130, "")
    assert err == "interrupted; what is done is kept in a, and the same command goes on\n"
    kept = Store(Path("a/store")).frame()
    assert 0 < len(kept) < 16
    assert not list(Path().glob("a/store/*/journal-*"))
    assert kvcast(*command)[0] == 0
    whole = Store(Path("a/store")).frame()
    assert len(whole) == whole["key"].n_unique() == 16
    assert whole.filter(pl.col("key").is_in(kept["key"].to_list())).equals(kept)


def test_jobs_change_not_a_byte(kvcast: Run, base: dict[str, Any]):
    one = kvcast("compare", "run.yaml", *VARY, *QUICK, "--out", "one")
    two = kvcast("compare", "run.yaml", *VARY, *QUICK, "--jobs", "2", "--out", "two")
    assert one[0] == two[0] == 0
    assert one[1].replace("one:", "two:") == two[1]
    shutil.rmtree("one/store")
    shutil.rmtree("two/store")
    assert contents(Path("one")) == contents(Path("two"))


def test_a_folder_holds_every_figure_and_a_scenario_that_repeats_each_cell(
    kvcast: Run, base: dict[str, Any]
):
    kvcast("compare", "run.yaml", *VARY, *QUICK, "--out", "a")
    assert {path.name for path in Path("a").iterdir()} == FILES
    numbers = json.loads(Path("a/comparison.json").read_text())
    assert [cell["error"] for cell in numbers["cells"]] == [None] * 4
    for cell in numbers["cells"]:
        kvcast("replay", f"a/{cell['scenario']}", "--out", "r", "--no-report")
        assert figures(json.loads(Path("r/summary.json").read_text())) == cell["itself"]
    frame = pl.read_parquet("a/cells.parquet")
    assert frame.height == 4 * (1 + 3)
    assert frame.equals(pl.read_csv("a/cells.csv", schema=frame.schema))
    assert frame.columns[:5] == [
        "cell",
        "cluster.replicas",
        "cluster.router",
        "replication",
        "error",
    ]
    rows = pl.read_csv("a/differences.csv")
    assert rows.height == 3 == len(numbers["differences"])
    assert rows["difference"].to_list() == [one["difference"] for one in numbers["differences"]]


def test_only_a_comparisons_folder_is_written_over(base: dict[str, Any]):
    found = compared(base, {"cluster.replicas": [1, 2]}, replications=1)
    folder = Path("mine")
    folder.mkdir()
    (folder / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match=r"mine: holds thesis\.tex, which is not from"):
        write_folder(found, folder)
    assert below(folder) == {"thesis.tex"}
    with pytest.raises(ConfigError, match="is a file"):
        check_folder(folder / "thesis.tex")
    (Path("theirs") / "cells").mkdir(parents=True)
    with pytest.raises(ConfigError, match="theirs: holds cells, which is not from"):
        write_folder(found, Path("theirs"))
    (Path("left") / "store").mkdir(parents=True)  # as an interrupt leaves it
    write_folder(found, Path("left"))


def test_other_cells_than_before_replace_the_earlier_ones(kvcast: Run, base: dict[str, Any]):
    quick = ("--replications", "1", "--out", "a")
    kvcast("compare", "run.yaml", "--vary", "cluster.replicas=1,2,3", *quick)
    kvcast("compare", "run.yaml", "--vary", "cluster.replicas=4,1", *quick)
    assert below(Path("a/cells")) == {"001-4.yaml", "002-1.yaml"}


# ---- the command


def test_the_terminal_says_who_is_better(kvcast: Run, base: dict[str, Any]):
    code, out, err = kvcast(
        "compare", "run.yaml", "--vary", "cluster.replicas=1,2", "--replications", "5"
    )
    assert (code, err) == (0, "")
    said = " ".join(out.split())
    assert "P99 TTFT (latency.ttft_s.p99, lower is better)" in said
    assert "better" in said and "baseline" in said
    assert "Verdicts hold with 95 % for all 4 comparisons together (Holm)" in said
    assert "traffic (20 blocks of the trace, drawn with replacement)" in said
    assert sorted(path.name for path in Path().iterdir()) == ["p.yaml", "run.yaml", "t.csv"]


def test_some_that_fail_make_exit_code_1(kvcast: Run, base: dict[str, Any]):
    code, out, _ = kvcast(
        "compare", "run.yaml", "--vary", "trace.path=t.csv,gone.csv", "--replications", "1"
    )
    assert code == 1
    assert "failed: trace.path=gone.csv: gone.csv: " in " ".join(out.split())


def test_a_cell_that_takes_too_long_is_ended(kvcast: Run, base: dict[str, Any]):
    Path("long.csv").write_text(HEAD + "".join(f"{i},9,999\n" for i in range(60_000)))
    code, out, _ = kvcast(
        *("compare", "run.yaml", "--vary", "trace.path=t.csv,long.csv", "--replications", "1"),
        *("--cell-timeout", "1"),
    )
    assert code == 1
    assert "failed: trace.path=long.csv: took longer than 1 s" in " ".join(out.split())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "--vary: is missing; expected one, like --vary cache.eviction=lru,fifo"),
        (
            ("--vary", "cache.evction=lru,fifo"),
            "cache.evction=lru: cache.evction: unknown setting; did you mean cache.eviction?",
        ),
        (("--vary", "replicas=1,2"), "did you mean cluster.replicas?"),
        (("--vary", "cache.eviction=lru,lrru"), "--vary cache.eviction=lrru: cache.eviction: "),
        (("--vary", "cluster.replicas=1,0"), "cluster.replicas: must be at least 1, got 0"),
        (("--vary", "cluster.replicas=1,1"), "--vary cluster.replicas: 1 is stated twice"),
        (("--vary", "cluster.replicas=1", "--vary", "cluster.replicas=2"), "is stated twice"),
        (("--vary", "cluster.replicas"), "expected SETTING=VALUE,VALUE"),
        (("--vary", "cluster.replicas=1,,2"), "expected SETTING=VALUE,VALUE"),
        (("--vary", "cluster.replicas=[1,2"), "a value is no YAML"),
        (("--vary", "load=0,1"), "--vary load=0: load: must be a number above 0, got 0"),
        (
            ("--vary", "cluster.replicas=1,2", "--curve", "cluster.replicas=1,2"),
            "--curve cluster.replicas: is varied already",
        ),
        (
            ("--vary", "cluster.replicas=1,2", "--baseline", "cluster.replicas=3"),
            "--baseline cluster.replicas=3: is none of 1, 2",
        ),
        (
            ("--vary", "cluster.replicas=1,2", "--baseline", "seed=1"),
            "--baseline seed: is not varied; varied: cluster.replicas",
        ),
        (
            ("--vary", "cluster.replicas=1,2", "--metric", "latency.ttft.p99"),
            "--metric latency.ttft.p99: unknown figure; did you mean latency.ttft_s.p99?",
        ),
        (
            ("--vary", "cluster.replicas=1,2", "--metric", "goodput.share"),
            "--metric goodput.share: needs objectives; expected some, like --slo ttft=1s",
        ),
        (
            ("--vary", "seed=1,2", "--replications", "0"),
            "--replications: must be at least 1, got 0",
        ),
        (("--vary", "seed=1,2", "--level", "1"), "--level: must be from 0.5 to below 1, got 1"),
        (("--vary", "seed=1,2", "--traffic", "some"), "--traffic: must be one of same, reseeded"),
        (("--vary", "seed=1,2", "--traffic", "same"), "profile p.yaml has neither intervals nor"),
        (("--vary", "seed=1,2", "--traffic", "reseeded"), "t.csv cannot be made anew"),
        (("--vary", "seed=1,2", "--trace", "gone.csv"), "gone.csv: "),
        (("--vary", "seed=1,2", "--trace", "gone.csv", "--replications", "1"), "gone.csv: "),
        (("--vary", "load=1,2", "--profile", "none"), "profile 'none' is neither a file nor"),
        (("--curve", "load=x"), "--curve load=x: load: must be a number above 0"),
        (("--curve", "seed=1,1"), "--curve seed: 1 is stated twice"),
        (("--vary", "seed=1,2", "--metric", "ttft"), "did you mean latency.ttft_s.p50?"),
        (("--vary", "seed=1,2", "--set", "nonsense=1"), "nonsense: unknown setting"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line(
    kvcast: Run, base: dict[str, Any], arguments: tuple[str, ...], says: str
):
    assert says in refused(kvcast("compare", "run.yaml", *arguments))


def test_it_is_there_as_python(base: dict[str, Any]):
    assert sim.compare is compare
    found = sim.compare(load_scenario("run.yaml"), {"cluster.replicas": [1, 2]}, replications=2)
    assert found.differences["verdict"].null_count() == 0
    assert found.cells.height == 2 * 3
    assert set(found.plot()) >= {"differences_latency_ttft_s_p99", "values_latency_ttft_s_p99"}
    assert sim.compare("run.yaml", {"cluster.replicas": [1, 2]}, replications=2).rows == found.rows
    with pytest.raises(KeyError, match="no picture 'x'; there are"):
        found.plot("x")
    with pytest.raises(AttributeError):
        _ = sim.nonsense


# ---- the page


def test_the_page_needs_no_network_and_lets_no_text_be_markup(base: dict[str, Any]):
    stated = base | {"name": "</script><b>name"}
    text = page(compared(stated, {"cluster.replicas": [1, 2]}))
    own = text.split("<script>")[0] + text.rsplit("<script>", 1)[1]
    assert "http://" not in own and "https://" not in own and "<b>name" not in own
    assert "&lt;/script&gt;&lt;b&gt;name" in own
    assert own.count('class="better"') + own.count('class="worse"') > 0


def test_a_rank_flip_is_said_on_the_page_and_on_the_terminal(base: dict[str, Any]):
    plain = compared(base, {"cluster.replicas": [1, 2]}, curve={"load": [0.1, 4]}, metrics=[TTFT])
    said = "rank flips: P99 TTFT of 2 is better than that of 1 at load = 0.1, and worse at 4"
    assert plain.flips == [] and "rank flips" not in page(plain)
    found = replace(plain, flips=(Flip(TTFT, "2", "1", 0.1, 4),))
    assert said in page(found)
    assert "curve_latency_ttft_s_p99" in page(found)
    console = Console(width=200, file=StringIO())
    console.print(comparison_table(found))
    assert said in console.file.getvalue()
    write_folder(found, Path("out"))
    (flip,) = json.loads(Path("out/comparison.json").read_text())["rank_flips"]
    assert (flip["between"], flip["said"]) == ([0.1, 4], said)


def test_the_python_of_the_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    import plotly.graph_objects as go

    monkeypatch.setattr(go.Figure, "show", lambda _: None)
    text = (ROOT / "docs" / "comparing.md").read_text("utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(example, {})
    assert "cache.hit_rate" in capsys.readouterr().out
