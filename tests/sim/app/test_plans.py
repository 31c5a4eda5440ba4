"""A plan.json on the page: what is drawn is what it says, and nothing else gets through."""

import json
from pathlib import Path
from typing import Any

import pytest

from sim.app.plans import cost_picture, digest, located, said, user_picture
from traces.errors import ConfigError


@pytest.fixture(scope="module")
def plan_json(finished_plan: Path) -> dict[str, Any]:
    return json.loads(finished_plan.read_text())


def written(tmp_path: Path, content: Any) -> Path:
    path = tmp_path / "plan.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_a_plan_is_drawn_as_it_is(finished_plan: Path, plan_json: dict[str, Any]):
    found = digest(finished_plan)
    assert found["winner"]["candidate"] == plan_json["winner"]["candidate"]
    assert found["winner"]["usd_per_hour"] == plan_json["winner"]["usd_per_hour"]
    assert found["simulated"] == len(plan_json["candidates"])
    assert found["ttft_limit_s"] == 0.3
    assert plan_json["winner"]["candidate"] in said(found)
    points = plan_json["fronts"]["cost_ttft"]["points"]
    (front,) = [one for one in cost_picture(found, None).data if one.name == "front"]
    assert sorted(front.x) == sorted(one["usd_per_hour"] for one in points)
    assert sorted(front.y) == sorted(one["p99_ttft_s"] for one in points)
    names = {one.name for one in user_picture(found, None).data}
    assert {"front", "winner"} <= names
    assert "run of now" not in names


def test_the_run_of_now_lies_among_its_candidates(finished_plan: Path):
    """Of the winner's scenario, the run of now is the winner's point."""
    from sim.replay import replay
    from sim.scenario import scenario_of

    found = digest(finished_plan)
    scenario = scenario_of(json.loads(finished_plan.read_text())["winner"]["scenario"])
    now = {"summary": replay(scenario).summary}
    for picture in (cost_picture(found, now), user_picture(found, now)):
        marks = {one.name: (one.x[0], one.y[0]) for one in picture.data if len(one.x) == 1}
        assert marks["run of now"] == pytest.approx(marks["winner"], rel=1e-9)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", "{}", '{"version": 1}', "[" * 100_000, '{"version": 1e999}'],
)
def test_what_is_no_plan_is_said_in_a_line(tmp_path: Path, content: str):
    with pytest.raises(ConfigError, match=r"is no (JSON|plan); expected") as refused:
        digest(written(tmp_path, content))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (("version",), 99, "version is 99; this kvcast reads 1"),
        (("winner",), None, "winner: "),
        (("winner", "usd_per_hour"), "dear", "winner.usd_per_hour: "),
        (("winner", "candidate"), "x" * 5000, "winner.candidate: "),
        (("candidates",), {}, "candidates: "),
        (("fronts", "cost_ttft", "points"), 3, "fronts.cost_ttft.points: "),
        (("winner", "figures"), [1], "winner.figures: "),
    ],
)
def test_a_plan_that_is_wrong_somewhere_says_where(
    tmp_path: Path, plan_json: dict[str, Any], place: tuple[str, ...], value: Any, said: str
):
    changed = json.loads(json.dumps(plan_json))
    inner = changed
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    with pytest.raises(ConfigError) as refused:
        digest(written(tmp_path, changed))
    assert said in str(refused.value)
    assert len(str(refused.value)) < 300


def test_labels_are_text(tmp_path: Path, plan_json: dict[str, Any]):
    changed = json.loads(json.dumps(plan_json))
    for one in changed["candidates"]:
        one["candidate"] = '<a href="http://elsewhere">x</a>'
    picture = cost_picture(digest(written(tmp_path, changed)), None)
    texts = [text for one in picture.data for text in one.text or ()]
    assert any("&lt;a" in text for text in texts)
    assert not any("<a" in text for text in texts)


def test_a_plan_is_found_in_its_folder(finished_plan: Path, tmp_path: Path):
    assert located(finished_plan) == located(finished_plan.parent) == finished_plan
    with pytest.raises(ConfigError, match="is no plan; expected a plan's folder"):
        located(tmp_path / "none")
