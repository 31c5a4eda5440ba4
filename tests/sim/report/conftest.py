"""A run to report on, without a simulator: FIFO replicas with a fixed number of places."""

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import polars as pl
import pytest

from calibration.profiles import load_profile
from sim.economics.bill import economics
from sim.economics.settings import EconomicsSettings

PROFILE = load_profile("h200-llama-3.1-8b")
BLOCK_TOKENS = 16
BLOCKS = 9_000
PLACES = 96
STEP_S = 0.022


class ToyRoofline:
    """An 8-billion-parameter model on a device of 989 TFLOP/s and 4.8 TB/s."""

    peak_flops_per_s = 989e12
    memory_bytes_per_s = 4.8e12

    def work(
        self,
        decodes: Any,
        decode_context_tokens: Any,
        prefill_tokens: Any,
        prefill_context_tokens: Any,
        prefill_pairs: Any,
        sequences: Any,
    ) -> tuple[Any, Any]:
        flops = (
            2 * 8e9 * (decodes + prefill_tokens)
            + 4 * 32 * 4096 * (decode_context_tokens + prefill_pairs)
            + 0 * sequences
        )
        moved = 16e9 + 131_072 * (decode_context_tokens + prefill_context_tokens)
        return flops, moved


@dataclass(frozen=True)
class ToyResult:
    summary: dict[str, Any]
    requests: pl.DataFrame | None
    segments: pl.DataFrame | None
    scenario: dict[str, Any] = field(default_factory=dict)
    roofline: ToyRoofline | None = None

    @property
    def request_rows(self) -> pl.LazyFrame | None:
        return None if self.requests is None else self.requests.lazy()

    @property
    def segment_rows(self) -> pl.LazyFrame | None:
        return None if self.segments is None else self.segments.lazy()

    def without(self, *parts: str) -> "ToyResult":
        return replace(self, **dict.fromkeys(parts))


MakeResult = Callable[..., ToyResult]


@pytest.fixture(scope="session")
def make_result() -> MakeResult:
    return toy_result


@pytest.fixture(scope="session")
def result() -> ToyResult:
    return toy_result(2_000, replicas=4)


def toy_result(
    total: int,
    replicas: int = 4,
    *,
    load: float = 0.9,
    seed: int = 7,
    tenants: tuple[str, ...] = ("chat", "search", "batch"),
    slo: dict[str, float] | None = None,
    measured: bool = True,
    warnings: tuple[str, ...] = (),
    name: str = "toy fleet",
) -> ToyResult:
    requests = _requests(total, replicas, load, np.random.default_rng(seed), tenants)
    segments = _segments(requests)
    summary = _summary(requests, segments, replicas, slo or {})
    summary |= {"name": name, "warnings": list(warnings)}
    summary["profile"] = {
        "name": "h200-llama-3.1-8b",
        "measured": measured,
        "warning": "" if measured else "Analytic roofline, no GPU has run these steps.",
    }
    scenario = {
        "name": name,
        "trace": {"path": "traces/toy.parquet", "speed": 1.0},
        "cluster": {"replicas": replicas, "router": "least-loaded", "block_tokens": BLOCK_TOKENS},
        "slo": slo or None,
        "seed": seed,
    }
    return ToyResult(summary, requests, segments, scenario, ToyRoofline())


def all_rejected(total: int = 50) -> ToyResult:
    """Every request was turned away at the door: no latencies, no steps."""
    result = toy_result(total)
    assert result.requests is not None
    assert result.segments is not None
    gone = ("scheduled_s", "first_token_s", "finish_s", "queue_s", "ttft_s", "tpot_s", "e2e_s")
    requests = result.requests.with_columns(
        pl.lit("rejected").alias("outcome"),
        pl.lit(None, pl.Int64).alias("replica"),
        *(pl.lit(None, pl.Float64).alias(column) for column in gone),
    )
    segments = result.segments.clear()
    summary = result.summary | _summary(requests, segments, 4, {})
    return replace(result, summary=summary, requests=requests, segments=segments)


@pytest.fixture(scope="session")
def rejected() -> ToyResult:
    return all_rejected()


