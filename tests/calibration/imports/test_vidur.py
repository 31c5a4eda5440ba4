"""Vidur's profiling tables, made up in its format, become step costs."""

import json
from collections.abc import Callable
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from calibration.hardware import gpu
from calibration.imports.bundle import Bundle
from calibration.imports.vidur import LAYER, LAYER_IF_THERE, read, recognised
from calibration.operators import operator_cost
from calibration.roofline import roofline_cost
from engine.shapes import ModelShape
from tests.calibration.test_roofline import batch_of
from traces.errors import ConfigError

CONFIG = {
    "model_type": "llama",
    "hidden_size": 512,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "intermediate_size": 1024,
    "vocab_size": 2048,
    "max_position_embeddings": 8192,
}
LAYERS = 3
OPERATORS = (*LAYER, *LAYER_IF_THERE)
Frames = dict[str, pl.DataFrame]
Change = Callable[[pl.DataFrame], pl.DataFrame]


def operator_ms(tokens: int, tp: int) -> float:
    return 0.004 + 1e-5 * tokens / tp


def prefill_ms(chunk: int, before: int, tp: int) -> float:
    return 0.01 + 1e-7 * chunk * (before + chunk / 2) / tp


def decode_ms(count: int, before: int, tp: int) -> float:
    return 0.008 + 1e-6 * count * before / tp


def saved_ms(tokens: int, chunk: bool) -> float:
    return 0.002 + (5e-4 if chunk else 1e-5) * tokens


def stats(times: dict[str, float]) -> dict[str, float]:
    """The columns that Vidur writes for each operator; only the medians are read."""
    return {
        f"time_stats.{name}.{what}": (0.0 if what == "std" else ms)
        for name, ms in times.items()
        for what in ("min", "max", "mean", "median", "std")
    }


