"""The planner's winner is that of brute force, for a third of its replays or less."""

from __future__ import annotations

import random

import pytest

from sim.planning.plan import plan
from sim.planning.space import PlanSettings, axes, replica_counts, size
from tests.sim.planning.fleets import brute_force, hurried, plan_of
from traces.errors import ConfigError


def random_plan(seed: int) -> PlanSettings:
    """A small space, of 40 to 120 candidates, drawn from all kinds of dimensions."""
    draw = random.Random(seed)
    while not 40 <= stated(made := _drawn(draw)) <= 120:
        pass
    return made


def stated(settings: PlanSettings) -> int:
    """Candidates of a plan's space."""
    return size(axes(settings)) * len(replica_counts(settings))


def _drawn(draw: random.Random) -> PlanSettings:
    gpus = ["l4", "l40s", "a10g", "h100", "a100-80", "rtx-4090"]
    space = {
        "gpu": draw.sample(gpus, draw.randint(2, 3)),
        "model": draw.choice(["llama-3.1-8b", "qwen3-8b", "qwen2.5-7b"]),
        "weight_dtype": draw.choice([["bf16"], ["fp8"], ["bf16", "fp8"]]),
        "kv_dtype": draw.choice([["bf16"], ["bf16", "fp8"]]),
        "scheduler.max_num_batched_tokens": draw.choice([[1024, 4096], [512, 2048]]),
        "cluster.router": draw.choice([["round-robin"], ["least-requests", "session-affinity"]]),
        "replicas": {"from": 1, "to": draw.randint(10, 16)},
    }
    return plan_of(
        scenario={
            "trace": hurried(draw.choice([40, 80, 160]), 80),
            "cache": {"prefix_caching": draw.random() < 0.5},
        },
        space=space,
        objectives=[
            f"p99 ttft <= {draw.choice([400, 800, 1500, 3000])}ms",
            f"p95 tpot <= {draw.choice([30, 60, 100])}ms",
        ],
    )


@pytest.mark.parametrize("seed", range(20))
def test_winner_is_brute_forces_for_a_third_of_its_replays(seed: int) -> None:
    settings = random_plan(seed)
    best, replays = brute_force(settings)
    if best is None:
        with pytest.raises(ConfigError, match="meets"):
            plan(settings)
        return
    found = plan(settings)
    assert found.winner.candidate.label == best.label
    assert 3 * found.replays["search"] <= replays
