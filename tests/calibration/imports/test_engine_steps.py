"""The engine's steps.parquet as measured steps: what is counted, and where a step's time ends."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from calibration.imports.engine_steps import WARMUP_STEPS, read_engine_steps
from engine.replay import replay
from engine.steps import write_steps
from tests.engine.served import Loader, Timed, engine, settings
from traces.errors import ConfigError

BLANK: dict[str, Any] = {
    "var_prefill_length": 0.0,
    "var_decode_kv_tokens": 0.0,
    "num_queued_requests": 0,
    "scheduler_s": 0.0,
    "host_s": 0.0,
    "max_decode_kv_tokens": 100,
    "graph_bucket": 0,
    "free_blocks": 1,
    "admitted": 0,
    "preempted": 0,
    "cached_tokens": 0,
    "moved_bytes": 0,
}


def step(number: int, start_s: float, end_s: float, **changes: Any) -> dict[str, Any]:
    """A step of two decodes of 100 tokens of context each."""
    return {
        **BLANK,
        "step": number,
        "start_s": start_s,
        "end_s": end_s,
        "wall_time": end_s - start_s,
        "device_s": end_s - start_s,
        "num_prefill_requests": 0,
        "sum_prefill_tokens": 0,
        "sum_prefill_kv_tokens": 0,
        "prefill_pairs": 0,
        "num_decode_requests": 2,
        "sum_decode_kv_tokens": 200,
        "running": 2,
        **changes,
    }


def log(folder: Path, steps: Iterable[dict[str, Any]]) -> Path:
    path = folder / "steps.parquet"
    write_steps(list(steps), "bf16", path)
    return path


def times(path: Path) -> list[float]:
    return read_engine_steps(path, warmup_steps=0)["time_s"].to_list()


def test_while_busy_a_step_takes_until_the_next_begins(tmp_path):
    # synchronous: the host works between steps
    path = log(tmp_path, [step(0, 0.0, 1.0), step(1, 1.2, 2.0), step(2, 2.3, 3.0)])
    assert times(path) == pytest.approx([1.2, 1.1, 0.7])


def test_idle_time_is_in_no_step(tmp_path):
    # whoever runs in step 1 has just come: the engine was idle between
    later = step(1, 9.0, 10.0, admitted=2)
    assert times(log(tmp_path, [step(0, 0.0, 1.0), later])) == pytest.approx([1.0, 1.0])


def test_who_waited_kept_the_engine_busy(tmp_path):
    waited = step(0, 0.0, 1.0, num_queued_requests=1)
    later = step(1, 1.5, 2.0, admitted=2)
    assert times(log(tmp_path, [waited, later])) == pytest.approx([1.5, 0.5])


def test_who_was_preempted_kept_the_engine_busy(tmp_path):
    later = step(1, 1.5, 2.0, admitted=2, preempted=1)
    assert times(log(tmp_path, [step(0, 0.0, 1.0), later])) == pytest.approx([1.5, 0.5])


def test_a_gap_in_the_numbers_ends_a_step_at_its_end(tmp_path):
    assert times(log(tmp_path, [step(0, 0.0, 1.0), step(2, 1.5, 2.0)])) == pytest.approx([1.0, 0.5])


def test_features_are_those_of_the_batch(tmp_path):
    mixed = step(
        0,
        0.0,
        1.0,
        num_prefill_requests=1,
        sum_prefill_tokens=30,
        sum_prefill_kv_tokens=50,
        prefill_pairs=30 * 50 + 30 * 31 // 2,
        graph_bucket=4,
        device_s=0.75,
    )
    row = read_engine_steps(log(tmp_path, [mixed]), warmup_steps=0).row(0, named=True)
    assert row == {
        "decodes": 2,
        "decode_context_tokens": 200,
        "prefills": 1,
        "prefill_tokens": 30,
        "prefill_context_tokens": 80,
        "prefill_pairs": 1965,
        "graph_tokens": 4,
        "time_s": 1.0,
        "device_s": 0.75,
        "held_out": False,
        "outlier": False,
        "source": tmp_path.name,
    }


def test_warm_up_and_copies_between_tiers_are_outliers(tmp_path):
    steps = [step(i, float(i), i + 1.0, moved_bytes=(i == 4) * 4096) for i in range(6)]
    marked = read_engine_steps(log(tmp_path, steps))["outlier"]
    assert marked.arg_true().to_list() == [*range(WARMUP_STEPS), 4]


def test_steps_without_tokens_are_left_out(tmp_path):
    empty = step(1, 1.0, 1.5, num_decode_requests=0, sum_decode_kv_tokens=0)
    path = log(tmp_path, [step(0, 0.0, 1.0), empty, step(2, 1.5, 2.0)])
    assert times(path) == pytest.approx([1.0, 0.5])


@pytest.mark.parametrize("asynchronous", [True, False])
def test_every_token_of_a_run_is_counted_and_no_time_twice(tmp_path, asynchronous):
    """A run of the real loop on a clock that ticks: its steps against what it had executed."""
    chosen = settings(scheduler={"async_scheduling": asynchronous, "max_num_batched_tokens": 24})
    it = engine(chosen)
    random = np.random.default_rng(5)
    for _ in range(20):
        it.add(random.integers(0, 50, random.integers(1, 70)).tolist(), int(random.integers(1, 30)))
    it.run()
    frame = read_engine_steps(log(tmp_path, it.records))
    assert isinstance(it.executor, Timed)
    works = [work for work in it.executor.works if work.decodes or work.prefills]
    for row, work in zip(frame.iter_rows(named=True), works, strict=True):
        chunks = [(share.context - share.chunk, share.chunk) for share in work.prefills]
        assert row["decodes"] == len(work.decodes)
        assert row["decode_context_tokens"] == sum(share.context for share in work.decodes)
        assert row["prefill_tokens"] == sum(chunk for _, chunk in chunks)
        assert row["prefill_context_tokens"] == sum(before + chunk for before, chunk in chunks)
        pairs = sum(chunk * before + chunk * (chunk + 1) // 2 for before, chunk in chunks)
        assert row["prefill_pairs"] == pairs
    whole_s = it.records[-1]["end_s"] - it.records[0]["start_s"]
    assert frame["time_s"].sum() == pytest.approx(whole_s)
    if asynchronous:
        walls = [record["wall_time"] for record in it.records]
        assert frame["time_s"].to_list() == pytest.approx(walls)


def test_the_folder_of_a_run(tmp_path):
    chosen = settings(speed=None, trace={"operations": [{"limit": {"count": 5}}]})
    replay(chosen, tmp_path / "run", load=Loader())
    frame = read_engine_steps(tmp_path / "run")
    recorded = pl.read_parquet(tmp_path / "run" / "steps.parquet")
    assert len(frame) == len(recorded)
    assert frame["source"].unique().to_list() == ["run"]


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ([step(0, 0.0, 1.0), step(0, 1.0, 2.0)], r"step 0: step is 0; expected each number once"),
        ([step(0, 1.0, 0.5)], r"step 0: end_s is 0.5; expected more than start_s"),
        ([step(0, 0.0, float("nan"))], r"step 0: end_s is nan; expected more than start_s"),
        ([step(0, 1.0, 2.0), step(1, 0.5, 3.0)], r"step 0: time_s is -0.5; expected a next step"),
        ([step(3, 0.0, 1.0, device_s=-1.0)], r"step 3: device_s is -1.0; expected a finite number"),
        ([step(0, 0.0, 1.0, num_decode_requests=0)], r"none of its steps computed anything"),
        ([], r"has no rows"),
    ],
)
def test_what_cannot_be_is_refused_with_its_step(tmp_path, steps, said):
    with pytest.raises(ConfigError, match=rf"steps.parquet: {said}"):
        read_engine_steps(log(tmp_path, steps))


def test_another_table_is_refused(tmp_path):
    path = tmp_path / "steps.parquet"
    pl.DataFrame({"t": [1]}).write_parquet(path)
    with pytest.raises(ConfigError, match=r"steps.parquet: no column step"):
        read_engine_steps(path)
    with pytest.raises(ConfigError, match=r"none.parquet: no such file"):
        read_engine_steps(tmp_path / "none.parquet")
