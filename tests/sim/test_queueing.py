"""A replica with the right settings is a queue of the textbooks, and obeys their formulas.

One sequence at a time makes a single server, c at a time with steps of constant length make c
servers, steps that last as long as many decode share one. First sample paths are compared exactly
with the queue's recursion; then mean waits with theory, within confidence intervals of batch means.

Formulas: Gross, Shortle, Thompson & Harris, Fundamentals of Queueing Theory, 4th ed. (2008); of the
orders of service, see each test.
"""

from functools import cache
from heapq import heapify, heapreplace
from math import factorial, log
from typing import Any

import numpy as np
import pytest
from scipy import stats

from calibration.costs import PICOSECONDS, LinearCost
from engine.config import CacheSettings, SchedulerSettings
from sim.records import SEGMENT_COLUMNS
from tests.sim.served import Served
from traces.request import Request

CONFIDENCE = 0.999
BATCHES = 30
SERVICE_PS = PICOSECONDS
LOADS = [0.5, 0.8, 0.95]
ARRIVALS = {0.5: 60_000, 0.8: 90_000, 0.95: 150_000}
"""Enough for batches that are long against the queue's memory, 1 / (1 - load)^2 services."""


TOKEN_PS = 10_000
"""So short that prompts of whole tokens are as good as exponential."""


@cache
def single_server(service: str, load: float) -> Served:
    """M/M/1 or M/D/1: a request is one step, as long as its prompt."""
    random = np.random.default_rng(int(100 * load))
    count = ARRIVALS[load]
    mean = SERVICE_PS // TOKEN_PS
    tokens = np.full(count, mean)
    if service == "M":
        tokens = np.maximum(np.rint(random.exponential(mean, count)), 1).astype(np.int64)
    arrivals_s = np.cumsum(random.exponential(1 / load, count))
    return Served(
        requests(arrivals_s, tokens, np.ones(count, dtype=np.int64)),
        LinearCost(step_ps=0, prefill_token_ps=TOKEN_PS, decode_ps=0, context_token_ps=0),
        num_blocks=10**12,
        scheduler=SchedulerSettings(
            max_num_seqs=1, max_num_batched_tokens=10**12, async_scheduling=False
        ),
        cache=CacheSettings(prefix_caching=False),
    )


SERVERS, TOKENS = 4, 200
STEP_PS = SERVICE_PS // TOKENS


@cache
def many_servers(load: float) -> Served:
    """M/M/c in slots: a step takes the same time however many are in it, answers are geometric."""
    random = np.random.default_rng(int(100 * load) + 1)
    count = ARRIVALS[load]
    arrivals_s = np.cumsum(random.exponential(1 / (load * SERVERS), count))
    tokens = random.geometric(1 / TOKENS, count)
    return Served(
        requests(arrivals_s, np.ones(count, dtype=np.int64), tokens),
        LinearCost(step_ps=STEP_PS, prefill_token_ps=0, decode_ps=0, context_token_ps=0),
        num_blocks=10**12,
        scheduler=SchedulerSettings(
            max_num_seqs=SERVERS, max_num_batched_tokens=100, async_scheduling=False
        ),
        cache=CacheSettings(prefix_caching=False),
    )


# ---- sample paths, exactly


@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("service", ["M", "D"])
def test_one_sequence_at_a_time_is_lindleys_recursion(service: str, load: float) -> None:
    served = single_server(service, load)
    free = 0
    starts: list[int] = []
    services = served.column("finish") - served.column("scheduled")
    assert np.array_equal(services, served.column("prompt_tokens") * TOKEN_PS)
    for arrival, length in zip(served.column("arrival").tolist(), services.tolist(), strict=True):
        starts.append(max(arrival, free))
        free = starts[-1] + length
    assert np.array_equal(served.column("scheduled"), starts)


