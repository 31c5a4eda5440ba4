"""Scenarios: defaults, presets and overrides merge; YAML there and back; names that are wrong."""

import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from engine.config import CacheSettings, SchedulerSettings
from engine.eviction import EVICTION
from engine.policies import ORDER
from engine.slo import SloSettings
from sim.admission import ADMISSION
from sim.routing import ROUTERS
from sim.scenario import (
    PRESETS,
    ClusterSettings,
    MemorySettings,
    Scenario,
    UncertaintySettings,
    load_scenario,
    scenario_of,
)
from traces.errors import ConfigError
from traces.pipeline import TraceSettings, parse_operation
from traces.settings import merged, setting_names, to_yaml

DOCS = Path(__file__).parents[2] / "docs"


def maybe(strategy: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    return st.none() | strategy


names = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=8)
seconds = st.floats(1e-6, 1e6)
counts = st.integers(1, 10**9)
operations = st.sampled_from(
    ["window:start_s=1,end_s=60", "thin:factor=0.5,seed=3", "tile:copies=2", "tag:tenant=acme"]
).map(parse_operation)
scenarios = st.builds(
    Scenario,
    name=names,
    seed=st.integers(0, 2**40),
    preset=st.sampled_from(sorted(PRESETS)),
    trace=st.builds(
        TraceSettings,
        path=names,
        format=maybe(st.sampled_from(["csv", "azure"])),
        skip_bad_rows=st.booleans(),
        rate_per_s=maybe(seconds),
        operations=st.lists(operations, max_size=2).map(tuple),
    ),
    cluster=st.builds(
        ClusterSettings,
        replicas=counts,
        router=st.sampled_from(sorted(ROUTERS)),
        max_queue=maybe(counts),
        request_timeout_s=maybe(seconds),
        closed_loop=st.booleans(),
    ),
    scheduler=st.builds(
        SchedulerSettings,
        max_num_seqs=counts,
        order=st.sampled_from(sorted(ORDER)),
        watermark=st.floats(0, 0.99),
    ),
    memory=st.builds(MemorySettings, num_blocks=maybe(st.integers(2, 10**6))),
    slo=st.builds(SloSettings, ttft_s=maybe(seconds), tpot_s=maybe(seconds)),
    noise=st.booleans(),
    uncertainty=st.builds(
        UncertaintySettings,
        replications=maybe(st.integers(5, 100)),
        level=st.floats(0.5, 0.99),
        cost_share=maybe(st.floats(0.01, 10)),
    ),
    warmup_s=st.floats(0, 100),
    end_s=maybe(st.floats(101, 1e6)),
)


@given(scenarios)
def test_yaml_there_and_back_is_the_same_scenario(scenario: Scenario):
    text = to_yaml(scenario)
    again = scenario_of(yaml.safe_load(text))
    assert again == scenario
    assert to_yaml(again) == text


def test_a_file_says_the_same_as_its_settings_one_by_one(tmp_path: Path):
    file = tmp_path / "run.yaml"
    file.write_text(
        "seed: 3\npreset: static\ncluster: {replicas: 2, router: random}\n"
        "trace: {path: a.csv, operations: [{limit: {count: 5}}]}\n"
    )
    overrides = ["seed=3", "preset=static", "cluster.replicas=2", "cluster.router=random"]
    overrides += ["trace.path=a.csv", "trace.operations=[{limit: {count: 5}}]"]
    assert load_scenario(file) == load_scenario(None, overrides)


def test_the_nearer_to_the_user_wins(tmp_path: Path):
    file = tmp_path / "run.yaml"
    file.write_text(
        "preset: static\nscheduler: {max_num_seqs: 8}\ncluster: {replicas: 2}\nseed: 1\n"
    )
    options = {"cluster": {"replicas": 3}, "seed": 2}
    scenario = load_scenario(file, ["seed=4", "seed=5"], options)
    assert scenario.scheduler.batching == "static"  # the preset
    assert scenario.scheduler.max_num_seqs == 8  # the file, over the preset's 32
    assert scenario.cluster.replicas == 3  # the option, over the file
    assert scenario.seed == 5  # the last override


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_valid_and_says_what_it_changes(preset: str):
    scenario = Scenario(preset=preset)
    stated = scenario.model_dump()
    assert merged(stated, PRESETS[preset]) == stated
    others = {**stated, "preset": "vllm"}
    assert scenario_of(others).scheduler == scenario.scheduler
    assert (scenario.scheduler, scenario.cache) != (SchedulerSettings(), CacheSettings()) or (
        preset == "vllm"
    )


def test_a_preset_holds_beside_settings_objects():
    scenario = Scenario(preset="orca", scheduler=SchedulerSettings(max_num_seqs=7))
    assert (scenario.scheduler.max_num_seqs, scenario.scheduler.chunked_prefill) == (7, False)
    assert scenario.cache.allocation == "contiguous"


def test_a_settings_own_value_beats_its_preset():
    scenario = load_scenario(None, ["preset=static", "scheduler.max_num_seqs=64"])
    assert scenario.scheduler.max_num_seqs == 64


