"""Judging: stopping early changes no verdict, and a stopped run claims nothing it cannot know."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.metrics import PICOSECONDS, Histogram
from sim import records
from sim.planning import misses
from sim.planning.judged import Judged, missed
from sim.planning.misses import surely_beyond_ps
from sim.planning.objectives import COUNTED, Objective, met, parse_objectives
from sim.scenario import Scenario, scenario_of
from sim.sweep.cells import Cell, Simulator
from sim.sweep.traffic import Traffic
from traces.errors import ConfigError

CLASSES = ("chat", "batch", "")


def written(folder: Path, rows: list[tuple[float, int, int, str]], name: str = "t.csv") -> Path:
    """A trace file of arrival, prompt, output and class."""
    file = folder / name
    lines = ["arrival_s,prompt_tokens,output_tokens,slo_class"]
    lines += [f"{arrival!r},{prompt},{output},{of}" for arrival, prompt, output, of in rows]
    file.write_text("\n".join(lines) + "\n")
    return file


def profile_in(folder: Path, **cost: float) -> Path:
    """A linear profile; times of a second, not of milliseconds: misses are not a matter of luck."""
    file = folder / "p.yaml"
    stated = {"step_s": 0.0, "prefill_token_s": 0.0, "decode_s": 0.0, "context_token_s": 0.0} | cost
    file.write_text(
        "name: p\nmeasured: false\nprovenance: a test\nmodel: llama-3.1-8b\ngpu: h200\n"
        f"cost: {json.dumps({'kind': 'linear'} | stated)}\n"
    )
    return file


def scenario(folder: Path, rows: Any, cost: dict[str, float], **values: Any) -> Scenario:
    return scenario_of(
        {
            "trace": {"path": str(written(folder, rows))},
            "profile": str(profile_in(folder, **cost)),
            "memory": {"num_blocks": 40},
        }
        | values
    )


rows_of = st.lists(
    st.tuples(
        st.floats(0, 2).map(lambda gap: round(gap, 3)),
        st.integers(1, 200),
        st.integers(1, 12),
        st.sampled_from(CLASSES),
    ),
    min_size=1,
    max_size=80,
).map(
    lambda rows: [
        (float(at), *rest[1:])
        for at, rest in zip(np.cumsum([row[0] for row in rows]), rows, strict=True)
    ]
)
costs = st.sampled_from(
    [
        {"step_s": 0.5},
        {"step_s": 0.02, "prefill_token_s": 0.02},
        {"prefill_token_s": 0.05, "context_token_s": 0.005},
        {"step_s": 1e-4, "decode_s": 0.3},
    ]
)
asked = st.tuples(
    st.sampled_from(["chat", "batch", "", None, None]),
    st.sampled_from(["ttft", "tpot", "itl", "e2e", "queue", "goodput", "served"]),
    st.sampled_from(["mean", "p50", "p90", "p95", "p99", "max"]),
    st.sampled_from([0.3, 0.99, 0.9999, 1.0, 1.0, 1.0001, 1.01, 3.0]),
)
"""Whose figure, and a limit by what the figure is: just met and just missed are the hard cases."""
ways = st.fixed_dictionaries(
    {
        "cluster": st.fixed_dictionaries(
            {
                "replicas": st.integers(1, 3),
                "max_queue": st.sampled_from([None, None, 0, 3]),
                "request_timeout_s": st.sampled_from([None, None, 2.0, 30.0]),
            }
        ),
        "scheduler": st.fixed_dictionaries(
            {
                "max_num_seqs": st.sampled_from([1, 2, 8]),
                "async_scheduling": st.booleans(),
                "order": st.sampled_from(["fcfs", "shortest-prefill", "priority"]),
            }
        ),
        "warmup_s": st.sampled_from([0.0, 0.0, 5.0]),
        "end_s": st.sampled_from([None, None, 20.0]),
    }
)


@settings(max_examples=250, deadline=None)
@given(rows_of, costs, st.lists(asked, min_size=1, max_size=3), ways)
def test_stopping_early_changes_no_verdict(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[float, int, int, str]],
    cost: dict[str, float],
    asked: list[tuple[str | None, str, str, float]],
    way: dict[str, Any],
) -> None:
    folder = tmp_path_factory.mktemp("judged")
    slo = {"ttft_s": 2.0, "classes": {"batch": {"e2e_s": 10.0}}}
    cell = Cell(scenario(folder, rows, cost, slo=slo, **way))
    figures = Judged((), stop_early=False)(cell)
    objectives = tuple(
        one for one in (limited(figures, rows, *which) for which in asked) if one is not None
    )
    itself = Judged(objectives, stop_early=False)(cell)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(misses, "LEAST_BETWEEN", 1)  # look at every arrival of a short trace
        patch.setattr(records, "BUFFER_ROWS", 5)
        early = Judged(objectives)(cell)
    assert met(objectives, itself) == met(objectives, early)
    assert [one for one in objectives if not one.met(itself)] == missed(objectives, itself)
    if "stopped_s" not in early:
        assert early == pytest.approx(itself, rel=1e-12)  # sums of products by other buffers
        return
    # what stopped it is what the whole run misses, and nothing else is claimed
    (cause,) = missed(objectives, early)
    assert cause in missed(objectives, itself)
    said = {name for name in early if not name.startswith("offered.")}
    assert said == {"stopped_s", "arrived", f"missed.{objectives.index(cause)}"}
    assert all(one.value(early) is None for one in objectives)
    assert early["arrived"] <= len(rows)
    assert early["stopped_s"] <= rows[-1][0] + 1e-9


def limited(
    figures: dict[str, float],
    rows: list[tuple[float, int, int, str]],
    slo_class: str | None,
    metric: str,
    statistic: str,
    factor: float,
) -> Objective | None:
    """An objective whose limit is near what the figure is; None where there is no such class."""
    slo_class = slo_class or None
    if metric == "itl":
        slo_class = None
    if slo_class is not None and slo_class not in {row[3] for row in rows}:
        return None
    statistic = "" if metric in ("goodput", "served") else statistic
    value = Objective("", metric, statistic, 1.0, slo_class).value(figures)
    if value is None:
        value = 5.0  # infinite, or there is none
    limit = value * factor
    if metric in ("goodput", "served"):
        limit = min(value * (2 - factor) if factor < 2 else 0.5, 1.0)
    return Objective("near", metric, statistic, max(limit, 1e-9), slo_class)


@pytest.mark.parametrize("stop_early", [True, False])
def test_figures_are_those_of_a_plain_simulation(tmp_path: Path, stop_early: bool) -> None:
    """At any rate and in any replication, to the last bit, though traffic is kept."""
    rows = [(0.25 * i, 10 + i % 7, 2 + i % 3, "") for i in range(200)]
    (objective,) = parse_objectives(["p99 ttft <= 1000s"])
    work = Judged((objective,), stop_early)
    for factor in (1.0, 3.7, 0.3):
        for number in (0, 2, 1):
            whole = scenario(tmp_path, rows, {"step_s": 0.01}, seed=5).model_dump(mode="json")
            whole["trace"]["operations"] = [{"compress_time": {"factor": factor}}]
            cell = Cell(scenario_of(whole), number, Traffic("blocks", 7))
            plain, judged = Simulator()(cell), work(cell)
            assert {name: judged[name] for name in plain} == plain


def test_an_overload_is_seen_long_before_its_end(tmp_path: Path) -> None:
    """Waiting alone shows it: at 10 times the load the first second decides, of 300."""
    rows = [(0.1 * i, 1, 1, "") for i in range(3000)]
    overloaded = scenario(tmp_path, rows, {"step_s": 1.0}, scheduler={"max_num_seqs": 1})
    found = Judged(parse_objectives(["p99 ttft <= 5s"]))(Cell(overloaded))
    # 30 of 3,000 may be late: 5 s pass, then 3 s until 30 more have come and waited
    assert 5 <= found["stopped_s"] <= 5 + 3 + 3000 * 0.1 / 64
    found = Judged(parse_objectives(["mean e2e <= 2s"]))(Cell(overloaded))
    assert found["stopped_s"] < 150


def test_turning_everybody_away_meets_nothing(tmp_path: Path) -> None:
    """Two of 100 requests are served at once and the others rejected: who is served is in time."""
    rows = [(1.0 + 1e-6 * i, 8, 4, "") for i in range(100)]
    full = scenario(
        tmp_path, rows, {"step_s": 0.1}, scheduler={"max_num_seqs": 1}, cluster={"max_queue": 1}
    )
    objectives = parse_objectives(
        ["p99 ttft <= 1s", "p50 e2e <= 100s", "mean tpot <= 9s", "p50 itl <= 9s", "served >= 10%"]
    )
    found = Judged(objectives, stop_early=False)(Cell(full))
    assert found["latency.ttft_s.p99"] <= 1
    assert found["served.share"] == 0.02
    assert missed(objectives, found) == list(objectives)
    assert f"{COUNTED}latency.ttft_s.p99" not in found  # it is infinite
    plain = Simulator()(Cell(full))
    assert not objectives[0].met(plain)


def test_quantiles_of_all_count_those_not_served_as_last(tmp_path: Path) -> None:
    """80 of 100 are served in 0.1 to 8 s: the P50 of all is that of the 50th, the P90 infinite."""
    rows = [(0.001 * i, 8, 1, "") for i in range(100)]
    limited = scenario(
        tmp_path,
        rows,
        {"step_s": 0.1},
        scheduler={"max_num_seqs": 1, "async_scheduling": False},
        cluster={"request_timeout_s": 8.0},
    )
    objectives = parse_objectives(["p50 ttft <= 5s", "p90 ttft <= 5s", "mean queue <= 1s"])
    found = Judged(objectives, stop_early=False)(Cell(limited))
    assert found["served.share"] == pytest.approx(0.8, abs=0.02)
    assert found[f"{COUNTED}latency.ttft_s.p50"] == pytest.approx(4.95, rel=0.002)
    assert found["latency.ttft_s.p50"] == pytest.approx(4.0, rel=0.02)
    assert f"{COUNTED}latency.ttft_s.p90" not in found
    assert objectives[0].value(found) == found[f"{COUNTED}latency.ttft_s.p50"]
    assert [one.met(found) for one in objectives] == [True, False, False]


def test_classes_have_figures_and_limits_of_their_own(tmp_path: Path) -> None:
    """One sequence at a time, a second each, all at once: the k-th ends after k seconds."""
    rows = [(1e-6 * i, 1, 1, "chat" if i < 4 else "batch") for i in range(10)]
    slo = {"e2e_s": 2.5, "classes": {"batch": {"e2e_s": 8.5}}}
    whole = scenario(
        tmp_path,
        rows,
        {"step_s": 1.0},
        slo=slo,
        scheduler={"max_num_seqs": 1, "async_scheduling": False},
    )
    objectives = parse_objectives(
        ["chat: goodput >= 50%", "batch: goodput >= 70%", "goodput >= 1%"]
    )
    found = Judged(objectives, stop_early=False)(Cell(whole))
    assert found["class.chat.goodput.share"] == 0.5
    assert found["class.batch.goodput.share"] == pytest.approx(4 / 6)
    assert found["goodput.share"] == pytest.approx(6 / 10)
    assert found["class.chat.latency.e2e_s.max"] == pytest.approx(4, rel=1e-3)
    assert found["class.batch.latency.e2e_s.mean"] == pytest.approx(7.5, rel=1e-3)
    assert found["class.batch.requests.counted"] == 6
    assert not any(name.startswith("class.chat.goodput.slo") for name in found)
    assert missed(objectives, found) == [objectives[1]]


def test_a_queue_that_grows_without_bound_is_called_so(tmp_path: Path) -> None:
    """No latency is limited but TPOT, which overload does not touch; the backlog is."""
    rows = [(0.5 * i, 1, 1, "") for i in range(2000)]
    objectives = parse_objectives(["p99 tpot <= 10s", "backlog <= 2%"])
    one_at_a_time = {"max_num_seqs": 1, "async_scheduling": False}
    slow = scenario(tmp_path, rows, {"step_s": 1.0}, scheduler=one_at_a_time)
    found = Judged(objectives)(Cell(slow))
    assert found["diverged"] == 1
    assert found["missed.1"] == 1
    assert found["stopped_s"] < 500
    itself = Judged(objectives, stop_early=False)(Cell(slow))
    assert itself["backlog.share"] == pytest.approx(0.5, rel=0.01)
    assert not objectives[1].met(itself)
    quick = scenario(tmp_path, rows, {"step_s": 0.45}, scheduler=one_at_a_time)
    found = Judged(objectives[1:])(Cell(quick))
    assert "diverged" not in found
    assert found["backlog.share"] <= 1 / 2000


@given(st.floats(1e-9, 1e5), st.lists(st.integers(0, 10**16), min_size=1, max_size=30))
def test_a_quantile_beyond_a_limit_is_certain_from_there_on(limit_s: float, others: list[int]):
    """Whatever else is in the histogram, the top half pushes the median over the limit; and the
    bound is no further away than a histogram's error."""
    beyond = surely_beyond_ps(limit_s)
    assert beyond <= max(limit_s * PICOSECONDS * 1.0041, 2) + 2
    histogram = Histogram()
    late = [beyond + other for other in others]
    histogram.add(np.array([*late, beyond], dtype=np.int64))
    histogram.add(np.zeros(len(others), dtype=np.int64))
    assert histogram.quantile(0.5) >= 0
    assert histogram.quantile((len(others) + 1) / histogram.count) > limit_s


