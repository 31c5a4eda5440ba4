"""Random clusters for laws about whole runs: every way of serving, nasty shapes and costs."""

from dataclasses import dataclass, replace
from typing import Any

from hypothesis import strategies as st

from calibration.costs import CostModel, LinearCost
from calibration.hardware import gpu, model
from calibration.roofline import roofline_cost
from engine.config import CacheSettings, SchedulerSettings
from engine.policies import ORDER, VICTIM
from sim.routing import ROUTERS
from tests.decisions import PS, as_requests, settings_of
from tests.engine.eviction.audit import SPECS
from tests.sim.served import Served, StepByStep
from tests.workloads import cases
from traces.request import Request

UNLIMITED = 10**6
BASE = roofline_cost(model("llama-3.1-8b"), gpu("h200"))


@dataclass(frozen=True, repr=False)
class Setup:
    """A cluster and what it is to serve."""

    requests: tuple[Request, ...]
    cost: CostModel
    scheduler: SchedulerSettings
    cache: CacheSettings
    num_blocks: int
    replicas: int
    router: str = "round-robin"
    max_queue: int | None = None
    timeout_ps: int | None = None
    end_ps: int | None = None
    closed_loop: bool = False

    def __repr__(self) -> str:
        lines = [f"{name}={getattr(self, name)!r}" for name in self.__dataclass_fields__]
        return "Setup(" + ",\n  ".join(lines) + ")"

    def serve(self, *, exact: bool = False, **changes: Any) -> Served:
        return Served(
            self.requests,
            StepByStep(self.cost) if exact else self.cost,
            **{
                name: getattr(self, name)
                for name in self.__dataclass_fields__
                if name not in ("requests", "cost")
            }
            | changes,
        )

    def arriving(self, times_ps: list[int]) -> "Setup":
        """The same requests at other times, in order."""
        times = sorted(times_ps)
        moved = (
            request._replace(arrival_s=time / 1e12)
            for request, time in zip(self.requests, times, strict=True)
        )
        return replace(self, requests=tuple(moved))


def longest(requests: tuple[Request, ...]) -> int:
    return max(request.prompt_tokens + request.output_tokens for request in requests)


PARAMETERS = {
    "shortest-job": ["prompt_weight=1.5"],
    "noisy-shortest-job": ["error=2.5", "error=0.3:seed=5"],
    "learned-shortest": ["learning_rate=0.9:first_guess=3"],
    "shortest-remaining": ["prompt_weight=0.5"],
    "earliest-deadline": ["default_s=0.01"],
    "least-slack": ["ttft_s=0.01:prefill_tokens_per_s=100.0"],
    "longest-prefix-match": ["most=3"],
    "feedback": ["quantum=1:prompt_weight=1.0", "quantum=3:promote_after=2"],
    "vtc": ["input_weight=0.3:t1=2.5", "t0=0.5"],
    "deficit-round-robin": ["quantum=3", "quantum=20:t1=3"],
    "dlpm": ["quantum=5", "quantum=40:most=3:t0=2"],
}
"""Of orders, so small or large that they matter within a few steps."""
orders = st.sampled_from(sorted(ORDER)).flatmap(
    lambda name: st.sampled_from([name, *(f"{name}:{one}" for one in PARAMETERS.get(name, []))])
)
chunkings = st.sampled_from(
    [
        "fixed:tokens=1",
        "fixed:tokens=7",
        "stall-free:tokens=3",
        "latency-bounded:tbt_s=0.001:least=1",
    ]
)


@st.composite
def costs(draw: st.DrawFn, unit: dict[str, int]) -> CostModel:
    """The linear cost of a recorded case, or a roofline whose kinks lie among small batches."""
    if draw(st.integers(0, 2)):
        return LinearCost(unit["d"] * PS, unit["a"] * PS, unit["b"] * PS, unit["c"] * PS)
    return replace(
        BASE,
        context_ps=draw(st.sampled_from([0, 13, 40_000_003, 1_000_000_007])),
        pair_ps=draw(st.sampled_from([0, 7, 3_000_017, 90_000_001])),
        prefill_context_ps=draw(st.sampled_from([0, 29, 30_000_001, 800_000_003])),
        host_step_ps=draw(st.sampled_from([0, 4_500_000_000, 9_000_000_000])),
        host_sequence_ps=draw(st.sampled_from([0, 11, 500_000_003])),
        overlap=draw(st.booleans()),
    )


