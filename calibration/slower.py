"""A cost model with all its times multiplied: what a stated uncertainty of step times means."""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any, Final

from calibration.costs import CostModel, LinearCost
from calibration.fitted import FittedCost, FittedSettings, fitted_cost
from calibration.hardware import Gpu
from calibration.kernels import HostCosts
from calibration.operators import Curve, OperatorCost, operator_cost
from calibration.roofline import RooflineCost, roofline_cost


def slower_linear(cost: LinearCost, factor: float) -> LinearCost:
    """Every coefficient times `factor`, to the picosecond."""
    return LinearCost(**{one.name: round(factor * getattr(cost, one.name)) for one in fields(cost)})


def slower_roofline(cost: RooflineCost, factor: float) -> RooflineCost:
    """Every rate of the GPU divided by `factor`, its latencies and the host's times multiplied."""
    return roofline_cost(
        cost.shape,
        _slower_gpu(cost.gpu, factor),
        cost.tp,
        cost.weight_dtype,
        cost.kv_dtype,
        cost.efficiencies,
        _slower_host(cost.host, factor),
    )


def slower_fitted(cost: FittedCost, factor: float) -> FittedCost:
    """Every coefficient and the curve times `factor`; intervals are left behind."""
    settings = cost.settings
    seconds = tuple(factor * one for one in settings.curve.seconds)
    slow = FittedSettings.model_validate(
        {term: factor * one.value for term, one in settings.coefficients()}
        | {"kind": "fitted", "graphs": settings.graphs}
        | {"curve": {"tokens": settings.curve.tokens, "seconds": seconds}}
    )
    return fitted_cost(slow, async_scheduling=cost.overlap, roofline=cost.roofline)


def slower_operators(cost: OperatorCost, factor: float) -> OperatorCost:
    """Every time in the tables, and those beside them, times `factor`."""
    attention = cost.tables.attention
    slow = replace(
        cost.tables,
        tokens=_slower_curve(cost.tables.tokens, factor),
        rows=_slower_curve(cost.tables.rows, factor),
        attention=replace(
            attention,
            prefill=factor * attention.prefill,
            decode=factor * attention.decode,
            mixed=factor * attention.mixed,
        ),
    )
    return operator_cost(
        slow,
        cost.graph_sizes,
        factor * cost.step_s,
        factor * cost.host_step_s,
        factor * cost.host_sequence_s,
        cost.overlap,
        cost.roofline,
    )


SLOWER: Final[dict[type, Callable[[Any, float], CostModel]]] = {
    LinearCost: slower_linear,
    RooflineCost: slower_roofline,
    FittedCost: slower_fitted,
    OperatorCost: slower_operators,
}
"""By kind of cost model: the same with every step `factor` times as long. Coefficients are
multiplied rather than steps, so that progressions stay exact."""


def _slower_curve(curve: Curve, factor: float) -> Curve:
    return Curve(curve.sizes, tuple(factor * one for one in curve.seconds))


def _slower_gpu(gpu: Gpu, factor: float) -> Gpu:
    rates = (
        "memory_bytes_per_s",
        "bf16_flops_per_s",
        "fp8_flops_per_s",
        "int8_ops_per_s",
        "interconnect_bytes_per_s",
    )
    divided = {name: rate / factor for name in rates if (rate := getattr(gpu, name)) is not None}
    latency_s = gpu.interconnect_latency_s * factor
    return gpu.model_copy(update={**divided, "interconnect_latency_s": latency_s})


def _slower_host(host: HostCosts, factor: float) -> HostCosts:
    times = ("step_s", "sequence_s", "kernel_gap_s", "kernel_launch_s")
    return host.model_copy(update={name: getattr(host, name) * factor for name in times})
