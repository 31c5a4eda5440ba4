"""What stands in the controls makes a scenario, whatever a browser sends."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.profiles import load_profile
from engine.named import parameters
from sim.app.controls import (
    KV_DTYPE,
    POLICIES,
    PRESET,
    PRICES,
    SLO,
    Control,
    Menu,
    Number,
    Slider,
    controls,
    profile_parts,
)
from sim.app.stated import first_choices, offer, scenario_from
from sim.app.unstated import choices_of, offer_of
from sim.kinds import KINDS
from sim.scenario import PRESETS, Scenario
from traces.errors import ConfigError, TraceError
from traces.settings import setting_names

OFFER = offer()
FIRST = first_choices(OFFER)


def setting(scenario: Scenario, name: str):
    value = scenario
    for part in name.split("."):
        value = getattr(value, part)
    return value


def stated(**choices) -> Scenario:
    return scenario_from({**FIRST, **choices}, OFFER, {})


def test_the_page_begins_with_the_defaults_of_a_scenario():
    assert scenario_from(FIRST, OFFER, {}) == Scenario()
    assert scenario_from({"trace": FIRST["trace"], "profile": FIRST["profile"]}, OFFER, {}) == (
        Scenario()
    )


@pytest.mark.parametrize("control", controls(), ids=lambda one: one.name)
def test_every_control_states_a_setting_that_there_is(control: Control):
    known = set(setting_names(Scenario))
    if control.setting:
        assert control.setting in known
    if isinstance(control, Slider):
        assert len(control.texts) == len(control.values)
        made = [stated(**{control.name: place}) for place in range(len(control.values))]
        assert len({one.model_dump_json() for one in made}) == len(made)
        assert made[control.start] == Scenario()
        for value, one in zip(control.values, made, strict=True):
            if control.setting and value is not None:
                assert setting(one, control.setting) == value
    elif isinstance(control, Menu) and control not in profile_parts():
        for value, _ in control.options:
            made = stated(**{control.name: value})
            if control.setting and value not in (control.start, "false"):
                assert setting(made, control.setting) == value
    elif isinstance(control, Number) and control.name != "trace_rate":
        assert setting(stated(**{control.name: 7}), control.setting) == pytest.approx(
            7 * control.per_unit, rel=1e-12
        )


def test_units_are_exact():
    assert stated(slo_ttft=50).slo.ttft_s == 0.05
    assert stated(slo_e2e=30).slo.e2e_s == 30
    assert stated(usd_per_gpu_hour=2.5).economics.usd_per_gpu_hour == 2.5


def test_the_cache_is_as_large_as_said_beside_the_null_block():
    for place, tokens in enumerate(next(c for c in controls() if c.name == "cache_tokens").values):
        blocks = stated(cache_tokens=place).memory.num_blocks
        assert blocks is None if tokens is None else (blocks - 1) * 16 == tokens


def test_cpu_memory_is_stated_in_bytes():
    assert stated(cpu_gib="8").offload.cpu_bytes == 8 * 2**30
    assert stated(cpu_gib="").offload.cpu_bytes == 0


def test_the_rate_hurries_the_trace():
    rate = next(control for control in controls() if control.name == "rate")
    for place, factor in enumerate(rate.values):
        operations = stated(rate=place).trace.operations
        if factor == 1:
            assert not operations
        else:
            assert [one.compress_time.factor for one in operations] == [factor]


def test_a_profile_is_used_until_one_of_its_parts_is_changed():
    assert stated(profile="l4-qwen3-8b-fp8", **_parts("l4-qwen3-8b-fp8")).profile == (
        "l4-qwen3-8b-fp8"
    )
    changed = stated(kv_dtype="int8").profile
    assert changed == "analytic:h200/llama-3.1-8b/tp1/w-bf16/kv-int8"
    assert load_profile(changed).kv_dtype == "int8"


def _parts(name: str) -> dict[str, str]:
    from sim.app.controls import parts_of

    return parts_of(load_profile(name))


@pytest.mark.parametrize("dtype", [name for name, _ in KV_DTYPE.options])
def test_every_kv_dtype_makes_a_profile(dtype: str):
    assert load_profile(stated(kv_dtype=dtype).profile).kv_dtype == dtype


def test_menus_offer_all_that_there_is():
    assert [value for value, _ in PRESET.options] == list(PRESETS)
    for menu in POLICIES:
        assert [value for value, _ in menu.options if value] == list(KINDS[menu.name].table)
        assert setting(Scenario(), menu.setting) == (menu.start or None)
    assert {menu.name for menu in POLICIES} == set(KINDS)


def test_presets_stand_with_every_control_at_rest():
    for preset in PRESETS:
        assert stated(preset=preset) == Scenario(preset=preset)


def test_parameters_of_policies_are_stated():
    made = stated(eviction="s3fifo", parameters={"eviction": {"small": "0.2", "hits": " "}})
    assert made.cache.eviction == "s3fifo:small=0.2"
    for menu in POLICIES:
        for name, policy in KINDS[menu.name].table.items():
            for parameter, default in parameters(policy).items():
                if isinstance(default, bool):
                    default = str(default).lower()
                text = {menu.name: {parameter: str(default)}}
                made = stated(**{menu.name: name}, parameters=text)
                spec = f"{name}:{parameter}={default}" if str(default).strip() else name
                assert setting(made, menu.setting) == spec


@pytest.mark.parametrize(
    ("choices", "said"),
    [
        ({"trace": "/etc/passwd"}, "trace: '/etc/passwd' is none that this page has"),
        ({"trace": ["sample:chat"]}, "trace: ['sample:chat'] is none"),
        ({"trace": None}, "trace: None is none"),
        ({"trace": "upload:of-another-page"}, "trace: 'upload:of-another-page' is none"),
        ({"profile": "/etc/passwd"}, "profile: '/etc/passwd' is not offered"),
        ({"profile": "analytic:h200//etc/passwd"}, "is not offered"),
        ({"model": "../my/model"}, "Model: '../my/model' is not on its list"),
        ({"gpu": "h200/../x"}, "GPU: 'h200/../x' is not on its list"),
        ({"order": "/tmp/evil.py:run"}, "Order of service: '/tmp/evil.py:run' is not on its list"),
        ({"eviction": "evil.py:run"}, "Eviction: 'evil.py:run' is not on its list"),
        ({"router": "fcfs"}, "Router: 'fcfs' is not on its list"),
        ({"replicas": 1000}, "Replicas: 1000 is no place of its slider"),
        ({"replicas": -1}, "Replicas: -1 is no place of its slider"),
        ({"replicas": 1.5}, "Replicas: 1.5 is no place of its slider"),
        ({"replicas": True}, "Replicas: True is no place"),
        ({"slo_ttft": "1s"}, "First token (TTFT): '1s' is no number of ms"),
        ({"slo_ttft": -1}, "settings: slo.ttft_s: must be above 0"),
        ({"slo_ttft": 0}, "settings: slo.ttft_s: must be above 0"),
        ({"preset": "none"}, "Way of serving: 'none' is not on its list"),
        (
            {"eviction": "s3fifo", "parameters": {"eviction": {"small": "1:hits=2"}}},
            "is no value of a parameter",
        ),
        (
            {"eviction": "s3fifo", "parameters": {"eviction": {"smal": "1"}}},
            "did you mean small?",
        ),
        (
            {"eviction": "s3fifo", "parameters": {"eviction": {"small": "x" * 500}}},
            "is no value of a parameter",
        ),
    ],
)
def test_what_no_page_sends_is_refused_in_one_line(choices, said):
    with pytest.raises(ConfigError) as refused:
        stated(**choices)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 400


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from(sorted(FIRST.keys() - {"parameters"})), anything)
def test_any_value_makes_a_scenario_or_an_error(name, value):
    try:
        made = stated(**{name: value})
    except ConfigError:
        return
    assert made.trace.path in OFFER.traces.values()
    assert ".py" not in made.model_dump_json()


def written(path: Path) -> Path:
    path.write_text("arrival_s,prompt_tokens,output_tokens\n0,8,8\n")
    return path


def test_a_named_trace_and_profile_come_first(tmp_path):
    profile = tmp_path / "mine.yaml"
    profile.write_text(
        "name: mine\nmeasured: true\nprovenance: a test\nmodel: qwen3-8b\ngpu: l4\n"
        "weight_dtype: fp8\n"
    )
    trace = written(tmp_path / "my.csv")
    offered = offer((str(trace),), (str(profile),))
    first = first_choices(offered)
    scenario = scenario_from(first, offered, {})
    assert scenario.trace.path == str(trace)
    assert scenario.profile == str(profile)


def test_a_profile_that_is_none_is_refused():
    with pytest.raises(ConfigError, match="neither a file nor shipped"):
        offer(profiles=("nonsense",))


def test_a_trace_that_is_not_there_is_refused():
    with pytest.raises(TraceError, match=r"nix\.csv: no such file"):
        offer(("nix.csv",))


def test_an_uploaded_trace_is_known_to_its_page_only():
    uploads = {"upload:1": "/private/1"}
    made = scenario_from({**FIRST, "trace": "upload:1"}, OFFER, uploads)
    assert made.trace.path == "/private/1"
    with pytest.raises(ConfigError):
        scenario_from({**FIRST, "trace": "upload:1"}, OFFER, {})


def test_limits_and_prices_are_told_apart():
    assert {control.unit for control in SLO} == {"ms", "s"}
    assert {control.name for control in PRICES} == {"contract", "usd_per_gpu_hour"}


standing = st.fixed_dictionaries(
    {
        one.name: st.integers(0, len(one.values) - 1)
        if isinstance(one, Slider)
        else st.sampled_from([value for value, _ in one.options])
        if isinstance(one, Menu)
        else st.none() | st.integers(1, 10_000)
        for one in controls()
        if one not in profile_parts() and one.name != "preset"
    }
)


@given(standing, st.sampled_from(OFFER.profiles), st.sampled_from(list(OFFER.traces)))
def test_a_scenario_finds_its_way_back_to_the_controls(choices, profile, trace):
    choices |= {"profile": profile, "trace": trace, "order": "fcfs", **_parts(profile)}
    try:
        made = scenario_from(choices, OFFER, {})
    except ConfigError:
        return
    found = choices_of(made.model_dump(mode="json"), OFFER, "it")
    assert scenario_from(found, OFFER, {}) == made


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"cluster": {"replicas": 13}}, "it: cluster.replicas is 13, for which this page has no"),
        ({"cluster": {"max_queue": 3}}, "it: cluster.max_queue is 3"),
        ({"seed": 1}, "it: seed is 1"),
        ({"scheduler": {"order": "vtc:input_weight=2.0"}}, "it: scheduler.order is"),
        ({"trace": {"path": "/etc/passwd"}}, "it: its trace '/etc/passwd' is not offered here"),
        ({"profile": "mine.yaml"}, "it: its profile 'mine.yaml' is not offered here"),
        ({"profile": "analytic:h200//etc/x"}, "is not offered here"),
        ({"memory": {"num_blocks": 1000}}, "it: memory.num_blocks is 1000"),
    ],
)
def test_what_the_page_has_no_control_for_is_said(settings, said):
    from traces.settings import merged

    values = merged(Scenario().model_dump(mode="json"), settings)
    with pytest.raises(ConfigError) as refused:
        choices_of(values, OFFER, "it")
    assert said in str(refused.value)


def test_a_page_begins_with_a_scenario(tmp_path):
    trace = str(written(tmp_path / "mine.csv"))
    begin = Scenario.model_validate(
        {"trace": {"path": trace}, "profile": "analytic:l4/qwen3-8b/w-fp8", "slo": {"ttft_s": 0.5}}
    )
    offered, starts = offer_of(begin, (), ())
    made = scenario_from(starts, offered, {})
    assert (made.trace, made.slo) == (begin.trace, begin.slo)
    assert made.profile == "analytic:l4/qwen3-8b/tp1/w-fp8/kv-bf16"


def test_no_file_is_run_on_the_way_back(tmp_path):
    evil = tmp_path / "evil.py"
    evil.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\ndef first(sequence): return (0,)\n")
    values = Scenario().model_dump(mode="json")
    values["scheduler"]["order"] = f"{evil}:first"
    with pytest.raises(ConfigError, match="no control"):
        choices_of(values, OFFER, "it")
    assert not (tmp_path / "ran").exists()


@given(anything)
def test_anything_is_a_scenario_or_an_error(value):
    values = value if isinstance(value, dict) else {"trace": value, "profile": value}
    with pytest.raises(ConfigError):
        choices_of(values, OFFER, "it")
