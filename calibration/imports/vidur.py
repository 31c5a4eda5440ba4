"""Vidur's profiling tables: one layer's kernels in 16 bits, milliseconds.

mlp.csv has linear maps, norms and the like by num_tokens; attention.csv has prefills
(prefill_chunk_size tokens of one prompt after kv_cache_size cached ones) and decodes
(prefill_chunk_size 0, batch_size sequences with kv_cache_size tokens before the new one each);
all_reduce.csv has the collective by `size` in bytes. Times are time_stats.<operator>.median, of one
GPU's share of the model. In Vidur's repository they lie in data/profiling/compute/<gpu>/<model> and
data/profiling/network/<node>; all of them in one folder will do.

Operators are added up as Vidur adds them (vidur/entities/execution_time.py): each once a layer,
all-reduce twice. Vidur leaves out embedding, output head and sampler; here the embedding is that of
mlp.csv, head and sampler those of the analytic model. What Vidur adds by assumption (20 us to a
collective, a tenth to the attention of several sequences) is left out.
"""

from pathlib import Path
from typing import Final

from calibration.costs import PICOSECONDS
from calibration.hardware import Gpu, model
from calibration.hardware import gpu as data_sheet
from calibration.imports.bundle import Bundle, all_reduce_curve
from calibration.imports.measured import believable, columns, listed, once
from calibration.imports.tables import read_table, sum_of_curves
from calibration.imports.vidur_attention import (
    MILLISECOND,
    attention_of_layers,
    median,
    of_model,
)
from calibration.kernels import all_reduce_s
from calibration.operators import Curve, OperatorTables
from calibration.roofline import roofline_cost
from engine.shapes import ModelShape
from traces.errors import ConfigError

MLP: Final = "mlp.csv"
ATTENTION: Final = "attention.csv"
ALL_REDUCE: Final = "all_reduce.csv"

LAYER: Final = (
    "attn_pre_proj",
    "attn_rope",
    "attn_post_proj",
    "mlp_up_proj",
    "mlp_act",
    "mlp_down_proj",
)
"""What every layer calls once."""

LAYER_IF_THERE: Final = ("input_layernorm", "post_attention_layernorm", "add")
"""The same, of models that have it: Vidur too counts a missing one as nothing."""

EMBEDDING: Final = "emb"
HEAD_ROWS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)


def recognised(folder: Path) -> bool:
    """Whether a folder has such tables: one model's, or all of Vidur's data/profiling."""
    return bool(_places(folder))


def read(
    folder: Path,
    *,
    model_name: str,
    gpu: str | None = None,
    tp: int = 1,
    network: str | None = None,
) -> Bundle:
    """Compose the tables' operators over a model's layers.

    Args:
        folder: with mlp.csv and attention.csv, or Vidur's data/profiling.
        model_name: a model of the sizes that the tables are of, whatever they call it.
        gpu: the GPU that the tables are of; the folder below `compute` names it otherwise.
        tp: GPUs that the model is split over.
        network: which folder of data/profiling/network has the all_reduce.csv.

    Raises:
        ConfigError: a file, column or value is missing or wrong, or there are no rows for the
            model or `tp`; naming it, and what there is.
    """
    shape = model(model_name)
    if shape.experts:
        raise ConfigError(f"{folder}: {shape.name} has experts, which Vidur's tables do not have")
    if shape.heads * shape.head_dim != shape.hidden:
        raise ConfigError(
            f"{folder}: {shape.name} has heads of {shape.head_dim}; Vidur's tables assume"
            f" n_embd / n_head, {shape.hidden // shape.heads}"
        )
    place = _place(folder)
    sheet = data_sheet(gpu or _gpu_of(place))
    notes = [
        f"one layer's kernels times {shape.layers} layers; no CPU time, no gaps between kernels",
        "output head and sampler are not in Vidur's tables: those of the analytic model",
    ]
    tokens = _layer_curves(place / MLP, shape, tp, sheet, notes)
    sizes = tokens[0].sizes
    if tp > 1:
        tokens.append(_all_reduces(place, network, shape, tp, sheet, sizes, notes))
    attention = attention_of_layers(place / ATTENTION, shape, tp, sheet, notes)
    return Bundle(
        source=f"Vidur profile of {place.parent.name}/{place.name}",
        model=shape.name,
        gpu=sheet.name,
        tp=tp,
        weight_dtype="fp16",
        kv_dtype="fp16",
        tables=OperatorTables(sum_of_curves(tokens), _head_curve(shape, sheet, tp), attention),
        max_tokens=min(attention.chunks[-1], *(part.sizes[-1] for part in tokens)),
        max_sequences=attention.decodes[-1],
        max_context_tokens=attention.decode_contexts[-1],
        notes=tuple(notes),
    )


def _places(folder: Path) -> list[Path]:
    """Folders with a model's tables: this one, or those of data/profiling."""
    tables = [folder / MLP, *sorted((folder / "compute").glob(f"*/**/{MLP}"))]
    there = [path.parent for path in tables if path.is_file()]
    return [place for place in there if (place / ATTENTION).is_file()]


def _place(folder: Path) -> Path:
    """The one folder with a model's tables."""
    places = _places(folder)
    if len(places) == 1 or folder in places:
        return places[0]
    names = listed(str(place.relative_to(folder)) for place in places)
    raise ConfigError(
        f"{folder}: give the folder of one model, with {MLP} and {ATTENTION}; there are {names}"
    )


