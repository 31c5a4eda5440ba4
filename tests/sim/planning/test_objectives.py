"""Objectives as text, what they mean, and what cannot be one."""

from math import inf

import pytest

from sim.planning.objectives import (
    Objective,
    least_margin,
    met,
    parse_objective,
    parse_objectives,
)
from traces.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "figure", "limit", "name"),
    [
        ("p99 ttft <= 1s", "latency.ttft_s.p99", 1.0, "p99 ttft <= 1s"),
        ("  P50 TPOT<=50ms ", "latency.tpot_s.p50", 0.05, "p50 tpot <= 50ms"),
        ("mean queue < 2min", "latency.queue_s.mean", 120.0, "mean queue <= 2min"),
        ("max itl <= 250us", "latency.itl_s.max", 250e-6, "max itl <= 250us"),
        ("goodput >= 99%", "goodput.share", 0.99, "goodput >= 99%"),
        ("served >= 0.999", "served.share", 0.999, "served >= 0.999"),
        ("backlog <= 2%", "backlog.share", 0.02, "backlog <= 2%"),
        ("chat: p95 e2e <= 9.5s", "class.chat.latency.e2e_s.p95", 9.5, "chat: p95 e2e <= 9.5s"),
        ("a:b: goodput >= 90%", "class.a:b.goodput.share", 0.9, "a:b: goodput >= 90%"),
    ],
)
def test_text_there_and_back(text: str, figure: str, limit: float, name: str) -> None:
    objective = parse_objective(text)
    assert objective.figure == figure
    assert objective.limit == pytest.approx(limit, rel=1e-15)
    assert objective.name == name
    assert parse_objective(name) == objective


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("fast", "is no objective; expected one like"),
        ("p99 ttft 1s", "is no objective"),
        ("p99 tftt <= 1s", "unknown figure 'tftt'; did you mean ttft?"),
        ("ttft <= 1s", "ttft has no statistic; expected one of mean, p50"),
        ("p98 ttft <= 1s", "ttft has 'p98'; expected one of mean, p50"),
        ("p99 goodput >= 99%", "goodput has no 'p99'; expected goodput alone"),
        ("p99 ttft >= 1s", "expected ttft <= a limit"),
        ("goodput <= 99%", "expected goodput >= a limit"),
        ("backlog >= 2%", "expected backlog <= a limit"),
        ("p99 ttft <= 1", "limit 1; expected a unit of s, ms, us or min"),
        ("p99 ttft <= 5%", "limit 5%; expected a unit"),
        ("goodput >= 1s", "limit 1s; expected a share such as 99%"),
        ("goodput >= 99", "limit 99; expected a share above 0 % and at most 100 %"),
        ("p99 ttft <= 0s", "limit 0s; expected a time above 0"),
        (": p99 ttft <= 1s", "names no class before the colon"),
        ("", "is no objective"),
    ],
)
def test_text_that_is_no_objective(text: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_objective(text)
    assert says in str(caught.value)
    assert str(caught.value).startswith(f"--objective {text!r}: ")
    assert "\n" not in str(caught.value)


def test_met_and_margin() -> None:
    latency = parse_objective("p99 ttft <= 2s")
    assert latency.met({latency.figure: 2.0})
    assert latency.margin({latency.figure: 2.0}) == 0
    assert latency.margin({latency.figure: 0.5}) == 0.75
    assert latency.margin({latency.figure: 3.0}) == -0.5
    assert not latency.met({latency.figure: 2.0000001})
    assert not latency.met({})
    assert latency.margin({}) == -inf
    share = parse_objective("goodput >= 98%")
    assert share.met({"goodput.share": 0.98})
    assert share.margin({"goodput.share": 0.99}) == pytest.approx(0.5)
    assert share.margin({"goodput.share": 0.96}) == pytest.approx(-1.0)
    every = parse_objective("served >= 100%")
    assert every.margin({"served.share": 1.0}) == 0
    assert every.margin({"served.share": 0.75}) == -0.25
    backlog = parse_objective("backlog <= 4%")
    assert backlog.margin({"backlog.share": 0.01}) == pytest.approx(0.75)
    assert backlog.met({"backlog.share": 0.04})
    both = {latency.figure: 1.0, "goodput.share": 0.9}
    assert not met([latency, share], both)
    assert least_margin([latency, share], both) == share.margin(both)


def test_who_is_not_served_is_not_forgotten() -> None:
    objective = parse_objective("p99 ttft <= 2s")
    assert objective.met({objective.figure: 1.0, "served.share": 1.0})
    assert not objective.met({objective.figure: 1.0, "served.share": 0.5})
    counted = {f"counted.{objective.figure}": 1.5, objective.figure: 1.0, "served.share": 0.995}
    assert objective.value(counted) == 1.5
    for lost in ("rejected", "timed_out", "unfinished"):
        assert not objective.met({objective.figure: 1.0, f"requests.{lost}": 1})
    assert objective.met({objective.figure: 1.0, "requests.rejected": 0})


def test_several_objectives_say_each_thing_once() -> None:
    one, other = parse_objectives(["p99 ttft <= 1s", "chat: p99 ttft <= 2s"])
    assert isinstance(one, Objective)
    assert (one.slo_class, other.slo_class) == (None, "chat")
    with pytest.raises(ConfigError, match="p99 ttft is limited already, by 'p99 ttft <= 1s'"):
        parse_objectives(["p99 ttft <= 1s", "p99 ttft <= 500ms"])
    with pytest.raises(ConfigError, match="--objective: is missing"):
        parse_objectives([])
