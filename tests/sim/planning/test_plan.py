"""A whole plan: the same whatever runs it, what it writes, what it explains, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from sim.planning.explaining import statuses
from sim.planning.judged import Judged
from sim.planning.plan import Plan, plan
from sim.planning.plan_folder import as_json, write_folder
from sim.planning.plan_page import page
from sim.planning.plan_words import why
from sim.planning.slowed import Slowed
from sim.planning.space import PlanSettings
from sim.replay import replay
from sim.scenario import load_scenario
from sim.sweep.cells import Cell
from sim.sweep.store import Store
from sim.uncertainty import figures
from tests.commands import Run
from tests.sim.planning.fleets import hurried, plan_of
from traces.errors import ConfigError

SPACE = {
    "gpu": ["l4", "l40s"],
    "model": "llama-3.1-8b",
    "kv_dtype": ["bf16", "fp8"],
    "cluster.router": ["round-robin", "session-affinity"],
    "replicas": {"from": 1, "to": 12},
}


def whole(**changes: Any) -> PlanSettings:
    """A plan with everything that a plan can have, on little traffic."""
    return plan_of(
        **{
            "name": "whole",
            "scenario": {"trace": hurried(60, 80), "cache": {"prefix_caching": False}},
            "objectives": ["p99 ttft <= 1s", "p95 tpot <= 70ms"],
            "confidence": {"redraws": 6, "share": 0.8},
            "fronts": {"replays": 12},
            "growth": {"percent_a_month": 25, "months": 6},
            "sensitivities": True,
            "space": SPACE,
            **changes,
        }
    )


@pytest.fixture(scope="module")
def made() -> Plan:
    """A whole plan, made once."""
    return plan(whole())


def test_the_winner_meets_everything_surely(made: Plan) -> None:
    winner = made.winner
    assert winner.evaluation.met and made.confident
    assert winner.redrawn is not None and winner.redrawn.complete
    assert winner.redrawn.met >= 0.8 * 6
    low, high = winner.redrawn.interval(0.95) or (1, 0)
    assert low < winner.redrawn.met / 6 <= high
    assert all(one.margin(winner.evaluation.figures) >= 0 for one in made.objectives)
    assert made.nominal.candidate.usd_per_hour <= winner.candidate.usd_per_hour


def test_all_that_is_cheaper_is_excluded_by_evidence(made: Plan) -> None:
    usd = made.winner.candidate.usd_per_hour
    frame = made.candidates.filter(pl.col("usd_per_hour") < usd)
    sure = frame.filter(pl.col("status") == "met")
    assert (sure["redrawn_met"] < 0.8 * 6).all() if made.nominal != made.winner else sure.is_empty()
    assert set(frame["status"]) <= {"missed", "too few replicas", "bound", "met"}
    counts = statuses(made.known, made.judge, usd)
    assert sum(counts.values()) == frame.height
    assert dict(frame["status"].value_counts().iter_rows()) == dict(counts)
    assert made.candidates.height == made.stated == 96


def test_the_nearest_cheaper_say_what_they_miss(made: Plan) -> None:
    assert made.cheaper[0].evaluation.candidate.configuration is (
        made.winner.candidate.configuration
    )
    for one in made.cheaper:
        assert one.evaluation.candidate.usd_per_hour < made.winner.candidate.usd_per_hour
        assert not one.evaluation.stopped
        assert one.misses or one.evaluation.met
        for miss in one.misses:
            assert miss.value is None or miss.value > miss.limit


def test_the_runner_up_is_another_configuration(made: Plan) -> None:
    assert made.runner_up is not None
    second = made.runner_up.candidate
    assert second.configuration is not made.winner.candidate.configuration
    assert second.usd_per_hour >= made.winner.candidate.usd_per_hour
    assert made.runner_up.evaluation.met


def test_growth_adds_replicas_when_the_fleet_breaks(made: Plan) -> None:
    assert made.growth is not None and made.headroom is not None
    months = made.growth.months
    assert [one.month for one in months] == list(range(7))
    assert months[2].rate == pytest.approx(1.25**2)
    broken = made.growth.breaks
    assert broken is not None and broken.missed
    assert broken.margin is not None and broken.margin < 0
    # head-room says the same: the month before is within it, this one is not
    assert months[broken.month - 1].rate <= made.headroom.factor * 1.01
    assert broken.rate > made.headroom.factor
    counts = [one.replicas for one in months if one.replicas is not None]
    assert counts == sorted(counts)
    assert counts[0] == made.winner.candidate.replicas < counts[-1]
    tp = made.winner.candidate.configuration.profile.tp
    assert [one.gpus for one in months] == [one.replicas * tp for one in months if one.replicas]


def test_the_tornado_moves_the_way_it_must(made: Plan) -> None:
    assert made.tornado is not None
    swings = {(one.factor, one.change): one for one in made.tornado.swings}
    assert set(swings) == {
        (factor, sign * share)
        for factor, share in (("price", 0.2), ("rate", 0.2), ("lengths", 0.2), ("step times", 0.15))
        for sign in (-1, 1)
    }  # no prefix reuse: the prefix cache is off
    for factor, share in (("rate", 0.2), ("lengths", 0.2), ("step times", 0.15)):
        less, more = swings[factor, -share], swings[factor, share]
        assert less.replicas is not None and more.replicas is not None
        assert less.replicas <= made.tornado.replicas <= more.replicas
        assert less.margin is not None and more.margin is not None
        assert more.margin < made.tornado.margin < less.margin
    assert swings["price", -0.2].usd_per_hour == pytest.approx(0.8 * made.tornado.usd_per_hour)


def test_slower_steps_are_slower() -> None:
    cell = Cell(whole_scenario())
    objectives = plan_objectives()
    plain = Judged(objectives, stop_early=False)(cell)
    for factor in (0.5, 1.0, 2.0):
        slowed = Slowed(objectives, stop_early=False, factor=factor)
        assert slowed.content != Judged(objectives, stop_early=False).content
        found = slowed(cell)
        ratio = found["latency.tpot_s.mean"] / plain["latency.tpot_s.mean"]
        if factor == 1:
            assert found == plain
        else:
            assert (ratio > 1.5) if factor > 1 else (ratio < 0.75)


def whole_scenario() -> Any:
    """A scenario of the plan's traffic."""
    return load_scenario(None, (), {"trace": hurried(5, 40), "profile": "analytic:l4/llama-3.1-8b"})


