"""Operator tables of LLMServingSim's profiler: one layer's kernels in eager mode, microseconds.

A bundle is a folder with meta.yaml and, in it or in a folder tp<N> beside it, dense.csv (layer,
tokens, time_us), per_sequence.csv (layer, sequences, time_us), attention.csv (prefill_chunk,
kv_prefill, n_decode, kv_decode, time_us) and, for mixtures of experts, moe.csv (tokens,
activated_experts, time_us); skew_fit.csv, where it is, says how much longer decodes of unequal
lengths take than as many of their mean length. Times are GPU time of one call, without the CPU's.
Format: LLMServingSim 2.0, docs/docs/profiler/output-bundle.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import yaml

from calibration.hardware import gpu, model
from calibration.imports.bundle import Bundle, all_reduce_curve
from calibration.imports.tables import read_table, sum_of_curves
from calibration.kernels import experts_touched
from calibration.operators import AttentionTable, Curve, OperatorTables, SkewTable, filled
from engine.shapes import ModelShape
from traces.errors import ConfigError

if TYPE_CHECKING:
    import polars as pl

MICROSECOND: Final = 1e-6

CALLS_PER_LAYER: Final[Mapping[str, int]] = {
    "layernorm": 2,
    "qkv_proj": 1,
    "qk_norm": 2,
    "rotary_emb": 1,
    "o_proj": 1,
    "gate_up_proj": 1,
    "act_fn": 1,
    "down_proj": 1,
}
"""How often a decoder layer calls what dense.csv has the time of one call of."""

CALLS_PER_STEP: Final = ("embedding", "final_layernorm")
ROWS: Final = ("lm_head", "sampler")
ALWAYS: Final = ("layernorm", "qkv_proj", "o_proj", *CALLS_PER_STEP)
DENSE_MLP: Final = ("gate_up_proj", "act_fn", "down_proj")

ATTENTION_KEYS: Final = ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode")


def recognised(folder: Path) -> bool:
    """Whether a folder looks like such a bundle."""
    return (folder / "meta.yaml").is_file() and any(
        (folder / place / "attention.csv").is_file() for place in (".", *_tp_folders(folder))
    )


def read(folder: Path, *, tp: int | None = None, model_name: str | None = None) -> Bundle:
    """Read a bundle and compose its operators over the model's layers.

    Args:
        folder: with meta.yaml.
        tp: which tensor-parallel degree of it; the only or the least one if not given.
        model_name: instead of the model that meta.yaml names.

    Raises:
        ConfigError: a file, column, layer or unit is missing or wrong; naming it.
    """
    meta = _meta(folder)
    degree, tables = _degree(folder, meta, tp)
    shape = model(model_name or _named(meta, "model", folder))
    variant = str(meta.get("variant", "bf16"))
    weight_dtype, _, kv_dtype = variant.partition("-kv")
    dense = read_table(tables / "dense.csv", {"layer": "String", "tokens": "Int64"}, "time_us")
    rows = read_table(
        tables / "per_sequence.csv", {"layer": "String", "sequences": "Int64"}, "time_us"
    )
    attention = read_table(
        tables / "attention.csv", dict.fromkeys(ATTENTION_KEYS, "Int64"), "time_us"
    )
    device = _named(meta, "gpu", folder)
    tokens = [*_dense_curves(dense, shape, tables / "dense.csv")]
    if shape.experts:
        tokens.append(_expert_curve(tables / "moe.csv", shape))
    notes = [
        f"one layer of {shape.name}, eager, times {shape.layers} layers; no CPU time, no gaps"
        " between kernels",
    ]
    if degree > 1:
        tokens.append(all_reduce_curve(shape, degree, gpu(device), tokens[0].sizes))
        notes.append("all-reduce is not in the bundle: by the data sheet of the GPU's interconnect")
    if not (tables / "skew_fit.csv").is_file():
        notes.append("decodes of unequal lengths cost what as many of their mean length do")
    limits = meta.get("engine_effective", {})
    grid = _attention(attention, shape.layers, tables / "attention.csv")
    return Bundle(
        source=f"LLMServingSim profile of {meta.get('profiled_at', 'unknown date')},"
        f" vLLM {meta.get('vllm_version', '?')}, CUDA {meta.get('cuda_version', '?')}",
        model=shape.name,
        gpu=device,
        tp=degree,
        weight_dtype=weight_dtype,
        kv_dtype=kv_dtype or weight_dtype,
        tables=OperatorTables(
            tokens=sum_of_curves(tokens),
            rows=sum_of_curves(
                [_curve(rows, name, "sequences", tables / "per_sequence.csv") for name in ROWS]
            ),
            attention=grid,
            skew=_skew(meta, degree, folder, tables),
        ),
        max_tokens=int(limits.get("max_num_batched_tokens", max(tokens[0].sizes))),
        max_sequences=int(limits.get("max_num_seqs", grid.decodes[-1])),
        max_context_tokens=grid.decode_contexts[-1],
        notes=tuple(notes),
    )


def _tp_folders(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("tp*") if path.name[2:].isdigit())


def _meta(folder: Path) -> dict[str, Any]:
    path = folder / "meta.yaml"
    try:
        meta = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(meta, dict):
        raise ConfigError(f"{path}: expected a mapping, got {type(meta).__name__}")
    return meta


def _named(meta: Mapping[str, Any], key: str, folder: Path) -> str:
    if not meta.get(key):
        raise ConfigError(f"{folder / 'meta.yaml'}: {key} is missing")
    return str(meta[key])


def _degree(folder: Path, meta: Mapping[str, Any], tp: int | None) -> tuple[int, Path]:
    """The tensor-parallel degree to read, and the folder its tables are in."""
    folders = {int(name[2:]): folder / name for name in _tp_folders(folder)}
    if not folders:
        folders = {int((meta.get("tp_degrees") or [1])[0]): folder}
    degree = min(folders) if tp is None else tp
    if degree not in folders:
        known = ", ".join(str(one) for one in sorted(folders))
        raise ConfigError(f"{folder}: has no tables for tp {degree}; there are {known}")
    return degree, folders[degree]


def _dense_curves(dense: pl.DataFrame, shape: ModelShape, path: Path) -> list[Curve]:
    """Operators by tokens, times their calls in a step."""
    names: list[str] = dense["layer"].unique().sort().to_list()
    known = (*CALLS_PER_LAYER, *CALLS_PER_STEP)
    for name in names:
        if name not in known:
            raise ConfigError(f"{path}: layer {name!r} is unknown; known: {', '.join(known)}")
    needed = ALWAYS if shape.experts and shape.moe_layers == shape.layers else ALWAYS + DENSE_MLP
    for name in needed:
        if name not in names:
            raise ConfigError(f"{path}: layer {name!r} is missing; a step without it is too short")
    return [
        _curve(dense, name, "tokens", path, _calls(name, shape))
        for name in sorted(names, key=lambda one: one in CALLS_PER_STEP)
    ]


def _calls(name: str, shape: ModelShape) -> int:
    if name in CALLS_PER_STEP:
        return 1
    layers = shape.layers - shape.moe_layers if name in DENSE_MLP else shape.layers
    return layers * CALLS_PER_LAYER[name]


def _curve(table: pl.DataFrame, name: str, size: str, path: Path, calls: int = 1) -> Curve:
    import polars as pl

    rows = table.filter(pl.col("layer") == name).sort(size)
    if rows.is_empty():
        raise ConfigError(f"{path}: layer {name!r} is missing; a step without it is too short")
    if rows[size].n_unique() != len(rows):
        twice = rows.filter(pl.col(size).is_duplicated())[size][0]
        raise ConfigError(f"{path}: layer {name!r} has two rows for {size} = {twice}")
    seconds = (calls * MICROSECOND * rows["time_us"]).to_list()
    return Curve(tuple(rows[size].to_list()), tuple(seconds))


def _expert_curve(path: Path, shape: ModelShape) -> Curve:
    """Experts of all layers by tokens, as many touched as tokens choose uniformly on average."""
    table = read_table(path, {"tokens": "Int64", "activated_experts": "Int64"}, "time_us")
    tokens = tuple(table["tokens"].unique().sort().to_list())
    calls = shape.moe_layers * MICROSECOND
    seconds: list[float] = []
    for count in tokens:
        rows = table.filter(table["tokens"] == count).sort("activated_experts")
        touched = experts_touched(shape.experts, shape.experts_per_token, count)
        seconds.append(
            calls * float(np.interp(touched, rows["activated_experts"], rows["time_us"]))
        )
    return Curve(tokens, tuple(seconds))


def _attention(table: pl.DataFrame, layers: int, path: Path) -> AttentionTable:
    import polars as pl

    twice = table.filter(table.select(ATTENTION_KEYS).is_duplicated())
    if len(twice):
        place = ", ".join(f"{key} {value}" for key, value in twice.row(0, named=True).items())
        raise ConfigError(f"{path}: two rows for the same step: {place}")
    alone = table.filter(pl.col("n_decode") == 0)
    decodes = table.filter(pl.col("prefill_chunk") == 0)
    both = table.filter((pl.col("prefill_chunk") > 0) & (pl.col("n_decode") > 0))
    for what, rows in (("prefill (n_decode = 0)", alone), ("decode (prefill_chunk = 0)", decodes)):
        if rows.is_empty():
            raise ConfigError(f"{path}: has no rows of {what} alone")
    sizes = {key: tuple(table[key].unique().sort().to_list()) for key in ATTENTION_KEYS}
    chunks = tuple(size for size in sizes["prefill_chunk"] if size)
    counts = tuple(size for size in sizes["n_decode"] if size)
    contexts = tuple(size for size in sizes["kv_decode"] if size)
    axes = {
        "prefill_chunk": chunks,
        "kv_prefill": sizes["kv_prefill"],
        "n_decode": counts,
        "kv_decode": contexts,
    }
    scale = layers * MICROSECOND
    try:
        return AttentionTable(
            chunks,
            sizes["kv_prefill"],
            counts,
            contexts,
            prefill=_grid(alone, {key: axes[key] for key in ATTENTION_KEYS[:2]}) * scale,
            decode=_grid(decodes, {key: axes[key] for key in ATTENTION_KEYS[2:]}) * scale,
            mixed=_grid(both, axes) * scale if len(both) else np.empty(0),
        )
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error


def _grid(rows: pl.DataFrame, axes: Mapping[str, tuple[int, ...]]) -> np.ndarray:
    """Microseconds on a full grid."""
    times = np.full([len(sizes) for sizes in axes.values()], np.nan)
    places = [np.searchsorted(sizes, rows[key].to_numpy()) for key, sizes in axes.items()]
    times[tuple(places)] = rows["time_us"].to_numpy()
    return filled(times, tuple(axes.values()))


SKEW_AXES: Final = ("n", "skew_rate", "kv_big", "kp")


def _skew(meta: Mapping[str, Any], degree: int, folder: Path, tables: Path) -> SkewTable | None:
    """The fitted correction for decodes of unequal lengths; None where none was measured."""
    path = tables / "skew_fit.csv"
    if not path.is_file():
        return None
    fit = meta.get("skew_fit") or {}
    entry = (fit.get("per_tp") or {}).get(degree, {})
    axes = entry.get("bucket_axes") or fit.get("bucket_axes") or {}
    labels: dict[str, list[str]] = {}
    edges: dict[str, tuple[float, ...]] = {}
    for axis in SKEW_AXES:
        try:
            labels[axis] = axes[f"{axis}_labels"]
            edges[axis] = tuple(float(edge) for edge in axes[f"{axis}_bins"][1:])
        except KeyError as error:
            where = folder / "meta.yaml"
            raise ConfigError(f"{where}: skew_fit.bucket_axes has no {error.args[0]}") from error
    columns = {"pc": "Int64", **{f"{axis}_label": "String" for axis in SKEW_AXES}}
    rows = read_table(path, {**columns, "alpha": "Float64"}, None)
    alphas: dict[tuple[int, int, int, int, int], float] = {}
    for chunk, *row, alpha in rows.iter_rows():
        for axis, label in zip(SKEW_AXES, row, strict=True):
            if label not in labels[axis]:
                known = ", ".join(labels[axis])
                raise ConfigError(f"{path}: {axis}_label is {label!r}; meta.yaml has {known}")
        n, rate, longest, context = (
            labels[axis].index(label) for axis, label in zip(SKEW_AXES, row, strict=True)
        )
        alphas[chunk, n, rate, longest, context] = alpha
    return SkewTable(
        edges["n"],
        edges["skew_rate"],
        edges["kv_big"],
        edges["kp"],
        alphas,
        float(entry.get("alpha_default", 0.0)),
    )
