"""Published results of fair sharing, as benchmarks/fairness.py repeats them (VTC, OSDI'24)."""

from functools import cache

import polars as pl
import pytest

from benchmarks.fairness import OVERLOAD_S, TENANTS, overload, ratio, served, tokens_per_s


@cache
def run(order: str = "fcfs", admission: str = "everybody") -> pl.DataFrame:
    return served(overload(), order=order, admission=admission)


def test_first_come_first_served_gives_twice_as_much_to_who_asks_for_twice_as_much() -> None:
    """Section 5.2: 2.00."""
    assert ratio(run("fcfs")) == pytest.approx(2.00, abs=0.05)


def test_vtc_gives_both_the_same() -> None:
    """Section 5.2: 1.006."""
    assert ratio(run("vtc")) == pytest.approx(1.006, abs=0.05)


@pytest.mark.parametrize("order", ["vtc", "deficit-round-robin"])
def test_fairness_costs_no_throughput(order: str) -> None:
    """Section 5.3: 779 against 777 tokens/s; both are work conserving."""
    assert tokens_per_s(run(order)) == pytest.approx(tokens_per_s(run("fcfs")), rel=0.01)


def test_weights_are_shares() -> None:
    """Section 4.4, weighted tenants."""
    assert ratio(run("vtc:other=3")) == pytest.approx(3.0, rel=0.05)


@pytest.mark.parametrize("limit", [5, 10, 20, 30])
def test_a_limit_of_requests_loses_what_it_turns_away(limit: int) -> None:
    """Section 5.3: the fewer requests a minute, the less throughput, whatever is free."""
    rows = run(admission=f"rpm:requests={limit}")
    minutes = OVERLOAD_S / 60
    admitted = sum(min(limit, rate * 60) for rate in TENANTS.values()) * minutes
    assert rows.filter(pl.col("outcome") == "finished").height == pytest.approx(admitted, abs=4)
    assert tokens_per_s(rows) < 0.9 * tokens_per_s(run("fcfs"))
    least = run(admission="rpm:requests=5")
    assert tokens_per_s(rows) >= tokens_per_s(least)
