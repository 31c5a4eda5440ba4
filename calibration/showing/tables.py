"""What a profile says, as tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from rich.table import Table

from calibration.costs import PICOSECONDS
from calibration.devices import StatedDevice
from calibration.evidence import HeldOutError
from calibration.fitted import Coefficient, FittedSettings
from calibration.fitting.prediction import step_batch
from calibration.profiles import Profile
from engine import units
from engine.shapes import linear_bytes

STEPS: Final = (
    ("decode 1 x 1k", 1, 1024, 0),
    ("decode 64 x 1k", 64, 1024, 0),
    ("decode 256 x 1k", 256, 1024, 0),
    ("decode 128 x 4k", 128, 4096, 0),
    ("prefill 2k", 0, 0, 2048),
    ("prefill 448 + decode 64 x 1k", 64, 1024, 448),
)
"""Steps shown: label, decodes, context of each, tokens of one prefill chunk without context."""

BEYOND: Final = "*"
"""Marks a step outside the range that a profile was fitted on."""

UNKNOWN: Final = "unknown"


def steps_table(profile: Profile) -> Table:
    """Typical steps and, where the cost model tells them, their parts."""
    table = Table(title=f"{profile.name}: typical steps, ms")
    table.add_column("part")
    columns: list[dict[str, float]] = []
    for label, *features in STEPS:
        mark = BEYOND if _is_beyond(profile, *features) else ""
        table.add_column(label + mark, justify="right")
        columns.append(_step_parts(profile, *features))
    for part in columns[0]:
        if any(column[part] for column in columns):
            cells = (f"{1e3 * column[part]:.3f}" for column in columns)
            table.add_row(part, *cells, style="bold" if part == "step" else None)
    table.caption = _beyond_caption([profile])
    return table


def memory_table(profile: Profile) -> Table:
    """Where the memory of each device goes; raises ConfigError where the model does not fit."""
    capacity = profile.capacity()
    table = Table(title=f"memory of each {profile.device.name}")
    table.add_column("part")
    table.add_column("GiB", justify="right")
    for part, size_bytes in capacity.parts().items():
        table.add_row(part, f"{size_bytes / 2**30:.2f}")
    table.add_row("sum", f"{capacity.memory_bytes / 2**30:.2f}", style="bold")
    table.caption = (
        f"{capacity.blocks:,} blocks of {capacity.block_tokens} = {capacity.tokens:,} tokens,"
        f" {capacity.block_bytes:,} bytes a block"
    )
    return table


def sources_table(profile: Profile) -> Table:
    """What is known of device and model, and from where."""
    device = profile.device
    table = Table(title=f"{device.name} and {profile.model}")
    for column in ("datum", "value", "source"):
        table.add_column(column)
    for field, value, source in _device_data(device):
        table.add_row(field, value, source)
    shape = profile.shape
    table.add_row("parameters", f"{shape.parameters:,}", "computed from config.json")
    if shape.experts:
        table.add_row("of which active", f"{shape.active_parameters:,}", "for each token")
    return table


def coefficients_table(profile: Profile, cost: FittedSettings) -> Table:
    """Fitted coefficients, their intervals, and what the device reaches by them."""
    table = Table(title=f"{profile.name}: fitted coefficients")
    table.add_column("term")
    for column in ("value", "95 % interval", "achieved"):
        table.add_column(column, justify="right")
    achieved = dict(_achieved(profile, cost))
    for term, one in cost.coefficients():
        table.add_row(term, units.seconds(one.value), _interval(one), achieved.get(term, ""))
    if profile.fit is not None and profile.fit.left_out:
        table.caption = (
            f"left out, or not to be seen in the data: {', '.join(profile.fit.left_out)}"
        )
    return table


def errors_table(profile: Profile) -> Table:
    """How far predictions of steps that were not fitted to are off."""
    report = profile.fit
    assert report is not None
    table = Table(title=f"{profile.name}: error of held-out steps")
    table.add_column("steps")
    for column in ("number", "median", "P95"):
        table.add_column(column, justify="right")
    for name in ("all", "decode", "prefill", "mixed"):
        error: HeldOutError | None = getattr(report, name)
        if error is not None:
            cells = (f"{error.steps:,}", units.share(error.median), units.share(error.p95))
            table.add_row(name, *cells, style="bold" if name == "all" else None)
    curve = "; a curve over tokens was added" if report.curve else ""
    table.caption = (
        f"fitted to {report.steps:,} steps, {report.outliers:,} outliers marked and left out{curve}"
    )
    return table


def step_comparison(one: Profile, other: Profile) -> Table:
    """Typical steps of two profiles beside each other."""
    table = Table(title="typical steps, ms")
    table.add_column("step")
    for column in (one.name, other.name, "ratio"):
        table.add_column(column, justify="right")
    for label, *features in STEPS:
        cells: list[str] = []
        times: list[float] = []
        for profile in (one, other):
            times.append(_step_parts(profile, *features)["step"])
            mark = BEYOND if _is_beyond(profile, *features) else ""
            cells.append(f"{1e3 * times[-1]:.3f}{mark}")
        table.add_row(label, *cells, f"{times[1] / times[0]:.2f}" if times[0] else units.ABSENT)
    table.caption = _beyond_caption([one, other])
    return table


def coefficient_comparison(
    one: Profile, one_cost: FittedSettings, other: Profile, other_cost: FittedSettings
) -> Table:
    """Coefficients of two fitted profiles; those whose intervals do not overlap are marked."""
    table = Table(title="fitted coefficients")
    table.add_column("term")
    for column in (one.name, other.name, "ratio", ""):
        table.add_column(column, justify="right" if column else "left")
    mine, theirs = dict(one_cost.coefficients()), dict(other_cost.coefficients())
    for term in dict.fromkeys([*mine, *theirs]):
        a, b = one_cost.coefficient(term), other_cost.coefficient(term)
        ratio = f"{b.value / a.value:.2f}" if a.value and term in theirs else units.ABSENT
        cells = (_with_interval(mine.get(term)), _with_interval(theirs.get(term)))
        table.add_row(term, *cells, ratio, "differs" if _apart(a, b) else "")
    table.caption = "differs: the 95 % intervals do not overlap"
    return table


def _step_parts(
    profile: Profile, decodes: int, context_tokens: int, chunk: int
) -> dict[str, float]:
    """Seconds of the parts of a step, if its cost model tells them, and of the whole `step`."""
    batch = step_batch(
        decodes,
        decodes * context_tokens,
        1 if chunk else 0,
        chunk,
        chunk,
        chunk * (chunk + 1) // 2,
    )
    cost: Any = profile.cost_model()
    parts: dict[str, float] = cost.explain(batch) if hasattr(cost, "explain") else {}
    return parts | {"step": cost.progression(batch)[0] / PICOSECONDS}


def _is_beyond(profile: Profile, decodes: int, context_tokens: int, chunk: int) -> bool:
    sequences = decodes + (1 if chunk else 0)
    context = max(context_tokens, chunk)
    tokens = decodes + chunk
    return bool(profile.beyond(tokens=tokens, sequences=sequences, context_tokens=context))


def _beyond_caption(profiles: list[Profile]) -> str | None:
    beyond = any(_is_beyond(profile, *step[1:]) for profile in profiles for step in STEPS)
    return f"{BEYOND} beyond what was measured" if beyond else None


def _device_data(device: Any) -> Iterator[tuple[str, str, str]]:
    """Field, value and source of a device's data."""
    if not isinstance(device, StatedDevice):
        for field, source in device.sources:
            value = getattr(device, field)
            yield field, value if isinstance(value, str) else f"{value:,}", source
        return
    for field in ("memory_bytes", "memory_bytes_per_s", "flops_per_s"):
        value = getattr(device, field)
        yield field, UNKNOWN if value is None else f"{value:,}", "stated by the profile"