def plan_objectives() -> Any:
    """Any objectives."""
    from sim.planning.objectives import parse_objectives

    return parse_objectives(["p99 ttft <= 1s"])


def test_jobs_and_a_store_change_nothing(made: Plan, tmp_path: Path) -> None:
    one = json.dumps(as_json(made), sort_keys=True)
    with_store = plan(whole(), jobs=2, store=Store(tmp_path / "store"))
    assert json.dumps(as_json(with_store), sort_keys=True) == one
    assert page(with_store) == page(made)
    again = plan(whole(), store=Store(tmp_path / "store"))
    assert json.dumps(as_json(again), sort_keys=True) == one


def test_the_folder_holds_the_whole_plan(made: Plan, tmp_path: Path) -> None:
    write_folder(made, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "plan.json",
        "report.html",
        "winner.yaml",
        "candidates.parquet",
    }
    content = json.loads((tmp_path / "out" / "plan.json").read_text())
    winner = content["winner"]
    assert winner["met"] and winner["usd_per_hour"] == made.winner.candidate.usd_per_hour
    assert {one["candidate"] for one in content["candidates"]} >= {winner["candidate"]}
    for one in content["candidates"]:
        assert {"settings", "usd_per_hour", "figures", "met", "margins"} <= one.keys()
    for front in content["fronts"].values():
        assert front["points"]
    frame = pl.read_parquet(tmp_path / "out" / "candidates.parquet")
    assert frame.equals(made.candidates)
    # the winner replays to the same numbers
    result = replay(load_scenario(tmp_path / "out" / "winner.yaml"))
    replayed = figures(result.summary)
    assert replayed and all(winner["figures"][name] == value for name, value in replayed.items())


