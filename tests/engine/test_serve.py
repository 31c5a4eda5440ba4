"""A trace on an engine: every request ends once, at its time, with the reuse its trace says."""

import json
from io import StringIO
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import settings as repeated
from hypothesis import strategies as st
from rich.console import Console

from engine import units
from engine.frames import MemorySink, requests_schema
from engine.metrics import OUTCOMES, PICOSECONDS, REQUEST_COLUMNS
from engine.replay import FILES, replay
from engine.roofline import Ceilings, Roofline, StepWork
from engine.serve import ReplaySettings, serve
from engine.steps import steps_schema, steps_table
from engine.tables import replay_table
from engine.work import Generation, Work
from tests.engine.ledger import continuation
from tests.engine.served import (
    SHAPE,
    Loader,
    Ticking,
    Timed,
    engine,
    records_of,
    settings,
)
from tests.engine.test_llm import nothing_leaked
from traces.errors import ConfigError, TraceError
from traces.reader import sample_trace
from traces.request import Request
from traces.settings import load_settings

HEAD = "arrival_s,prompt_tokens,output_tokens\n"


def rows_of(it, requests, *, speed: float | None, **rest: Any) -> list[dict[str, int]]:
    """Request rows, as they ended."""
    records, kept = records_of(it), MemorySink()
    records.send(kept.take, lambda _: None)
    serve(it, requests, records, speed=speed, **rest)
    rows = kept.rows(len(REQUEST_COLUMNS)).tolist()
    return [dict(zip(REQUEST_COLUMNS, row, strict=True)) for row in rows]


