"""Clusters: clients that wait, give up and are turned away; runs that end early; run folders."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from calibration.costs import PICOSECONDS, LinearCost
from engine.config import CacheSettings, SchedulerSettings
from engine.metrics import OUTCOMES, REJECTED, ServiceMetrics
from sim.cluster import JUST_AFTER_PS
from sim.folder import replay_to_folder
from sim.replay import replay
from sim.scenario import Scenario, load_scenario, scenario_of
from tests.sim.clusters import Setup, crowded_setups
from tests.sim.served import Served, StepByStep
from tests.sim.test_conservation import requests_of, segments_of
from traces.errors import ConfigError
from traces.request import Request

SECOND = LinearCost(step_ps=PICOSECONDS, prefill_token_ps=0, decode_ps=0, context_token_ps=0)
"""A second a step."""

STEPPING = pytest.mark.parametrize("cost", [SECOND, StepByStep(SECOND)], ids=["fast", "exact"])
SCHEDULING = pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])


def one_at_a_time(asynchronous: bool = False, max_num_seqs: int = 1) -> SchedulerSettings:
    return SchedulerSettings(
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=1000,
        max_model_len=10_000,
        async_scheduling=asynchronous,
    )


def outcomes(served: Served) -> list[str]:
    return [OUTCOMES[outcome] for outcome in served.column("outcome")]


# ---- closed loop


@settings(deadline=None, max_examples=100)
@given(crowded_setups())
def test_a_turn_comes_exactly_a_think_time_after_the_answer_before(setup: Setup) -> None:
    rows = {row["request_id"]: row for row in requests_of(setup.serve(closed_loop=True))}
    sessions: dict[int, list[Request]] = {}
    for request in setup.requests:
        if request.session_id >= 0 and request.request_id in rows:
            sessions.setdefault(request.session_id, []).append(request)
    for turns in sessions.values():
        for before, after in pairwise(turns):
            answered = rows[before.request_id]
            refused = answered["outcome"] == REJECTED
            end = answered["arrival"] if refused else answered["finish"]
            think = max(round(after.think_s * PICOSECONDS), JUST_AFTER_PS)
            assert rows[after.request_id]["arrival"] == end + think


def test_a_session_begins_with_its_first_turn_in_the_trace() -> None:
    """Even if that is turn 3: a trace may begin in the midst of a conversation."""
    turns = [
        Request(i, float(i), 1, 2, session_id=5, turn=3 + i, think_s=10.0 * i) for i in range(3)
    ]
    served = Served(turns, SECOND, closed_loop=True)
    assert served.column("arrival").tolist() == [0, 12 * PICOSECONDS, 34 * PICOSECONDS]


def test_an_open_loop_keeps_to_the_trace() -> None:
    turns = [Request(i, float(i), 1, 50, session_id=5, turn=i, think_s=10.0) for i in range(3)]
    served = Served(turns, SECOND)
    assert served.column("arrival").tolist() == [0, PICOSECONDS, 2 * PICOSECONDS]


# ---- clients give up


@STEPPING
@SCHEDULING
def test_an_answer_at_the_deadline_is_in_time(cost: Any, asynchronous: bool) -> None:
    request = Request(0, 0.5, 3, 10)
    for timeout_ps, outcome in (
        (10 * PICOSECONDS, "finished"),
        (10 * PICOSECONDS - 1, "timed_out"),
    ):
        served = Served(
            [request], cost, scheduler=one_at_a_time(asynchronous), timeout_ps=timeout_ps
        )
        assert outcomes(served) == [outcome]
        assert served.column("finish") == PICOSECONDS // 2 + timeout_ps
        served.assert_empty()


@STEPPING
def test_who_gives_up_makes_room_at_the_next_step_boundary(cost: Any) -> None:
    requests = [Request(0, 0.0, 1, 100), Request(1, 1.0, 1, 4)]
    served = Served(requests, cost, scheduler=one_at_a_time(), timeout_ps=int(4.5 * PICOSECONDS))
    assert outcomes(served) == ["timed_out", "timed_out"]
    assert served.column("scheduled").tolist() == [0, 5 * PICOSECONDS]
    assert served.records.steps == 6


def test_giving_up_while_waiting_takes_nothing() -> None:
    requests = [Request(i, i / 8, 1, 10) for i in range(4)]
    served = Served(requests, SECOND, scheduler=one_at_a_time(), timeout_ps=11 * PICOSECONDS)
    assert outcomes(served) == ["finished", "timed_out", "timed_out", "timed_out"]
    assert served.column("scheduled").tolist()[2:] == [-1, -1]
    served.assert_empty()


# ---- clients are turned away


@pytest.mark.parametrize("max_queue", [0, 1, 3])
def test_a_busy_replica_lets_so_many_wait(max_queue: int) -> None:
    requests = [Request(i, i / 100, 1, 10) for i in range(8)]
    served = Served(requests, SECOND, scheduler=one_at_a_time(), max_queue=max_queue)
    accepted = 1 + max_queue
    assert outcomes(served) == ["finished"] * accepted + ["rejected"] * (8 - accepted)
    (reason,) = served.cluster.refusals
    assert f"cluster.max_queue = {max_queue}" in reason


def test_what_can_never_be_served_is_refused_and_said() -> None:
    scenario = scenario_of(
        {
            "scheduler": {"max_model_len": 100},
            "memory": {"num_blocks": 50},
            "cluster": {"replicas": 2},
        }
    )
    prompts = [10, 100, 50, 5000, 99, 60]
    requests = [Request(i, float(i), prompt, 50) for i, prompt in enumerate(prompts)]
    result = replay(scenario, requests)
    counts = result.summary["requests"]
    assert (counts["total"], counts["rejected"], counts["truncated"]) == (6, 2, 2)
    refused, cut = result.summary["warnings"][:2]
    assert refused.startswith("2 requests rejected: the prompt leaves no room")
    assert cut.startswith("2 answers cut short at 100 tokens")
    assert result.requests is not None
    by_id = result.requests.sort("request_id")
    assert by_id["outcome"].to_list() == [
        "finished",
        "rejected",
        "finished",
        "rejected",
        "truncated",
        "truncated",
    ]
    assert by_id["generated_tokens"].to_list() == [50, 0, 50, 0, 1, 40]


# ---- runs that end early, and begin late


@STEPPING
@SCHEDULING
def test_a_cut_off_leaves_the_rest_unfinished(cost: Any, asynchronous: bool) -> None:
    """No step begins at or after it, but for one that an asynchronous scheduler had begun."""
    requests = [Request(i, float(i), 1, 4) for i in range(9)]
    served = Served(requests, cost, scheduler=one_at_a_time(asynchronous), end_ps=6 * PICOSECONDS)
    assert outcomes(served) == ["finished"] + ["unfinished"] * 5
    starts = [row["start"] + (row["steps"] - 1) * PICOSECONDS for row in segments_of(served)]
    assert max(starts) < (6 + asynchronous) * PICOSECONDS
    assert served.metrics.outcomes == [1, 0, 0, 0, 5]


@settings(deadline=None, max_examples=100)
@given(crowded_setups())
def test_nothing_begins_after_a_cut_off(setup: Setup) -> None:
    served = setup.serve(exact=True)
    if setup.end_ps is None:
        return
    assert (served.column("arrival") < setup.end_ps).all()
    late = [row["replica"] for row in segments_of(served) if row["start"] >= setup.end_ps]
    assert len(set(late)) == len(late)
    assert setup.scheduler.async_scheduling or not late


def test_a_warm_up_is_served_but_not_counted() -> None:
    warmup_ps = 20 * PICOSECONDS
    requests = [Request(i, i * 0.7, 1 + i % 5, 1 + i % 7) for i in range(80)]
    scheduler = one_at_a_time(max_num_seqs=3)
    served = Served(
        requests, SECOND, scheduler=scheduler, metrics=ServiceMetrics(warmup_ps, {"ttft": 10**13})
    )
    everything = Served(requests, SECOND, scheduler=scheduler)
    assert np.array_equal(served.rows, everything.rows)
    counted = served.rows[served.column("arrival") >= warmup_ps]
    only = ServiceMetrics(0, {"ttft": 10**13})
    only.add(counted)
    assert served.metrics.total == 80
    assert served.metrics.counted == len(counted) == only.counted < 80
    assert (served.metrics.served, served.metrics.good) == (only.served, only.good)
    for name in ("ttft_s", "tpot_s", "e2e_s", "queue_s"):
        one, other = served.metrics.latency[name], only.latency[name]
        assert np.array_equal(one.counts, other.counts)
        assert one.total_ps == other.total_ps
    late = served.segments[served.segments[:, 1] >= warmup_ps]
    assert served.metrics.latency["itl_s"].count == (late[:, 3] * late[:, -1]).sum()
    summary = served.summary()
    span = (served.records.last_end_ps - warmup_ps) / PICOSECONDS
    assert summary["throughput"]["requests_per_s"] == pytest.approx(len(counted) / span)


# ---- settings that cannot be


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"memory": {"num_blocks": 11}}, "1,000 is more than the 160 tokens of a replica's 10 KV"),
        ({"scheduler": {"max_model_len": 10**6}}, "1,000,000 is more than the"),
        (
            {"scheduler": {"chunked_prefill": False, "max_num_batched_tokens": 999}},
            "1,000 is more than max_num_batched_tokens of 999, as prompts are not chunked",
        ),
    ],
)
def test_max_model_len_must_be_possible(changes: dict[str, Any], words: str) -> None:
    scheduler = {"max_model_len": 1000} | changes.get("scheduler", {})
    scenario = scenario_of(changes | {"scheduler": scheduler})
    with pytest.raises(ConfigError, match=f"scheduler.max_model_len: {words}"):
        replay(scenario, [])


@pytest.mark.parametrize(
    ("changes", "limit"),
    [
        ({"memory": {"num_blocks": 11}}, 160),
        ({"scheduler": {"chunked_prefill": False, "max_num_batched_tokens": 999}}, 999),
        ({}, 131_072),
    ],
)
def test_max_model_len_follows_from_model_pool_and_budget(
    changes: dict[str, Any], limit: int
) -> None:
    requests = [Request(0, 0.0, limit, 1), Request(1, 0.0, limit - 1, 5)]
    rows = replay(scenario_of(changes), requests).requests
    assert rows is not None
    assert rows.sort("request_id")["outcome"].to_list() == ["rejected", "truncated"]


def test_nothing_to_serve_is_a_run_too() -> None:
    summary = replay(Scenario(), []).summary
    assert summary["requests"]["total"] == summary["steps"] == 0
    assert summary["duration_s"] == summary["utilization"] == 0.0


def test_contiguous_memory_is_taken_whole() -> None:
    """Room for max_model_len tokens at once: so many run, however short they are."""
    requests = [Request(i, 0.0, 1, 3) for i in range(10)]
    served = Served(
        requests,
        SECOND,
        num_blocks=1 + 4 * 10,
        scheduler=SchedulerSettings(
            max_num_seqs=10, max_num_batched_tokens=100, max_model_len=160, async_scheduling=False
        ),
        cache=CacheSettings(allocation="contiguous", prefix_caching=False),
    )
    assert served.column("scheduled").tolist() == [
        wave * 3 * PICOSECONDS for wave in (0, 0, 0, 0, 1, 1, 1, 1, 2, 2)
    ]
    assert served.records.peak_blocks == 40


# ---- run folders


CHAT = {
    "trace": {"operations": [{"limit": {"count": 1200}}]},
    "cluster": {"replicas": 3, "router": "power-of-two", "closed_loop": True},
    "slo": {"ttft_s": 1.0},
}


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def chat(**changes: Any) -> Scenario:
    return scenario_of(CHAT | changes)


def test_a_scenario_determines_every_byte(tmp_path: Path) -> None:
    first, again, from_yaml = (tmp_path / name for name in ("first", "again", "from yaml"))
    replay_to_folder(chat(), first)
    replay_to_folder(chat(), again)
    assert len(files(first)) == 6
    assert files(first) == files(again)
    replay_to_folder(load_scenario(first / "scenario.yaml"), from_yaml)
    assert files(first) == files(from_yaml)


def test_the_order_of_hashing_makes_no_difference(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib; from sim.folder import replay_to_folder;"
        "from sim.scenario import load_scenario;"
        "replay_to_folder(load_scenario(None, ['cluster.router=least-tokens']),"
        " pathlib.Path(sys.argv[1]), report=False)"
    )
    for seed in ("1", "2"):
        subprocess.run(
            [sys.executable, "-c", program, tmp_path / seed],
            env=os.environ | {"PYTHONHASHSEED": seed},
            check=True,
        )
    assert files(tmp_path / "1") == files(tmp_path / "2")


def test_memory_and_folder_tell_the_same(tmp_path: Path) -> None:
    kept = replay(chat())
    written = replay_to_folder(chat(), tmp_path / "out", report=False)
    assert kept.summary == written.summary
    assert kept.requests is not None
    assert written.requests is not None
    assert kept.requests.equals(written.requests)
    assert kept.segments is not None
    assert written.segments is not None
    assert kept.segments.equals(written.segments)


def test_an_earlier_run_is_replaced_whole(tmp_path: Path) -> None:
    out, fresh = tmp_path / "out", tmp_path / "fresh"
    replay_to_folder(chat(seed=1), out)
    replay_to_folder(chat(), out, report=False, keep_segments=False)
    replay_to_folder(chat(), fresh, report=False, keep_segments=False)
    assert files(out) == files(fresh)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fresh", "out"]


def test_a_folder_of_somebody_elses_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match=r"thesis\.tex.*not from an earlier run"):
        replay_to_folder(chat(), tmp_path, report=False)
    assert files(tmp_path) == {"thesis.tex": b"years of work"}
    with pytest.raises(ConfigError, match="is a file"):
        replay_to_folder(chat(), tmp_path / "thesis.tex", report=False)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, OSError])
@pytest.mark.parametrize("earlier", [False, True], ids=["new", "replacing"])
def test_an_interrupted_run_leaves_no_trace(
    tmp_path: Path, error: type[BaseException], earlier: bool
) -> None:
    out = tmp_path / "runs" / "out"
    if earlier:
        replay_to_folder(chat(seed=1), out, report=False)
    before = files(out) if earlier else {}
    with pytest.raises(ConfigError if error is OSError else error):
        replay_to_folder(chat(), out, progress=raising(error))
    if earlier:
        assert files(out) == before
        assert [path.name for path in out.parent.iterdir()] == ["out"]
    else:
        assert list(tmp_path.iterdir()) == []


def raising(error: type[BaseException]) -> Callable[[int], None]:
    def progress(arrivals: int) -> None:
        raise error("in the middle of the run")

    return progress


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
def test_what_came_out_before_the_client_gave_up_is_counted(asynchronous: bool) -> None:
    second = LinearCost(10**12, 0, 0, 0)
    scheduler = SchedulerSettings(async_scheduling=asynchronous)
    request = Request(0, 0.0, 1, 100)
    given_up = Served([request], second, scheduler=scheduler, timeout_ps=50_500_000_000_000)
    assert given_up.column("generated_tokens").tolist() == [50]
    cut_off = Served([request], second, scheduler=scheduler, end_ps=50_500_000_000_000)
    # what was scheduled by then is finished: asynchronously one step more
    assert cut_off.column("generated_tokens").tolist() == [51 + asynchronous]


# ---- who can never be admitted again


def outgrown(**settings: object) -> Served:
    """Three requests grow until one of them gives way, with more tokens than it came with."""
    return Served(
        [Request(number, 0.0, 60, 100) for number in range(3)],
        SECOND,
        num_blocks=20,
        scheduler=SchedulerSettings.model_validate(settings),
    )


@SCHEDULING
def test_a_prompt_that_has_outgrown_the_budget_ends_the_run(asynchronous: bool) -> None:
    whole = {"chunked_prefill": False, "async_scheduling": asynchronous}
    with pytest.raises(ConfigError) as stopped:
        outgrown(max_num_batched_tokens=64, **whole)
    assert re.fullmatch(
        r"request 2: \d+ tokens to compute after a preemption exceed"
        r" scheduler.max_num_batched_tokens = 64; expected at least as many as"
        r" scheduler.max_model_len, or chunked_prefill: true",
        str(stopped.value),
    )
    assert outcomes(outgrown(max_num_batched_tokens=160, **whole)) == ["finished"] * 3
    assert outcomes(outgrown(max_num_batched_tokens=64)) == ["finished"] * 3


@SCHEDULING
def test_a_request_that_has_outgrown_the_pool_ends_the_run(asynchronous: bool) -> None:
    alone = SchedulerSettings(async_scheduling=asynchronous)
    with pytest.raises(ConfigError, match=r"request 0: \d+ tokens .* need 5 KV blocks of 4;"):
        Served([Request(0, 0.0, 60, 100)], SECOND, num_blocks=5, scheduler=alone)
