"""What a run is judged by: request rows, latency distributions, SLO attainment.

The same code serves the wall clock and the simulated one. Times inside are integer picoseconds.
Definitions: TTFT = end of the step that gave the first token - arrival; TPOT = (finish - first
token) / (output tokens - 1); ITL = gap between consecutive tokens of a request; E2E = finish -
arrival; queue = first scheduled - arrival; goodput = requests a second that met their SLO.
"""

from collections.abc import Mapping
from math import ceil, inf, log
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from engine.sequence import Sequence

PICOSECONDS: Final = 1_000_000_000_000
Rows = NDArray[np.int64]

OUTCOMES: Final = ("finished", "truncated", "rejected", "timed_out", "unfinished")
"""How a request ends, one of: all output produced; ended by the model's length limit; refused on
arrival; given up by its client; still there when the run was cut off."""
FINISHED, TRUNCATED, REJECTED, TIMED_OUT, UNFINISHED = range(5)

REQUEST_COLUMNS: Final = (
    "request_id",
    "session_id",
    "turn",
    "priority",
    "tenant",
    "slo_class",
    "replica",
    "outcome",
    "arrival",
    "queued",
    "admitted",
    "scheduled",
    "first_token",
    "finish",
    "prompt_tokens",
    "output_tokens",
    "generated_tokens",
    "cached_tokens",
    "preemptions",
)
"""A request's row: integers; times in picoseconds, -1 where there is none; names by number."""
_AT: Final = {name: i for i, name in enumerate(REQUEST_COLUMNS)}


def request_row(
    seq: Sequence, replica: int, outcome: int, finish: int, tenant: int, slo_class: int
) -> tuple[int, ...]:
    """The row of a request that has just ended."""
    request = seq.request
    return (
        request.request_id,
        request.session_id,
        request.turn,
        request.priority,
        tenant,
        slo_class,
        replica,
        outcome,
        seq.arrival,
        seq.queued,
        seq.admitted,
        seq.first_scheduled,
        seq.first_token,
        finish,
        request.prompt_tokens,
        request.output_tokens,
        seq.generated,
        seq.cached_tokens,
        seq.preemptions,
    )


