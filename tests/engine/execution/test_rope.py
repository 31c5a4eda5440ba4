"""Rotary tables: those of transformers, from configs of its versions 4 and 5."""

import re

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.execution.rope import rope_parameters, rope_table
from traces.errors import ConfigError

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}


def scalings() -> st.SearchStrategy[dict]:
    factor = st.floats(1.0, 64.0)
    original = st.sampled_from((64, 256, 1024))
    return st.one_of(
        st.just({"rope_type": "default"}),
        st.fixed_dictionaries({"rope_type": st.just("linear"), "factor": factor}),
        st.fixed_dictionaries(
            {
                "rope_type": st.just("llama3"),
                "factor": factor,
                "low_freq_factor": st.floats(0.5, 2.0),
                "high_freq_factor": st.floats(3.0, 8.0),
                "original_max_position_embeddings": original,
            }
        ),
        st.fixed_dictionaries(
            {
                "rope_type": st.just("yarn"),
                "factor": factor,
                "original_max_position_embeddings": original,
            },
            optional={
                "beta_fast": st.floats(8.0, 64.0),
                "beta_slow": st.floats(0.5, 4.0),
                "attention_factor": st.floats(0.5, 2.0),
                "mscale": st.floats(0.5, 2.0),
                "mscale_all_dim": st.floats(0.5, 2.0),
                "truncate": st.booleans(),
            },
        ),
    )


@settings(max_examples=60, deadline=None)
@given(scalings(), st.sampled_from((100.0, 1e4, 5e5)), st.sampled_from((16, 64, 128)))
def test_tables_are_those_of_transformers(scaling: dict, theta: float, head_dim: int):
    transformers = pytest.importorskip("transformers")
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = transformers.LlamaConfig(
        hidden_size=4 * head_dim,
        num_attention_heads=4,
        max_position_embeddings=2048,
        rope_parameters={**scaling, "rope_theta": theta},
    )
    parameters = rope_parameters(config.to_dict())
    cos, sin = LlamaRotaryEmbedding(config)(torch.ones(1), torch.arange(2048)[None])
    expected = torch.cat((cos[0, :, : head_dim // 2], sin[0, :, : head_dim // 2]), dim=-1)
    # an angle's rounding at far positions: 2048 x 2^-24
    torch.testing.assert_close(
        rope_table(parameters, head_dim, 2048), expected, rtol=1e-5, atol=3e-4
    )


def test_both_spellings_of_a_config_mean_the_same():
    for scaling in ({**LLAMA3}, {"rope_type": "linear", "factor": 2.0}):
        spelt_type = {**scaling, "type": scaling["rope_type"]}
        del spelt_type["rope_type"]
        new = {"rope_parameters": {**scaling, "rope_theta": 5e5}}
        for old in (scaling, spelt_type):
            version_4 = {"rope_theta": 5e5, "rope_scaling": old}
            assert torch.equal(table(version_4), table(new))
        assert not torch.equal(table(new), table({"rope_theta": 5e5}))
    assert torch.equal(table({"rope_theta": 1e4, "rope_scaling": None}), table({}))


def test_divisors_say_the_same_as_the_scaling_they_come_from():
    scaled, plain = table({"rope_scaling": LLAMA3}), table({})
    angles = [torch.atan2(one[1, 32:], one[1, :32]) for one in (plain, scaled)]
    divisors = (angles[0] / angles[1]).tolist()
    divided = table({"rope_parameters": {"rope_type": "divided", "divisors": divisors}})
    torch.testing.assert_close(divided, scaled, rtol=1e-4, atol=1e-3)
    assert max(divisors) == pytest.approx(8.0, rel=1e-3)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            {"rope_scaling": {"rope_type": "longrope"}},
            "rope type 'longrope' is not supported; supported: default, linear, llama3, yarn",
        ),
        ({"rope_scaling": {"rope_type": "linear"}}, "linear: factor must be a number above 0"),
        ({"rope_scaling": {"type": "yarn", "factor": "4"}}, "yarn: factor must be .* got '4'"),
        ({"rope_theta": -1.0}, "rope_theta must be a number above 0, got -1.0"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor must be 1, got 0.5"),
        ({"rope_parameters": {"full_attention": {}}}, "one set for all layers"),
        (
            {"rope_parameters": {"rope_type": "divided", "divisors": [1.0]}},
            "32 frequencies, but 1 divisors",
        ),
    ],
)
def test_what_is_not_supported_is_named(config: dict, said: str):
    with pytest.raises(ConfigError) as error:
        table(config)
    assert re.search(said, str(error.value))


def table(config: dict):
    return rope_table(rope_parameters({"max_position_embeddings": 512, **config}), 64, 512)
