"""Ways of serving compared: what each is known to be worth, and in which direction."""

from functools import cache
from typing import Any

import numpy as np
import polars as pl
import pytest

from sim.replay import replay
from sim.result import Result
from sim.scenario import PRESETS, scenario_of
from traces.request import Request
from traces.settings import merged

POOL = {"memory": {"num_blocks": 4001}, "scheduler": {"max_model_len": 4096}}
"""64,000 tokens: 15 sequences where each gets room for the longest."""


@cache
def crowd(count: int = 400, rate_per_s: float | None = None) -> tuple[Request, ...]:
    """Requests of very different lengths; all at once, or as a Poisson process."""
    random = np.random.default_rng(7)
    arrivals_s = np.zeros(count)
    if rate_per_s is not None:
        arrivals_s = np.cumsum(random.exponential(1 / rate_per_s, count))
    prompts = np.minimum(random.lognormal(6, 1, count), 2500).astype(int) + 1
    outputs = np.minimum(random.geometric(1 / 250, count), 1500)
    rows = zip(arrivals_s.tolist(), prompts.tolist(), outputs.tolist(), strict=True)
    return tuple(Request(i, *row) for i, row in enumerate(rows))


def run(requests: tuple[Request, ...], *changes: dict[str, Any]) -> Result:
    settings: dict[str, Any] = {}
    for change in changes:
        settings = merged(settings, change)
    return replay(scenario_of(settings), requests)


def scheduler(**settings: Any) -> dict[str, Any]:
    return {"scheduler": settings}


def throughput(result: Result) -> float:
    return result.summary["throughput"]["requests_per_s"]


def latency(result: Result, name: str, statistic: str) -> float:
    return result.summary["latency"][name][statistic]


def prefill_tokens(result: Result) -> int:
    assert result.segments is not None
    return (result.segments["prefill_tokens"] * result.segments["steps"]).sum()


# ---- the presets


@cache
def preset(name: str) -> Result:
    return run(crowd(), POOL, {"preset": name})


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_serves_everything(name: str) -> None:
    assert preset(name).summary["requests"]["finished"] == len(crowd())


def test_sharing_memory_beats_reserving_it_beats_waiting_for_the_batch() -> None:
    """vLLM against Orca against static batching (Kwon et al., SOSP'23; Yu et al., OSDI'22)."""
    paged, contiguous, static = (throughput(preset(name)) for name in ("vllm", "orca", "static"))
    assert paged > 1.5 * contiguous
    assert contiguous > 1.5 * static


def test_paging_fills_the_pool() -> None:
    paged, contiguous = preset("vllm"), preset("orca")
    assert paged.segments is not None
    assert contiguous.segments is not None
    assert paged.segments["running"].max() > 2 * contiguous.segments["running"].max()
    assert contiguous.segments["running"].max() == 4000 // 256


# ---- batching


def test_continuous_batching_beats_static_on_the_same_memory() -> None:
    """A static batch lasts as long as its longest answer."""
    same = scheduler(max_num_seqs=32, async_scheduling=False)
    continuous = run(crowd(), POOL, same)
    static = run(crowd(), POOL, same, scheduler(batching="static"))
    assert throughput(continuous) > 1.5 * throughput(static)
    assert latency(static, "queue_s", "mean") > 1.5 * latency(continuous, "queue_s", "mean")


def test_larger_batches_are_faster_together_and_slower_each() -> None:
    runs = [run(crowd(), scheduler(max_num_seqs=size)) for size in (1, 4, 16, 64, 256)]
    rates = [throughput(result) for result in runs]
    gaps = [latency(result, "itl_s", "mean") for result in runs]
    assert (np.diff(rates) > 0.2 * np.array(rates[:-1])).all()
    assert (np.diff(gaps) > 0).all()
    assert 3.5 < rates[1] / rates[0] < 4


def test_prompts_first_answer_sooner_and_stutter() -> None:
    """Unchunked prompts stall the decodes that chunks would let pass (Sarathi-Serve, OSDI'24)."""
    random = np.random.default_rng(3)
    arrivals_s = np.cumsum(random.exponential(0.25, 150)).tolist()
    requests = tuple(Request(i, at, 6000, 300) for i, at in enumerate(arrivals_s))
    alike = scheduler(max_model_len=8192, async_scheduling=False)
    chunked = run(requests, alike, scheduler(max_num_batched_tokens=512))
    first = run(requests, alike, scheduler(chunked_prefill=False, prefill_first=True))
    assert latency(first, "ttft_s", "mean") < 0.8 * latency(chunked, "ttft_s", "mean")
    assert latency(first, "itl_s", "max") > 3 * latency(chunked, "itl_s", "max")
    assert latency(first, "itl_s", "p50") < latency(chunked, "itl_s", "p50")


def test_hidden_host_time_is_gained() -> None:
    """An asynchronous scheduler works while the GPU does."""
    hidden, shown = (run(crowd(), scheduler(async_scheduling=on)) for on in (True, False))
    assert throughput(hidden) > 1.05 * throughput(shown)
    assert latency(hidden, "itl_s", "mean") < 0.95 * latency(shown, "itl_s", "mean")


# ---- memory