@pytest.mark.parametrize("load", LOADS)
def test_c_sequences_at_a_time_is_kiefer_and_wolfowitzs_recursion(load: float) -> None:
    """Arrivals wait for a step boundary: less than a step more than in continuous time."""
    served = many_servers(load)
    services = served.column("output_tokens") * STEP_PS
    assert np.array_equal(served.column("finish") - served.column("scheduled"), services)
    free = [0] * SERVERS
    heapify(free)
    starts: list[int] = []
    for arrival, length in zip(served.column("arrival").tolist(), services.tolist(), strict=True):
        starts.append(max(arrival, free[0]))
        heapreplace(free, starts[-1] + length)
    late = served.column("scheduled") - np.array(starts)
    assert late.min() >= 0
    assert late.max() < STEP_PS


@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("queue", ["M/M/1", "M/D/1", "M/M/c"])
def test_littles_law_holds_on_every_path(queue: str, load: float) -> None:
    """Time integrals from the segments' point of view equal sums from the requests'."""
    served = many_servers(load) if queue == "M/M/c" else single_server(queue[2], load)
    arrival, scheduled = served.column("arrival"), served.column("scheduled")
    finish = served.column("finish")
    assert integral(arrival, finish) == int((finish - arrival).sum())
    assert integral(arrival, scheduled) == int((scheduled - arrival).sum())
    segment = dict(zip(SEGMENT_COLUMNS, served.segments.T, strict=True))
    sequences = segment["decodes"] + segment["prefill_sequences"]
    in_service = int((sequences * (segment["end"] - segment["start"])).sum())
    assert in_service == int((finish - scheduled).sum())
    latency = served.metrics.latency
    assert latency["e2e_s"].total_ps == integral(arrival, finish)
    assert latency["queue_s"].total_ps == integral(arrival, scheduled)


# ---- theory


@pytest.mark.parametrize("load", LOADS)
def test_mean_wait_in_m_m_1(load: float) -> None:
    low, high = mean_wait(single_server("M", load), 1 / load)
    assert low <= load / (1 - load) <= high


@pytest.mark.parametrize("load", LOADS)
def test_mean_wait_in_m_d_1_is_half_of_that(load: float) -> None:
    """Pollaczek and Khinchine's formula without variance of the service."""
    low, high = mean_wait(single_server("D", load), 1 / load)
    assert low <= load / (2 * (1 - load)) <= high


@pytest.mark.parametrize("load", LOADS)
def test_mean_wait_in_m_m_c(load: float) -> None:
    """Erlang's C formula; slots add up to a step, geometric answers vary a little less."""
    offered = load * SERVERS
    busy = offered**SERVERS / factorial(SERVERS) / (1 - load)
    idle = sum(offered**k / factorial(k) for k in range(SERVERS))
    wait = busy / (idle + busy) / (SERVERS * (1 - load))
    low, high = mean_wait(many_servers(load), 1 / (load * SERVERS))
    step = STEP_PS / SERVICE_PS
    assert low - step <= wait <= high + wait / TOKENS


@pytest.mark.parametrize("load", LOADS)
def test_the_99th_percentile_of_sojourns_in_m_m_1(load: float) -> None:
    """Sojourns are exponential with mean 1 / (1 - load): one in a hundred is beyond its P99."""
    served = single_server("M", load)
    sojourns = (served.column("finish") - served.column("arrival")) / SERVICE_PS
    p99 = log(100) / (1 - load)
    low, high = confidence((sojourns > p99).astype(float))
    assert low <= 0.01 <= high
    assert served.metrics.latency["e2e_s"].quantile(0.99) == pytest.approx(
        np.quantile(sojourns, 0.99), rel=1e-3
    )


@pytest.mark.parametrize("load", LOADS)
def test_a_server_is_busy_for_a_share_of_its_load(load: float) -> None:
    served = single_server("D", load)
    assert served.records.busy_ps == ARRIVALS[load] * SERVICE_PS
    low, high = confidence(np.diff(served.column("arrival"), prepend=0) / SERVICE_PS)
    assert low <= 1 / load <= high