@st.composite
def swarms(draw: st.DrawFn) -> Setup:
    """More sequences than a step has tokens for: whole prompts first, then some decodes wait."""
    count = draw(st.integers(2, 20))
    budget = draw(st.integers(2, 6))
    gaps_us = draw(st.lists(st.sampled_from([0, 0, 1, 2000]), min_size=count, max_size=count))
    lengths = st.lists(st.integers(1, budget - 1), min_size=count, max_size=count)
    prompts, outputs = draw(lengths), draw(lengths)
    requests = tuple(
        Request(i, sum(gaps_us[: i + 1]) / 1e6, prompts[i], min(outputs[i], budget - prompts[i]))
        for i in range(count)
    )
    unit = {"a": 40, "b": 20, "c": draw(st.sampled_from([0, 12])), "d": 1_000_000}
    return Setup(
        requests=requests,
        cost=draw(costs(unit)),
        scheduler=SchedulerSettings(
            max_num_seqs=draw(st.integers(1, 20)),
            max_num_batched_tokens=budget,
            max_model_len=UNLIMITED,
            order=draw(st.sampled_from(["fcfs", *ORDER])),
            prefill_first=True,
            chunked_prefill=False,
            async_scheduling=False,
        ),
        cache=CacheSettings(block_tokens=draw(st.integers(1, 4)), prefix_caching=False),
        num_blocks=draw(st.integers(7, 40)),
        replicas=1,
    )


@st.composite
def workloads(draw: st.DrawFn, max_replicas: int = 4) -> Setup:
    """Any recorded case's workload in any way of serving; what is not refused can be served."""
    params, recorded = draw(cases())
    replicas = draw(st.integers(1, max_replicas))
    if draw(st.booleans()):  # each replica has the whole workload's share of trouble
        recorded = [row | {"id": f"{row['id']}.{i}"} for row in recorded for i in range(replicas)]
    scheduler, cache = settings_of(params)
    # vLLM's victim among equals is the first admitted: two may preempt each other for ever
    tenants = draw(st.integers(1, 4))
    requests = tuple(
        request._replace(
            priority=request.priority * len(recorded) + i,
            tenant=f"t{i * i % tenants}",
            slo_class=f"class {i % 2}",
        )
        for i, (request, _) in enumerate(as_requests(recorded, cache.block_tokens))
    )
    whole = longest(requests)
    num_blocks = params["num_blocks"]
    changes: dict[str, Any] = {"max_model_len": UNLIMITED}
    if draw(st.booleans()):
        changes["order"] = draw(orders)
    if draw(st.integers(0, 3)) == 2:
        # chunk by chunk, two that do not fit together may preempt each other for ever
        changes |= {
            "victim": draw(st.sampled_from(sorted(VICTIM))),
            "reserve_full_sequence": True,
        }
    if draw(st.integers(0, 7)) == 3:  # answers are cut short, prompts refused
        changes["max_model_len"] = max(2, whole - draw(st.integers(0, 20)))
    way = draw(st.sampled_from(["as set", "as set", "static", "prefill first", "chunks"]))
    if way == "static":
        changes["batching"] = "static"
    elif way == "chunks":
        changes |= {"chunking": draw(chunkings), "chunked_prefill": True}
    elif way == "prefill first":
        changes |= {
            "prefill_first": True,
            "chunked_prefill": False,
            "async_scheduling": False,
            "max_num_batched_tokens": max(scheduler.max_num_batched_tokens or 0, whole),
        }
    if draw(st.integers(0, 9)) == 4:  # contiguous
        changes["max_model_len"] = min(changes["max_model_len"], whole + 1)
        num_blocks = max(num_blocks, -(-changes["max_model_len"] // cache.block_tokens) + 1)
        cache = CacheSettings(
            block_tokens=cache.block_tokens, allocation="contiguous", prefix_caching=False
        )
    elif draw(st.booleans()):
        cache = cache.model_copy(update={"eviction": draw(st.sampled_from(SPECS))})
    scheduler = SchedulerSettings.model_validate(scheduler.model_dump() | changes)
    return Setup(
        requests=requests,
        cost=draw(costs(params["step_time_ns"])),
        scheduler=scheduler,
        cache=cache,
        num_blocks=num_blocks,
        replicas=replicas,
        router=draw(st.sampled_from(sorted(ROUTERS))),
    )


def setups(max_replicas: int = 4) -> st.SearchStrategy[Setup]:
    """Anything."""
    return workloads(max_replicas) | workloads(max_replicas) | workloads(max_replicas) | swarms()


@st.composite
def crowded_setups(draw: st.DrawFn) -> Setup:
    """Setups with clients: they give up, are turned away, cut off, or wait for answers."""
    setup = draw(setups())
    # in units of a time that means something here, so that events fall together
    span = int(setup.serve().records.last_end_ps)
    moments = st.integers(1, 8).map(lambda part: max(1, span * part // 8))
    requests = setup.requests
    if draw(st.booleans()):
        sessions = draw(st.integers(1, 3))
        think = draw(st.sampled_from([0.0, 0.0, 0.001, 0.02]))
        requests = tuple(
            request._replace(
                session_id=i % sessions if i < len(requests) - 1 else -1,
                turn=i // sessions if i < len(requests) - 1 else 0,
                think_s=think,
            )
            for i, request in enumerate(requests)
        )
    return replace(
        setup,
        requests=requests,
        closed_loop=draw(st.booleans()),
        timeout_ps=draw(st.none() | moments),
        end_ps=draw(st.none() | moments),
        max_queue=draw(st.none() | st.integers(0, 3)),
    )
