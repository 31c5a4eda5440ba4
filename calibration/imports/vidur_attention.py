"""Attention of Vidur's attention.csv on the grids of an AttentionTable."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from calibration.hardware import Gpu
from calibration.imports.measured import believable, columns, listed, once, read_present
from calibration.imports.tables import check_times
from calibration.operators import AttentionTable, Curve, Times, filled
from engine.shapes import ModelShape
from traces.errors import ConfigError

if TYPE_CHECKING:
    import polars as pl

MILLISECOND: Final = 1e-3

CHUNK: Final = "prefill_chunk_size"
CONTEXT: Final = "kv_cache_size"
COUNT: Final = "batch_size"

Axis = tuple[int, ...]
Points = dict[tuple[int, int], float]
"""Seconds of one layer by tokens of a chunk, or number of decodes, and tokens before (each)."""


def median(operator: str) -> str:
    """Column of an operator's times, milliseconds."""
    return f"time_stats.{operator}.median"


KV_SAVE: Final = median("attn_kv_cache_save")


def of_model(table: pl.DataFrame, sizes: dict[str, int], path: Path) -> pl.DataFrame:
    """Rows with the model's sizes and `tp`.

    Raises:
        ConfigError: when no row has them; naming the first column that does not fit.
    """
    for column, size in sizes.items():
        known = sorted(set(table[column].to_list()))
        table = table.filter(table[column] == size)
        if table.is_empty():
            raise ConfigError(f"{path}: {column} has no {size}; there are {listed(known)}")
    return table


def attention_of_layers(
    path: Path, shape: ModelShape, tp: int, sheet: Gpu, notes: list[str]
) -> AttentionTable:
    """Attention of all layers on one of `tp` GPUs; prefills and decodes were measured apart.

    A step's writing to the KV cache is counted with its attention: in Vidur's tables of FlashInfer
    it takes some fifty times as long for a chunk as for as many decodes.

    Raises:
        ConfigError: when the table is wrong, or lacks prefills, cached context, or decodes.
    """
    if KV_SAVE not in columns(path):
        notes.append(f"{path.name} has no {KV_SAVE}: counted as nothing, as Vidur does")
    prefills = _points(path, shape, tp, CHUNK, sheet)
    decodes = _points(path, shape, tp, COUNT, sheet)
    chunks, contexts, prefill_s = _prefill_grid(prefills, path)
    counts, decode_contexts, decode_s = _decode_grid(decodes, path)
    return AttentionTable(
        chunks=chunks,
        prefill_contexts=contexts,
        decodes=counts,
        decode_contexts=decode_contexts,
        prefill=prefill_s * shape.layers,
        decode=decode_s * shape.layers,
        mixed=np.empty(0),
    )


def _points(path: Path, shape: ModelShape, tp: int, size: str, sheet: Gpu) -> Points:
    """Prefills by chunk (`size` is CHUNK) or decodes by number (COUNT), and tokens before."""
    import polars as pl

    mine = pl.col(CHUNK) > 0 if size == CHUNK else pl.col(CHUNK) == 0
    time = median("attn_prefill" if size == CHUNK else "attn_decode")
    sizes = {
        "n_embd": shape.hidden,
        "n_q_head": shape.heads,
        "n_kv_head": shape.kv_heads,
        "num_tensor_parallel_workers": tp,
    }
    needed = {**dict.fromkeys((*sizes, CHUNK, CONTEXT, COUNT), "Int64"), time: "Float64"}
    table = read_present(path, needed, {KV_SAVE: "Float64"}, None)
    check_times(table.with_columns(pl.when(mine).then(time).otherwise(1.0).alias(time)), time, path)
    if KV_SAVE in table.columns:
        # 0 where writing is part of the attention; anything else has to be a time
        save = pl.when(pl.col(KV_SAVE) == 0).then(1.0).otherwise(KV_SAVE).alias(KV_SAVE)
        check_times(table.with_columns(save), KV_SAVE, path)
    rows = of_model(table, sizes, path).filter(mine)
    if rows.is_empty():
        what = "above 0" if size == CHUNK else "0"
        raise ConfigError(f"{path}: {CHUNK} is nowhere {what} for tp {tp}")
    _check_unit(path, time, size, _seconds(rows, size, time, path), shape, tp, sheet)
    if KV_SAVE in rows.columns:
        rows = rows.with_columns(pl.col(time) + pl.col(KV_SAVE))
    return _seconds(rows, size, time, path)


