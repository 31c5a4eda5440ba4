"""AIConfigurator's operator tables, real ones and made-up ones, become step costs."""

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.hardware import gpu, model
from calibration.imports.aic_attention import cached_context_s
from calibration.imports.aic_gemms import Gemms, gemm_table, gemms
from calibration.imports.aiconfigurator import installed, read, recognised
from calibration.imports.bundle import Bundle
from calibration.kernels import Efficiencies, HostCosts
from calibration.operators import Curve, operator_cost
from calibration.roofline import LOGIT_BYTES, roofline_cost
from engine.shapes import ModelShape
from tests.calibration.test_roofline import batch_of
from traces.errors import ConfigError

LLAMA = "llama-3.1-8b"
PICOSECOND = 1e-12


@pytest.fixture(scope="module")
def h200(shared: Path) -> Path:
    return shared / "op-tables" / "h200-sxm-vllm-0.24"


# The tables of an H200 --------------------------------------------------------------------------


class Sums:
    """Llama-3.1-8B's steps added up straight from the files, on grid points alone."""

    def __init__(self, folder: Path, tp: int, kv_dtype: str) -> None:
        self.tp, self.shape, self.sheet = tp, model(LLAMA), gpu("h200")
        gemm = pl.read_parquet(folder / "gemm_perf.parquet")
        self.gemm = gemm.filter(pl.col("gemm_dtype") == "bfloat16")
        mine = (
            (pl.col("num_heads") == 32 // tp)
            & (pl.col("num_key_value_heads") == 8 // tp)
            & (pl.col("head_dim") == 128)
            & (pl.col("window_size") == 0)
            & (pl.col("kv_cache_dtype") == kv_dtype)
        )
        self.context = pl.read_parquet(folder / "context_attention_perf.parquet").filter(mine)
        self.generation = pl.read_parquet(folder / "generation_attention_perf.parquet").filter(mine)
        reduce = pl.read_parquet(folder / "custom_allreduce_perf_vllm0.19.parquet")
        self.reduce = reduce.filter(
            (pl.col("backend") == "vllm_graph") & (pl.col("num_gpus") == tp)
        )

    def gemm_ms(self, m: int, n: int, k: int) -> float:
        """Measured, or on a line over n or k; a head beyond the table in proportion."""
        rows = self.gemm.filter(pl.col("m") == m)
        for free, at, other, fixed in (("n", n, "k", k), ("k", k, "n", n)):
            line = rows.filter(pl.col(other) == fixed).sort(free)
            if len(line):
                share = max(1.0, at / line[free][-1])
                return share * float(np.interp(at, line[free], line["latency"]))
        raise AssertionError((m, n, k))

    def linear_s(self, tokens: int) -> float:
        tp, layers = self.tp, self.shape.layers
        shapes = [(6144 // tp, 4096), (4096, 4096 // tp), (28672 // tp, 4096), (4096, 14336 // tp)]
        layer_ms = sum(self.gemm_ms(tokens, n, k) for n, k in shapes)
        if tp > 1:  # 16-bit elements; powers of two, as in the table
            row = self.reduce.filter(pl.col("message_size") == tokens * 4096)
            layer_ms += 2 * row["latency"][0]
        moved = 2 * (layers * (8 * 4096 + 2 * (32 + 16) // tp * 128) + 3 * layers * 14336 // tp)
        bandwidth = self.sheet.memory_bytes_per_s * Efficiencies().memory
        gaps_s = layers * 4 * HostCosts().kernel_gap_s
        return layers * layer_ms / 1e3 + gaps_s + tokens * moved / bandwidth

    def head_s(self, rows: int) -> float:
        share, vocab = Efficiencies(), 128256
        seconds = self.gemm_ms(rows, vocab // self.tp, 4096) / 1e3
        logits = rows * vocab / self.tp * LOGIT_BYTES
        seconds += logits / (self.sheet.memory_bytes_per_s * share.memory)
        if self.tp > 1:
            gathered = 2 * rows * vocab * (self.tp - 1) / self.tp
            link = self.sheet.interconnect_bytes_per_s * share.interconnect
            seconds += self.sheet.interconnect_latency_s + gathered / link
        return seconds

    def decode_s(self, decodes: int, before: int) -> float | None:
        rows = self.generation.filter(
            (pl.col("batch_size") == decodes) & (pl.col("step") == before)
        )
        if rows.is_empty():
            return None
        attention_s = 32 * rows["latency"][0] / 1e3
        return self.linear_s(decodes) + self.head_s(decodes) + attention_s

    def prefill_s(self, tokens: int) -> float:
        rows = self.context.filter((pl.col("batch_size") == 1) & (pl.col("isl") == tokens))
        return self.linear_s(tokens) + self.head_s(1) + 32 * rows["latency"][0] / 1e3


def step_s(bundle: Bundle, decodes: int, before: int, chunks: list[tuple[int, int]]) -> float:
    batch = batch_of(decodes, decodes * (before + 1), chunks)
    return operator_cost(bundle.tables).progression(batch)[0] * PICOSECOND


@pytest.mark.parametrize(("tp", "kv"), list(product((1, 2, 4), ("bf16", "fp8"))))
def test_a_step_is_the_sum_of_its_operators(h200: Path, tp: int, kv: str):
    bundle = read(h200, model_name=LLAMA, tp=tp, kv_dtype=kv)
    sums = Sums(h200, tp, {"bf16": "bfloat16", "fp8": "fp8"}[kv])
    measured = 0
    for decodes, before in product((1, 64, 256), (1023, 4095)):
        expected = sums.decode_s(decodes, before)
        if expected is not None:
            measured += 1
            assert step_s(bundle, decodes, before, []) == pytest.approx(expected, rel=1e-6)
    assert measured >= 5
    for tokens in (2048, 8192):
        expected = sums.prefill_s(tokens)
        assert step_s(bundle, 0, 0, [(tokens, 0)]) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("tp", [1, 2, 4, 8])
def test_steps_are_near_the_analytic_ones(h200: Path, tp: int):
    bundle = read(h200, model_name=LLAMA, tp=tp)
    host = HostCosts(step_s=0, sequence_s=0)
    analytic = roofline_cost(model(LLAMA), gpu("h200"), tp, host=host)
    for decodes, before, chunks in (
        *((decodes, before, []) for decodes, before in product((1, 64, 256), (1023, 4095))),
        *((0, 0, [(tokens, 0)]) for tokens in (2048, 8192)),
    ):
        batch = batch_of(decodes, decodes * (before + 1), chunks)
        expected = analytic.progression(batch)[0] * PICOSECOND
        assert step_s(bundle, decodes, before, chunks) == pytest.approx(expected, rel=0.5)


@pytest.mark.parametrize("kv", ["bf16", "fp8"])
def test_a_larger_step_takes_longer_but_for_noise(h200: Path, kv: str):
    bundle = read(h200, model_name=LLAMA, kv_dtype=kv)
    counts, contexts = (1, 2, 8, 32, 64, 128, 256), (16, 256, 1024, 4096, 16384)
    steps = np.array([[step_s(bundle, n, c, []) for c in contexts] for n in counts])
    assert (np.diff(steps, axis=1) > -0.01 * steps[:, 1:]).all()
    assert (np.diff(steps, axis=0) > -0.05 * steps[1:]).all()
    assert (steps[-1, -1] > steps[0, 0]) and (steps[:, -1] > steps[:, 0]).all()


@pytest.mark.parametrize("tp", [1, 2, 4])
def test_an_fp8_cache_makes_attention_of_much_context_cheaper(h200: Path, tp: int):
    wide, narrow = (
        read(h200, model_name=LLAMA, tp=tp, kv_dtype=kv).tables.attention for kv in ("bf16", "fp8")
    )
    for decodes, before in ((64, 8191), (128, 4095), (32, 16383)):
        at = wide.decodes.index(decodes), wide.decode_contexts.index(before)
        assert 0.45 < narrow.decode[at] / wide.decode[at] < 0.8


def test_fp8_weights_make_linear_layers_cheaper(h200: Path):
    wide, narrow = (read(h200, model_name=LLAMA, weight_dtype=one) for one in ("bf16", "fp8"))
    for tokens in (1, 64, 2048, 8192):
        assert 0.45 < narrow.tables.tokens(tokens) / wide.tables.tokens(tokens) < 0.85
    assert wide.tables.rows == narrow.tables.rows
    blocks = read(h200, model_name=LLAMA, weight_dtype="fp8_block")
    assert blocks.weight_dtype == "fp8"
    assert any("outside CUDA graphs" in note for note in blocks.notes)


def test_what_is_not_measured_is_said(h200: Path):
    bundle = read(h200, model_name=LLAMA)
    assert (bundle.gpu, bundle.tp, bundle.max_tokens) == ("h200", 1, 16384)
    assert (bundle.max_sequences, bundle.max_context_tokens) == (2048, 65535)
    assert bundle.source == "AIConfigurator tables of NVIDIA H200, VLLM 0.24.0"
    for part in ("n 28672 and k 4096", "n 128256", "cached context", "norms", "straight lines"):
        assert any(part in note for note in bundle.notes), part
    between = read(h200, model_name="qwen2.5-7b", tp=2).notes
    assert sum("no 14 heads over 2 KV heads" in note for note in between) == 2
    exact = read(h200, model_name=LLAMA, tp=4).notes
    assert [note for note in exact if "GEMM of" in note and "n 32064" not in note] == []


def test_a_left_out_gemm_lies_between_its_neighbours(h200: Path):
    path = h200 / "gemm_perf.parquet"
    for dtype, median in (("bfloat16", 0.045), ("fp8", 0.035)):
        whole = gemms(gemm_table(path), dtype, path, gpu("h200"))
        sizes = sorted({n for n, _ in whole.measured})
        errors: list[float] = []
        for n, k in product(sizes[7:-1:3], sizes[7:-1:3]):
            rest = {at: one for at, one in whole.measured.items() if at[0] != n and at[1] != k}
            guess, truth = replace(whole, measured=rest).curve(n, k, []), whole.measured[n, k]
            errors += [abs(guess(m) / truth(m) - 1) for m in truth.sizes]
        assert np.median(errors) < median
        assert np.quantile(errors, 0.9) < 0.13


@pytest.mark.parametrize(("prompts", "median"), [(2, 0.05), (4, 0.08)])
def test_equal_prompts_in_one_step_take_what_they_took(h200: Path, prompts: int, median: float):
    attention = read(h200, model_name=LLAMA).tables.attention
    rows = Sums(h200, 1, "bfloat16").context.filter(
        (pl.col("batch_size") == prompts) & pl.col("isl").is_between(256, 16384 // prompts)
    )
    errors = [
        attention.prefill_s(prompts * isl, prompts * isl * (isl + 1) / 2) / (32e-3 * latency) - 1
        for isl, latency in rows.select("isl", "latency").iter_rows()
    ]
    assert np.median(np.abs(errors)) < median


def test_context_before_a_chunk_is_within_what_its_docstring_says(shared: Path):
    table = pl.read_csv(shared / "op-tables" / "rtx4090-llama-3.1-8b" / "attention.csv")
    alone = table.filter(pl.col("n_decode") == 0)
    took = {(q, c): us for q, c, us in alone.select(pl.nth(0, 1, 4)).iter_rows()}
    decode = table.filter((pl.col("prefill_chunk") == 0) & (pl.col("n_decode") == 1))
    decode = decode.sort("kv_decode")
    chunks = tuple(sorted({q for q, _ in took}))
    contexts = (512, 1024, 2048, 4096, 8192)
    first = np.array([took[q, 0] for q in chunks])
    added = cached_context_s(
        chunks, first, contexts, tuple(decode["kv_decode"]), decode["time_us"].to_numpy()
    )
    truth = np.array([[took[q, c] for c in contexts] for q in chunks])
    error = (first[:, None] + added) / truth - 1
    for least, most, low, high in ((256, 2048, 0.05, 0.21), (128, 128, -0.4, -0.23)):
        some = [at for at, chunk in enumerate(chunks) if least <= chunk <= most]
        assert error[some].min() > low
        assert error[some].max() < high


def test_context_before_a_chunk_costs(h200: Path):
    bundle = read(h200, model_name=LLAMA)
    for chunk in (1, 64, 512, 2048):
        steps = [step_s(bundle, 0, 0, [(chunk, before)]) for before in (0, 1024, 8192, 32768)]
        assert all(less < more for less, more in pairwise(steps))


# Tables made up -----------------------------------------------------------------------------------

CONFIG = {
    "model_type": "llama",
    "hidden_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "intermediate_size": 1024,
    "vocab_size": 2048,
    "max_position_embeddings": 4096,
}
SIZES = (64, 128, 256, 512, 1024, 2048)
ROWS = (1, 16, 1024)
Frames = dict[str, pl.DataFrame]


def gemm_ms(m: int, n: int, k: int) -> float:
    return 0.002 + 1e-10 * n * k + 3e-12 * m * n * k


def attention_ms(tokens: int, pairs: float, heads: int) -> float:
    return 0.01 + 1e-6 * tokens + 4e-9 * heads * pairs


def frames() -> Frames:
    """Tables of a GPU whose kernels take times affine in their work."""
    about = {"framework": "VLLM", "version": "1.0", "device": "NVIDIA H200"}
    rows: dict[str, list[dict[str, Any]]] = {
        "gemm_perf": [
            {"gemm_dtype": dtype, "m": m, "n": n, "k": k, "latency": gemm_ms(m, n, k)}
            for dtype, m, n, k in product(("bfloat16", "fp8"), ROWS, SIZES, SIZES)
        ],
        "custom_allreduce_perf": [
            {
                "num_gpus": gpus,
                "message_size": size,
                "backend": f"vllm_{mode}",
                "kernel_source": f"vLLM_custom_{mode}",
                "latency": 1e-8 * size + (0.004 if mode == "graph" else 0.5),
            }
            for gpus, size, mode in product((2, 4), (512, 2**20), ("graph", "eager"))
        ],
        "nccl_perf": [
            {
                "op_name": "all_reduce",
                "nccl_dtype": "half",
                "num_gpus": 8,
                "message_size": size,
                "latency": 2e-8 * size + 0.01,
            }
            for size in (512, 2**20)
        ],
    }
    for name, isls, steps in (
        ("context_attention_perf", (16, 256, 1024), (0,)),
        ("generation_attention_perf", (1,), (1, 255, 4095)),
    ):
        rows[name] = [
            {
                "batch_size": count,
                "isl": isl,
                "step": step,
                "num_heads": heads,
                "num_key_value_heads": kv,
                "head_dim": 64,
                "kv_cache_dtype": "bfloat16",
                "attn_dtype": "bfloat16",
                "window_size": window,
                "latency": attention_ms(
                    count * isl, count * (isl * step + isl * (isl + 1) / 2), heads
                )
                * (1 if window == 0 else 1.5),
            }
            for count, isl, step, (heads, kv), window in product(
                (1, 8), isls, steps, ((4, 2), (4, 4), (6, 4), (10, 4), (2, 0)), (0, 128)
            )
        ]
    return {name: pl.DataFrame(made).with_columns(**about_of(about)) for name, made in rows.items()}


def about_of(about: dict[str, str]) -> dict[str, pl.Expr]:
    return {column: pl.lit(value) for column, value in about.items()}


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "made-up" / "config.json"
    path.parent.mkdir()
    path.write_text(json.dumps(CONFIG))
    return str(path)


def write(folder: Path, tables: Frames) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        table.write_parquet(folder / f"{name}.parquet")
    return folder


def test_kernels_affine_in_their_work_give_affine_steps(tmp_path: Path, config: str):
    """Interpolation, heads between two and lines beyond the grid change nothing."""
    bundle = read(write(tmp_path / "t", frames()), model_name=config)
    shape = ModelShape.from_hf_config(config)
    analytic = roofline_cost(shape, gpu("h200"), host=HostCosts(graph_max_tokens=0))
    for tokens in (1, 7, 16, 300, 1024):
        shapes = [(1024, 512), (512, 512), (2048, 512), (512, 1024)]
        expected = 2e-3 * sum(gemm_ms(tokens, n, k) for n, k in shapes)
        expected += 2 * 4 * 2e-6 + analytic.token_parts_ps(tokens)["elementwise"] * PICOSECOND
        assert bundle.tables.tokens(tokens) == pytest.approx(expected)
    attention = bundle.tables.attention
    for decodes, before in ((1, 255), (8, 4095), (3, 1000)):
        expected = 2e-3 * attention_ms(decodes, decodes * (before + 1), 8)
        batch = batch_of(decodes, decodes * (before + 1), [])
        assert operator_cost(bundle.tables).explain(batch)["attention"] == pytest.approx(expected)
    assert attention.prefill_s(1024, 1024 * 1025 / 2) == pytest.approx(
        2e-3 * attention_ms(1024, 1024 * 1025 / 2, 8)
    )
    with_context = attention.prefill_s(1024, 1024 * 1025 / 2 + 1024 * 4095)
    pair_s = (attention.prefill[-1, 0] - attention.prefill[1, 0]) / (
        1024 * 1025 / 2 - 256 * 257 / 2
    )
    expected = float(attention.prefill[-1, 0]) + 1024 * 4095 * pair_s
    assert with_context == pytest.approx(expected)


@given(st.integers(256, 2048), st.integers(256, 2048), st.integers(1, 1024))
def test_gemms_bilinear_in_shape_are_interpolated_exactly(n: int, k: int, m: int):
    def made(n: int, k: int) -> Curve:
        return Curve(ROWS, tuple(gemm_ms(m, n, k) for m in ROWS))

    measured = Gemms(Path("made"), "bfloat16", {at: made(*at) for at in product(SIZES, SIZES)})
    notes: list[str] = []
    assert measured.curve(n, k, notes)(m) == pytest.approx(gemm_ms(m, n, k))
    assert len(notes) == ((n, k) not in measured.measured)
    assert measured.curve(3 * 2048, k, notes, widen=True)(m) == pytest.approx(
        3 * measured.curve(2048, k, notes)(m)
    )


def test_measured_context_is_taken_as_it_is(tmp_path: Path, config: str):
    tables = frames()
    more = tables["context_attention_perf"]
    cached = [
        more.with_columns(pl.lit(c, pl.Int64).alias("step"), pl.col("latency") * 3)
        for c in (512, 2048)
    ]
    tables["context_attention_perf"] = pl.concat([more, *cached])
    bundle = read(write(tmp_path / "t", tables), model_name=config)
    attention = bundle.tables.attention
    assert attention.prefill_contexts == (0, 512, 2048)
    assert attention.prefill[:, 1:] == pytest.approx(3 * attention.prefill[:, [0, 0]])
    assert not any("cached context" in note for note in bundle.notes)


@pytest.mark.parametrize(("tp", "per_token_s", "once_s"), [(2, 512e-11, 4e-6), (4, 512e-11, 4e-6)])
def test_all_reduce_is_by_elements_and_in_graphs(
    tmp_path: Path, config: str, tp: int, per_token_s: float, once_s: float
):
    tables = frames()
    tables["context_attention_perf"] = heads_for(tables["context_attention_perf"], tp)
    tables["generation_attention_perf"] = heads_for(tables["generation_attention_perf"], tp)
    folder = write(tmp_path / "t", tables)
    with_it = read(folder, model_name=config, tp=tp).tables.tokens
    tables["custom_allreduce_perf"] = tables["custom_allreduce_perf"].with_columns(
        pl.col("latency") * 2
    )
    twice = read(write(folder, tables), model_name=config, tp=tp).tables.tokens
    for tokens in (1, 16, 1024):
        expected = 2 * 2 * (once_s + per_token_s * tokens)
        assert twice(tokens) - with_it(tokens) == pytest.approx(expected)


def heads_for(table: pl.DataFrame, tp: int) -> pl.DataFrame:
    """The same attention under the numbers of heads that each of `tp` GPUs has."""
    rows = table.filter((pl.col("num_heads") == 6) & (pl.col("num_key_value_heads") == 4))
    heads = {"num_heads": pl.lit(8 // tp), "num_key_value_heads": pl.lit(4 // tp)}
    return rows.with_columns(**heads)


def test_nccl_stands_in_where_the_engines_kernel_was_not_measured(tmp_path: Path, config: str):
    tables = frames()
    for name in ("context_attention_perf", "generation_attention_perf"):
        rows = tables[name].filter(pl.col("num_heads") == 2)
        tables[name] = rows.with_columns(num_heads=pl.lit(1))
    folder = write(tmp_path / "t", tables)
    bundle = read(folder, model_name=config, tp=8)
    assert any("nccl_perf.parquet" in note for note in bundle.notes)
    (folder / "nccl_perf.parquet").unlink()
    with pytest.raises(
        ConfigError, match=r"custom_allreduce_perf.*num_gpus has no 8; there are 2, 4"
    ):
        read(folder, model_name=config, tp=8)
    (folder / "custom_allreduce_perf.parquet").unlink()
    assert any("data sheet" in note for note in read(folder, model_name=config, tp=8).notes)


def test_a_measured_all_reduce_bounds_the_step(tmp_path: Path, config: str):
    tables = frames()
    for name in ("context_attention_perf", "generation_attention_perf"):
        tables[name] = heads_for(tables[name], 2)
    reduce = tables["custom_allreduce_perf"]
    tables["custom_allreduce_perf"] = reduce.with_columns(pl.col("message_size").clip(None, 8192))
    folder = write(tmp_path / "t", tables)
    assert read(folder, model_name=config, tp=2).max_tokens == 16


def test_the_package_is_found_and_not_imported(
    tmp_path: Path, config: str, monkeypatch: pytest.MonkeyPatch
):
    package = tmp_path / "site" / "aiconfigurator_core"
    systems = package / "systems" / "data"
    tables = frames()
    for version in ("0.9.1", "0.24.0"):
        made = {name: t.with_columns(version=pl.lit(version)) for name, t in tables.items()}
        gemm = {"gemm_perf": made.pop("gemm_perf")}
        made.pop("nccl_perf")
        reduce = {"custom_allreduce_perf": made.pop("custom_allreduce_perf")}
        for kind, some in (("gemm", gemm), ("attention", made), ("comm", reduce)):
            write(systems / "h200_sxm" / kind / "vllm" / version, some)
    (package / "__init__.py").write_text("raise RuntimeError('imported')\n")
    with pytest.raises(ConfigError, match="pip install aiconfigurator-core"):
        installed("h200_sxm")
    monkeypatch.syspath_prepend(tmp_path / "site")
    folder = installed("h200_sxm")
    assert recognised(folder)
    assert "0.24.0" in read(folder, model_name=config).source
    assert "0.9.1" in read(folder, model_name=config, version="0.9.1").source
    with pytest.raises(ConfigError, match=r"no gemm_perf of vllm 0.1; there are 0.9.1, 0.24.0"):
        read(folder, model_name=config, version="0.1")
    with pytest.raises(ConfigError, match="no gemm_perf of sglang"):
        read(folder, model_name=config, framework="sglang")
    with pytest.raises(ConfigError, match="no system 'b200_sxm'; there are h200_sxm"):
        installed("b200_sxm")


Change = Callable[[pl.DataFrame], pl.DataFrame]


def latency(value: object, row: int = 5) -> Change:
    def changed(table: pl.DataFrame) -> pl.DataFrame:
        values = table["latency"].to_list()
        values[row] = value
        return table.with_columns(pl.Series("latency", values, strict=False))

    return changed


def again(factor: float) -> Change:
    """A row of the made-up model's own heads or shapes once more, with another time."""
    return lambda table: pl.concat(
        [table, table[[0]].with_columns(pl.col("latency") * factor)], how="vertical"
    )


BAD: list[tuple[str, Change, str]] = [
    ("gemm_perf", lambda t: t.drop("k"), "gemm_perf.parquet: column k is missing; it has"),
    ("gemm_perf", lambda t: t[:0], "gemm_perf.parquet: has no rows"),
    ("gemm_perf", latency(-1.0), "row 5: latency is -1.0; expected a time > 0"),
    ("gemm_perf", latency(float("nan")), "row 5: latency is nan; expected a time > 0"),
    ("gemm_perf", latency(None), "row 5: latency is None; expected a number"),
    ("gemm_perf", again(3), r"m 1\) disagree: latency 0.002.* and 0.006"),
    ("gemm_perf", lambda t: t.with_columns(pl.col("latency") * 1e3), "expected milliseconds"),
    ("gemm_perf", lambda t: t.with_columns(pl.col("latency") / 1e3), "expected milliseconds"),
    ("gemm_perf", lambda t: t.filter(pl.col("k") > 512), "k has 1024 to 2048.*needs 512"),
    ("gemm_perf", lambda t: t.with_columns(device=pl.lit("GB9")), "gpu 'GB9' is unknown"),
    (
        "gemm_perf",
        lambda t: t.filter(pl.col("gemm_dtype") == "fp8"),
        "gemm_dtype has no bfloat16; there are fp8",
    ),
    (
        "context_attention_perf",
        lambda t: t.filter(pl.col("num_heads") < 7),
        "neither 8/4 .tp 1. nor numbers of heads around it; there are 2/2, 4/2, 4/4, 6/4",
    ),
    (
        "context_attention_perf",
        lambda t: t.with_columns(head_dim=pl.lit(128)),
        "head_dim has no 64; there are 128",
    ),
    (
        "generation_attention_perf",
        lambda t: t.with_columns(pl.col("latency") * 1e3),
        "generation_attention_perf.parquet: latency .* of batch_size 8, isl 1, step 4095",
    ),
    (
        "generation_attention_perf",
        lambda t: t.filter(pl.col("batch_size") == 8),
        "batch_size has no 1; there are 8",
    ),
    (
        "context_attention_perf",
        lambda t: t.filter(pl.col("batch_size") == 8),
        "no rows with batch_size 1 and step 0",
    ),
]


@pytest.mark.parametrize(("table", "change", "message"), BAD)
def test_a_bad_table_is_named(
    tmp_path: Path, config: str, table: str, change: Change, message: str
):
    tables = frames()
    tables[table] = change(tables[table])
    folder = write(tmp_path / "t", tables)
    with pytest.raises(ConfigError, match=message) as said:
        read(folder, model_name=config)
    assert "\n" not in str(said.value)


def test_repeats_of_a_measurement_count_once(tmp_path: Path, config: str):
    tables = frames()
    once = read(write(tmp_path / "t", tables), model_name=config)
    tables = {name: pl.concat([table, table]) for name, table in tables.items()}
    twice = read(write(tmp_path / "t", tables), model_name=config)
    assert once.tables.tokens == twice.tables.tokens
    assert (once.tables.attention.decode == twice.tables.attention.decode).all()


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"weight_dtype": "int4"}, "weight dtype 'int4'.*known: bf16, fp16, fp8, fp8_block"),
        ({"weight_dtype": "fp8_block"}, "gemm_dtype has no fp8_block; there are bfloat16, fp8"),
        ({"kv_dtype": "int8"}, "KV dtype 'int8'.*known: bf16, fp16, fp8"),
        ({"kv_dtype": "fp8"}, "kv_cache_dtype has no fp8; there are bfloat16"),
        ({"model_name": "mixtral-8x7b"}, "mixtral-8x7b has experts"),
    ],
)
def test_what_the_tables_do_not_have_is_refused(
    tmp_path: Path, config: str, asked: dict[str, Any], message: str
):
    folder = write(tmp_path / "t", frames())
    with pytest.raises(ConfigError, match=message):
        read(folder, **({"model_name": config} | asked))


def test_folders_are_told_apart(tmp_path: Path, config: str):
    folder = write(tmp_path / "t", frames())
    assert recognised(folder)
    assert not recognised(tmp_path)
    (folder / "gemm_perf_old.parquet").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ConfigError, match=r"which gemm_perf is meant.*gemm_perf_old.parquet"):
        read(folder, model_name=config)
    (folder / "gemm_perf.parquet").unlink()
    with pytest.raises(ConfigError, match=r"gemm_perf_old.parquet: cannot be read"):
        read(folder, model_name=config)
    (folder / "gemm_perf_old.parquet").unlink()
    assert not recognised(folder)
    with pytest.raises(ConfigError, match="has no gemm_perf of vllm"):
        read(folder, model_name=config)


def test_csv_will_do(tmp_path: Path, config: str):
    folder = tmp_path / "t"
    folder.mkdir()
    for name, table in frames().items():
        table.write_csv(folder / f"{name}.txt")
    bundle = read(folder, model_name=config)
    expected = read(write(tmp_path / "u", frames()), model_name=config)
    assert bundle.tables.tokens.seconds == pytest.approx(expected.tables.tokens.seconds)
