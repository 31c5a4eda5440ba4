"""Numbers as a reader wants them: three significant digits and a unit that fits."""

from math import isfinite

ABSENT = "–"  # noqa: RUF001 an en dash, as in print
"""What stands for a number that does not exist, such as the P99 of nothing."""

STATISTICS = {"mean": "mean", "p50": "P50", "p90": "P90", "p95": "P95", "p99": "P99", "max": "max"}
"""What is said of a latency: its name in a summary, and its heading."""

_SECONDS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))
_LARGE = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def significant(value: float, digits: int = 3) -> str:
    """Plain decimal notation with at least `digits` significant digits: 0.0123, 4.56, 1,234."""
    if value == 0:
        return "0"
    # %e rounds first, so that 9.996 has the exponent of 10.0
    exponent = int(f"{value:.{digits - 1}e}".split("e")[1])
    return f"{value:,.{max(0, digits - 1 - exponent)}f}"


def seconds(value: float | None) -> str:
    """A latency: 840 ms, 1.24 s; from ten minutes on 12.5 min, from three hours on 4.20 h."""
    if value is None or not isfinite(value):
        return ABSENT
    if value >= 3 * 3600:
        return f"{significant(value / 3600)} h"
    if value >= 600:
        return f"{significant(value / 60)} min"
    for size, unit in _SECONDS:
        if value >= 0.9995 * size:
            return f"{significant(value / size)} {unit}"
    return "0 s" if value == 0 else f"{significant(value / 1e-6)} µs"


def limit(value: float) -> str:
    """A duration that somebody chose, without digits they did not give: 1 s, 30 ms, 2.5 min."""
    if value >= 120:
        return f"{value / 3600:.4g} h" if value >= 7200 else f"{value / 60:.4g} min"
    for size, unit in _SECONDS:
        if value >= 0.9995 * size:
            return f"{round(value / size, 6):g} {unit}"
    return f"{round(value / 1e-6, 6):g} µs"


def share(value: float | None) -> str:
    """A fraction as a percentage: 0.983 is 98.3 %. Rounds to 0 or 100 % only what is."""
    if value is None or not isfinite(value):
        return ABSENT
    if 0 < value < 0.0005:
        return "< 0.1 %"
    if abs(value - 1) < 1e-9:  # a sum of parts, such as busy time, may miss one by rounding
        return "100 %"
    if 0.9995 <= value < 1:
        return "> 99.9 %"
    return f"{100 * value:.1f} %" if value else "0 %"


def count(value: float | None) -> str:
    """A whole number with thousands separators."""
    return ABSENT if value is None else f"{round(value):,}"


def amount(value: float | None, unit: str = "") -> str:
    """A quantity with an SI prefix from a million on: 12,340 tok/s, 1.23 Mtok/s, 989 TFLOP/s."""
    if value is None or not isfinite(value):
        return ABSENT
    if value >= 1e6:
        for size, prefix in _LARGE:
            if value >= 0.9995 * size:
                return f"{significant(value / size)} {prefix}{unit}".rstrip()
    return f"{significant(value)} {unit}".rstrip()


def power_of_ten(value: float) -> str:
    """A mark of a logarithmic axis: 100 G, 1 T, 10 T."""
    size, prefix = next(((size, p) for size, p in _LARGE if value >= 0.9995 * size), (1.0, ""))
    return f"{round(value / size, 9):g} {prefix}".rstrip()
