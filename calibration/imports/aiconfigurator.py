"""Operator tables of AIConfigurator's perf database: single kernels in CUDA graphs, milliseconds.

A folder holds gemm_perf (gemm_dtype, m, n, k), context_attention_perf and
generation_attention_perf (batch_size, isl, step, num_heads, num_key_value_heads, head_dim,
kv_cache_dtype), for several GPUs custom_allreduce_perf or nccl_perf (num_gpus, message_size), each
with its `latency`. It may be flat, or a system's folder of the package aiconfigurator-core
(`installed`): <kind>/<framework>/<version>/<table>.parquet.

What columns mean is read off AIConfigurator's collectors and its own reader (aic-core,
perf_database): `isl` is the tokens of each of `batch_size` equal prompts; a decode has `step`
tokens in the cache before its new one; heads are those of one GPU, and num_key_value_heads 0 or
equal to num_heads is multi-head attention; writing new keys and values to the cache is part of the
attention, quantising activations part of an fp8 GEMM.

GEMMs of a shape (n, k) that was not measured are linear in n and k between neighbouring shapes at
the same m. With each n and k from 1024 on left out in turn of the H200 tables of vLLM 0.24,
neighbours on both axes predict the missing GEMM with a median error of 3.7 % (mean 5.0, P90 10.8)
in bf16 and 3.0 % in fp8; in log space it is 3.8 and 3.3 %, as a share of the roofline 4.0 and 4.1.
With only n missing it is 3.6 and 2.1 %, with only k 2.1 and 2.1 %. An output head wider than any n
takes as long in proportion: 6.3 % (P90 17) from n = 51200 to 65536 in bf16.

Heads between two measured numbers, over as many KV heads, are linear too: leaving the middle one of
three out gives a median error of 3.4 % for prefill and 0.9 % for decode in bf16, 5.1 and 0.8 % with
an fp8 cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from calibration.costs import PICOSECONDS
from calibration.hardware import Gpu, model
from calibration.hardware import gpu as data_sheet
from calibration.imports.aic_attention import attention_of_layers
from calibration.imports.aic_collectives import step_all_reduces
from calibration.imports.aic_files import (
    CONTEXT,
    GEMMS,
    GENERATION,
    candidates,
    installed,
    located,
)
from calibration.imports.aic_gemms import Gemms, gemm_table, gemms
from calibration.imports.bundle import Bundle
from calibration.imports.measured import listed
from calibration.imports.tables import sum_of_curves
from calibration.kernels import Efficiencies, HostCosts
from calibration.operators import Curve, OperatorTables
from calibration.roofline import LOGIT_BYTES, roofline_cost
from engine.shapes import ModelShape
from traces.errors import ConfigError

if TYPE_CHECKING:
    import polars as pl

__all__ = ["installed", "read", "recognised"]

GEMM_DTYPES: Final[Mapping[str, str]] = {
    "bf16": "bfloat16",
    "fp16": "bfloat16",
    "fp8": "fp8",
    "fp8_block": "fp8_block",
}
"""Table's name of a weight dtype. fp8 has one scale a tensor, fp8_block one for 128 x 128."""

KV_DTYPES: Final[Mapping[str, str]] = {"bf16": "bfloat16", "fp16": "bfloat16", "fp8": "fp8"}


def recognised(folder: Path) -> bool:
    """Whether a folder looks like such tables, flat or as the package has them."""
    return all(candidates(folder, table, "*") for table in (GEMMS, CONTEXT, GENERATION))