def _gpu_of(place: Path) -> str:
    for path in (place, *place.parents):
        if path.parent.name == "compute":
            return path.name
    raise ConfigError(f"{place}: its path has no compute/<gpu>; say which gpu it is of")


def _layer_curves(
    path: Path, shape: ModelShape, tp: int, sheet: Gpu, notes: list[str]
) -> list[Curve]:
    """Operators of all layers by tokens, and the embedding."""
    present = columns(path)
    absent = [name for name in (*LAYER_IF_THERE, EMBEDDING) if median(name) not in present]
    if absent:
        notes.append(f"{path.name} has no {listed(absent)}: counted as nothing, as Vidur does")
    names = [name for name in (*LAYER, *LAYER_IF_THERE, EMBEDDING) if name not in absent]
    calls = {name: _operator(path, name, shape, tp) for name in names}
    tokens, seconds = calls["mlp_up_proj"].sizes[-1], calls["mlp_up_proj"].seconds[-1]
    flops = 4 * tokens * shape.hidden * -(-shape.intermediate // tp)
    where = f"{median('mlp_up_proj')} {seconds / MILLISECOND:g} of num_tokens {tokens}"
    believable(path, where, seconds, flops / sheet.bf16_flops_per_s, "milliseconds")
    times = {EMBEDDING: 1}
    return [
        Curve(call.sizes, tuple(times.get(name, shape.layers) * one for one in call.seconds))
        for name, call in calls.items()
    ]


def _operator(path: Path, name: str, shape: ModelShape, tp: int) -> Curve:
    """Seconds of one call by tokens."""
    sizes = {
        "n_embd": shape.hidden,
        "n_head": shape.heads,
        "n_kv_head": shape.kv_heads,
        "n_expanded_embd": shape.intermediate,
        "num_tensor_parallel_workers": tp,
    }
    time = median(name)
    table = read_table(path, dict.fromkeys((*sizes, "num_tokens"), "Int64"), time)
    rows = once(of_model(table, sizes, path), ("num_tokens",), time, path)
    return Curve(tuple(rows["num_tokens"].to_list()), tuple((rows[time] * MILLISECOND).to_list()))


def _all_reduces(
    place: Path,
    network: str | None,
    shape: ModelShape,
    tp: int,
    sheet: Gpu,
    sizes: tuple[int, ...],
    notes: list[str],
) -> Curve:
    """All-reduces of a step, two a layer, at those of `sizes` (tokens) that were measured."""
    path = _network_file(place, network)
    if path is None:
        notes.append(f"there is no {ALL_REDUCE}: by the data sheet of the GPU's interconnect")
        return all_reduce_curve(shape, tp, sheet, sizes)
    keys = dict.fromkeys(("num_workers", "devices_per_node", "size"), "Int64")
    time = median("all_reduce")
    table = read_table(path, {**keys, "collective": "String"}, time)
    table = table.filter(table["collective"] == "all_reduce")
    rows = of_model(table, {"num_workers": tp, "devices_per_node": tp}, path)
    rows = once(rows, ("size",), time, path)
    seconds = (rows[time] * MILLISECOND).to_list()
    measured = Curve(tuple(rows["size"].to_list()), tuple(seconds))
    largest = measured.sizes[-1]
    where = f"{time} {seconds[-1] / MILLISECOND:g} of size {largest} over {tp} GPUs"
    least_s = all_reduce_s(largest, tp, sheet, 1.0)
    believable(path, where, seconds[-1], least_s, "milliseconds and bytes")
    notes.append(f"all-reduce: two a layer, {path.parent.name}/{path.name}, NCCL")
    reached = tuple(size for size in sizes if 2 * size * shape.hidden <= largest) or sizes[:1]
    calls = 2 * shape.layers
    return Curve(reached, tuple(calls * measured(2 * size * shape.hidden) for size in reached))


def _network_file(place: Path, network: str | None) -> Path | None:
    """all_reduce.csv beside the model's tables, or among those of the GPU's nodes."""
    if (place / ALL_REDUCE).is_file():
        return place / ALL_REDUCE
    roots = [path.parent / "network" for path in place.parents if path.name == "compute"]
    files = [path for root in roots for path in sorted(root.glob(f"*/{ALL_REDUCE}"))]
    nodes = {path.parent.name: path for path in files}
    if network is not None and network not in nodes:
        raise ConfigError(f"{place}: there is no {ALL_REDUCE} of {network}; of {listed(nodes)}")
    if network is None and nodes:
        of_gpu = [name for name in nodes if name.split("_")[0] == _gpu_of(place)]
        if len(of_gpu) != 1:
            known = listed(of_gpu or nodes)
            raise ConfigError(f"{place}: say which network connects the GPUs: {known}")
        network = of_gpu[0]
    return nodes[network] if network is not None else None


def _head_curve(shape: ModelShape, sheet: Gpu, tp: int) -> Curve:
    """Output head and sampler by rows, of the analytic model."""
    analytic = roofline_cost(shape, sheet, tp, weight_dtype="fp16", kv_dtype="fp16")
    seconds = (sum(analytic.row_parts_ps(rows).values()) / PICOSECONDS for rows in HEAD_ROWS)
    return Curve(HEAD_ROWS, tuple(seconds))