def frames(degrees: tuple[int, ...] = (1, 2)) -> Frames:
    """The three tables of a model with kernels affine in their work, in Vidur's columns."""
    sizes = {"n_embd": 512, "n_kv_head": 4}
    mlp = [
        stats(dict.fromkeys(OPERATORS, operator_ms(tokens, tp)) | {"emb": 0.003})
        | sizes
        | {"n_head": 8, "n_expanded_embd": 1024, "vocab_size": 2048, "use_gated_mlp": True}
        | {"num_tokens": tokens, "num_tensor_parallel_workers": tp}
        for tp, tokens in product(degrees, (1, 8, 1024, 4096))
    ]
    # like Vidur's: each chunk after multiples of itself, the longest prompts without context alone
    chunks = [(q, at * q) for q in (64, 256, 1024) for at in range(4096 // q)]
    chunks += [(32, 0), (2048, 0), (4096, 0)]
    steps = [(q, before, 1) for q, before in chunks]
    steps += [(0, before, n) for before, n in product((0, 64, 1024, 4096), (1, 8, 64))]
    attention = [
        stats(
            {
                "attn_kv_cache_save": saved_ms(max(q, count), q > 0),
                "attn_prefill": prefill_ms(q, before, tp) if q else 0.0,
                "attn_decode": 0.0 if q else decode_ms(count, before, tp),
            }
        )
        | sizes
        | {"n_q_head": 8, "block_size": 16, "num_tensor_parallel_workers": tp}
        | {"max_model_len": 8192, "batch_size": count, "prefill_chunk_size": q}
        | {"kv_cache_size": before, "is_prefill": q > 0, "attention_backend": "FLASHINFER"}
        for tp, (q, before, count) in product(degrees, steps)
        if q or count * before <= 65536
    ]
    reduce = [
        stats({"all_reduce": 0.02 + 1e-8 * size * scale})
        | {"rank": 0, "num_workers": gpus, "size": size, "collective": name}
        | {"devices_per_node": per_node, "max_devices_per_node": 4}
        for gpus, per_node, scale in ((2, 2, 1), (2, 1, 9), (4, 4, 2))
        for size, name in product((1024, 2**21), ("all_reduce", "send_recv"))
        if name == "all_reduce" or per_node == 2
    ]
    tables = {"mlp": mlp, "attention": attention, "all_reduce": reduce}
    return {name: pl.DataFrame(rows) for name, rows in tables.items()}


def write(folder: Path, tables: Frames) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        table.write_csv(folder / f"{name}.csv")
    return folder


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "made-up" / "config.json"
    path.parent.mkdir()
    path.write_text(json.dumps(CONFIG))
    return str(path)


def attention_s(bundle: Bundle, decodes: int, before: int, chunks: list[tuple[int, int]]) -> float:
    batch = batch_of(decodes, decodes * (before + 1), chunks)
    return operator_cost(bundle.tables).explain(batch)["attention"]


@pytest.mark.parametrize("tp", [1, 2])
def test_a_step_is_the_sum_of_its_operators(tmp_path: Path, config: str, tp: int):
    bundle = read(write(tmp_path / "t", frames()), model_name=config, gpu="a100", tp=tp)
    for tokens in (1, 8, 100, 1024, 1025):
        expected = LAYERS * len(OPERATORS) * operator_ms(tokens, tp) + 0.003
        if tp == 2 and tokens * 1024 <= 2**20:  # two bytes for each of 512 activations
            expected += LAYERS * 2 * (0.02 + 1e-8 * 1024 * tokens)
        if tp == 1 or tokens <= 1024:
            assert bundle.tables.tokens(tokens) == pytest.approx(expected / 1e3)
    shape = ModelShape.from_hf_config(config)
    analytic = roofline_cost(shape, gpu("a100"), tp, weight_dtype="fp16", kv_dtype="fp16")
    for rows in (1, 64, 256):
        expected = analytic.row_parts_ps(rows)["output head"] * 1e-12
        assert bundle.tables.rows(rows) == pytest.approx(expected)


@pytest.mark.parametrize("tp", [1, 2])
def test_attention_holds_what_it_writes_to_the_cache(tmp_path: Path, config: str, tp: int):
    bundle = read(write(tmp_path / "t", frames()), model_name=config, gpu="a100", tp=tp)
    for count, before in ((1, 64), (8, 1024), (64, 64), (64, 4096), (30, 500)):
        expected = LAYERS * (decode_ms(count, before, tp) + saved_ms(count, False))
        assert attention_s(bundle, count, before, []) == pytest.approx(expected / 1e3)
    # on the grid, within a chunk's own contexts, and beyond them on its line
    for chunk, before in ((64, 0), (64, 1000), (256, 300), (1024, 2048), (1024, 6000), (4096, 0)):
        expected = LAYERS * (prefill_ms(chunk, before, tp) + saved_ms(chunk, True))
        took = attention_s(bundle, 0, 0, [(chunk, before)])
        assert took == pytest.approx(expected / 1e3, rel=1e-6)


def test_a_chunk_without_contexts_of_its_own_takes_its_neighbours(tmp_path: Path, config: str):
    bundle = read(write(tmp_path / "t", frames()), model_name=config, gpu="a100")
    for chunk, like in ((2048, 1024), (4096, 1024), (32, 64)):
        share = max(1.0, chunk / like)
        alone, after = (attention_s(bundle, 0, 0, [(chunk, before)]) for before in (0, 2048))
        added = prefill_ms(like, 2048, 1) - prefill_ms(like, 0, 1)
        assert after - alone == pytest.approx(LAYERS * share * added / 1e3, rel=1e-6)
    steps = [attention_s(bundle, 0, 0, [(chunk, 1024)]) for chunk in (64, 100, 256, 700, 2048)]
    assert all(less < more for less, more in pairwise(steps))


def test_what_is_assumed_is_said(tmp_path: Path, config: str):
    bundle = read(write(tmp_path / "t", frames()), model_name=config, gpu="a100", tp=2)
    assert (bundle.gpu, bundle.weight_dtype, bundle.kv_dtype) == ("a100-80", "fp16", "fp16")
    assert bundle.max_tokens == 1024  # all-reduce was not measured beyond
    assert (bundle.max_sequences, bundle.max_context_tokens) == (64, 4096)
    assert read(tmp_path / "t", model_name=config, gpu="a100").max_tokens == 4096
    for part in ("output head and sampler", "no CPU time", "all_reduce.csv"):
        assert any(part in note for note in bundle.notes), part


def test_missing_norms_and_cache_writes_count_as_nothing(tmp_path: Path, config: str):
    tables = frames((1,))
    absent = "^time_stats.(add|post_attention_layernorm|attn_kv_cache_save).*$"
    fewer = {name: table.drop(pl.selectors.matches(absent)) for name, table in tables.items()}
    bundle = read(write(tmp_path / "t", fewer), model_name=config, gpu="a100")
    expected = LAYERS * (len(OPERATORS) - 2) * operator_ms(8, 1) + 0.003
    assert bundle.tables.tokens(8) == pytest.approx(expected / 1e3)
    assert attention_s(bundle, 8, 64, []) == pytest.approx(LAYERS * decode_ms(8, 64, 1) / 1e3)
    assert sum("counted as nothing" in note for note in bundle.notes) == 2


def test_repeats_of_a_measurement_count_once(tmp_path: Path, config: str):
    tables = frames((1,))
    once = read(write(tmp_path / "t", tables), model_name=config, gpu="a100")
    twice = {name: pl.concat([table, table]) for name, table in tables.items()}
    again = read(write(tmp_path / "u", twice), model_name=config, gpu="a100")
    assert once.tables.tokens == again.tables.tokens
    assert (once.tables.attention.prefill == again.tables.attention.prefill).all()


def test_the_layout_of_vidurs_repository(tmp_path: Path, config: str):
    tables = frames()
    reduce = {"all_reduce": tables.pop("all_reduce")}
    place = write(tmp_path / "profiling" / "compute" / "h100" / "made" / "up-7b", tables)
    assert recognised(place)
    assert recognised(tmp_path / "profiling")
    assert not recognised(tmp_path)
    for folder in (place, tmp_path / "profiling"):
        assert read(folder, model_name=config).gpu == "h100"
    without = read(place, model_name=config, tp=2)
    assert any("by the data sheet" in note for note in without.notes)
    network = tmp_path / "profiling" / "network"
    write(network / "h100_dgx", reduce)
    write(network / "a100_dgx", reduce)
    assert any("h100_dgx" in note for note in read(place, model_name=config, tp=2).notes)
    write(network / "h100_pairwise_nvlink", reduce)
    with pytest.raises(ConfigError, match=r"say which network.*h100_dgx, h100_pairwise_nvlink"):
        read(place, model_name=config, tp=2)
    chosen = read(place, model_name=config, tp=2, network="h100_pairwise_nvlink")
    assert any("h100_pairwise_nvlink" in note for note in chosen.notes)
    with pytest.raises(ConfigError, match=r"no all_reduce.csv of h1; of a100_dgx"):
        read(place, model_name=config, tp=2, network="h1")
    write(tmp_path / "profiling" / "compute" / "a100" / "made" / "up-7b", tables)
    with pytest.raises(ConfigError, match=r"give the folder of one model.*compute/a100/made/up-7b"):
        read(tmp_path / "profiling", model_name=config)


def scaled(factor: float, column: str) -> Change:
    return lambda table: table.with_columns(pl.col(f"time_stats.{column}.median") * factor)


def value(column: str, row: int, said: object) -> Change:
    def changed(table: pl.DataFrame) -> pl.DataFrame:
        values: list[Any] = table[column].to_list()
        values[row] = said
        return table.with_columns(pl.Series(column, [str(one) for one in values]))

    return changed


UP = "time_stats.mlp_up_proj.median"
SAVE = "time_stats.attn_kv_cache_save.median"

BAD: list[tuple[str, Change, str]] = [
    ("mlp", lambda t: t.drop(UP), rf"mlp.csv: column {UP} is missing; it has"),
    ("mlp", lambda t: t[:0], r"mlp.csv: has no rows"),
    ("mlp", value(UP, 3, -2.0), rf"mlp.csv:5: {UP} is -2.0; expected a time > 0"),
    ("mlp", value(UP, 0, "nan"), rf"mlp.csv:2: {UP} is nan; expected a time > 0"),
    ("mlp", value("num_tokens", 1, "many"), r"mlp.csv:3: num_tokens is 'many'; expected a whole"),
    ("mlp", scaled(1e3, "mlp_up_proj"), rf"mlp.csv: {UP} .* of num_tokens 4096 .*expected millis"),
    ("mlp", scaled(1e-3, "mlp_up_proj"), rf"mlp.csv: {UP} .* of num_tokens 4096 .*expected millis"),
    (
        "mlp",
        lambda t: pl.concat([t, t.with_columns(pl.col(UP) * 3)]),
        r"mlp.csv: rows for the same point \(num_tokens 1\) disagree",
    ),
    (
        "mlp",
        lambda t: t.filter(pl.col("num_tensor_parallel_workers") == 1),
        r"mlp.csv: num_tensor_parallel_workers has no 2; there are 1",
    ),
    ("mlp", lambda t: t.with_columns(n_head=pl.lit(16)), r"n_head has no 8; there are 16"),
    ("attention", scaled(1e3, "attn_decode"), r"attn_decode.median .* expected milliseconds"),
    ("attention", scaled(1e3, "attn_prefill"), r"attn_prefill.median .* expected milliseconds"),
    ("attention", value(SAVE, 2, -1), rf"attention.csv:4: {SAVE} is -1.0; expected a time"),
    (
        "attention",
        value("time_stats.attn_prefill.median", 0, 0.0),
        r"attention.csv:2: time_stats.attn_prefill.median is 0.0; expected a time > 0",
    ),
    (
        "attention",
        lambda t: t.filter(pl.col("prefill_chunk_size") > 0),
        r"prefill_chunk_size is nowhere 0 for tp 2",
    ),
    (
        "attention",
        lambda t: t.filter((pl.col("prefill_chunk_size") == 0) | (pl.col("kv_cache_size") == 0)),
        r"kv_cache_size has nothing above 0 for prefills",
    ),
    ("all_reduce", scaled(1e3, "all_reduce"), r"all_reduce.median .* expected milliseconds and by"),
    (
        "all_reduce",
        lambda t: t.filter(pl.col("num_workers") == 4),
        r"all_reduce.csv: num_workers has no 2; there are 4",
    ),
]


@pytest.mark.parametrize(("table", "change", "message"), BAD)
def test_a_bad_table_is_named(
    tmp_path: Path, config: str, table: str, change: Change, message: str
):
    tables = frames()
    tables[table] = change(tables[table])
    with pytest.raises(ConfigError, match=message) as said:
        read(write(tmp_path / "t", tables), model_name=config, gpu="a100", tp=2)
    assert "\n" not in str(said.value)


def test_a_gpu_that_nobody_names_is_asked_for(tmp_path: Path, config: str):
    folder = write(tmp_path / "t", frames())
    with pytest.raises(ConfigError, match="say which gpu"):
        read(folder, model_name=config)
    with pytest.raises(ConfigError, match="n_embd has no 4096; there are 512"):
        read(folder, model_name="llama-3.1-8b", gpu="a100")
    with pytest.raises(ConfigError, match="mixtral-8x7b has experts"):
        read(folder, model_name="mixtral-8x7b", gpu="a100")
    with pytest.raises(ConfigError, match=r"qwen3-0.6b has heads of 128.* n_embd / n_head, 64"):
        read(folder, model_name="qwen3-0.6b", gpu="a100")
