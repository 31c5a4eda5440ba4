"""Data sheets and model cards: every datum sourced, lookups forgiving, errors helpful."""

import pytest
from pydantic import ValidationError

from calibration.hardware import Gpu, gpu, gpus, model, model_cards
from traces.errors import ConfigError


@pytest.mark.parametrize("one", gpus(), ids=lambda one: one.name)
def test_every_field_of_a_gpu_has_a_source(one: Gpu):
    stated = one.model_dump(exclude_none=True, exclude={"name", "aliases", "sources"})
    assert set(stated) == {field for field, _ in one.sources}
    assert all(one.source(field) for field in stated)


def test_every_model_has_a_source():
    assert all(card.source.startswith("https://") for card in model_cards().values())


@pytest.mark.parametrize("one", gpus(), ids=lambda one: one.name)
def test_figures_are_dense_and_in_range(one: Gpu):
    assert 20 * 2**30 < one.memory_bytes < 200 * 2**30
    assert 100 <= one.bf16_flops_per_s / one.memory_bytes_per_s <= 450  # ridge, FLOPs a byte
    assert one.fp8_flops_per_s is None or one.fp8_flops_per_s == pytest.approx(
        2 * one.bf16_flops_per_s, rel=0.02
    )
    assert one.interconnect_bytes_per_s < one.memory_bytes_per_s
    assert (one.interconnect == "pcie") == (one.interconnect_bytes_per_s <= 64e9)


def test_names_are_unique():
    names = [alias for one in gpus() for alias in (one.name, *one.aliases)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ("H100", "h100"),
        ("NVIDIA A100-SXM4-80GB", "a100-80"),
        ("rtx4090", "rtx-4090"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("AMD Instinct MI300X", "mi300x"),
    ],
)
def test_gpus_are_found_by_many_names(asked: str, name: str):
    assert gpu(asked).name == name


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", "llama-3.1-8b"),
        ("Meta-Llama-3.1-70B", "llama-3.1-70b"),
        ("Qwen/Qwen2.5-7B-Instruct", "qwen2.5-7b"),
        ("mistral-7b", "mistral-7b-v0.3"),
        ("mistralai/Mixtral-8x7B-v0.1", "mixtral-8x7b"),
    ],
)
def test_models_are_found_by_many_names(asked: str, name: str):
    assert model(asked).name == name


def test_unknown_names_get_suggestions():
    with pytest.raises(ConfigError, match="gpu 'h20' is unknown; did you mean h200 or h100"):
        gpu("h20")
    with pytest.raises(ConfigError, match=r"model 'llama-3\.1-8' is unknown; did you mean"):
        model("llama-3.1-8")


def test_eight_bit_weights_use_eight_bit_cores_where_there_are_any():
    assert gpu("h100").peak_flops_per_s("fp8") == pytest.approx(1978.9e12)
    assert gpu("a100-80").peak_flops_per_s("fp8") == pytest.approx(312e12)
    assert gpu("a100-80").peak_flops_per_s("int8") == pytest.approx(624e12)
    assert gpu("h100").peak_flops_per_s("int4") == gpu("h100").bf16_flops_per_s


def test_a_sheet_refuses_unknown_keys_and_missing_sources():
    fields = gpu("l4").model_dump()
    with pytest.raises(ValidationError, match="memory_bits"):
        Gpu(**fields, memory_bits=1)
    with pytest.raises(ValidationError, match="tdp_w: expected a value and its source"):
        Gpu(**{**fields, "tdp_w": {"value": 72}})
    with pytest.raises(ValidationError, match="frozen"):
        gpu("l4").tdp_w = 1.0