def _achieved(profile: Profile, cost: FittedSettings) -> Iterator[tuple[str, str]]:
    """Terms that a rate of the device follows from, by the model's shape; on each GPU.

    Reading the weights and what is fixed in a step (`step_s`) hardly differ where all steps are
    small, so their sum gives the least rate at which weights are read.
    """
    shape, tp, device = profile.shape, profile.tp, profile.device
    kv_bytes = shape.kv_bytes_per_token(profile.kv_dtype, tp)
    peak = device.peak_flops_per_s(profile.weight_dtype)
    bandwidth = device.memory_bytes_per_s
    work = {
        "weights_s": (linear_bytes(shape.common_weights(tp), profile.weight_dtype), "B/s"),
        "token_s": (shape.gemm_flops_per_token(tp), "FLOP/s"),
        "context_s": (kv_bytes, "B/s"),
        "pair_s": (shape.attention_flops_per_pair(tp), "FLOP/s"),
        "prefill_context_s": (kv_bytes, "B/s"),
    }
    for term, (amount, unit) in work.items():
        seconds = cost.coefficient(term).value
        if not seconds:
            continue
        if term == "weights_s":
            seconds += cost.step_s.value
        rate = amount / seconds
        most = bandwidth if unit == "B/s" else peak
        share = f" ({units.share(rate / most)} of peak)" if most else ""
        least = "at least " if term == "weights_s" else ""
        yield term, least + units.amount(rate, unit) + share


def _interval(one: Coefficient) -> str:
    if one.low is None or one.high is None:
        return ""
    return f"{units.seconds(one.low)} to {units.seconds(one.high)}"


def _with_interval(one: Coefficient | None) -> str:
    if one is None:
        return units.ABSENT
    interval = _interval(one)
    return units.seconds(one.value) + (f" ({interval})" if interval else "")


def _apart(one: Coefficient, other: Coefficient) -> bool:
    """Whether both have intervals, and these have nothing in common."""
    if one.low is None or one.high is None or other.low is None or other.high is None:
        return False
    return one.high < other.low or other.high < one.low
