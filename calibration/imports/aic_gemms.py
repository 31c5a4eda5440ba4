"""AIConfigurator's GEMMs: seconds by rows for each measured shape, and for those between."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from calibration.hardware import Gpu
from calibration.imports.aic_files import MILLISECOND
from calibration.imports.measured import believable, listed, once, read_present
from calibration.operators import Curve
from traces.errors import ConfigError

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True)
class Gemms:
    """Measured GEMMs of one dtype: seconds by rows m, for each shape (n, k) of the weights."""

    path: Path
    dtype: str
    measured: Mapping[tuple[int, int], Curve]

    def curve(self, n: int, k: int, notes: list[str], widen: bool = False) -> Curve:
        """Seconds by m of [m, k] x [k, n].

        A shape that is not in the table lies between its neighbours, linear in n and k.

        Args:
            n: outputs.
            k: inputs.
            notes: takes a sentence where the shape was not measured.
            widen: an n beyond the table takes as long in proportion.

        Raises:
            ConfigError: when the table has no neighbours for the shape.
        """
        if (n, k) in self.measured:
            return self.measured[n, k]
        wide = widen and n > max(outputs for outputs, _ in self.measured)
        outputs, inputs = (
            self._outputs(n, wide),
            self._around("k", k, {k for _, k in self.measured}),
        )
        corners = [
            (self._at(near_n, near_k), share_n * share_k)
            for near_n, share_n in outputs
            for near_k, share_k in inputs
        ]
        near = f"n {_sizes(outputs)} and k {_sizes(inputs)}"
        how = f"in proportion to {near}" if wide else f"interpolated from {near}"
        notes.append(f"{self.dtype} GEMM of n {n} and k {k} is not in the table: {how}")
        return _weighted_sum(corners)

    def _at(self, n: int, k: int) -> Curve:
        if (n, k) not in self.measured:
            raise ConfigError(f"{self.path}: has no {self.dtype} GEMM of n {n} and k {k}")
        return self.measured[n, k]

    def _outputs(self, n: int, wide: bool) -> list[tuple[int, float]]:
        sizes = {outputs for outputs, _ in self.measured}
        return [(max(sizes), n / max(sizes))] if wide else self._around("n", n, sizes)

    def _around(self, axis: str, size: int, known: set[int]) -> list[tuple[int, float]]:
        sizes = sorted(known)
        around = neighbours(sizes, size)
        if not around:
            raise ConfigError(
                f"{self.path}: {axis} has {sizes[0]} to {sizes[-1]} in {self.dtype}; the model"
                f" needs {size} (another tp changes it)"
            )
        return around


def neighbours(sizes: Sequence[int], size: int) -> list[tuple[int, float]]:
    """The size itself, or those around it, with linear weights; empty where it is outside."""
    if size in sizes:
        return [(size, 1.0)]
    at = bisect_left(sizes, size)
    if at in (0, len(sizes)):
        return []
    below, above = sizes[at - 1], sizes[at]
    share = (size - below) / (above - below)
    return [(below, 1 - share), (above, share)]


def gemm_table(path: Path) -> pl.DataFrame:
    """All GEMMs of a file; `framework`, `version` and `device` where it has them."""
    needed = {"gemm_dtype": "String", "m": "Int64", "n": "Int64", "k": "Int64"}
    about = {"framework": "String", "version": "String", "device": "String"}
    return read_present(path, needed, about, "latency")


def gemms(table: pl.DataFrame, dtype: str, path: Path, sheet: Gpu) -> Gemms:
    """The GEMMs of one `gemm_dtype`.

    Raises:
        ConfigError: when there are none, rows disagree, or the largest one's time is out of all
            proportion to the data sheet's FLOPs.
    """
    rows = table.filter(table["gemm_dtype"] == dtype)
    if rows.is_empty():
        known = listed(sorted(set(table["gemm_dtype"].to_list())))
        raise ConfigError(f"{path}: gemm_dtype has no {dtype}; there are {known}")
    rows = once(rows, ("n", "k", "m"), "latency", path)
    points: dict[tuple[int, int], list[tuple[int, float]]] = {}
    for n, k, m, latency in rows.iter_rows():
        points.setdefault((n, k), []).append((m, latency * MILLISECOND))
    measured = {shape: _curve(known) for shape, known in points.items()}
    _check_unit(measured, dtype, path, sheet)
    return Gemms(path, dtype, measured)


def _check_unit(
    measured: Mapping[tuple[int, int], Curve], dtype: str, path: Path, sheet: Gpu
) -> None:
    (n, k), curve = max(measured.items(), key=lambda item: item[0][0] * item[0][1])
    m, seconds = curve.sizes[-1], curve.seconds[-1]
    peak = sheet.peak_flops_per_s("bf16" if dtype == "bfloat16" else "fp8")
    where = f"latency {seconds / MILLISECOND:g} of the {dtype} GEMM of m {m}, n {n}, k {k}"
    believable(path, where, seconds, 2 * m * n * k / peak, "milliseconds")


def _curve(points: Sequence[tuple[int, float]]) -> Curve:
    return Curve(tuple(size for size, _ in points), tuple(seconds for _, seconds in points))


def _weighted_sum(parts: Sequence[tuple[Curve, float]]) -> Curve:
    """At the sizes that all of the curves were measured at."""
    sizes = sorted(set(parts[0][0].sizes).intersection(*(curve.sizes for curve, _ in parts)))
    seconds = (sum(share * curve(size) for curve, share in parts) for size in sizes)
    return Curve(tuple(sizes), tuple(seconds))


def _sizes(around: Sequence[tuple[int, float]]) -> str:
    return "-".join(str(size) for size, _ in around)
