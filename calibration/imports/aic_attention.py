"""AIConfigurator's attention: one layer's seconds on the grids of an AttentionTable."""

from __future__ import annotations

from bisect import bisect_right
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from calibration.hardware import Gpu
from calibration.imports.aic_files import MILLISECOND
from calibration.imports.aic_gemms import neighbours
from calibration.imports.measured import believable, listed, once, read_present
from calibration.operators import AttentionTable, Times, filled
from engine.shapes import ModelShape
from traces.errors import ConfigError

if TYPE_CHECKING:
    import polars as pl

KEYS: Final = ("batch_size", "isl", "step")

Points = dict[tuple[int, int, int], float]
"""Seconds of one layer by KEYS."""

Axis = tuple[int, ...]

CONTEXT_NOTE: Final = (
    "prefill attention over cached context is not measured (step is 0): a chunk alone, plus the"
    " longer of reading the context as one decode does and computing its pairs as fast as the"
    " longest prompts do"
)


def attention_of_layers(
    context: Path,
    generation: Path,
    shape: ModelShape,
    tp: int,
    kv_dtype: str,
    sheet: Gpu,
    notes: list[str],
) -> AttentionTable:
    """Attention of all layers on one of `tp` GPUs, prefill and decode apart.

    Args:
        context: table of prefills.
        generation: table of decodes.
        shape: the model.
        tp: GPUs that share its heads.
        kv_dtype: as `kv_cache_dtype` has it.
        sheet: the GPU.
        notes: takes a sentence for what was not measured.

    Raises:
        ConfigError: when a table is wrong or does not have the model's heads.
    """
    prefill = _heads(context, shape, tp, kv_dtype, notes)
    decode = _heads(generation, shape, tp, kv_dtype, notes)
    heads, kv_heads = shape.heads_per_gpu(tp), shape.kv_heads_per_gpu(tp)
    pair_s = 4 * heads * shape.head_dim / sheet.bf16_flops_per_s
    kv_bytes = 2 * kv_heads * shape.head_dim * (1 if kv_dtype == "fp8" else 2)
    _check_unit(
        context, prefill, {at: at[0] * at[1] * (at[1] / 2 + at[2]) for at in prefill}, pair_s
    )
    token_s = kv_bytes / sheet.memory_bytes_per_s
    _check_unit(generation, decode, {at: at[0] * (at[1] + at[2]) for at in decode}, token_s)
    decodes, decode_contexts, decode_s = _decode_grid(decode, generation, notes)
    chunks, contexts, prefill_s = _prefill_grid(
        prefill, context, decode_contexts, decode_s[0], notes
    )
    return AttentionTable(
        chunks=chunks,
        prefill_contexts=contexts,
        decodes=decodes,
        decode_contexts=decode_contexts,
        prefill=prefill_s * shape.layers,
        decode=decode_s * shape.layers,
        mixed=np.empty(0),
    )


def _heads(path: Path, shape: ModelShape, tp: int, kv_dtype: str, notes: list[str]) -> Points:
    """Attention with one GPU's share of the model's heads, or interpolated between two numbers."""
    heads, kv_heads = shape.heads_per_gpu(tp), shape.kv_heads_per_gpu(tp)
    table = _full_attention(path, shape.head_dim, kv_dtype)
    rows = table.filter(table["kv_heads"] == kv_heads)
    around = neighbours(sorted(set(rows["num_heads"].to_list())), heads) if len(rows) else []
    if not around:
        pairs = sorted(set(zip(table["num_heads"], table["kv_heads"], strict=True)))
        raise ConfigError(
            f"{path}: num_heads/num_key_value_heads has neither {heads}/{kv_heads} (tp {tp}) nor"
            f" numbers of heads around it; there are {listed(f'{one}/{kv}' for one, kv in pairs)}"
        )
    if len(around) > 1:
        notes.append(
            f"{path.name} has no {heads} heads over {kv_heads} KV heads: interpolated from"
            f" {around[0][0]} and {around[1][0]} heads over as many"
        )
    parts = [(_points(rows.filter(rows["num_heads"] == near), path), w) for near, w in around]
    shared = [at for at in parts[0][0] if all(at in points for points, _ in parts)]
    return {at: sum(weight * points[at] for points, weight in parts) for at in shared}


def _full_attention(path: Path, head_dim: int, kv_dtype: str) -> pl.DataFrame:
    """Rows without a window that compute in 16 bits; `kv_heads` as the model counts them."""
    import polars as pl

    whole = ("num_heads", "num_key_value_heads", "head_dim", *KEYS)
    needed = {**dict.fromkeys(whole, "Int64"), "kv_cache_dtype": "String"}
    optional = {"window_size": "Int64", "attn_dtype": "String"}
    table = read_present(path, needed, optional, "latency")
    wanted = {
        "kv_cache_dtype": kv_dtype,
        "head_dim": head_dim,
        "window_size": 0,
        "attn_dtype": "bfloat16",
    }
    for column in wanted.keys() & set(table.columns):
        known = sorted(set(table[column].to_list()))
        if wanted[column] not in known:
            raise ConfigError(
                f"{path}: {column} has no {wanted[column]}; there are {listed(known)}"
            )
    for column in wanted.keys() & set(table.columns):
        table = table.filter(pl.col(column) == wanted[column])
    if table.is_empty():
        what = listed(f"{column} {value}" for column, value in wanted.items())
        raise ConfigError(f"{path}: has no rows of {what} together")
    same = pl.when(pl.col("num_key_value_heads") == 0).then("num_heads")
    return table.with_columns(same.otherwise("num_key_value_heads").alias("kv_heads"))


