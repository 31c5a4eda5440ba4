"""docs/planning.md is true: its example plans, its settings and fields are all there are."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from sim.planning.explaining import STATUSES
from sim.planning.plan import Plan, plan
from sim.planning.plan_folder import FILES, as_json
from sim.planning.space import PlanSettings, axes, plan_settings_of, replica_counts, size
from traces.settings import merged, setting_names

PAGE = Path(__file__).parents[3] / "docs" / "planning.md"
TEXT = PAGE.read_text(encoding="utf-8")
EXAMPLE = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)[0])


@pytest.fixture(scope="module")
def found() -> Plan:
    """The example on the beginning of its trace."""
    assert EXAMPLE["scenario"]["trace"]["path"] == "sample:chat"
    short = {
        "scenario": {
            "trace": {"operations": [{"limit": {"count": 60}}, {"compress_time": {"factor": 60}}]}
        },
        "confidence": {"redraws": 4, "share": 0.5},
        "fronts": {"replays": 10},
        "growth": {"months": 3},
    }
    return plan(plan_settings_of(merged(EXAMPLE, short)))


def test_the_example_plans_the_space_it_states(found: Plan) -> None:
    settings = plan_settings_of(EXAMPLE)
    stated = size(axes(settings)) * len(replica_counts(settings))
    assert found.stated == stated
    assert f"none of {stated} candidates meets" in TEXT
    assert found.winner.evaluation.met


def test_every_setting_is_explained() -> None:
    for name in setting_names(PlanSettings):
        section, _, last = name.rpartition(".")
        row = rf"^\|.*`{section}\.?\w*`.*`?\.?{last}`.*\|$" if section else rf"^\| .*`{name}`"
        assert re.search(row, TEXT, re.MULTILINE) or f"`{name}`" in TEXT, name


def test_every_field_of_the_numbers_is_explained(found: Plan) -> None:
    content = as_json(found)
    names = set(content)
    for part in ("winner", "space", "sensitivities", "headroom", "growth"):
        names |= set(content[part])
    for front in content["fronts"].values():
        names |= set(front) | set(front["points"][0])
    names |= set(content["fronts"]) | set(content["margins"][0]) | set(content["objectives"][0])
    names |= set(content["growth"]["months"][0]) | set(content["sensitivities"]["swings"][0])
    names |= set(content["cheaper"][0]) | set(content["cheaper"][0]["misses"][0])
    names |= set(content["winner"]["redrawn"])
    assert [name for name in sorted(names) if f"`{name}`" not in TEXT] == []


def test_every_column_file_and_status_is_explained(found: Plan) -> None:
    columns = [name for name in found.candidates.columns if "." not in name]
    assert [name for name in columns if f"`{name}`" not in TEXT] == []
    assert [name for name in sorted(FILES) if f"`{name}" not in TEXT] == []
    assert [name for name in STATUSES if f"`{name}`" not in TEXT] == []


def test_the_python_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import plotly.graph_objects as go

    shown: list[go.Figure] = []

    def show(figure: go.Figure) -> None:
        shown.append(figure)

    monkeypatch.setattr(go.Figure, "show", show)
    names: Mapping[str, Any] = {}
    (example,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    exec(example, dict(names))
    assert len(shown) == 1
    assert re.fullmatch(r"1 x h\d00-llama-3.1-8b [\d.]+\n", capsys.readouterr().out)