def test_a_judge_that_moves_to_another_process_takes_nothing_along(tmp_path: Path) -> None:
    rows = [(0.1 * i, 5, 2, "") for i in range(50)]
    work = Judged(parse_objectives(["p99 ttft <= 1s"]))
    cell = Cell(scenario(tmp_path, rows, {"step_s": 0.01}))
    found = work(cell)
    again = pickle.loads(pickle.dumps(work))
    assert again == work
    assert again.content == work.content
    assert len(pickle.dumps(work)) < 1000
    assert again(cell) == found


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("fast: p99 ttft <= 1s", "unknown class 'fast'; the trace has batch, chat"),
        ("chatt: p99 ttft <= 1s", "did you mean chat?"),
        ("chat: p99 itl <= 1s", "gaps between tokens are not known by class"),
        ("chat: backlog <= 1%", "the backlog is that of all classes"),
        ("goodput >= 99%", "there is no limit that a good request keeps"),
    ],
)
def test_an_objective_that_no_run_can_have_a_figure_for(tmp_path: Path, text: str, says: str):
    rows = [(0.1 * i, 5, 2, CLASSES[i % 2]) for i in range(10)]
    work = Judged(parse_objectives([text]))
    with pytest.raises(ConfigError) as caught:
        work(Cell(scenario(tmp_path, rows, {"step_s": 0.01})))
    assert says in str(caught.value)
    assert repr(text) in str(caught.value)


