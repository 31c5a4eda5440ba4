"""Limits of good requests: for all, and by SLO class."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.metrics import FINISHED, PICOSECONDS, REQUEST_COLUMNS, ServiceMetrics
from engine.slo import SloSettings
from sim.replay import replay
from sim.scenario import load_scenario, scenario_of
from traces.errors import ConfigError
from traces.request import Request
from traces.settings import to_yaml

AT = {name: i for i, name in enumerate(REQUEST_COLUMNS)}


def rows(ended: list[tuple[int, float, float, int]]) -> np.ndarray:
    """Finished requests: number of the class, TTFT, E2E, tokens."""
    made = np.zeros((len(ended), len(REQUEST_COLUMNS)), dtype=np.int64)
    for row, (slo_class, ttft_s, e2e_s, tokens) in zip(made, ended, strict=True):
        row[AT["slo_class"]] = slo_class
        row[AT["outcome"]] = FINISHED
        row[AT["first_token"]] = round(ttft_s * PICOSECONDS)
        row[AT["finish"]] = round(e2e_s * PICOSECONDS)
        row[AT["generated_tokens"]] = tokens
    return made


LIMITS = SloSettings.model_validate(
    {"ttft_s": 1, "classes": {"chat": {"tpot_s": 0.1}, "batch": {"ttft_s": 60, "e2e_s": 600}}}
)


def test_what_a_class_does_not_state_is_as_for_all() -> None:
    second = PICOSECONDS
    assert LIMITS.limits_of("chat") == {"ttft": second, "tpot": second // 10}
    assert LIMITS.limits_of("batch") == {"ttft": 60 * second, "e2e": 600 * second}
    assert LIMITS.limits_of("other") == LIMITS.limits_of("") == {"ttft": second}


ended = st.tuples(st.integers(0, 5), st.floats(0, 100), st.floats(0, 900), st.integers(1, 50))


@given(st.lists(ended, max_size=30))
def test_goodput_is_by_each_class_s_own_limits(requests: list[tuple[int, float, float, int]]):
    """Numbers above those of the classes with limits are other names: they have the common ones."""
    metrics = ServiceMetrics(0, LIMITS.limits_ps(), LIMITS.classes_ps())
    assert metrics.names() == {"": 0, "chat": 1, "batch": 2}
    made = [(of, ttft, ttft + rest, tokens) for of, ttft, rest, tokens in requests]
    metrics.add(rows(made))
    good = 0
    for of, ttft_s, e2e_s, tokens in made:
        limits = LIMITS.limits_of({1: "chat", 2: "batch"}.get(of, ""))
        ttft, e2e = round(ttft_s * PICOSECONDS), round(e2e_s * PICOSECONDS)
        tpot = (e2e - ttft) // (tokens - 1) if tokens > 1 else 0
        values = {"ttft": ttft, "tpot": tpot, "e2e": e2e}
        good += all(values[name] <= limit for name, limit in limits.items())
    assert metrics.good == good


def test_a_replay_counts_by_class() -> None:
    """The same requests, one class allowed what the other is not."""
    requests = [
        Request(i, 0.5 * i, 2000, 20, slo_class="slow" if i % 2 else "quick") for i in range(40)
    ]
    plain = replay(scenario_of({"slo": {"ttft_s": 1e-3}}), requests).summary
    assert plain["goodput"]["share"] == 0
    assert "classes" not in plain["goodput"]["slo"]
    slo = {"ttft_s": 1e-3, "classes": {"slow": {"ttft_s": 100}}}
    summary = replay(scenario_of({"slo": slo}), requests).summary
    assert summary["goodput"]["share"] == 0.5
    assert summary["goodput"]["slo"] == {"ttft_s": 1e-3, "classes": {"slow": {"ttft_s": 100}}}
    # nothing but the goodput is another
    assert plain["latency"] == summary["latency"]
    alone = replay(scenario_of({"slo": {"classes": {"slow": {"ttft_s": 1e-3}}}}), requests).summary
    assert alone["goodput"]["share"] == 0.5


def test_names_in_rows_stay_right() -> None:
    """Classes with limits are numbered before anybody comes; the table names all as they are."""
    slo = {"classes": {"late": {"ttft_s": 1}, "never": {"ttft_s": 1}}}
    names = ["a", "late", "", "b"]
    requests = [Request(i, 0.1 * i, 10, 2, slo_class=names[i % 4], tenant="b") for i in range(20)]
    table = replay(scenario_of({"slo": slo}), requests).requests
    assert table is not None
    found = table.sort("request_id")
    assert found["slo_class"].to_list() == [names[i % 4] for i in range(20)]
    assert set(found["tenant"].to_list()) == {"b"}


def test_classes_in_a_file(tmp_path) -> None:  # type: ignore[no-untyped-def]
    file = tmp_path / "run.yaml"
    file.write_text("slo: {ttft_s: 1, classes: {batch: {e2e_s: 60}}}\n")
    scenario = load_scenario(file, ["slo.classes.chat.tpot_s=0.05"])
    assert scenario.slo.classes["chat"].tpot_s == 0.05
    file.write_text(to_yaml(scenario))
    assert load_scenario(file) == scenario
    for override, says in (
        ("slo.classes.batch.ttft=1", "slo.classes.batch.ttft: unknown setting; did you mean slo."),
        ("slo.classes.batch.ttft_s=0", "slo.classes.batch.ttft_s: must be above 0, got 0"),
        ("slo.classes.batch=1", "slo.classes.batch"),
    ):
        with pytest.raises(ConfigError) as caught:
            load_scenario(file, [override])
        assert says in str(caught.value)
