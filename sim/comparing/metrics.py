"""Figures that settings are compared by: which way is good, how they are written."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from difflib import get_close_matches
from typing import Final

from engine import units
from sim.comparing.pairing import Direction
from sim.scenario import Scenario
from traces.errors import ConfigError

DEFAULT: Final = (
    "latency.ttft_s.p50",
    "latency.ttft_s.p99",
    "latency.tpot_s.p99",
    "throughput.output_tokens_per_s",
)
GOODPUT: Final = "goodput.share"
HIT_RATE: Final = "cache.hit_rate"

GOOD: Final[dict[str, Direction]] = {
    "latency.": "lower",
    "throughput.": "higher",
    "goodput.": "higher",
    "cache.hit": "higher",
    "cache.evicted_blocks": "lower",
    "requests.finished": "higher",
    "requests.truncated": "lower",
    "requests.rejected": "lower",
    "requests.timed_out": "lower",
    "requests.unfinished": "lower",
    "preemptions": "lower",
    "duration_s": "lower",
    "gpu_hours": "lower",
    "economics.": "lower",
}
"""Which way a figure is good, by how its name begins; of any other, neither."""

_STATISTICS: Final = units.STATISTICS
_LATENCIES: Final = {
    "ttft_s": "TTFT",
    "tpot_s": "TPOT",
    "itl_s": "ITL",
    "e2e_s": "E2E",
    "queue_s": "queue",
}
_NAMES: Final = {
    "throughput.requests_per_s": "requests/s",
    "throughput.output_tokens_per_s": "output tok/s",
    "throughput.prompt_tokens_per_s": "prompt tok/s",
    "goodput.share": "within SLO",
    "goodput.requests_per_s": "goodput req/s",
    "cache.hit_rate": "prefix hits",
    "cache.evicted_blocks": "evicted blocks",
    "kv.mean_occupancy": "KV occupancy",
    "kv.peak_occupancy": "peak KV",
    "gpu_hours": "GPU-hours",
    "prefill_share": "prefill's share",
    "economics.usd_total": "$",
    "economics.usd_input": "$ of input",
    "economics.usd_output": "$ of output",
    "economics.usd_per_million_tokens": "$/1M tokens",
    "economics.usd_per_million_input_tokens": "$/1M input",
    "economics.usd_per_million_output_tokens": "$/1M output",
    "economics.usd_per_1k_requests": "$/1k requests",
    "economics.usd_per_1k_good_requests": "$/1k good",
    "economics.mean_power_w": "mean W",
    "economics.energy_kwh": "kWh",
    "economics.wh_per_1k_output_tokens": "Wh/1k output",
    "economics.kg_co2e": "kg CO2e",
    "economics.g_co2e_per_1k_requests": "g CO2e/1k requests",
}
_SHARES: Final = ("share", "hit_rate", "occupancy", "utilization")


def good(metric: str) -> Direction:
    """Which way a figure is good."""
    for begin, way in GOOD.items():
        if metric.startswith(begin):
            return way
    return ""


def multiplies(metric: str) -> bool:
    """Settings multiply it rather than add to it: ratios say more of it than differences."""
    return metric.startswith("latency.")


def heading(metric: str) -> str:
    """A figure's short name: P99 TTFT."""
    head, _, statistic = metric.rpartition(".")
    latency = _LATENCIES.get(head.removeprefix("latency."))
    if latency is not None and head.startswith("latency."):
        return f"{_STATISTICS.get(statistic, statistic)} {latency}"
    return _NAMES.get(metric, metric.replace("_", " "))


def writer(metric: str) -> Callable[[float | None], str]:
    """How a value of a figure is written."""
    if metric.endswith("_s") and not metric.endswith("per_s"):
        return units.seconds
    if metric.startswith("latency."):
        return units.seconds
    return units.share if metric.endswith(_SHARES) else units.amount


def change(difference: float, share: float | None, metric: str) -> str:
    """A difference as a reader wants it: of shares in points, of anything else relative."""
    if difference == 0:
        return "0"
    if metric.endswith(_SHARES):
        return f"{_signed(100 * difference)} pt"
    if share is None or abs(share) >= 10:
        return f"{'+' if difference > 0 else '-'}{writer(metric)(abs(difference))}"
    return f"{_signed(100 * share)} %"


def _signed(value: float) -> str:
    """One decimal from 1 on, two below; what rounds to nothing has no sign."""
    text = f"{value:+.1f}" if abs(value) >= 0.995 else f"{value:+.2f}"
    return "0.00" if text.endswith("0.00") and len(text) == 5 else text


def chosen(scenario: Scenario, asked: Sequence[str], varied: Collection[str]) -> tuple[str, ...]:
    """The figures of interest: those asked for, else the usual ones.

    Prefix hits are always among them where the cache or the routing is varied.
    """
    metrics = list(asked or DEFAULT)
    if not asked and scenario.slo.limits_ps():
        metrics.append(GOODPUT)
    about_hits = any(name.startswith(("cache.", "cluster.router")) for name in varied)
    if about_hits and HIT_RATE not in metrics and (not asked or "cache.eviction" in varied):
        metrics.append(HIT_RATE)
    return tuple(dict.fromkeys(metrics))


def check(asked: Sequence[str], known: Collection[str]) -> None:
    """Refuse a figure that no run has; raises ConfigError with the nearest that there is."""
    for metric in asked:
        if metric not in known:
            if metric.startswith("goodput."):
                raise ConfigError(
                    f"--metric {metric}: needs objectives; expected some, like --slo ttft=1s"
                )
            alike = [name for name in DEFAULT if metric in name]
            alike += sorted(name for name in known if metric in name)
            near = (get_close_matches(metric, known, 1) or alike)[:1]
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(sorted(known))}"
            raise ConfigError(f"--metric {metric}: unknown figure; {hint}")