class Histogram:
    """Distribution of durations in log-spaced buckets; memory does not grow with the run.

    Count, mean, least and greatest are exact, quantiles to 0.1 %: a bucket's ends are a factor of
    1.002 apart and it stands for their geometric mean.
    """

    GAMMA: Final = 1.002
    _LOG_GAMMA: Final = log(1.002)
    _BUCKETS: Final = ceil(log(2.0**63) / log(1.002)) + 2

    def __init__(self) -> None:
        self.counts: NDArray[np.int64] = np.zeros(self._BUCKETS, dtype=np.int64)
        """Bucket 0 holds zeros; bucket k >= 1 holds [GAMMA^(k-1), GAMMA^k) picoseconds."""
        self.count = 0
        self.total_ps = 0
        self.min_ps = -1
        self.max_ps = 0

    def add(self, values_ps: Rows) -> None:
        """Add durations, picoseconds >= 0."""
        if values_ps.size == 0:
            return
        self.counts += np.bincount(self._bucket(values_ps), minlength=self._BUCKETS)
        self.count += int(values_ps.size)
        self.total_ps += sum_exactly(values_ps)
        self._extend(int(values_ps.min()), int(values_ps.max()))

    def add_progressions(self, first_ps: Rows, growth_ps: Rows, steps: Rows, weight: Rows) -> None:
        """Add `weight` times each of first, first + growth, ..., `steps` durations in all."""
        some = (weight != 0) & (steps > 0)
        if not some.any():
            return
        first, growth = first_ps[some], growth_ps[some]
        count, weight = steps[some], weight[some]
        last = first + growth * (count - 1)
        low, high = self._bucket(first), self._bucket(last)
        self._extend(int(first.min()), int(last.max()))
        self.count += int((count * weight).sum())
        # sums of products exceed 64 bits on long runs, Python's integers do not
        in_sum = (first + last) * count  # twice the sum of one progression
        self.total_ps += int(sum(int(a) * int(b) for a, b in _by_weight(in_sum, weight))) // 2
        one = low == high
        self._count_weighted(low[one], count[one] * weight[one])
        if one.all():
            return
        spans = ~one
        first, growth, count, weight = first[spans], growth[spans], count[spans], weight[spans]
        low, high = low[spans], high[spans]
        # one entry for each bucket that a progression touches
        touched = high - low + 1
        index = np.repeat(np.arange(touched.size), touched)
        offset = np.arange(index.size) - np.repeat(np.cumsum(touched) - touched, touched)
        bucket = low[index] + offset
        below_end = np.ceil((np.power(self.GAMMA, bucket) - first[index]) / growth[index]).astype(
            np.int64
        )
        below_end = np.clip(below_end, 0, count[index])
        below_end[np.cumsum(touched) - 1] = count
        below_start = np.empty_like(below_end)
        below_start[1:] = below_end[:-1]
        below_start[np.cumsum(touched) - touched] = 0
        self._count_weighted(bucket, (below_end - below_start) * weight[index])

    def quantile(self, share: float, endless: int = 0) -> float:
        """Least duration, in seconds, that `share` of all durations do not exceed.

        `endless` more durations count as longer than any other; the quantile may be infinite.
        """
        if self.count + endless == 0:
            raise ValueError("no durations")
        rank = rank_of(share, self.count + endless)
        if rank > self.count:
            return inf
        bucket = int(np.searchsorted(np.cumsum(self.counts), rank))
        value = 0.0 if bucket == 0 else self.GAMMA ** (bucket - 0.5)
        return min(max(value, self.min_ps), self.max_ps) / PICOSECONDS

    def summary(self) -> dict[str, float] | None:
        """Mean, P50, P90, P95, P99 and greatest in seconds; None without durations."""
        if self.count == 0:
            return None
        quantiles = {f"p{round(100 * q)}": self.quantile(q) for q in (0.5, 0.9, 0.95, 0.99)}
        mean = self.total_ps / self.count / PICOSECONDS
        return {"mean": mean, **quantiles, "max": self.max_ps / PICOSECONDS}

    def _bucket(self, values_ps: Rows) -> Rows:
        logs = np.log(np.maximum(values_ps, 1)) / self._LOG_GAMMA
        return np.where(values_ps > 0, logs.astype(np.int64) + 1, 0)

    def _count_weighted(self, buckets: Rows, weights: Rows) -> None:
        counts = np.bincount(buckets, weights=weights, minlength=self._BUCKETS)
        self.counts += np.rint(counts).astype(np.int64)

    def _extend(self, least_ps: int, greatest_ps: int) -> None:
        self.min_ps = least_ps if self.min_ps < 0 else min(self.min_ps, least_ps)
        self.max_ps = max(self.max_ps, greatest_ps)


_NO_LIMIT: Final = 2**63 - 1


def _in_seconds(limits_ps: Mapping[str, int]) -> dict[str, float]:
    return {f"{name}_s": limit / PICOSECONDS for name, limit in limits_ps.items()}


def sum_exactly(values: Rows) -> int:
    """Sum of 64-bit integers without overflow."""
    return (int((values >> 32).sum()) << 32) + int((values & 0xFFFFFFFF).sum())


def _by_weight(values: Rows, weights: Rows) -> list[tuple[int, int]]:
    """(sum of the values that have a weight, that weight) for each weight."""
    distinct, which = np.unique(weights, return_inverse=True)
    high = np.bincount(which, weights=(values >> 32).astype(np.float64))
    low = np.bincount(which, weights=(values & 0xFFFFFFFF).astype(np.float64))
    return [
        ((int(h) << 32) + int(lo), int(w)) for h, lo, w in zip(high, low, distinct, strict=True)
    ]


def rank_of(share: float, count: int) -> int:
    """Which of `count` values in ascending order, from 1, is their quantile at `share`."""
    return min(max(ceil(share * count), 1), count)