def conversations() -> tuple[Request, ...]:
    """40 conversations of 6 turns: each prompt is the one before, its answer and 100 tokens."""
    requests: list[Request] = []
    for turn in range(6):
        for session in range(40):
            prompt = 400 + 200 * turn
            hashed = prompt + 100
            hashes = tuple(10_000 * session + block for block in range(hashed // 20))
            at = 20.0 * turn + session / 10
            requests.append(
                Request(len(requests), at, prompt, 100, hashes, 20, hashed, session, turn)
            )
    return tuple(requests)


def test_a_prefix_cache_spares_prefill() -> None:
    cached = run(conversations())
    plain = run(conversations(), {"cache": {"prefix_caching": False}})
    saved = prefill_tokens(plain) - prefill_tokens(cached)
    assert saved == cached.summary["cache"]["hit_tokens"] > 0.5 * prefill_tokens(plain)
    assert plain.summary["cache"]["hit_tokens"] == 0
    assert latency(cached, "ttft_s", "mean") < latency(plain, "ttft_s", "mean")


def test_a_larger_cache_hits_more_and_evicts_less() -> None:
    runs = [run(conversations(), {"memory": {"num_blocks": size}}) for size in (500, 1500, 8000)]
    hits = [result.summary["cache"]["hit_tokens"] for result in runs]
    evicted = [result.summary["cache"]["evicted_blocks"] for result in runs]
    assert hits[0] < hits[1] < hits[2]
    assert evicted[0] > evicted[1] > evicted[2] == 0


def test_more_memory_preempts_less_and_serves_more() -> None:
    runs = [run(crowd(), {"memory": {"num_blocks": size}}) for size in (1001, 2001, 8001, 40_001)]
    preempted = [result.summary["preemptions"] for result in runs]
    rates = [throughput(result) for result in runs]
    assert preempted == sorted(preempted, reverse=True)
    assert preempted[0] > 0 == preempted[-1]
    assert rates == sorted(rates)
    assert rates[-1] > 1.5 * rates[0]


def test_a_watermark_prevents_preemptions() -> None:
    runs = [run(crowd(), POOL, scheduler(watermark=share)) for share in (0.0, 0.1)]
    without, with_watermark = (result.summary["preemptions"] for result in runs)
    assert with_watermark < 0.7 * without


# ---- order and routing


def test_priority_is_paid_for_by_the_others() -> None:
    requests = tuple(request._replace(priority=int(i % 4 > 0)) for i, request in enumerate(crowd()))
    fair, ordered = (run(requests, POOL, scheduler(order=order)) for order in ("fcfs", "priority"))
    waits: list[dict[int, float]] = []
    for result in (fair, ordered):
        assert result.requests is not None
        mean = result.requests.group_by("priority").agg(pl.col("queue_s").mean())
        waits.append(dict(mean.rows()))
    assert waits[1][0] < 0.5 * waits[0][0]
    assert waits[1][1] > waits[0][1]


def test_shortest_prefill_first_serves_a_crowd_in_order_of_length() -> None:
    """All there at once, one at a time: the order that makes the mean wait least (Smith, 1956)."""
    lengths = [(700 * i) % 997 + 20 for i in range(40)]
    requests = tuple(Request(i, 0.0, length, 1) for i, length in enumerate(lengths))
    alone = scheduler(max_num_seqs=1, async_scheduling=False)
    waits: list[float] = []
    for order in ("fcfs", "shortest-prefill"):
        result = run(requests, alone, scheduler(order=order))
        assert result.requests is not None
        served = result.requests.sort("finish_s")["prompt_tokens"].to_list()
        assert served == (lengths if order == "fcfs" else sorted(lengths))
        waits.append(latency(result, "queue_s", "mean"))
    assert waits[1] < 0.8 * waits[0]


def test_two_draws_gain_most_of_what_knowing_all_loads_does() -> None:
    """Mitzenmacher, The Power of Two Choices in Randomized Load Balancing (2001)."""
    requests = crowd(3000, rate_per_s=40.0)
    slow = {"profile": "l4-qwen3-0.6b", "cluster": {"replicas": 8}, **scheduler(max_num_seqs=16)}
    names = ("least-requests", "power-of-two", "random")
    least, two, random = (
        latency(run(requests, slow, {"cluster": {"router": name}}), "queue_s", "mean")
        for name in names
    )
    assert least <= two < 0.5 * random


def test_twice_the_replicas_serve_twice_as_much() -> None:
    rates = [
        throughput(run(crowd(1600), scheduler(max_num_seqs=32), {"cluster": {"replicas": n}}))
        for n in (1, 2, 4)
    ]
    assert 1.8 < rates[1] / rates[0] < 2.05
    assert 1.7 < rates[2] / rates[1] < 2.05


@pytest.mark.parametrize(("longest", "warned"), [(None, True), (4096, False)])
def test_memory_reserved_for_few_sequences_is_pointed_out(
    longest: int | None, warned: bool
) -> None:
    values: dict[str, Any] = {"preset": "orca", "profile": "h200-llama-3.1-8b"}
    if longest:
        values["scheduler"] = {"max_model_len": longest, "max_num_batched_tokens": 4096}
    else:
        values["scheduler"] = {"max_num_batched_tokens": 131_072}
    summary = replay(scenario_of(values), [Request(0, 0.0, 10, 10)]).summary
    assert any("contiguous memory" in line for line in summary["warnings"]) == warned