@st.composite
def traces(draw: st.DrawFn) -> list[Request]:
    """Some alike, some too long, some at the same time."""
    arrival_s, requests = 0.0, list[Request]()
    for number in range(draw(st.integers(1, 12))):
        arrival_s += draw(st.sampled_from([0.0, 0.0, 1e-7, 3e-6, 0.5]))
        prompt = draw(st.sampled_from([1, 4, 9, 40, 160, 399, 400, 1000]))
        output = draw(st.sampled_from([1, 2, 5, 17, 500]))
        hashes = draw(st.sampled_from([(), (1,), (1, 2), (1, 3), (4,)]))
        hashed = min(8 * len(hashes), prompt + output)
        hashes = hashes[: -(-hashed // 8)]
        requests.append(Request(number, arrival_s, prompt, output, hashes, 8, hashed))
    return requests


@repeated(max_examples=60, deadline=None)
@given(traces(), st.sampled_from([None, 0.5, 1.0, 1000.0]), st.booleans(), st.booleans())
def test_every_request_ends_once_and_none_begins_before_it_arrives(
    requests, speed, asynchronous, caching
):
    clock = Ticking()
    it = engine(
        settings(scheduler={"async_scheduling": asynchronous}, cache={"prefix_caching": caching}),
        clock,
    )
    rows = rows_of(it, requests, speed=speed)
    assert sorted(row["request_id"] for row in rows) == list(range(len(requests)))
    for row in rows:
        asked = requests[row["request_id"]]
        after_s = 0.0 if speed is None else asked.arrival_s / speed
        assert row["arrival"] == round(after_s * PICOSECONDS)
        outcome = OUTCOMES[row["outcome"]]
        if asked.prompt_tokens >= 400:
            assert outcome == "rejected"
            assert (row["scheduled"], row["finish"], row["generated_tokens"]) == (-1, -1, 0)
            assert (row["queued"], row["admitted"]) == (-1, -1)
            continue
        assert row["arrival"] < row["queued"] <= row["admitted"] <= row["scheduled"]
        assert row["scheduled"] < row["first_token"] <= row["finish"]
        room = 400 - asked.prompt_tokens
        assert outcome == ("truncated" if room < asked.output_tokens else "finished")
        assert row["generated_tokens"] == min(room, asked.output_tokens)
        assert row["cached_tokens"] <= (min(asked.hashed_tokens, asked.prompt_tokens) * caching)
    # it slept for arrivals only, at most once for each; its first look at the clock began the trace
    assert len(set(clock.waited)) == len(clock.waited)
    assert {time - clock.tick for time in clock.waited} <= {row["arrival"] for row in rows}
    if speed == 0.5 and requests[-1].arrival_s > 0.4:
        assert clock.waited  # half a second is a long time on this clock
    nothing_leaked(it)


def test_a_fast_engine_finds_what_the_trace_says_is_there():
    """One request at a time: each hits the blocks of all before it, answers included."""
    requests = [
        one._replace(arrival_s=1000.0 * one.request_id) for one in islice(sample_trace("chat"), 40)
    ]
    it = engine(
        settings(
            num_blocks=5000,
            scheduler={"max_model_len": 8000, "max_num_batched_tokens": 4000},
            cache={"block_tokens": 32},
        )
    )
    rows = rows_of(it, requests, speed=1.0)
    seen: set[tuple[int, int]] = set()
    for row, one in zip(rows, requests, strict=True):
        assert row["request_id"] == one.request_id
        assert one.hash_tokens == 32
        full = one.hashed_tokens // 32
        hits = 0
        while (
            hits < (one.prompt_tokens - 1) // 32
            and hits < full
            and (hits, one.hashes[hits]) in seen
        ):
            hits += 1
        assert row["cached_tokens"] == 32 * hits
        # the last output token's KV is never computed
        computed = (one.prompt_tokens + one.output_tokens - 1) // 32
        seen |= {(at, one.hashes[at]) for at in range(min(full, computed))}
    assert sum(row["cached_tokens"] for row in rows) > 5000


def test_answers_are_the_traces_where_it_knows_them_and_else_the_models():
    covered = Request(0, 0.0, 6, 9, (1, 2), 8, 11)
    for forced in (True, False):
        it, ended = engine(settings()), list[Generation]()
        rows_of(it, [covered], speed=None, forced=forced, on_end=ended.append)
        tokens = ended[0].tokens
        known = 11 if forced else 6
        assert tokens[known:] == continuation(tokens[:known], 15 - known, frozenset())
        assert (tokens[6:11] == continuation(tokens[:6], 5, frozenset())) is not forced


def test_as_fast_as_possible_never_sleeps_and_keeps_few_texts(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("engine.serve.AHEAD", 5)
    clock = Ticking()
    it = engine(settings(), clock)
    requests = [Request(number, 1000.0 * number, 9, 20) for number in range(60)]
    records = records_of(it)
    most = 0

    def watch(_: Any) -> None:
        nonlocal most
        most = max(most, it.scheduler.waiting)

    serve(it, requests, records, speed=None, progress=watch)
    assert clock.waited == []
    assert 0 < most <= 5
    summary = records.summary()
    assert summary["requests"]["finished"] == 60
    assert summary["duration_s"] < 1


# ---- sums


@repeated(max_examples=30, deadline=None)
@given(traces(), st.booleans())
def test_steps_requests_and_summary_tell_the_same(requests, asynchronous):
    it = engine(settings(scheduler={"async_scheduling": asynchronous}), Ticking())
    records, kept, tables = records_of(it, ttft=10**6), MemorySink(), list[Any]()
    records.send(kept.take, tables.append)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("engine.records.BUFFER_ROWS", 3)
        serve(it, requests, records, speed=None)
    summary = records.summary()
    rows = kept.rows(len(REQUEST_COLUMNS))
    column = {name: rows[:, i] for i, name in enumerate(REQUEST_COLUMNS)}
    done = column["outcome"] <= 1
    assert summary["requests"]["total"] == len(requests) == len(rows)
    assert summary["cache"]["prompt_tokens"] == column["prompt_tokens"][done].sum()
    assert summary["cache"]["hit_tokens"] == column["cached_tokens"][done].sum()
    assert sum(summary["requests"][name] for name in OUTCOMES) == len(requests)
    steps = pl.concat([pl.DataFrame(pl.from_arrow(table)) for table in tables])
    assert summary["steps"] == len(steps) == it.steps
    assert summary["utilization"] == pytest.approx(
        steps["wall_time"].sum() / max(summary["duration_s"], 1e-12)
    )
    assert summary["engine"]["device_share"] * summary["duration_s"] == pytest.approx(
        1e-3 * len(steps)
    )
    assert steps["start_s"].min() >= 0
    assert steps["end_s"].max() <= summary["duration_s"] + 1e-9
    # every token but each answer's last is computed once, unless it was found (nothing preempts)
    assert summary["preemptions"] == 0
    computed = steps["sum_prefill_tokens"].sum() + steps["num_decode_requests"].sum()
    known = column["prompt_tokens"] + column["generated_tokens"] - 1 - column["cached_tokens"]
    assert computed == known[done].sum()
    gaps = summary["latency"]["itl_s"]
    total_ps = (column["finish"] - column["first_token"])[done].sum()
    count = (column["generated_tokens"] - 1)[done].sum()
    assert gaps is None if count == 0 else gaps["mean"] * count == pytest.approx(total_ps / 1e12)
    assert 0 <= summary["kv"]["mean_occupancy"] <= summary["kv"]["peak_occupancy"] <= 1
    assert summary["goodput"]["slo"] == {"ttft_s": 1e-6}


@pytest.mark.parametrize("reuse", [True, False])
def test_the_work_of_steps_is_that_of_their_tokens_one_by_one(reuse: bool):
    """Pairs of tokens that attend, counted in a loop over every token of every step."""
    chosen = settings(
        kv_reuse=reuse,
        cache={"prefix_caching": reuse},
        scheduler={"async_scheduling": reuse, "max_num_batched_tokens": 24},
    )
    it = engine(chosen)
    random = np.random.default_rng(5)
    for _ in range(20):
        prompt = random.integers(0, 50, random.integers(1, 70)).tolist()
        it.add(prompt, int(random.integers(1, 30)))
    it.run()
    assert isinstance(it.executor, Timed)
    flops, moved = StepWork(SHAPE, chosen).of(steps_table(it.records, "fp32"))
    for work, one_flops, one_bytes in zip(it.executor.works, flops, moved, strict=True):
        assert (one_flops, one_bytes) == pytest.approx(brute_work(work, reuse))
    prefills = [share for work in it.executor.works for share in work.prefills]
    assert any(share.context > share.chunk for share in prefills)


def brute_work(work: Work, reuse: bool) -> tuple[float, float]:
    """FLOPs and bytes of a dense fp32 model, layer by layer, from its config alone."""
    hidden, inner, layers, heads, kv_heads, dim, vocab = 64, 96, 2, 4, 2, 16, 97
    matrices = hidden * dim * (heads + 2 * kv_heads) + heads * dim * hidden + 3 * hidden * inner
    flops, kv_tokens = 0.0, 0
    for share in [*work.decodes, *work.prefills]:
        chunk = share.chunk if reuse else share.context
        for place in range(share.context - chunk, share.context):
            flops += layers * (2 * matrices + 4 * heads * dim * (place + 1))
        flops += 2 * hidden * vocab
        kv_tokens += share.context + chunk
    norms = (2 * layers + 1) * hidden
    weights = layers * matrices + norms + hidden * vocab  # the embedding is looked up, not read
    rows = len(work.decodes) + len(work.prefills)
    return flops, 4.0 * weights * (rows > 0) + kv_tokens * 4 * 2 * layers * kv_heads * dim


def test_the_roofline_tells_memory_from_compute():
    it = engine(settings())
    it.add(list(range(50)), 30)
    it.run()
    steps = steps_table(it.records, "fp32")
    work = StepWork(SHAPE, settings())
    flops, moved = work.of(steps)
    ridge = float(np.quantile(flops / moved, 0.2))
    roofline = Roofline(work, Ceilings(flops_per_s=ridge * 1e9, bytes_per_s=1e9))
    roofline.add(steps)
    summary = roofline.summary()
    assert summary is not None
    device_s = 1e-3 * len(flops)
    assert summary["flops_per_s"] == pytest.approx(flops.sum() / device_s)
    assert summary["bytes_per_s"] == pytest.approx(moved.sum() / device_s)
    ceilings = summary["ceilings"]
    assert ceilings["memory_bound_share"] == pytest.approx((flops / moved < ridge).mean())
    roof_s = np.maximum(flops / (ridge * 1e9), moved / 1e9)
    assert ceilings["roof_share"] == pytest.approx(roof_s.sum() / device_s)
    assert Roofline(work, None).summary() is None


# ---- the folder


def replayed(tmp_path: Path, text: str, **changes: Any) -> tuple[dict[str, Any], Path]:
    (tmp_path / "t.csv").write_text(text)
    chosen = settings(trace={"path": str(tmp_path / "t.csv")}, **changes)
    return replay(chosen, tmp_path / "a" / "out", load=Loader()), tmp_path / "a" / "out"


GOOD = HEAD + "0,10,5\n0.01,20,3\n0.01,4000,3\n0.02,390,20\n0.03,10,1\n"


def test_a_folder_holds_settings_summary_and_tables(tmp_path: Path):
    summary, out = replayed(tmp_path, GOOD, slo={"ttft_s": 1.0})
    assert {path.name for path in out.iterdir()} == FILES
    assert json.loads((out / "summary.json").read_text()) == summary
    requests = pl.read_parquet(out / "requests.parquet")
    assert requests.columns == requests_schema().names
    assert requests["outcome"].to_list().count("rejected") == 1
    assert requests["outcome"].to_list().count("truncated") == 1
    assert summary["warnings"] == [
        "1 requests rejected: the prompt leaves no room below max_model_len = 400",
        "1 answers cut short at 400 tokens (scheduler.max_model_len)",
    ]
    console = Console(width=80, file=StringIO())
    console.print(replay_table(summary))
    assert isinstance(console.file, StringIO)
    text = console.file.getvalue()
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80
    for name in ("ttft_s", "tpot_s", "itl_s", "e2e_s"):
        assert all(units.seconds(value) in text for value in summary["latency"][name].values())
    reached = summary["engine"]["roofline"]
    assert units.amount(reached["flops_per_s"], "FLOP/s") in text
    assert f"{units.share(reached['ceilings']['bytes_share'])} of peak" in text
    assert units.amount(summary["throughput"]["output_tokens_per_s"], "tok/s") in text
    steps = pl.read_parquet(out / "steps.parquet")
    assert steps.columns == steps_schema().names
    assert len(steps) == summary["steps"]
    again = load_settings(ReplaySettings, out / "settings.yaml")
    assert again.slo.ttft_s == 1.0
    repeated_summary = replay(again, out, load=Loader())
    assert repeated_summary["requests"] == summary["requests"]


def test_a_bad_row_leaves_the_folder_as_it_was_and_the_model_closed(tmp_path: Path):
    _, out = replayed(tmp_path, GOOD)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    (tmp_path / "t.csv").write_text(HEAD + "0,10,5\n1,x,5\n")
    load = Loader()
    chosen = settings(trace={"path": str(tmp_path / "t.csv")})
    with pytest.raises(TraceError, match=r"t\.csv:3: prompt_tokens is 'x'"):
        replay(chosen, out, load=load)
    assert load.models
    assert load.closed
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert {path.name for path in out.parent.iterdir()} == {"out"}


def test_a_folder_of_somebody_else_is_refused_before_a_model_is_loaded(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine")
    load = Loader()
    with pytest.raises(ConfigError, match=r"holds notes\.txt, which is not from an earlier run"):
        replay(settings(), tmp_path, load=load)
    assert load.models == []


def test_an_interrupt_closes_the_model_and_writes_nothing(tmp_path: Path):
    load = Loader()

    def interrupt(records: Any) -> None:
        if records.ended:
            raise KeyboardInterrupt

    chosen = settings(speed=None, trace={"operations": [{"limit": {"count": 5}}]})
    chosen = chosen.model_copy(
        update={
            "scheduler": chosen.scheduler.model_copy(update={"max_model_len": 4000}),
            "num_blocks": 2000,
        }
    )
    with pytest.raises(KeyboardInterrupt):
        replay(chosen, tmp_path / "out", load=load, progress=interrupt)
    assert load.closed
    assert list(tmp_path.iterdir()) == []
