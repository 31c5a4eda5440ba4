"""Weights arrive whole, in their place and once, or a line says what is wrong with the files."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from engine.execution.dummy import DummyCheckpoint
from engine.execution.folder import ModelFolder
from engine.execution.linear import linear, packed
from engine.execution.memory import free_bytes
from engine.execution.weights import Weights, load_weights, weight_bytes
from engine.shapes import ModelShape
from tests.engine.execution.families import make, save
from tests.engine.execution.steps import CPU, Stepper, load
from traces.errors import ConfigError


def rank_weights(folder: Path, rank: int, tp: int, dtype=torch.float64) -> Weights:
    """In fp64, which is kept as it is stored also on a CPU."""
    shape = ModelShape.from_hf_config(folder)
    return load_weights(shape, ModelFolder(folder), dtype=dtype, device=CPU, rank=rank, tp=tp)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama-gqa-bias", {"num_attention_heads": 8, "intermediate_size": 121}),
        ("llama-linear-tied", {"num_key_value_heads": 4}),
        ("qwen3", {"num_attention_heads": 4, "num_key_value_heads": 2}),
        ("qwen2", {"num_key_value_heads": 1, "vocab_size": 4 * 50 + 1}),
    ],
)
@pytest.mark.parametrize("tp", [1, 2, 4])
def test_ranks_hold_the_whole_checkpoint(family: str, changes: dict, tp: int, tmp_path: Path):
    theirs = make(family, **changes)
    save(theirs, tmp_path)
    config, stored = theirs.config, {k: v.double() for k, v in theirs.state_dict().items()}
    ranks = [rank_weights(tmp_path, rank, tp) for rank in range(tp)]
    head = torch.cat([rank.head for rank in ranks])
    assert_padded(head, stored["lm_head.weight"])
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    for index in range(config.num_hidden_layers):
        layers, of = [rank.layers[index] for rank in ranks], f"model.layers.{index}."
        q, k, v = qkv_of([layer.qkv for layer in layers], config.num_key_value_heads, dim)
        assert torch.equal(q, stored[f"{of}self_attn.q_proj.weight"])
        assert torch.equal(k, stored[f"{of}self_attn.k_proj.weight"])
        assert torch.equal(v, stored[f"{of}self_attn.v_proj.weight"])
        output = torch.cat([layer.output for layer in layers], dim=1)
        assert torch.equal(output, stored[f"{of}self_attn.o_proj.weight"])
        gates, ups = zip(*[layer.gate_up.chunk(2) for layer in layers], strict=True)
        assert_padded(torch.cat(gates), stored[f"{of}mlp.gate_proj.weight"])
        assert_padded(torch.cat(ups), stored[f"{of}mlp.up_proj.weight"])
        down = torch.cat([layer.down for layer in layers], dim=1)
        assert_padded(down.T, stored[f"{of}mlp.down_proj.weight"].T)
        biases = [layer.qkv_bias for layer in layers if layer.qkv_bias is not None]
        assert bool(biases) == (f"{of}self_attn.q_proj.bias" in stored)
        if biases:
            q, k, v = qkv_of(biases, config.num_key_value_heads, dim)
            assert torch.equal(k, stored[f"{of}self_attn.k_proj.bias"])
        outputs = [layer.output_bias is not None for layer in layers]
        assert outputs == [f"{of}self_attn.o_proj.bias" in stored, *[False] * (tp - 1)]
        for rank, layer in zip(ranks, layers, strict=True):
            assert torch.equal(rank.norms[index], stored[f"{of}input_layernorm.weight"])
            assert torch.equal(layer.mlp_norm, stored[f"{of}post_attention_layernorm.weight"])
    for rank in ranks:
        assert_padded(rank.embedding, stored["model.embed_tokens.weight"])
        assert torch.equal(rank.norms[-1], stored["model.norm.weight"])


def qkv_of(fused: list, kv_heads: int, dim: int) -> tuple:
    """Whole q, k and v out of the ranks' fused tensors; copies of a KV head must be equal."""
    kv = max(1, kv_heads // len(fused)) * dim
    parts = [one.split((len(one) - 2 * kv, kv, kv)) for one in fused]
    copies = max(1, len(fused) // kv_heads)
    for part in range(len(fused)):
        assert torch.equal(parts[part][1], parts[part // copies * copies][1])
    return (
        torch.cat([q for q, _, _ in parts]),
        torch.cat([k for _, k, _ in parts[::copies]]),
        torch.cat([v for _, _, v in parts[::copies]]),
    )


def assert_padded(got, stored) -> None:
    """The stored rows, then zeros."""
    assert torch.equal(got[: len(stored)], stored)
    assert not got[len(stored) :].any()


@pytest.mark.parametrize("tp", [2, 4])
def test_dummy_weights_are_the_same_model_however_they_are_split(tp: int, tmp_path: Path):
    make("qwen3", num_key_value_heads=2).config.save_pretrained(tmp_path)
    shape = ModelShape.from_hf_config(tmp_path)

    def dummy(rank: int, tp: int) -> Weights:
        source = DummyCheckpoint(3, torch.float64, CPU)
        return load_weights(shape, source, dtype=torch.float64, device=CPU, rank=rank, tp=tp)

    whole, ranks = dummy(0, 1), [dummy(rank, tp) for rank in range(tp)]
    assert_padded(torch.cat([rank.head for rank in ranks]), whole.head)
    for index, layer in enumerate(whole.layers):
        assert torch.equal(
            torch.cat([rank.layers[index].output for rank in ranks], dim=1), layer.output
        )
        q, _, _ = qkv_of([rank.layers[index].qkv for rank in ranks], 2, shape.head_dim)
        assert torch.equal(q, layer.qkv[: len(q)])
        assert layer.output.std() == pytest.approx(0.02, rel=0.1)
        assert (layer.mlp_norm == 1).all()


def test_a_checkpoint_in_many_files_is_the_same_model(tmp_path: Path):
    theirs = make("qwen2-windows")
    one, many = (
        save(theirs, tmp_path / "one"),
        save(theirs, tmp_path / "many", max_shard_size="40KB"),
    )
    assert len(list(many.glob("*.safetensors"))) > 3
    text = list(range(40))
    expected, got = (Stepper(load(folder)).step(prefills=[(1, text)]) for folder in (one, many))
    assert torch.equal(expected, got)
    (many / "model.safetensors.index.json").unlink()  # then every safetensors file counts
    assert torch.equal(expected, Stepper(load(many)).step(prefills=[(1, text)]))


def test_weights_are_cast_and_beside_them_other_layouts_are_left_alone(tmp_path: Path):
    theirs = make("llama").to(torch.bfloat16)
    save(theirs, tmp_path)
    save_file({"layers.0.wq": torch.zeros(3)}, tmp_path / "consolidated.safetensors")
    weights = rank_weights(tmp_path, 0, 1, torch.float16)
    expected = theirs.state_dict()["model.layers.1.mlp.down_proj.weight"]
    assert torch.equal(weights.layers[1].down, expected.to(torch.float16))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("tokens", [1, 3, 16, 100])
@pytest.mark.parametrize("biased", [False, True])
def test_packed_weights_multiply_as_plain_ones(dtype: torch.dtype, tokens: int, biased: bool):
    exact = torch.randn(tokens, 96), torch.randn(130, 96), torch.randn(130)
    x, weight, bias = (one.to(dtype) for one in exact)
    got = linear(x, packed(weight), bias if biased else None).double()
    expected = x.double() @ weight.double().T + (bias.double() if biased else 0)
    assert (got - expected).norm() <= 2 * torch.finfo(dtype).eps * expected.norm()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(make("llama"), tmp_path / "model")


def refusal(folder: Path) -> str:
    with pytest.raises(ConfigError) as error:
        rank_weights(folder, 0, 1)
    assert "\n" not in str(error.value)
    return str(error.value)


def edited(folder: Path, **changes: object) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return folder


def test_a_folder_without_weights(folder: Path):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert refusal(folder) == f"{folder}: no *.safetensors with the model's weights"


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(kept=st.floats(0.0, 0.999))
def test_a_file_that_ends_early_is_named(kept: float, folder: Path):
    whole = (folder / "model.safetensors").read_bytes()
    broken = folder.parent / "broken"
    broken.mkdir(exist_ok=True)
    (broken / "config.json").write_bytes((folder / "config.json").read_bytes())
    (broken / "model.safetensors").write_bytes(whole[: int(len(whole) * kept)])
    assert refusal(broken).startswith(
        f"{broken / 'model.safetensors'}: is damaged or no safetensors"
    )


def test_a_file_of_something_else_is_named(folder: Path):
    (folder / "model.safetensors").write_bytes(random_bytes := bytes(range(256)) * 40)
    assert len(random_bytes) > 8
    assert f"{folder / 'model.safetensors'}: is damaged or no safetensors" in refusal(folder)


def test_a_file_that_the_index_lists_and_is_absent_is_named(tmp_path: Path):
    save(make("llama"), tmp_path, max_shard_size="40KB")
    lost = sorted(tmp_path.glob("*.safetensors"))[2]
    lost.unlink()
    assert refusal(tmp_path).startswith(f"{lost}: cannot be read: ")


def test_an_index_that_is_none(folder: Path):
    (folder / "model.safetensors.index.json").write_text('{"weight_map": [1]}')
    assert "index.json: has no weight_map" in refusal(folder)


def test_a_missing_tensor_is_named_with_the_file_it_ought_to_be_in(folder: Path):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    lost = "model.layers.1.mlp.up_proj.weight"
    save_file({name: tensor for name, tensor in tensors.items() if name != lost}, file)
    assert refusal(folder) == f"{file}: tensor {lost} is missing"
    save_file({name: tensor for name, tensor in tensors.items() if "norm" not in name}, file)
    assert refusal(folder).endswith(".weight is missing (and 6 more)")


def test_a_tensor_missing_from_an_index_is_looked_for_where_the_index_says(tmp_path: Path):
    save(make("llama"), tmp_path, max_shard_size="40KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    lost, file = next(iter(index["weight_map"].items()))
    tensors = load_file(tmp_path / file)
    save_file({name: tensor for name, tensor in tensors.items() if name != lost}, tmp_path / file)
    assert refusal(tmp_path) == f"{tmp_path / file}: tensor {lost} is missing"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"intermediate_size": 128},
            r"model.safetensors: tensor model\.layers\.\d\.mlp\.\w+\.weight has shape \[.*120.*\];"
            r" the model's config asks for \[.*128.*\]",
        ),
        ({"vocab_size": 17}, r"has shape \[211, 64\]; the model's config asks for \[17, 64\]"),
        ({"num_hidden_layers": 4}, r"tensor model\.layers\.3\.\S+ is missing \(and 8 more\)"),
        (
            {"num_hidden_layers": 2},
            r"tensor model\.layers\.2\.\S+ has no place in the model that its config describes",
        ),
        (
            {"attention_bias": True},
            r"tensor model\.layers\.0\.self_attn\.\w_proj\.bias is missing \(and 11 more\)",
        ),
    ],
)
def test_a_config_that_does_not_fit_the_weights(changes: dict, said: str, folder: Path):
    assert re.search(said, refusal(edited(folder, **changes)))


def test_a_bias_that_the_config_leaves_out_is_not_dropped(tmp_path: Path):
    save(make("llama-gqa-bias"), tmp_path)
    said = refusal(edited(tmp_path, attention_bias=False))
    assert re.search(r"tensor \S+_proj\.bias has no place", said)


def test_a_model_too_large_for_memory_is_refused_before_any_is_taken(tmp_path: Path):
    if free_bytes(CPU) is None:
        pytest.skip("this system does not say how much memory is free")
    make("llama").config.save_pretrained(tmp_path)
    edited(tmp_path, vocab_size=10**11, hidden_size=512)
    with pytest.raises(
        ConfigError, match=r"take \d+\.\d\d GiB on cpu, where \d+\.\d\d GiB is free"
    ):
        load(tmp_path, weights="dummy")


@pytest.mark.parametrize("family", ["llama-gqa-bias", "llama-linear-tied", "qwen3", "qwen2"])
@pytest.mark.parametrize("tp", [1, 2, 4])
def test_bytes_are_foreseen(family: str, tp: int, tmp_path: Path):
    save(make(family), tmp_path)
    weights = rank_weights(tmp_path, 0, tp)
    tensors = {tensor.untyped_storage().data_ptr(): tensor for tensor in all_tensors(weights)}
    taken = sum(tensor.untyped_storage().nbytes() for tensor in tensors.values())
    shape = ModelShape.from_hf_config(tmp_path)
    assert taken == weight_bytes(shape, torch.float64, tp)
    if tp == 1:
        assert taken == 8 * shape.parameters


def all_tensors(weights: Weights):
    yield from (weights.embedding, weights.head, *weights.norms)
    for layer in weights.layers:
        for name in layer.__slots__:
            if (tensor := getattr(layer, name)) is not None:
                yield tensor


def test_loading_holds_one_copy_of_the_weights(tmp_path: Path):
    if not Path("/proc/self/status").exists():
        pytest.skip("this system does not say how much memory a process has")
    make("llama").config.save_pretrained(tmp_path)
    edited(tmp_path, hidden_size=512, intermediate_size=2048, num_hidden_layers=9, head_dim=128)
    shape = ModelShape.from_hf_config(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, str(tmp_path)],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=True,
    )
    grown, peak = json.loads(done.stdout)
    taken = weight_bytes(shape, torch.float32)
    assert 0.8 * taken < grown
    assert peak < 1.4 * taken


WATCHED = """
import json, sys, threading
from pathlib import Path

import torch

from engine.execution.model import load_model
from engine.execution.ops import load_ops


def own_bytes():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) * 1024


def watch():
    global peak
    while not done.wait(0.001):
        peak = max(peak, own_bytes())


before, peak, done = own_bytes(), 0, threading.Event()
watcher = threading.Thread(target=watch)
watcher.start()
model = load_model(
    sys.argv[1],
    weights="dummy",
    dtype=torch.float32,
    device=torch.device("cpu"),
    ops=load_ops("torch"),
)
done.set()
watcher.join()
print(json.dumps([own_bytes() - before, peak - before]))
"""
"""In a process of its own: another's memory, freed and used again, would hide what is taken."""


@pytest.mark.parametrize("tp", [3, 8])
def test_a_split_that_heads_do_not_allow(tp: int, folder: Path):
    with pytest.raises(ConfigError, match=f"attention heads do not divide by tp {tp}"):
        rank_weights(folder, 0, tp)
