"""Verdicts and flips follow from the figures alone."""

import numpy as np
import pytest

from sim.comparing.grid import Variant
from sim.comparing.judging import Entry, flips, judged, scale_of
from sim.scenario import Scenario

TTFT, HITS = "latency.ttft_s.p99", "cache.hit_rate"
SCENARIO = Scenario()


def entries(levels: dict[str, list[float | None]], metric: str = TTFT) -> list[Entry]:
    """Settings by name, their figure at 1, 2, 3, ...; luck in common is half as large as it."""
    random = np.random.default_rng(0)
    made: list[Entry] = []
    places = len(next(iter(levels.values())))
    for place in range(places):
        luck = random.normal(0, 0.5, 10)
        for name, values in levels.items():
            value = values[place]
            variant = Variant({"x": name}, place + 1, SCENARIO, name)
            if value is None:
                made.append(Entry(variant, None, (), "broken"))
                continue
            own = random.normal(0, 0.01, 10)
            figures = [{metric: float(one)} for one in value * np.exp(luck + own)]
            made.append(Entry(variant, figures[0], figures))
    return made


@pytest.mark.parametrize("scale", ["difference", "ratio"])
def test_a_flip_lies_between_the_last_lead_and_the_next(scale):
    found = flips(
        entries({"a": [1.0, 1.0, 2.0, 2.0], "b": [1.5, 1.0, 2.0, 1.0]}), {TTFT: scale}, 0.95
    )
    assert [(f.better_below, f.better_above, f.below, f.above) for f in found] == [("a", "b", 1, 4)]


def test_where_higher_is_better_the_lead_is_the_other_ones():
    found = flips(entries({"a": [0.1, 0.2], "b": [0.2, 0.1]}, HITS), {HITS: "ratio"}, 0.95)
    assert [(f.better_below, f.better_above) for f in found] == [("b", "a")]


def test_a_lead_that_comes_back_flips_twice():
    found = flips(entries({"a": [1, 2, 1], "b": [2, 1, 2]}), {TTFT: "ratio"}, 0.95)
    assert [(f.below, f.above) for f in found] == [(1, 2), (2, 3)]


@pytest.mark.parametrize(
    "levels",
    [
        {"a": [1.0, 1.001, 1.0], "b": [1.001, 1.0, 1.001]},  # never distinguishable
        {"a": [1.0, 1.0, 1.0], "b": [2.0, 1.001, 2.0]},  # as good only in between
        {"a": [1.0, None], "b": [2.0, 1.0]},
    ],
)
def test_what_is_not_distinguishable_flips_nothing(levels: dict[str, list[float | None]]):
    assert flips(entries(levels), {TTFT: "ratio"}, 0.95) == []


def test_every_entry_is_judged_beside_the_baseline_at_its_place():
    rows = judged(
        entries({"a": [1.0, 4.0], "b": [2.0, 2.0], "c": [1.0, None]}), {TTFT: "ratio"}, "a", 0.95
    )
    assert {(r.entry.variant.label, r.entry.variant.at): r.verdict for r in rows} == {
        ("b", 1): "worse",
        ("b", 2): "better",
        ("c", 1): "not distinguishable",
    }
    assert all(r.adjusted is not None and r.adjusted >= (r.difference.p or 0) for r in rows)


def test_without_a_baseline_nothing_is_judged():
    assert judged(entries({"a": [None], "b": [1.0]}), {TTFT: "ratio"}, "a", 0.95) == []


def test_only_latencies_above_0_are_compared_by_ratios():
    assert scale_of(entries({"a": [1.0]}), TTFT) == "ratio"
    assert scale_of(entries({"a": [1.0], "b": [0.0]}), TTFT) == "difference"
    assert scale_of(entries({"a": [1.0]}, HITS), HITS) == "difference"
