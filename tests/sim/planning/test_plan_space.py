"""What plan.yaml may state, what is refused, and what is left out with a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sim.planning.candidates import Space, nodes
from sim.planning.plan import plan
from sim.planning.space import (
    axes,
    base_values,
    load_plan_settings,
    plan_settings_of,
    profile_name,
    replica_counts,
)
from tests.sim.planning.fleets import plan_of
from traces.errors import ConfigError, KvcastError

OBJECTIVES = ["p99 ttft <= 1s"]


def of(space: dict[str, Any], **others: Any) -> Any:
    """A plan of this space."""
    return plan_settings_of({"space": space, "objectives": OBJECTIVES, **others})


def made(space: dict[str, Any], **others: Any) -> Space:
    """Its candidates."""
    settings = of(space, **others)
    found = Space(settings, base_values(settings))
    found.every()
    return found


def test_dimensions_compose_profiles_and_settings() -> None:
    found = made(
        {
            "gpu": ["h100", "h200"],
            "model": "llama-3.1-8b",
            "tp": [1, 2],
            "kv_dtype": ["bf16", "fp8"],
            "scheduler.max_num_batched_tokens": [2048, 8192],
            "replicas": {"from": 2, "to": 4},
        }
    )
    assert found.size == 16 and found.stated == 48
    one = found.made[-1]
    assert one.scenario.profile == "analytic:h200/llama-3.1-8b/tp2/kv-fp8"
    assert one.scenario.scheduler.max_num_batched_tokens == 8192
    assert [c.replicas for c in one.candidates] == [2, 3, 4]
    assert [c.gpus for c in one.candidates] == [4, 6, 8]
    first = one.candidates[0]
    assert first.scenario.cluster.replicas == 2
    assert first.usd_per_hour == pytest.approx(4 * found.made[-1].usd_per_replica_hour / 2)
    assert first.label == "2 x h200 · tp 2 · fp8 KV · max_num_batched_tokens 8,192"


def test_the_first_dimension_varies_slowest() -> None:
    found = made(
        {"gpu": ["l4", "l40s"], "model": "llama-3.1-8b", "cache.prefix_caching": [True, False]}
    )
    assert [one.settings["gpu"] for one in found.made] == ["l4", "l4", "l40s", "l40s"]
    assert [one.place for one in found.made] == [0, 1, 2, 3]


def test_shipped_profiles_are_a_dimension() -> None:
    found = made({"profile": ["h200-llama-3.1-8b", "h100-llama-3.1-8b"], "replicas": [3, 1]})
    assert [one.scenario.profile for one in found.made] == [
        "h200-llama-3.1-8b",
        "h100-llama-3.1-8b",
    ]
    assert found.replicas == (1, 3)


def test_a_space_of_replicas_alone_uses_the_scenarios_profile() -> None:
    found = made({"replicas": [1, 2]}, scenario={"profile": "h100-llama-3.1-8b"})
    (one,) = found.made
    assert one.scenario.profile == "h100-llama-3.1-8b"


def test_profile_names() -> None:
    stated = {"gpu": "h100", "model": "m", "tp": 4, "weight_dtype": "fp8", "kv_dtype": "int8"}
    assert profile_name(stated) == "analytic:h100/m/tp4/w-fp8/kv-int8"
    assert profile_name({"gpu": "h100", "model": "m", "tp": 1}) == "analytic:h100/m"
    assert profile_name({"cluster.router": "random"}) is None


def test_constraints_leave_candidates_out_with_a_count() -> None:
    space = {"gpu": "h100", "model": "llama-3.1-8b", "tp": [1, 8], "replicas": {"from": 1, "to": 8}}
    found = made(space, constraints={"max_gpus": 16})
    assert {one.profile.tp: one.replicas for one in found.made} == {
        1: tuple(range(1, 9)),
        8: (1, 2),
    }
    (dropped,) = found.dropped
    assert (dropped.reason, dropped.candidates) == ("max_gpus 16", 6)
    usd = 3 * found.made[0].usd_per_replica_hour
    found = made({**space, "tp": 1}, constraints={"max_usd_per_hour": usd})
    assert found.made[0].replicas == (1, 2, 3)
    found = made({**space, "tp": 8}, constraints={"max_nodes": 2})
    assert found.made[0].replicas == (1, 2)


@pytest.mark.parametrize(
    ("replicas", "tp", "expected"),
    [(1, 1, 1), (8, 1, 1), (9, 1, 2), (2, 4, 1), (3, 4, 2), (5, 3, 3), (1, 16, 2), (2, 8, 2)],
)
def test_nodes_hold_whole_replicas(replicas: int, tp: int, expected: int) -> None:
    assert nodes(replicas, tp, 8) == expected


def test_what_does_not_fit_is_left_out_and_says_which_bytes() -> None:
    found = made(
        {"gpu": ["l4", "h100"], "model": "llama-3.1-70b", "tp": [4], "weight_dtype": ["bf16"]}
    )
    (dropped,) = found.dropped
    assert dropped.reason == "does not fit" and dropped.candidates == 1
    for words in ("weights 32", "activation peak", "one block", "exceed 0.9 of 22.00 GiB by"):
        assert words in dropped.example
    with pytest.raises(ConfigError, match=r"no candidate is left of 1: 1 does not fit \(llama"):
        made({"gpu": "l4", "model": "llama-3.1-70b", "tp": [4]})


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ({"gpu": ["h100"]}, "space.model: is missing beside space.gpu"),
        ({"tp": [2]}, "space.gpu: is missing beside space.tp"),
        ({"gpu": [], "model": "x"}, "space.gpu: has no value"),
        ({"gpu": ["h100", "h100"], "model": "x"}, "space.gpu: h100 is stated twice"),
        ({"gpu": "h100", "model": "llama-3.1-8b", "profile": "a"}, "space: states profile and gpu"),
        ({"gpus": ["h100"]}, "space.gpus: unknown dimension; did you mean gpu?"),
        ({"max_num_seqs": [1]}, "space.max_num_seqs: unknown dimension; did you mean scheduler."),
        ({"scheduler": {"max_num_seqs": [1]}}, "space.scheduler: unknown dimension"),
        ({"cluster.replicas": [1]}, "is no dimension; state space.replicas"),
        ({"trace.path": ["a"]}, "traffic is the same for all"),
        ({"slo.ttft_s": [1]}, "is nothing to buy"),
        ({"replicas": []}, "space.replicas: has no value"),
        ({"replicas": [0]}, "must be whole numbers of at least 1, got 0"),
        ({"replicas": {"from": 3, "to": 2}}, "to must be at least from (3), got 2"),
        ({"replicas": {"from": 1}}, "expected {from: 1, to: 32}"),
        ({"replicas": {"from": 1, "to": "x"}}, "got 'x'"),
        ({"gpu": "h1000", "model": "llama-3.1-8b"}, "space.gpu: h1000: "),
        ({"gpu": "h100", "model": "llama-3.1-8b", "tp": [1, 5]}, "space.tp: 5: "),
        ({"cluster.router": ["round-robin", "nearest"]}, "space.cluster.router: nearest: "),
    ],
)
def test_a_space_that_cannot_be(space: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        made(space)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_value_that_only_some_combinations_allow_is_left_out() -> None:
    found = made(
        {
            "gpu": "h100",
            "model": ["llama-3.1-8b", "qwen2.5-7b"],
            "tp": [1, 8],  # qwen2.5-7b has 28 heads
        }
    )
    assert len(found.made) == 3
    (dropped,) = found.dropped
    assert dropped.reason == "is not possible" and "28" in dropped.example


def test_a_gpu_without_a_price() -> None:
    (with_price,) = made(
        {"gpu": "h100", "model": "llama-3.1-8b"}, economics={"usd_per_gpu_hour": 7.5}
    ).made
    assert with_price.usd_per_replica_hour == 7.5
    with pytest.raises(ConfigError, match=r"h200.*usd_per_gpu_hour.*prices"):
        made({"gpu": "h200", "model": "llama-3.1-8b"}, economics={"contract": "reserved-3y"})


def test_settings_are_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    for text, said in (
        ("space: {gpu: h100}\nobjectives: [p99 ttft <= 1s]\nspaces: 1", "spaces: unknown setting"),
        ("objectives: [p99 ttft <= 1s]", "space: is required"),
        ("space: {replicas: 1}", "objectives: is required"),
        ("space: {replicas: 1}\nobjectives: []", "objectives"),
        (
            "space: {replicas: 1}\nobjectives: [a]\nsearch: {method: all}",
            "search.method: must be 'auto', 'exhaustive' or 'optuna', got 'all'",
        ),
        (
            "space: {replicas: 1}\nobjectives: [a]\ngrowth: {month: 3}",
            "growth.month: unknown setting; did you mean growth.months?",
        ),
    ):
        file.write_text(text)
        with pytest.raises(ConfigError) as error:
            load_plan_settings(file)
        assert str(error.value).startswith(str(file)) and said in str(error.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"objectives": ["p99 tfft <= 1s"]}, "objectives 'p99 tfft <= 1s': unknown figure 'tfft'"),
        ({"objectives": ["batch: p99 ttft <= 1s"]}, "unknown class 'batch'; the trace has no"),
        ({"objectives": ["goodput >= 99%"]}, "no limit that a good request keeps"),
        ({"scenario": {"trace": {"path": "nowhere.csv"}}}, "nowhere.csv"),
        ({"scenario": {"cluster": {"router": "x"}}}, "cluster.router"),
        ({"scenario": "nowhere.yaml"}, "nowhere.yaml: cannot be read"),
    ],
)
def test_a_plan_that_cannot_be(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(KvcastError) as error:
        plan(plan_of(**changes))
    assert said in str(error.value)


def test_a_scenario_may_be_a_file_beside_the_plan(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("name: mine\nseed: 5\n")
    settings = of({"replicas": [1]}, scenario="run.yaml", economics={"usd_per_gpu_hour": 2})
    values = base_values(settings, tmp_path)
    assert values == {"name": "mine", "seed": 5, "economics": {"usd_per_gpu_hour": 2}}


def test_one_value_needs_no_list_and_false_switches_sensitivities_off() -> None:
    settings = of({"gpu": "h100", "model": "m"}, sensitivities=False)
    assert axes(settings) == {"gpu": ("h100",), "model": ("m",)}
    assert replica_counts(settings) == (1,)
    assert settings.sensitivities.rate == 0 and not settings.sensitivities.prefix_reuse