class ServiceMetrics:
    """Running totals over request rows; what arrived before the warm-up ended is left out."""

    LATENCIES: Final = ("ttft_s", "tpot_s", "itl_s", "e2e_s", "queue_s")

    def __init__(
        self,
        warmup_ps: int = 0,
        slo_ps: Mapping[str, int] | None = None,
        class_slo_ps: Mapping[str, Mapping[str, int]] | None = None,
    ) -> None:
        """Metrics of requests that arrive from `warmup_ps` on.

        `slo_ps` limits any of "ttft", "tpot" and "e2e"; a request with one output token has no
        TPOT and meets any limit on it. `class_slo_ps` has the limits of SLO classes instead.
        """
        self.warmup_ps = warmup_ps
        self.slo_ps = dict(slo_ps or {})
        self.class_slo_ps = {name: dict(limits) for name, limits in (class_slo_ps or {}).items()}
        self.latency = {name: Histogram() for name in self.LATENCIES}
        self.outcomes = [0] * len(OUTCOMES)
        self.total = 0
        self.counted = 0
        self.served = 0
        """Counted requests that got all their output (finished or truncated)."""
        self.good = 0
        self.prompt_tokens = 0
        self.output_tokens = 0
        self.hit_tokens = 0
        self.preemptions = 0

    def add(self, rows: Rows) -> None:
        """Take rows of ended requests, [requests, len(REQUEST_COLUMNS)]."""
        self.total += len(rows)
        for outcome, count in enumerate(np.bincount(rows[:, _AT["outcome"]], minlength=5)):
            self.outcomes[outcome] += int(count)
        self.preemptions += int(rows[:, _AT["preemptions"]].sum())
        rows = rows[rows[:, _AT["arrival"]] >= self.warmup_ps]
        self.counted += len(rows)
        began = rows[rows[:, _AT["scheduled"]] >= 0]
        self.latency["queue_s"].add(began[:, _AT["scheduled"]] - began[:, _AT["arrival"]])
        done = rows[rows[:, _AT["outcome"]] <= TRUNCATED]
        self.served += len(done)
        self.prompt_tokens += int(done[:, _AT["prompt_tokens"]].sum())
        self.output_tokens += int(done[:, _AT["generated_tokens"]].sum())
        self.hit_tokens += int(done[:, _AT["cached_tokens"]].sum())
        arrival, first = done[:, _AT["arrival"]], done[:, _AT["first_token"]]
        finish, tokens = done[:, _AT["finish"]], done[:, _AT["generated_tokens"]]
        ttft, e2e = first - arrival, finish - arrival
        several = tokens > 1
        tpot = np.zeros_like(ttft)
        tpot[several] = (finish - first)[several] // (tokens[several] - 1)
        self.latency["ttft_s"].add(ttft)
        self.latency["e2e_s"].add(e2e)
        self.latency["tpot_s"].add(tpot[several])
        good = np.ones(len(done), dtype=bool)
        for name, values in (("ttft", ttft), ("tpot", tpot), ("e2e", e2e)):
            if self.class_slo_ps:
                good &= values <= self._limits(name, done[:, _AT["slo_class"]])
            elif name in self.slo_ps:
                good &= values <= self.slo_ps[name]
        self.good += int(good.sum())

    def names(self) -> dict[str, int]:
        """The numbers by which rows have to name the classes that have limits of their own, and
        the empty name; tenants and other classes are numbered from there on."""
        return {name: number for number, name in enumerate(("", *self.class_slo_ps))}

    def _limits(self, name: str, classes: Rows) -> Rows:
        """The limit of each request, by its class."""
        own = [limits.get(name, _NO_LIMIT) for limits in self.class_slo_ps.values()]
        common = self.slo_ps.get(name, _NO_LIMIT)
        table = np.array([common, *own, common], dtype=np.int64)
        return table[np.minimum(classes, len(own) + 1)]

    def summary(self, duration_ps: int) -> dict[str, Any]:
        """Requests, throughput, latency, goodput and cache, over the run without its warm-up."""
        seconds = max(duration_ps - self.warmup_ps, 1) / PICOSECONDS
        goodput: dict[str, Any] | None = None
        if self.slo_ps or self.class_slo_ps:
            goodput = {
                "slo": _in_seconds(self.slo_ps),
                "requests_per_s": self.good / seconds,
                "share": self.good / self.counted if self.counted else 0.0,
            }
            if self.class_slo_ps:
                of_classes = self.class_slo_ps.items()
                goodput["slo"]["classes"] = {name: _in_seconds(own) for name, own in of_classes}
        return {
            "requests": {
                "total": self.total,
                **dict(zip(OUTCOMES, self.outcomes, strict=True)),
                "counted": self.counted,
            },
            "throughput": {
                "requests_per_s": self.served / seconds,
                "prompt_tokens_per_s": self.prompt_tokens / seconds,
                "output_tokens_per_s": self.output_tokens / seconds,
            },
            "latency": {name: h.summary() for name, h in self.latency.items()},
            "goodput": goodput,
            "cache": {
                "prompt_tokens": self.prompt_tokens,
                "hit_tokens": self.hit_tokens,
                "hit_rate": self.hit_tokens / self.prompt_tokens if self.prompt_tokens else 0.0,
            },
            "preemptions": self.preemptions,
        }
