"""A description agrees with a straightforward computation of the same."""

import numpy as np
import pytest
from hypothesis import given, settings

from tests.traces.requests import plain, request_lists
from traces.describe import describe
from traces.reader import sample_trace
from traces.request import Request


@settings(deadline=None)
@given(request_lists())
def test_counts_rates_and_percentiles(requests: list[Request]) -> None:
    found = describe(requests)
    times_s = np.array([request.arrival_s for request in requests])
    prompts = np.array([request.prompt_tokens for request in requests])
    assert found.requests == len(requests)
    assert found.span_s == times_s[-1] - times_s[0]
    assert found.peak_rate_per_s == np.unique(times_s // 1, return_counts=True)[1].max()
    assert found.peak_rate_per_min == np.unique(times_s // 60, return_counts=True)[1].max()
    for percent, tokens in found.prompt_tokens.percentiles.items():
        assert tokens == np.percentile(prompts, percent, method="inverted_cdf")
    assert found.prompt_tokens.mean == pytest.approx(prompts.mean())
    assert sum(found.tenants.values()) == len(requests)
    assert found.sessions == len({request.session_id for request in requests} - {-1})


def test_interarrival_cv() -> None:
    gaps_s = np.random.default_rng(1).gamma(0.3, 2.0, 5000)
    times_s = np.concatenate(([0.0], np.cumsum(gaps_s)))
    expected = gaps_s.std() / gaps_s.mean()
    assert describe(plain(times_s.tolist())).interarrival_cv == pytest.approx(expected)


def test_reuse_counts_whole_blocks_met_before() -> None:
    first = Request(0, 0.0, 10, 8, (1, 2, 3, 4, 5), 4, 18)  # half of its last block
    longer = Request(1, 1.0, 20, 1, (1, 2, 3, 4, 5), 4, 20)  # finds the answer too
    other = Request(2, 2.0, 8, 1, (1, 9), 4, 8)
    lone = Request(3, 3.0, 12, 1)
    reuse = describe([first, longer, other, lone]).reuse
    assert reuse.block_tokens == (4,)
    assert reuse.token_share == pytest.approx((16 + 4) / 50)
    assert reuse.block_share == pytest.approx((4 + 1) / (2 + 5 + 2))
    assert reuse.mean_request_share == pytest.approx((16 / 20 + 4 / 8) / 4)


def test_samples_have_the_character_they_claim() -> None:
    chat, agentic = describe(sample_trace("chat")), describe(sample_trace("agentic"))
    for sample in (chat, agentic):
        assert sample.requests == 2000
        assert 480 < sample.span_s < 720
    assert chat.prompt_tokens.mean == pytest.approx(700, rel=0.15)
    assert chat.output_tokens.mean == pytest.approx(200, rel=0.1)
    assert agentic.requests_in_sessions / agentic.sessions > 7
    assert agentic.reuse.token_share > 0.85


def test_nothing_to_describe() -> None:
    with pytest.raises(ValueError, match="no requests"):
        describe([])
