"""Stall-free batching keeps decodes going: the direction of Sarathi-Serve's results (OSDI'24)."""

import numpy as np
import pytest

from benchmarks.sarathi import LIMITS_S, capacity, latencies

STRICT_S = LIMITS_S["strict"]


def chats(count: int) -> list[tuple[int, int]]:
    """Prompts around a thousand tokens, some much longer; answers around two hundred."""
    random = np.random.default_rng(5)
    prompts = np.minimum(random.lognormal(np.log(1000), 0.7, count), 8000).astype(int)
    outputs = np.minimum(random.lognormal(np.log(200), 0.6, count), 1000).astype(int)
    return list(zip((prompts + 1).tolist(), (outputs + 1).tolist(), strict=True))


def test_whole_prompts_stall_decodes_and_chunks_do_not() -> None:
    lengths = chats(200)
    stalled, _ = latencies("vllm-v0", lengths, 6.0, STRICT_S)
    chunked = {
        tokens: latencies(f"stall-free {tokens}", lengths, 6.0, STRICT_S)[0]
        for tokens in (512, 1024, 2048)
    }
    assert stalled > STRICT_S > chunked[512]
    assert stalled > chunked[2048] > chunked[1024] > chunked[512]


def test_under_a_strict_limit_stall_free_batching_serves_more() -> None:
    """The paper has up to 2.6 times for Mistral-7B on one A100."""
    lengths = chats(150)
    whole = capacity("vllm-v0", lengths, STRICT_S, accuracy=0.15)
    stall_free = capacity("stall-free 512", lengths, STRICT_S, accuracy=0.15)
    assert stall_free > 1.5 * whole > 0


@pytest.mark.parametrize("limit_s", [0.03, 0.06])
def test_a_bounded_latency_is_kept(limit_s: float) -> None:
    """By the same cost model that says what steps take, the bound is what comes out."""
    tbt_s, _ = latencies("latency-bounded", chats(150), 4.0, limit_s)
    assert tbt_s <= 1.02 * limit_s