def _requests(
    total: int, replicas: int, load: float, rng: np.random.Generator, tenants: tuple[str, ...]
) -> pl.DataFrame:
    prompt = np.clip(rng.lognormal(6.5, 0.9, total), 8, 8_000).astype(int)
    output = np.clip(rng.lognormal(5.0, 0.8, total), 1, 2_000).astype(int)
    service_s = prompt * 25e-6 + output * STEP_S
    rate = load * replicas * PLACES / service_s.mean()
    span_s = total / rate
    # a day's swing: thin out a faster Poisson process
    grid = np.linspace(0, span_s, 512)
    swing = 1 + 0.45 * np.sin(2 * np.pi * grid / span_s - 1.2)
    at = np.cumsum(swing) / swing.sum() * span_s
    arrival = np.interp(np.sort(rng.uniform(0, span_s, total)), at, grid)
    replica = np.arange(total) % replicas
    outcome = np.where(rng.random(total) < 0.004, "rejected", "finished").astype(object)
    outcome[rng.random(total) < 0.003] = "truncated"

    scheduled, first, finish = (np.full(total, np.nan) for _ in range(3))
    places: list[list[float]] = [[0.0] * PLACES for _ in range(replicas)]
    cached = np.where(rng.random(total) < 0.35, prompt // 2 // BLOCK_TOKENS * BLOCK_TOKENS, 0)
    tpot = STEP_S * rng.lognormal(0, 0.12, total)
    for i in np.flatnonzero(outcome != "rejected"):
        heap = places[replica[i]]
        start = max(arrival[i], heap[0])
        if start - arrival[i] > 60:
            outcome[i], finish[i] = "timed_out", arrival[i] + 60
            continue
        scheduled[i] = start
        first[i] = start + 0.03 + (prompt[i] - cached[i]) * 25e-6
        finish[i] = first[i] + (output[i] - 1) * tpot[i]
        heapq.heapreplace(heap, finish[i])

    frame = pl.DataFrame(
        {
            "request_id": np.arange(total),
            "session_id": np.arange(total) // 3,
            "turn": np.arange(total) % 3,
            "tenant": np.array(tenants)[rng.integers(0, len(tenants), total)],
            "priority": np.zeros(total, int),
            "slo_class": ["default"] * total,
            "replica": replica,
            "outcome": outcome.astype(str),
            "arrival_s": arrival,
            "scheduled_s": scheduled,
            "first_token_s": first,
            "finish_s": finish,
            "prompt_tokens": prompt,
            "output_tokens": output,
            "generated_tokens": np.where(np.isnan(first), 0, output),
            "cached_tokens": np.where(np.isnan(first), 0, cached),
            "preemptions": np.where(np.isnan(first), 0, rng.poisson(0.02, total)),
        }
    ).with_columns(pl.col("scheduled_s", "first_token_s", "finish_s").fill_nan(None))
    served = pl.col("first_token_s").is_not_null()
    return frame.with_columns(
        queue_s=pl.col("scheduled_s") - pl.col("arrival_s"),
        ttft_s=pl.col("first_token_s") - pl.col("arrival_s"),
        tpot_s=pl.when(served & (pl.col("output_tokens") > 1)).then(
            (pl.col("finish_s") - pl.col("first_token_s")) / (pl.col("output_tokens") - 1)
        ),
        e2e_s=pl.when(served).then(pl.col("finish_s") - pl.col("arrival_s")),
    )


def _segments(requests: pl.DataFrame) -> pl.DataFrame:
    """Between two events of a replica its batch stays the same."""
    frames: list[pl.DataFrame] = []
    served = requests.filter(pl.col("first_token_s").is_not_null())
    for (replica,), mine in served.group_by("replica", maintain_order=True):
        arrival, scheduled, first, finish = (
            np.sort(mine[column].to_numpy())
            for column in ("arrival_s", "scheduled_s", "first_token_s", "finish_s")
        )
        # steps begin together: events take effect at the next multiple of a step
        arrival, scheduled, first, finish = (
            np.ceil(times / STEP_S) * STEP_S for times in (arrival, scheduled, first, finish)
        )
        edges = np.unique(np.concatenate([scheduled, first, finish]))
        start, end = edges[:-1], edges[1:]

        def before(times: np.ndarray, start: np.ndarray = start) -> np.ndarray:
            return np.searchsorted(times, start, side="right")

        decodes = before(first) - before(finish)
        prefills = before(scheduled) - before(first)
        running = decodes + prefills
        chunk = np.minimum(prefills * 350, 900)
        flops, moved = ToyRoofline().work(
            decodes, decodes * 1_250, chunk, chunk * 2, chunk * chunk, running
        )
        step_s = 0.002 + np.maximum(flops / 0.65 / 989e12, moved / 0.85 / 4.8e12)
        steps = np.maximum(1, (end - start) / step_s).astype(int)
        blocks = np.minimum(running * 1_300 // BLOCK_TOKENS + 40, BLOCKS)
        frames.append(
            pl.DataFrame(
                {
                    "replica": np.full(len(start), replica),
                    "start_s": start,
                    "end_s": end,
                    "steps": steps,
                    "first_step_s": (end - start) / steps,
                    "step_growth_s": np.zeros(len(start)),
                    "decodes": decodes,
                    "decode_context_tokens": decodes * 1_250,
                    "prefill_sequences": prefills,
                    "prefill_tokens": chunk,
                    "prefill_context_tokens": chunk * 2,
                    "prefill_pairs": chunk * chunk,
                    "running": running,
                    "waiting": before(arrival) - before(scheduled),
                    "kv_blocks_used": blocks,
                    "preempted": np.zeros(len(start), int),
                }
            ).filter(pl.col("running") > 0)
        )
    return pl.concat(frames).sort("start_s", "replica")


def _statistics(values: pl.Series) -> dict[str, float] | None:
    known = values.drop_nulls().to_numpy()
    if not len(known):
        return None
    p50, p90, p95, p99 = np.quantile(known, [0.5, 0.9, 0.95, 0.99]).tolist()
    return {
        "mean": float(known.mean()),
        "p50": p50,
        "p90": p90,
        "p95": p95,
        "p99": p99,
        "max": float(known.max()),
    }


def _summary(
    requests: pl.DataFrame, segments: pl.DataFrame, replicas: int, slo: dict[str, float]
) -> dict[str, Any]:
    counts = dict(requests.group_by("outcome").len().iter_rows())
    served = requests.filter(pl.col("outcome").is_in(["finished", "truncated"]))
    duration = float(requests["finish_s"].max() or requests["arrival_s"].max())
    met = served.filter(
        pl.all_horizontal(pl.lit(value=True), *(pl.col(k) <= v for k, v in slo.items()))
    )
    latency = {
        column: _statistics(served[column]) for column in ("ttft_s", "tpot_s", "e2e_s", "queue_s")
    }
    busy = segments.select((pl.col("end_s") - pl.col("start_s")).sum()).item() or 0.0
    held = segments.select(
        (pl.col("kv_blocks_used") * (pl.col("end_s") - pl.col("start_s"))).sum()
    ).item()
    summary = {
        "kvcast": "0.1.0",
        "requests": {
            "total": requests.height,
            **{
                outcome: counts.get(outcome, 0)
                for outcome in ("finished", "truncated", "rejected", "timed_out", "unfinished")
            },
            "counted": requests.height,
        },
        "duration_s": duration,
        "replicas": replicas,
        "gpus": replicas,
        "gpu_hours": replicas * duration / 3600,
        "throughput": {
            "requests_per_s": served.height / duration,
            "prompt_tokens_per_s": served["prompt_tokens"].sum() / duration,
            "output_tokens_per_s": served["output_tokens"].sum() / duration,
        },
        "latency": {**latency, "itl_s": latency["tpot_s"]},
        "goodput": {
            "slo": slo,
            "requests_per_s": met.height / duration,
            "share": met.height / requests.height,
        }
        if slo
        else None,
        "cache": {
            "prompt_tokens": int(requests["prompt_tokens"].sum()),
            "hit_tokens": int(requests["cached_tokens"].sum()),
            "hit_rate": requests["cached_tokens"].sum() / requests["prompt_tokens"].sum(),
            "evicted_blocks": 12_345,
        },
        "preemptions": int(requests["preemptions"].sum()),
        "kv": {
            "blocks_per_replica": BLOCKS,
            "block_tokens": BLOCK_TOKENS,
            "mean_occupancy": (held or 0.0) / BLOCKS / duration / replicas,
            "peak_occupancy": (segments["kv_blocks_used"].max() or 0) / BLOCKS,
        },
        "utilization": busy / duration / replicas,
        "prefill_share": 0.25 if segments.height else None,
        "steps": int(segments["steps"].sum()),
        "segments": segments.height,
    }
    return summary | {"economics": economics(summary, PROFILE, EconomicsSettings())}
