"""Tiers in the simulator: what is found below the GPU need not be computed, but copied."""

from typing import Any

import pytest

from calibration.costs import LinearCost
from calibration.profiles import load_profile
from engine.batch import Batch
from engine.config import CacheSettings, OffloadSettings
from engine.tiers import Tiers
from engine.work import CPU, GPU, Move, Place
from sim.links import Link, Links
from sim.replay import replay
from sim.scenario import scenario_of
from sim.tiers import CopyingCost, memory_below
from traces.request import Request
from traces.settings import merged

COST = LinearCost(10**9, 10**8, 10**7, 10**4)
BLOCK_BYTES = 28 * 2 * 8 * 128 * 2 * 16
"""Of qwen3-0.6b in bf16, 16 tokens."""


def sessions(turns: int = 4, users: int = 12, first: int = 160) -> list[Request]:
    """Users in turn ask again, each time with all that they asked before in front."""
    requests: list[Request] = []
    for turn in range(turns):
        for user in range(users):
            blocks = (first + 64 * turn) // 16
            hashes = tuple(1000 * (user + 1) + i for i in range(blocks))
            number = turn * users + user
            requests.append(Request(number, 2.0 * number, 16 * blocks, 8, hashes, 16, 16 * blocks))
    return requests


def served(requests: list[Request], **settings: Any) -> dict[str, Any]:
    values: dict[str, Any] = {"profile": "l4-qwen3-0.6b", "memory": {"num_blocks": 60}}
    return dict(replay(scenario_of(merged(values, settings)), requests, cost=COST).summary)


def room(blocks: int, **settings: Any) -> dict[str, Any]:
    return {"offload": {"cpu_bytes": blocks * BLOCK_BYTES, **settings}}


@pytest.mark.parametrize("write", ["on_evict", "through"])
def test_with_room_below_a_small_pool_hits_as_often_as_a_large_one(write: str):
    requests = sessions()
    small, large = served(requests), served(requests, memory={"num_blocks": 4000})
    tiered = served(requests, **room(4000, write=write))
    assert small["tiers"] is None
    assert small["cache"]["hit_tokens"] < 0.2 * large["cache"]["hit_tokens"]
    assert tiered["cache"]["hit_tokens"] == large["cache"]["hit_tokens"]
    assert tiered["tiers"]["loaded_blocks"] > 0


def test_a_full_tier_hands_on_to_the_disk():
    requests = sessions()
    cpu_only = served(requests, **room(20))
    both = served(requests, **room(20, disk_bytes=4000 * BLOCK_BYTES))
    assert cpu_only["tiers"]["dropped_blocks"] > 0 == both["tiers"]["dropped_blocks"]
    assert both["cache"]["hit_tokens"] > cpu_only["cache"]["hit_tokens"]


def crowd() -> list[Request]:
    return [Request(i, 0.01 * i, 150, 120) for i in range(30)]


@pytest.mark.parametrize(("rate", "better"), [(1e15, True), (1e3, False)])
def test_swapping_pays_where_copies_are_faster_than_computing(
    tmp_path: Any, rate: float, better: bool
):
    profile = tmp_path / "p.yaml"
    profile.write_text(
        "name: p\nmeasured: true\nprovenance: made up\nmodel: qwen3-0.6b\ngpu: l4\n"
        "cost: {kind: linear, step_s: 0.001, prefill_token_s: 0.0001, decode_s: 0.0001,"
        " context_token_s: 0.00000001}\n"
        f"copies: {{block_s: 0.0, cpu_bytes_per_s: {rate}}}\n"
    )
    runs: list[Any] = []
    for preemption in ("recompute", "swap"):
        scenario = scenario_of(
            {
                "profile": str(profile),
                "memory": {"num_blocks": 60},
                "scheduler": {"preemption": preemption, "reserve_full_sequence": False},
                **room(1000),
            }
        )
        runs.append(replay(scenario, crowd()).summary)
    recompute, swap = runs
    assert min(recompute["preemptions"], swap["preemptions"]) > 10
    assert swap["tiers"]["swapped_sequences"] > 10
    assert (swap["duration_s"] < recompute["duration_s"]) == better


class Asked(Tiers):
    """Tiers that hand out given copies, one pair a step."""

    def __init__(self, moves: list[tuple[int, int]]) -> None:
        super().__init__(OffloadSettings(), 1)
        self.given = iter(moves)

    def take_moves(self) -> tuple[tuple[Move, ...], tuple[Move, ...]]:
        before, after = next(self.given)
        move = Move(Place(GPU, 0), Place(CPU, 0))
        return (move,) * before, (move,) * after


S = 10**12
"""Picoseconds in a second."""


@pytest.mark.parametrize(
    ("asynchronous", "beside", "expected"),
    # a step takes 10 s, a copy 4: of three copies that begin as step 2 ends, 12 s long, step 3
    # waits for all, or step 4 for what outlasts step 3
    [
        (False, True, [10 + 8, 10, 12 + 10, 10]),
        (True, True, [10 + 8, 10, 10, 2 + 10]),
        (False, False, [10 + 8, 10 + 12, 10, 10]),
        (True, False, [10 + 8, 10 + 12, 10, 10]),
    ],
)
def test_copies_before_a_step_hold_it_up_and_those_after_run_beside_others(
    asynchronous: bool, beside: bool, expected: list[int]
):
    cost = CopyingCost(
        LinearCost(10 * S, 0, 0, 0),
        Asked([(2, 0), (0, 3), (0, 0), (0, 0)]),
        Links({CPU: Link(4 * S)}),
        asynchronous=asynchronous,
        beside_steps=beside,
    )
    batch = Batch()
    batch.decodes = 1
    batch.horizon = 99
    steps: list[tuple[int, int, int]] = []
    free = 0
    for _ in range(4):
        cost.at(free, free)
        steps.append(cost.progression(batch))
        free += steps[-1][0]
    assert [first / S for first, _, _ in steps] == expected
    assert all((growth, count) == (0, 1) for _, growth, count in steps)


def test_copies_begin_when_a_step_is_scheduled_beside_the_one_that_runs():
    cost = CopyingCost(LinearCost(10 * S, 0, 0, 0), Asked([(3, 0)]), Links({CPU: Link(4 * S)}))
    cost.at(called_ps=20 * S, start_ps=30 * S)
    assert cost.progression(Batch())[0] == (20 + 3 * 4 - 30) * S  # an empty batch takes no time


def test_without_room_there_are_no_tiers():
    profile = load_profile("l4-qwen3-0.6b")
    assert memory_below(OffloadSettings(), CacheSettings(), profile) is None
    assert memory_below(OffloadSettings(cpu_bytes=1000), CacheSettings(), profile) is not None