def _points(rows: pl.DataFrame, path: Path) -> Points:
    rows = once(rows, KEYS, "latency", path)
    return {(count, isl, step): taken * MILLISECOND for count, isl, step, taken in rows.iter_rows()}


def _check_unit(
    path: Path, points: Points, work: dict[tuple[int, int, int], float], work_s: float
) -> None:
    """The largest attention of a table against the data sheet's seconds for a unit of work."""
    largest = max(work, key=lambda at: work[at])
    where = ", ".join(f"{key} {size}" for key, size in zip(KEYS, largest, strict=True))
    seconds = points[largest]
    latency = f"latency {seconds / MILLISECOND:g} of {where}"
    believable(path, latency, seconds, work[largest] * work_s, "milliseconds")


def _decode_grid(points: Points, path: Path, notes: list[str]) -> tuple[Axis, Axis, Times]:
    """Seconds by decodes and by tokens before each one's new token."""
    by_place = {(count, isl - 1 + step): taken for (count, isl, step), taken in points.items()}
    decodes = tuple(sorted({count for count, _ in by_place}))
    contexts = tuple(sorted({before for _, before in by_place}))
    if decodes[0] != 1:
        raise ConfigError(f"{path}: batch_size has no 1; there are {listed(decodes)}")
    grid = np.array([[by_place.get((n, c), np.nan) for c in contexts] for n in decodes])
    if np.isnan(grid).any():
        together = max(count * before for count, before in by_place)
        notes.append(
            "decode attention of batches with more context than was measured lies on straight lines"
            f" (the most context of a batch measured is {together} tokens)"
        )
    return decodes, contexts, _filled(grid, (decodes, contexts), path)


def _prefill_grid(
    points: Points, path: Path, decode_contexts: Axis, one_decode_s: Times, notes: list[str]
) -> tuple[Axis, Axis, Times]:
    """Seconds by tokens of one prompt's chunk and by tokens before it."""
    alone = {(isl, step): taken for (count, isl, step), taken in points.items() if count == 1}
    chunks = tuple(sorted({chunk for chunk, before in alone if before == 0}))
    if not chunks:
        raise ConfigError(f"{path}: has no rows with batch_size 1 and step 0")
    contexts = tuple(sorted({before for _, before in alone}))
    if len(contexts) > 1:
        grid = np.array([[alone.get((q, c), np.nan) for c in contexts] for q in chunks])
        return chunks, contexts, _filled(grid, (chunks, contexts), path)
    notes.append(CONTEXT_NOTE)
    chunk_s = np.array([alone[chunk, 0] for chunk in chunks])
    contexts = (0, *(before for before in decode_contexts if before > 0))
    added_s = cached_context_s(chunks, chunk_s, contexts, decode_contexts, one_decode_s)
    return chunks, contexts, chunk_s[:, None] + added_s


def cached_context_s(
    chunks: Axis, chunk_s: Times, contexts: Axis, decode_contexts: Axis, one_decode_s: Times
) -> Times:
    """Seconds that context adds to a chunk, [chunk, context]: affine in pairs at a fixed chunk.

    Held against a table that has contexts (Llama-3.1-8B on an RTX 4090, FlashAttention 2; contexts
    of 512 to 8192) this is 5 to 21 % too much for chunks of 256 tokens and more, and too little for
    smaller ones: 23 to 39 % at 128, 41 to 68 % at 64. That kernel leaves multiprocessors idle
    there; FlashAttention 3 has splits to use them, but nothing here says how well.
    """
    half = bisect_right(chunks, chunks[-1] // 2) - 1
    pairs, seconds = _pairs(chunks[-1]), chunk_s[-1]
    if half >= 0:
        pairs, seconds = pairs - _pairs(chunks[half]), seconds - chunk_s[half]
    pair_s = max(0.0, float(seconds) / pairs)
    read_s = np.interp(contexts, decode_contexts, one_decode_s - one_decode_s[0])
    read_s = np.maximum.accumulate(np.maximum(read_s, 0.0))
    return np.maximum(read_s, np.outer(chunks, contexts) * pair_s)


def _pairs(chunk: int) -> float:
    return chunk * (chunk + 1) / 2


def _filled(grid: Times, axes: tuple[Axis, Axis], path: Path) -> Times:
    try:
        return filled(grid, axes)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error
