"""Settings under which sequences preempt each other for ever end in an error, not in a hang."""

import pytest

from calibration.costs import LinearCost
from engine.config import CacheSettings, SchedulerSettings
from sim import replica
from tests.sim.served import Served
from traces.errors import ConfigError
from traces.request import Request

LENGTHS = [(15, 2, 2), (58, 51, 2), (32, 62, 2), (51, 47, 1), (9, 4, 0), (28, 62, 0), (12, 59, 2)]
"""Prompt tokens, output tokens, priority: found by random search against the reference, which
never ends on it either."""


def test_preempting_for_ever_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica, "FRUITLESS_STEPS", 2_000)
    requests = [
        Request(i, 0.0, prompt, output, priority=priority)
        for i, (prompt, output, priority) in enumerate(LENGTHS)
    ]
    scheduler = SchedulerSettings(
        max_num_seqs=5,
        max_num_batched_tokens=109,
        max_model_len=74,
        order="priority",
        chunked_prefill=False,
        long_prefill_token_threshold=3,
        reserve_full_sequence=False,
        watermark=0.01,
        async_scheduling=False,
    )
    with pytest.raises(ConfigError, match=r"replica 0: 2,000 steps .* 8 KV blocks are too few"):
        Served(
            requests,
            LinearCost(5_000_000_000, 0, 20_000, 12_000),
            num_blocks=9,
            scheduler=scheduler,
            cache=CacheSettings(prefix_caching=False),
        )