@pytest.mark.parametrize("load", LOADS)
def test_poisson_arrivals_see_time_averages(load: float) -> None:
    """The share that need not wait is the share of time in which nobody is there."""
    served = single_server("M", load)
    low, high = confidence((waits_s(served) == 0).astype(float))
    assert low <= 1 - load <= high


# ---- orders of service

CALLS = 60_000
ORDER_LOADS = [0.5, 0.8]


@cache
def ordered(order: str, load: float) -> Served:
    """M/M/1 as above, in another order; prompts are all the work, and every other one is urgent."""
    random = np.random.default_rng(int(100 * load) + 7)
    tokens = np.maximum(np.rint(random.exponential(SERVICE_PS // TOKEN_PS, CALLS)), 1)
    arrivals_s = np.cumsum(random.exponential(1 / load, CALLS))
    urgent = random.random(CALLS) < URGENT
    rows = requests(arrivals_s, tokens.astype(np.int64), np.ones(CALLS, dtype=np.int64))
    return Served(
        [row._replace(priority=int(not u)) for row, u in zip(rows, urgent, strict=True)],
        LinearCost(step_ps=0, prefill_token_ps=TOKEN_PS, decode_ps=0, context_token_ps=0),
        num_blocks=10**12,
        scheduler=SchedulerSettings(
            max_num_seqs=1, max_num_batched_tokens=10**12, async_scheduling=False, order=order
        ),
        cache=CacheSettings(prefix_caching=False),
    )


URGENT = 0.3


@pytest.mark.parametrize("load", ORDER_LOADS)
def test_mean_wait_by_priority_is_cobhams(load: float) -> None:
    """W_k = W_0 / ((1 - s_(k-1)) (1 - s_k)) with W_0 = sum of rates x second moments / 2 and s_k
    the load of classes up to k (Cobham, Priority Assignment in Waiting Line Problems, 1954)."""
    served = ordered("priority", load)
    waits = waits_s(served)
    urgent = served.column("priority") == 0
    residual, first = load, load * URGENT
    for who, expected in (
        (urgent, residual / (1 - first)),
        (~urgent, residual / ((1 - first) * (1 - load))),
    ):
        low, high = confidence(waits[who])
        assert low <= expected <= high


@pytest.mark.parametrize("load", ORDER_LOADS)
@pytest.mark.parametrize("order", ["shortest-prefill", "shortest-job:prompt_weight=1"])
def test_mean_wait_by_shortest_job_is_phipps(order: str, load: float) -> None:
    """W(x) = W_0 / (1 - s(x))^2 with s(x) the load of services up to x (Phipps, Machine Repair as a
    Priority Waiting-Line Problem, 1956; Schrage and Miller 1966), of all and by size."""
    served = ordered(order, load)
    waits = waits_s(served)
    size = served.column("prompt_tokens") * TOKEN_PS / SERVICE_PS

    def expected(low: float, high: float) -> float:
        """Mean over services between, which are exponential with mean 1."""
        x = np.linspace(low, high, 200_001)
        below = load * (1 - (1 + x) * np.exp(-x))
        wait = load / (1 - below) ** 2
        return float(np.trapezoid(wait * np.exp(-x), x) / np.trapezoid(np.exp(-x), x))

    for least, most in ((0.0, 40.0), (0.0, 0.5), (0.5, 1.5), (1.5, 40.0)):
        low, high = confidence(waits[(size >= least) & (size < most)])
        assert low <= expected(least, most) <= high


@pytest.mark.parametrize("load", ORDER_LOADS)
def test_shortest_jobs_first_wait_less_in_the_mean(load: float) -> None:
    """On the same sample path; and whatever the order, who is served is always busy for as long."""
    waits = {order: waits_s(ordered(order, load)) for order in ("fcfs", "shortest-prefill")}
    assert waits["shortest-prefill"].mean() < waits["fcfs"].mean()
    busy = {ordered(order, load).records.busy_ps for order in ("fcfs", "shortest-prefill")}
    assert len(busy) == 1


@pytest.mark.parametrize("load", ORDER_LOADS)
def test_work_is_conserved_whatever_the_order(load: float) -> None:
    """Kleinrock's conservation law for M/G/1 (1965): sum of loads x waits is the same for every
    order that knows nothing of sizes."""
    expected = load / (1 - load)
    for order in ("fcfs", "priority"):
        low, high = confidence(waits_s(ordered(order, load)))
        assert low <= expected <= high


TURN_PS = SERVICE_PS // 100


@cache
def shared_server(load: float, service: str) -> Served:
    """M/G/1 processor sharing: a step gives each of those that decode a token, and lasts a token's
    time for each."""
    random = np.random.default_rng(int(100 * load) + 11)
    count = 30_000
    mean = SERVICE_PS // TURN_PS
    if service == "exponential":
        tokens = random.geometric(1 / mean, count)
    else:  # two sizes, far apart: squared coefficient of variation 2.25
        tokens = np.where(random.random(count) < 0.9, mean // 2, mean // 2 * 11)
    arrivals_s = np.cumsum(random.exponential(1 / load, count))
    return Served(
        requests(arrivals_s, np.ones(count, dtype=np.int64), tokens),
        LinearCost(0, prefill_token_ps=TURN_PS, decode_ps=TURN_PS, context_token_ps=0),
        num_blocks=10**12,
        scheduler=SchedulerSettings(
            max_num_seqs=10**6, max_num_batched_tokens=10**6, async_scheduling=False
        ),
        cache=CacheSettings(prefix_caching=False),
    )


@pytest.mark.parametrize("load", ORDER_LOADS)
@pytest.mark.parametrize("service", ["exponential", "two sizes"])
def test_decoding_together_is_processor_sharing(load: float, service: str) -> None:
    """The mean time in the system of a request of size x is x / (1 - load), whatever the
    distribution of sizes (Kleinrock, Time-shared Systems, 1967; Coffman, Muntz and Trotter, 1970).
    Steps are slots: an arrival waits for a boundary, and is served in whole turns.
    """
    served = shared_server(load, service)
    size = served.column("output_tokens") * TURN_PS / SERVICE_PS
    sojourn = (served.column("finish") - served.column("arrival")) / SERVICE_PS
    slot = TURN_PS / SERVICE_PS / (1 - load) ** 2
    for least, most in ((0.0, 0.6), (0.6, 1.5), (1.5, 1000.0), (0.0, 1000.0)):
        who = (size >= least) & (size < most)
        if not who.any():
            continue
        low, high = confidence(sojourn[who] - size[who] / (1 - load))
        assert low - 2 * slot <= 0 <= high + 2 * slot
        slowdown = confidence(sojourn[who] / size[who])
        relative = 2 * slot / size[who].min()
        assert slowdown[0] - relative <= 1 / (1 - load) <= slowdown[1] + relative


SLOT_PS = SERVICE_PS // 50


@cache
def one_at_a_time(order: str, load: float) -> Served:
    """M/G/1 in slots: one decodes, and what gives way keeps what it has computed in the cache."""
    random = np.random.default_rng(int(100 * load) + 13)
    count = 12_000
    tokens = random.geometric(SLOT_PS / SERVICE_PS, count)
    arrivals_s = np.cumsum(random.exponential(1 / load, count))
    return Served(
        [
            row._replace(hashes=(row.request_id,), hash_tokens=1, hashed_tokens=1)
            for row in requests(arrivals_s, np.ones(count, dtype=np.int64), tokens)
        ],
        LinearCost(step_ps=SLOT_PS, prefill_token_ps=0, decode_ps=0, context_token_ps=0),
        num_blocks=10**7,
        scheduler=SchedulerSettings(
            max_num_seqs=1, max_num_batched_tokens=10**6, async_scheduling=False, order=order
        ),
        cache=CacheSettings(block_tokens=1),
    )


@pytest.mark.parametrize("load", ORDER_LOADS)
def test_shortest_remaining_first_is_schrages(load: float) -> None:
    """T(x) = (L m2(x) / 2 + L x^2 (1 - F(x)) / 2) / (1 - s(x))^2 + integral of 1 / (1 - s) to x
    (Schrage and Miller, 1966), integrated over exponential services of mean 1, L the rate."""
    served = one_at_a_time("shortest-remaining:prompt_weight=0", load)
    assert served.column("preemptions").sum() > 0
    sojourn = (served.column("finish") - served.column("arrival")) / SERVICE_PS
    x = np.linspace(0, 40, 400_001)
    tail = np.exp(-x)
    below = load * (1 - (1 + x) * tail)
    second = 2 - (x * x + 2 * x + 2) * tail
    waits = load * (second + x * x * tail) / 2 / (1 - below) ** 2
    inside = 1 / (1 - below)
    served_in = np.concatenate([[0], np.cumsum((inside[1:] + inside[:-1]) / 2 * np.diff(x))])
    expected = float(np.trapezoid((waits + served_in) * tail, x))
    low, high = confidence(sojourn)
    slot = SLOT_PS / SERVICE_PS
    assert low - slot <= expected <= high + slot
    assert sojourn.mean() < 0.9 / (1 - load)


@pytest.mark.parametrize("load", ORDER_LOADS)
def test_giving_way_repeats_no_work(load: float) -> None:
    """Preempt-resume: the server is busy for exactly the outputs, whatever the order."""
    for order in ("fcfs", "shortest-remaining:prompt_weight=0", "feedback:quantum=10"):
        served = one_at_a_time(order, load)
        assert served.records.busy_ps == int(served.column("output_tokens").sum()) * SLOT_PS


def requests(arrivals_s: Any, prompts: Any, outputs: Any) -> list[Request]:
    columns = (arrivals_s.tolist(), prompts.tolist(), outputs.tolist())
    return [Request(i, *row) for i, row in enumerate(zip(*columns, strict=True))]


def waits_s(served: Served) -> Any:
    return (served.column("scheduled") - served.column("arrival")) / SERVICE_PS


def confidence(values: Any, *controls: tuple[Any, float]) -> tuple[float, float]:
    """Interval of the mean of a stationary series, by batch means; the first batch is warm-up.

    `controls` are other series and their known means: what their batches' deviations explain
    linearly is taken out (Lavenberg & Welch, Management Science 27, 1981).
    """
    means = batch_means(values)
    explained = [np.ones(BATCHES), *(batch_means(series) - mean for series, mean in controls)]
    design = np.array(explained).T
    fit, *_ = np.linalg.lstsq(design, means, rcond=None)
    freedom = BATCHES - design.shape[1]
    residual = means - design @ fit
    covariance = np.linalg.inv(design.T @ design) * (residual @ residual) / freedom
    spread = stats.t.ppf((1 + CONFIDENCE) / 2, freedom) * covariance[0, 0] ** 0.5
    return float(fit[0] - spread), float(fit[0] + spread)


def batch_means(values: Any) -> Any:
    usable = len(values) // (BATCHES + 1) * (BATCHES + 1)
    return values[:usable].reshape(BATCHES + 1, -1).mean(axis=1)[1:]


def mean_wait(served: Served, gap: float) -> tuple[float, float]:
    """Interval of the mean wait in mean service times, which are a second; `gap` is the mean time
    between arrivals.
    """
    gaps = np.diff(served.column("arrival"), prepend=0) / SERVICE_PS
    services = (served.column("finish") - served.column("scheduled")) / SERVICE_PS
    controls = [(gaps, gap)]
    if services.std() > 0:
        controls.append((services, 1.0))
    return confidence(waits_s(served), *controls)


def integral(begin: Any, end: Any) -> int:
    """Time integral of the number of those begun and not ended, by a sweep over all moments."""
    moments = np.concatenate([begin, end])
    change = np.concatenate([np.ones(len(begin), np.int64), -np.ones(len(end), np.int64)])
    order = np.argsort(moments, kind="stable")
    there = np.cumsum(change[order])[:-1]
    return int((there * np.diff(moments[order])).sum())