def _seconds(rows: pl.DataFrame, size: str, time: str, path: Path) -> Points:
    rows = once(rows, (size, CONTEXT), time, path)
    return {(at, before): taken * MILLISECOND for at, before, taken in rows.iter_rows()}


def _check_unit(
    path: Path,
    time: str,
    size: str,
    points: Points,
    shape: ModelShape,
    tp: int,
    sheet: Gpu,
) -> None:
    """The largest step against the data sheet: prefill its FLOPs, decodes its bandwidth."""
    pair_s = 4 * shape.heads_per_gpu(tp) * shape.head_dim / sheet.bf16_flops_per_s
    kv_bytes = 4 * shape.kv_heads_per_gpu(tp) * shape.head_dim
    least_s = {
        (at, before): at * (before + at / 2) * pair_s
        if size == CHUNK
        else at * before * kv_bytes / sheet.memory_bytes_per_s
        for at, before in points
    }
    at, before = max(points, key=lambda point: least_s[point])
    seconds = points[at, before]
    where = f"{time} {seconds / MILLISECOND:g} of {size} {at}, {CONTEXT} {before}"
    believable(path, where, seconds, least_s[at, before], "milliseconds")


def _decode_grid(points: Points, path: Path) -> tuple[Axis, Axis, Times]:
    """Seconds by decodes and tokens before each; what did not fit in memory is filled in."""
    decodes = tuple(sorted({count for count, _ in points}))
    contexts = tuple(sorted({before for _, before in points}))
    grid = np.array([[points.get((n, c), np.nan) for c in contexts] for n in decodes])
    try:
        return decodes, contexts, filled(grid, (decodes, contexts))
    except ValueError as error:
        raise ConfigError(f"{path}: decodes: {error}") from error


def _prefill_grid(points: Points, path: Path) -> tuple[Axis, Axis, Times]:
    """Seconds by chunk and tokens before it.

    Vidur measures each chunk after multiples of itself, so every chunk has contexts of its own:
    straight lines between them give it those of the grid. A chunk that was measured without
    context alone takes what context adds from the chunks around it; beyond the largest of those,
    in proportion to its tokens.
    """
    by_chunk: dict[int, list[tuple[int, float]]] = {}
    for (chunk, before), seconds in sorted(points.items()):
        by_chunk.setdefault(chunk, []).append((before, seconds))
    by_chunk = {chunk: row for chunk, row in by_chunk.items() if row[0][0] == 0}
    measured = [chunk for chunk, row in by_chunk.items() if len(row) > 1]
    if not measured:
        raise ConfigError(f"{path}: {CONTEXT} has nothing above 0 for prefills; nor 0 with it")
    contexts = _contexts(max(before for _, before in points))
    added = np.array([_added_s(by_chunk[chunk], contexts) for chunk in measured])
    chunks = tuple(by_chunk)
    rows = [
        row[0][1]
        + max(1.0, chunk / measured[-1])
        * np.array([np.interp(chunk, measured, column) for column in added.T])
        for chunk, row in by_chunk.items()
    ]
    return chunks, contexts, np.array(rows)


def _contexts(longest: int) -> Axis:
    """0 and powers of two up to the longest context measured, and that one."""
    return (0, *(size for power in range(4, 40) if (size := 1 << power) < longest), longest)


def _added_s(row: list[tuple[int, float]], contexts: Axis) -> Times:
    """What context adds to a chunk, by its own measurements; never less for more of it."""
    curve = Curve(tuple(before for before, _ in row), tuple(seconds for _, seconds in row))
    return np.maximum.accumulate([curve(before) - row[0][1] for before in contexts])