def test_gaps_that_are_all_alike_are_just_met_or_missed_early(tmp_path: Path) -> None:
    """Each gap is half a second: as a quantile, what the histogram makes of that."""
    rows = [(1.0 * i, 1, 9, "") for i in range(200)]
    steady = Cell(scenario(tmp_path, rows, {"step_s": 0.5}, memory={"num_blocks": 10_000}))
    figure = Judged((), stop_early=False)(steady)["latency.itl_s.p50"]
    assert figure == pytest.approx(0.5, rel=1e-3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "BUFFER_ROWS", 5)
        for factor, stopped in ((1.0, False), (1.001, False), (0.99, True), (0.5, True)):
            limit = Objective("itl", "itl", "p50", figure * factor)
            found = Judged((limit,))(steady)
            assert ("stopped_s" in found) == stopped
            assert ("missed.0" in found) == stopped


def test_answers_that_are_too_slow_are_seen_as_they_end(tmp_path: Path) -> None:
    """However often the rows of ended requests are handed on: 10 of 1,000 may be too slow."""
    rows = [(1.0 * i, 1, 3, "") for i in range(1000)]
    slow = Cell(scenario(tmp_path, rows, {"step_s": 0.2}))
    for buffer in (7, 16_384):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(records, "BUFFER_ROWS", buffer)
            found = Judged(parse_objectives(["p99 tpot <= 100ms"]))(slow)
        assert found["stopped_s"] <= 11 + 2 * 16
