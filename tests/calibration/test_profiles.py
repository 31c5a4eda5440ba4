"""Profiles: loading by name, path and spec; their cost and capacity; the command line."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from calibration.cli import profile_app
from calibration.costs import LinearCost
from calibration.profiles import load_profile, shipped_profiles
from calibration.roofline import RooflineCost
from traces.errors import ConfigError

LINEAR = """
name: toy
measured: true
provenance: a test
model: llama-3.1-8b
gpu: h100
cost: {kind: linear, step_s: 0.002, prefill_token_s: 1.0e-5, decode_s: 1.0e-6, context_token_s: 0}
validity: {max_context_tokens: 1000}
"""


@pytest.mark.parametrize("name", shipped_profiles())
def test_shipped_profiles_load_fit_and_warn(name: str):
    profile = load_profile(name)
    assert profile.name == name
    assert profile.capacity().blocks > 1000
    assert isinstance(profile.cost_model(), RooflineCost)
    assert not profile.measured and "NOT MEASURED" in profile.warning


def test_a_profile_is_read_from_a_file(tmp_path: Path):
    path = tmp_path / "toy.yaml"
    path.write_text(LINEAR, encoding="utf-8")
    profile = load_profile(path)
    assert profile.cost_model() == LinearCost(2_000_000_000, 10_000_000, 1_000_000, 0)
    assert profile.warning == ""
    assert profile.beyond(context_tokens=1000) == ""
    assert profile.beyond(context_tokens=1001) == (
        "profile toy: no measurement beyond 1000 tokens of context; asked for 1001"
    )


def test_an_analytic_spec_names_gpu_model_and_options():
    profile = load_profile("analytic:H200/meta-llama/Llama-3.1-8B/tp2/w-fp8/kv-int8")
    assert profile.device.name == "h200"
    assert profile.shape.name == "llama-3.1-8b"
    assert (profile.tp, profile.weight_dtype, profile.kv_dtype) == (2, "fp8", "int8")
    plain = load_profile("analytic:h200/llama-3.1-8b")
    assert plain.cost_model() == load_profile("h200-llama-3.1-8b").cost_model()
    assert profile.capacity().blocks > 4 * plain.capacity().blocks


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("gpu: h100", "gpu: h10"), "gpu 'h10' is unknown; did you mean h100"),
        (("model: llama-3.1-8b", "model: llama-9"), "model 'llama-9' is unknown"),
        (("step_s: 0.002", "step_s: -1"), "cost.linear.step_s: .* got -1"),
        (("kind: linear", "kind: cubic"), "cost: .*cubic"),
        (("gpu: h100", "gpu: h100\ncolour: red"), "colour: .* got 'red'"),
        (("gpu: h100", "gpu: h100\nkv_dtype: fp3"), "kv_dtype: 'fp3' is unknown; known: bf16"),
        (("gpu: h100", "gpu: h100\ntp: 5"), "32 attention heads do not divide by tp 5"),
        (("provenance: a test\n", ""), "provenance: Field required"),
        (("name: toy", "- name: toy"), "not YAML"),
    ],
)
def test_errors_are_one_line_with_file_field_and_value(
    tmp_path: Path, change: tuple[str, str], message: str
):
    path = tmp_path / "toy.yaml"
    path.write_text(LINEAR.replace(*change), "utf-8")
    with pytest.raises(ConfigError, match=message) as caught:
        load_profile(path)
    assert "\n" not in str(caught.value)
    assert "toy.yaml" in str(caught.value)


@pytest.mark.parametrize("name", ["analytic:", "analytic:h200", "analytic:h200/tp2", "no-such"])
def test_what_is_no_profile_is_refused(name: str):
    with pytest.raises(ConfigError, match=r"analytic:<gpu>/<model>"):
        load_profile(name)


def test_a_profile_of_another_model_is_refused():
    profile = load_profile("h200-llama-3.1-8b")
    profile.require(model="meta-llama/Llama-3.1-8B")
    with pytest.raises(ConfigError, match=r"is of model llama-3\.1-8b; asked for qwen3-8b"):
        profile.require(model="qwen3-8b")


def test_the_command_line_lists_and_shows():
    runner = CliRunner(env={"COLUMNS": "200"})
    listed = runner.invoke(profile_app, ["list"])
    assert listed.exit_code == 0
    assert all(name in listed.stdout for name in shipped_profiles())
    shown = runner.invoke(profile_app, ["show", "h200-llama-3.1-8b"])
    assert shown.exit_code == 0
    for text in ("NOT MEASURED", "decode attention", "KV cache", "NVIDIA H200 datasheet"):
        assert text in shown.stdout
    failed = runner.invoke(profile_app, ["show", "analytic:h20/llama-3.1-8b"])
    assert isinstance(failed.exception, ConfigError)