def test_an_earlier_plan_is_replaced_and_a_foreign_folder_left_alone(
    made: Plan, tmp_path: Path
) -> None:
    write_folder(made, tmp_path / "out")
    write_folder(made, tmp_path / "out")
    (tmp_path / "mine.txt").write_text("work")
    with pytest.raises(ConfigError, match=r"mine.txt"):
        write_folder(made, tmp_path)


def test_the_page_says_what_the_plan_found(made: Plan) -> None:
    text = page(made)
    assert made.winner.candidate.label.split(" · ")[0] in text
    for name in ("margins", "front_cost_ttft", "front_gpu_user", "tornado", "growth"):
        assert f'id="plot-{name}"' in text
    assert "http://" not in text.split("<script>")[0]
    assert made._repr_html_()  # pyright: ignore[reportPrivateUsage] what a notebook calls
    drawn = made.plot()
    assert isinstance(drawn, dict) and made.plot("tornado") is not None
    with pytest.raises(KeyError, match="no picture 'fronts'"):
        made.plot("fronts")
    assert made.margins.height == 2


LUCKY: dict[str, Any] = {
    "scenario": {"trace": hurried(80, 80), "cache": {"prefix_caching": False}},
    "objectives": ["p99 ttft <= 800ms"],
    "confidence": {"redraws": 10, "share": 0.9},
    "fronts": {"replays": 0},
    "growth": {"months": 0},
    "sensitivities": False,
}
"""The trace as it is has luck: what just meets there misses on most others of its kind."""


def test_a_sure_winner_is_the_cheapest_that_is_sure() -> None:
    sure = plan(whole(**LUCKY))
    assert sure.confident
    assert sure.winner.redrawn is not None and sure.winner.redrawn.met >= 9
    usd = sure.winner.candidate.usd_per_hour
    assert sure.nominal.candidate.usd_per_hour < usd
    assert any("redrawn traces" in text for text in why(sure))
    judged = Judged(tuple(sure.objectives))
    cheaper = [one for k in sure.known for one in k.candidates if one.usd_per_hour < usd]
    assert len(cheaper) > 10
    for candidate in cheaper:
        cells = [Cell(candidate.scenario, number, sure.traffic) for number in range(11)]
        if "missed.0" not in judged(cells[0]):
            assert sum("missed.0" in judged(cell) for cell in cells[1:]) > 1


def test_redraws_that_nothing_keeps_are_said() -> None:
    space = {"gpu": "l40s", "model": "llama-3.1-8b", "replicas": [1, 2]}
    found = plan(whole(**LUCKY, space=space))
    assert not found.confident
    assert any("no candidate meets every objective on 90 %" in one for one in found.warnings)
    assert found.winner.candidate == found.nominal.candidate
    assert found.winner.redrawn is not None and not found.winner.redrawn.reached
    assert "Not sure enough" in page(found)


def test_an_objective_that_nothing_meets() -> None:
    with pytest.raises(ConfigError) as error:
        plan(whole(objectives=["p99 ttft <= 1ms", "p95 tpot <= 10s"]))
    said = str(error.value)
    assert said.startswith("objectives: none of 96 candidates meets 'p99 ttft <= 1ms'; nearest: ")
    assert "p99 ttft" in said.partition("nearest")[2] and "tpot" not in said
    assert "\n" not in said


def test_objectives_that_are_met_apart_only() -> None:
    """Small steps keep TPOT low and large ones TTFT; no step size does both."""
    with pytest.raises(ConfigError) as error:
        plan(
            whole(
                space={
                    "gpu": "l4",
                    "model": "llama-3.1-8b",
                    "scheduler.max_num_batched_tokens": [64, 8192],
                    "replicas": [1],
                },
                scenario={"trace": hurried(3, 80), "cache": {"prefix_caching": False}},
                objectives=["p50 ttft <= 700ms", "p99 itl <= 90ms"],
            )
        )
    said = str(error.value)
    assert "each is met by some of 2 candidates, all by none; nearest: " in said


