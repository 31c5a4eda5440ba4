"""A hot prefix spreads through the pool that replicas share, instead of being computed again."""

from typing import Any

from sim.replay import replay
from sim.scenario import scenario_of
from traces.request import Request

PREFIX = tuple(range(1, 65))
"""64 hashes of 256 tokens: 16,384 tokens that everybody begins with."""


def served(**offload: object) -> dict[str, Any]:
    """One request warms the cache; later all come at once, more than one replica should take."""
    requests = [
        Request(i, 0.0 if i == 0 else 60.0, 16_500, 8, PREFIX, 256, 16_384) for i in range(24)
    ]
    scenario = scenario_of(
        {
            "profile": "h100-llama-3.1-8b",
            "cluster": {"replicas": 2, "router": "kv-centric"},
            "offload": offload,
        }
    )
    return replay(scenario, requests).summary


def test_a_replica_loads_from_the_pool_what_another_computed():
    alone = served()
    pooled = served(remote_bytes=10**11, write="through", remote_bytes_per_s=5e10)
    tiers = pooled["tiers"]
    prompt_tokens = alone["cache"]["prompt_tokens"]
    assert prompt_tokens - alone["cache"]["hit_tokens"] >= 2 * 16_384  # computed on either
    assert tiers["remote_hit_tokens"] == 16_384
    assert tiers["computed_tokens"] < 16_384 + 24 * 256
    assert pooled["latency"]["ttft_s"]["mean"] < alone["latency"]["ttft_s"]["mean"]