def read(
    folder: Path,
    *,
    model_name: str,
    gpu: str | None = None,
    tp: int = 1,
    weight_dtype: str = "bf16",
    kv_dtype: str = "bf16",
    framework: str = "vllm",
    version: str | None = None,
) -> Bundle:
    """Compose the tables' operators over a model's layers.

    Args:
        folder: with the tables.
        model_name: a model without experts.
        gpu: the GPU that the tables are of, where their own name for it is not one of ours.
        tp: GPUs that the model is split over.
        weight_dtype: of the layers' linear maps, a key of GEMM_DTYPES; the output head is bf16.
        kv_dtype: of the KV cache, a key of KV_DTYPES.
        framework: whose tables, of a folder that has several.
        version: of its GEMM and attention tables; the newest if not given.

    Raises:
        ConfigError: a file, column or value is missing or wrong, or the tables do not have what
            the model needs; naming it, and what there is.
    """
    shape = model(model_name)
    if shape.experts:
        raise ConfigError(
            f"{folder}: {shape.name} has experts, which are not read from such tables"
        )
    gemm_dtype = _named(GEMM_DTYPES, "weight dtype", weight_dtype)
    cache_dtype = _named(KV_DTYPES, "KV dtype", kv_dtype)
    path, context, generation = (
        located(folder, table, framework, version) for table in (GEMMS, CONTEXT, GENERATION)
    )
    table = gemm_table(path)
    sheet = data_sheet(gpu or _said(table, "device"))
    notes = _notes(shape, weight_dtype)
    tokens = _linear_layers(gemms(table, gemm_dtype, path, sheet), shape, tp, notes)
    parts = [tokens, _elementwise_curve(shape, tp, sheet, tokens.sizes)]
    if tp > 1:
        parts.append(step_all_reduces(folder, framework, shape, tp, sheet, tokens.sizes, notes))
    head = gemms(table, "bfloat16", path, sheet)
    rows = head.curve(-(-shape.vocab // tp), shape.hidden, notes, widen=True)
    attention = attention_of_layers(context, generation, shape, tp, cache_dtype, sheet, notes)
    return Bundle(
        source=f"AIConfigurator tables of {_said(table, 'device')},"
        f" {_said(table, 'framework')} {_said(table, 'version')}",
        model=shape.name,
        gpu=sheet.name,
        tp=tp,
        weight_dtype="fp8" if weight_dtype == "fp8_block" else weight_dtype,
        kv_dtype=kv_dtype,
        tables=OperatorTables(
            tokens=sum_of_curves(parts),
            rows=sum_of_curves([rows, _logits_curve(shape, tp, sheet, rows.sizes)]),
            attention=attention,
        ),
        max_tokens=min(attention.chunks[-1], *(part.sizes[-1] for part in parts)),
        max_sequences=min(rows.sizes[-1], attention.decodes[-1]),
        max_context_tokens=attention.decode_contexts[-1],
        notes=tuple(notes),
    )


def _named(names: Mapping[str, str], what: str, name: str) -> str:
    if name not in names:
        raise ConfigError(f"{what} {name!r} is not in such tables; known: {', '.join(names)}")
    return names[name]


def _said(table: pl.DataFrame, column: str) -> str:
    """What a table says of itself."""
    return listed(sorted(set(table[column]))) if column in table.columns else "unknown"


def _notes(shape: ModelShape, weight_dtype: str) -> list[str]:
    """What holds whatever the tables have."""
    gap_us = HostCosts().kernel_gap_s * 1e6
    notes = [
        "single kernels, each timed again and again on the same data, times"
        f" {shape.layers} layers; no CPU time",
        "norms, rotary embedding and gating are not in the tables: their bytes as in the analytic"
        f" model, and {gap_us:g} us for each of {_elementwise_kernels(shape)} kernels a layer",
        "the sampler and the gathering of logits are those of the analytic model",
    ]
    if weight_dtype == "fp8_block":
        notes.append("fp8_block GEMMs were timed outside CUDA graphs: small steps are too slow")
    if shape.sliding_window:
        notes.append(f"attention without the model's window of {shape.sliding_window} tokens")
    return notes


def _linear_layers(measured: Gemms, shape: ModelShape, tp: int, notes: list[str]) -> Curve:
    """A layer's four GEMMs on one GPU, of all layers."""
    query = shape.heads_per_gpu(tp) * shape.head_dim
    keys = shape.kv_heads_per_gpu(tp) * shape.head_dim
    inner = -(-shape.intermediate // tp)
    layer = sum_of_curves(
        [
            measured.curve(query + 2 * keys, shape.hidden, notes),
            measured.curve(shape.hidden, query, notes),
            measured.curve(2 * inner, shape.hidden, notes),
            measured.curve(shape.hidden, inner, notes),
        ]
    )
    return Curve(layer.sizes, tuple(shape.layers * seconds for seconds in layer.seconds))


def _elementwise_kernels(shape: ModelShape) -> int:
    """Of a layer: two norms, rotary embedding, gating; norms of queries and keys."""
    return 4 + 2 * shape.qk_norm


def _elementwise_curve(shape: ModelShape, tp: int, sheet: Gpu, sizes: tuple[int, ...]) -> Curve:
    host = HostCosts(graph_max_tokens=0)
    analytic = roofline_cost(shape, sheet, tp, host=host)
    gaps_s = shape.layers * _elementwise_kernels(shape) * host.kernel_gap_s
    moved_ps = (analytic.token_parts_ps(size)["elementwise"] for size in sizes)
    return Curve(sizes, tuple(gaps_s + ps / PICOSECONDS for ps in moved_ps))


def _logits_curve(shape: ModelShape, tp: int, sheet: Gpu, sizes: tuple[int, ...]) -> Curve:
    """The analytic model's output head less its GEMM: the sampler's passes, and the gathering."""
    share = Efficiencies()
    row_s = shape.vocab / tp * LOGIT_BYTES / (sheet.memory_bytes_per_s * share.memory)
    start_s = 0.0
    if tp > 1:
        start_s = sheet.interconnect_latency_s
        gathered_bytes = 2 * shape.vocab * (tp - 1) / tp
        row_s += gathered_bytes / (sheet.interconnect_bytes_per_s * share.interconnect)
    return Curve(sizes, tuple(start_s + row_s * size for size in sizes))
