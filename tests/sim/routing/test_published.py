"""What was published of routers comes out here too."""

import pytest

from benchmarks.sglang_router import DEDUCED_GROUP, PUBLISHED, against_turns

TOLERANCE = 0.25


def test_sglang_gains_over_turns_what_was_published() -> None:
    """Hits x3.8 and throughput x1.9, and each figure behind them, within a quarter."""
    found = against_turns(205, DEDUCED_GROUP, ("round-robin", "sglang"))
    for router, figures in PUBLISHED.items():
        for name, published in figures.items():
            assert found[router][name] == pytest.approx(published, rel=TOLERANCE), (router, name)
    assert found["sglang"]["times"]["hit_rate"] == pytest.approx(3.8, rel=TOLERANCE)
    assert found["sglang"]["times"]["tokens_per_s"] == pytest.approx(1.9, rel=TOLERANCE)


def test_larger_groups_leave_less_to_gain() -> None:
    """By turns, more of a group's prompts meet a worker that has its prefix."""
    small = against_turns(64, 4, ("round-robin", "sglang"))
    large = against_turns(16, 16, ("round-robin", "sglang"))
    assert small["sglang"]["times"]["hit_rate"] > large["sglang"]["times"]["hit_rate"] > 1