def test_optuna_is_seeded_and_says_that_it_is_not_exhaustive() -> None:
    asked = whole(
        search={"method": "optuna", "trials": 8, "seed": 3},
        growth={"months": 0},
        sensitivities=False,
        confidence={"redraws": 0},
    )
    one, two = plan(asked), plan(asked, jobs=2)
    assert as_json(one) == as_json(two)
    assert one.method == "optuna" and 1 <= one.tried <= 8
    assert one.winner.evaluation.met
    assert "NOT exhaustive" in page(one) or "Not exhaustive" in page(one)
    assert as_json(one)["fronts"]["cost_ttft"]["gap"] is None
    evolved = plan(
        asked.model_copy(update={"search": asked.search.model_copy(update={"sampler": "nsga2"})})
    )
    assert evolved.winner.evaluation.met


def test_auto_chooses_by_size() -> None:
    asked = whole(search={"exhaustive_up_to": 7, "trials": 3})
    bare = asked.model_copy(
        update={
            "growth": asked.growth.model_copy(update={"months": 0}),
            "confidence": asked.confidence.model_copy(update={"redraws": 0}),
        }
    )
    assert plan(bare).method == "optuna"
    exhaustive = bare.search.model_copy(update={"exhaustive_up_to": 8})
    assert plan(bare.model_copy(update={"search": exhaustive})).method == "exhaustive"


def test_a_class_has_objectives_of_its_own() -> None:
    """Tagging everything `interactive` makes its objective that of all."""
    trace = hurried(60, 80)
    trace["operations"].append({"tag": {"slo_class": "interactive"}})
    bare: dict[str, Any] = {
        "fronts": {"replays": 0},
        "growth": {"months": 0},
        "sensitivities": False,
        "confidence": {"redraws": 0},
    }
    of_class = plan(
        whole(
            scenario={"trace": trace, "cache": {"prefix_caching": False}},
            objectives=["interactive: p99 ttft <= 1s"],
            **bare,
        )
    )
    of_all = plan(whole(objectives=["p99 ttft <= 1s"], **bare))
    assert of_class.winner.candidate.label == of_all.winner.candidate.label
    assert of_class.margins["margin"].to_list() == of_all.margins["margin"].to_list()


def test_the_command_line(kvcast: Run, tmp_path: Path) -> None:
    import yaml

    settings = whole(
        fronts={"replays": 0}, growth={"months": 3}, confidence={"redraws": 4, "share": 0.5}
    )
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(settings.model_dump(mode="json")))
    code, said, error = kvcast("plan", "plan.yaml", "--out", "out")
    assert (code, error) == (0, "")
    for words in ("Nearest cheaper candidates", "Sensitivities", "Front: cost", "more traffic"):
        assert words in said
    code, _, _ = kvcast("replay", "out/winner.yaml")
    assert code == 0
    content = json.loads((tmp_path / "out" / "plan.json").read_text())
    assert content["name"] == "whole"
    code, said_again, _ = kvcast("plan", "plan.yaml", "--out", "out")
    assert (code, said_again) == (0, said)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("space: {replicas: 1}\nobjectives: [p99 ttft <= 1us]", "none of 1 candidates meets"),
        ("space: {replicas: 0}\nobjectives: [p99 ttft <= 1s]", "space.replicas: must be whole"),
        ("space: [1]\nobjectives: [p99 ttft <= 1s]", "plan.yaml: space: "),
        ("space: {replicas: 1}\nobjectives: [p99 ttft]", "is no objective"),
        (
            "space: {gpu: l4, model: llama-3.1-70b}\nobjectives: [p99 ttft <= 1s]",
            "does not fit: weights 131",
        ),
        (
            "space: {gpu: l4, model: llama-3.1-8b}\nobjectives: [p99 ttft <= 1s]\n"
            "economics: {contract: reserved-3y}",
            "no reserved-3y price of l4",
        ),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    kvcast: Run, tmp_path: Path, text: str, said: str
) -> None:
    (tmp_path / "plan.yaml").write_text(text)
    code, out, error = kvcast("plan", "plan.yaml", "--out", "out")
    assert code == 2 and out == ""
    assert error.startswith("error: ") and error.count("\n") == 1
    assert said in error
    left = {path.name for path in (tmp_path / "out").glob("*")} - {"store"}
    assert left == set()