def test_merging_leaves_its_arguments_alone():
    base, over = {"a": {"b": 1}}, {"a": {"c": 2}, "d": 3}
    assert merged(base, over) == {"a": {"b": 1, "c": 2}, "d": 3}
    assert (base, over) == ({"a": {"b": 1}}, {"a": {"c": 2}, "d": 3})


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("sed=1", "sed: unknown setting; did you mean seed?"),
        ("clutser.replicas=1", "clutser: unknown setting; did you mean cluster?"),
        ("cluster.replica=1", "cluster.replica: unknown setting; did you mean cluster.replicas?"),
        ("replicas=1", "replicas: unknown setting; did you mean cluster.replicas?"),
        ("max_num_seq=1", "max_num_seq: unknown setting; did you mean scheduler.max_num_seqs?"),
        ("cluster.max_num_seqs=1", "cluster.max_num_seqs: .* did you mean scheduler.max_num_seqs?"),
        ("slo.ttft=1", "slo.ttft: unknown setting; did you mean slo.ttft_s?"),
        ("xyz=1", "xyz: unknown setting; known: name, seed, preset, trace,"),
        ("memory.xyz=1", "memory.xyz: .* known: memory.num_blocks, memory.memory_share$"),
        (
            "trace.operations=[{thn: {factor: 0.5}}]",
            "trace.operations.0.thn: .* did you mean trace.operations.0.thin?",
        ),
        (
            "trace.operations=[{thin: {facto: 0.5}}]",
            "trace.operations.0.thin.facto: .* did you mean trace.operations.0.thin.factor?",
        ),
        ("cluster.router=least-request", "cluster.router: .* did you mean least-requests?"),
        ("preset=vllm-v1", "preset: unknown preset 'vllm-v1'; did you mean vllm-v0?"),
        ("preset=[]", "preset: must be text, got []"),
        ("scheduler.order=fcfss", "scheduler.order: unknown policy 'fcfss'; did you mean fcfs?"),
        ("cache.eviction=lruu", "cache.eviction: unknown policy 'lruu'; did you mean lru?"),
        ("cache.allocation=page", "cache.allocation: must be 'paged' or 'contiguous', got 'page'"),
        ("cluster.replicas=0", "cluster.replicas: must be at least 1, got 0"),
        ("cluster.replicas=1.5", "cluster.replicas: must be a whole number, got 1.5"),
        ("cluster.replicas=", "cluster.replicas: must be a whole number, got None"),
        ("cluster=4", "cluster: must be a mapping of settings, got 4"),
        (
            "cluster.closed_loop=perhaps",
            "cluster.closed_loop: must be true or false, got 'perhaps'",
        ),
        ("scheduler.watermark=1", "scheduler.watermark: must be below 1, got 1"),
        ("slo.ttft_s=0", "slo.ttft_s: must be above 0, got 0"),
        ("end_s=.inf", "end_s: must be a finite number, got inf"),
        ("trace.path=''", "trace.path: must not be empty, got ''"),
        ("trace.path=3", "trace.path: must be text, got 3"),
        ("trace.operations=limit", "trace.operations: must be a list, got 'limit'"),
        ("trace.operations=[{}]", "trace.operations.0: must name one operation of window, thin,"),
        ("scheduler.prefill_first=true", "scheduler: prefill_first: needs chunked_prefill: false"),
        ("cache.allocation=contiguous", "cache: allocation: .* prefix_caching: false"),
    ],
)
def test_what_is_wrong_is_named_with_its_value_and_what_is_right(override: str, says: str):
    with pytest.raises(ConfigError) as caught:
        load_scenario(None, [override])
    message = str(caught.value)
    pattern = says if ".*" in says or says.endswith("$") else re.escape(says)
    assert re.match(f"command line: {pattern}", message), message
    assert "\n" not in message


@pytest.mark.parametrize("override", ["seed", "=1", "", "seed=[1"])
def test_an_override_is_name_and_value(override: str):
    with pytest.raises(ConfigError, match=r"--set "):
        load_scenario(None, [override])


def test_the_file_is_blamed_for_what_the_file_says_and_the_command_line_for_the_rest(
    tmp_path: Path,
):
    file = tmp_path / "run.yaml"
    file.write_text("cluster: {replicas: 0}\n")
    with pytest.raises(ConfigError, match=r"run\.yaml: cluster\.replicas: must be at least 1"):
        load_scenario(file, ["seed=-1"])
    file.write_text("cluster: {replicas: 1}\n")
    with pytest.raises(ConfigError, match=r"command line: seed: must be at least 0"):
        load_scenario(file, ["seed=-1"])


def test_an_override_may_put_right_what_the_file_has_wrong(tmp_path: Path):
    file = tmp_path / "run.yaml"
    file.write_text("scheduler: {prefill_first: true, async_scheduling: false}\n")
    scenario = load_scenario(file, ["scheduler.chunked_prefill=false"])
    assert scenario.scheduler.prefill_first


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("- a\n- b\n", "run.yaml: expected a mapping of settings, got ['a', 'b']"),
        ("", "run.yaml: expected a mapping of settings, got None"),
        ("a: [1\n", "run.yaml: is no YAML: "),
        ("a: \x01\n", "run.yaml: is no YAML: "),
        ("1: 2\n", "run.yaml: 1: unknown setting; known: name,"),
    ],
)
def test_a_file_that_holds_no_settings(tmp_path: Path, text: str, says: str):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_scenario(file)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_reference_lists_every_setting_with_its_default():
    text = (DOCS / "scenario.md").read_text("utf-8")
    rows = re.findall(r"^\| `([a-z0-9_.]+)` \| ([^|]+) \| [^|]*\| [^|]+ \|$", text, re.MULTILINE)
    listed = {name: default.strip().strip("`") for name, default in rows}
    assert list(listed) == list(setting_names(Scenario))
    for name, default in listed.items():
        value: object = Scenario()
        for part in name.split("."):
            value = getattr(value, part)
        value = list(value) if isinstance(value, tuple) else value
        assert yaml.safe_load("null" if default == "none" else default) == value, name


@pytest.mark.parametrize("names", [PRESETS, ROUTERS, ORDER, EVICTION, ADMISSION], ids=len)
def test_the_reference_names_every_choice(names: dict[str, object]):
    text = (DOCS / "scenario.md").read_text("utf-8")
    assert [name for name in names if f"`{name}`" not in text] == []
