"""AIConfigurator's all-reduce: the engine's own kernel where it was measured, else NCCL's.

`message_size` counts 16-bit elements in both tables, not bytes: the collectors make tensors of so
many elements, and divide the bytes of nccl-tests by the size of one (collector/network).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from calibration.hardware import Gpu
from calibration.imports.aic_files import (
    ALL_REDUCE,
    MILLISECOND,
    NCCL,
    candidates,
    located,
)
from calibration.imports.bundle import all_reduce_curve
from calibration.imports.measured import believable, listed, once, read_present
from calibration.kernels import all_reduce_s
from calibration.operators import Curve
from engine.shapes import ModelShape
from traces.errors import ConfigError

if TYPE_CHECKING:
    import polars as pl


def step_all_reduces(
    folder: Path,
    framework: str,
    shape: ModelShape,
    tp: int,
    sheet: Gpu,
    sizes: tuple[int, ...],
    notes: list[str],
) -> Curve:
    """All-reduces of a step on `tp` > 1 GPUs, two a layer, at those of `sizes` (tokens) measured.

    Raises:
        ConfigError: when the folder has tables of collectives, but not over `tp` GPUs.
    """
    custom = candidates(folder, ALL_REDUCE, framework)
    if not custom and not candidates(folder, NCCL, framework):
        notes.append("all-reduce is not in the folder: by the data sheet of the GPU's interconnect")
        return all_reduce_curve(shape, tp, sheet, sizes)
    path = located(folder, ALL_REDUCE if custom else NCCL, framework)
    rows = _custom(path) if custom else _nccl(path)
    if custom and tp not in rows["num_gpus"] and candidates(folder, NCCL, framework):
        path = located(folder, NCCL, framework)
        rows = _nccl(path)
    measured = _by_elements(rows, tp, path, sheet)
    notes.append(f"all-reduce: two a layer, {path.name} ({_origin(rows)}), also outside graphs")
    reached = tuple(size for size in sizes if size * shape.hidden <= measured.sizes[-1])
    reached = reached or sizes[:1]
    calls = 2 * shape.layers
    return Curve(reached, tuple(calls * measured(size * shape.hidden) for size in reached))


def _custom(path: Path) -> pl.DataFrame:
    """The kernel as it runs in a CUDA graph; eager rows hold the CPU's launch too."""
    import polars as pl

    about = {"framework": "String", "version": "String"}
    variant = {"kernel_source": "String", "backend": "String"}
    needed = {"num_gpus": "Int64", "message_size": "Int64"}
    rows = read_present(path, needed, {**about, **variant}, "latency")
    for column in variant:
        if column in rows.columns:
            rows = rows.filter(~pl.col(column).str.ends_with("_eager"))
    return rows


def _nccl(path: Path) -> pl.DataFrame:
    import polars as pl

    which = {"op_name": "String", "nccl_dtype": "String"}
    needed = {**which, "num_gpus": "Int64", "message_size": "Int64"}
    rows = read_present(path, needed, {"version": "String"}, "latency")
    return rows.filter((pl.col("op_name") == "all_reduce") & (pl.col("nccl_dtype") == "half"))


def _by_elements(rows: pl.DataFrame, tp: int, path: Path, sheet: Gpu) -> Curve:
    known = sorted(set(rows["num_gpus"].to_list()))
    rows = rows.filter(rows["num_gpus"] == tp)
    if rows.is_empty():
        raise ConfigError(f"{path}: num_gpus has no {tp}; there are {listed(known)}")
    rows = once(rows, ("message_size",), "latency", path)
    seconds = (rows["latency"] * MILLISECOND).to_list()
    curve = Curve(tuple(rows["message_size"].to_list()), tuple(seconds))
    largest = curve.sizes[-1]
    where = f"latency {seconds[-1] / MILLISECOND:g} of message_size {largest} over {tp} GPUs"
    least_s = all_reduce_s(2 * largest, tp, sheet, 1.0)
    believable(path, where, seconds[-1], least_s, "milliseconds, and elements of 16 bits")
    return curve


def _origin(rows: pl.DataFrame) -> str:
    words = [listed(sorted(set(rows[one]))) for one in ("framework", "version") if one in rows]
    return " ".join(words) or "version unknown"
