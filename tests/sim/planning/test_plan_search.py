"""The search finds what brute force finds in a table of verdicts, and asks for little."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf, log2

from hypothesis import given
from hypothesis import strategies as st

from calibration.profiles import load_profile
from engine.config import SchedulerSettings
from sim.planning.candidates import Candidate, Configuration
from sim.planning.growth import fewest
from sim.planning.search import Known, at_price, cheapest, order_of
from sim.scenario import Scenario

SCENARIO = Scenario()
PROFILE = load_profile(SCENARIO.profile)
MOST = 24


@dataclass
class Table:
    """Configurations that meet from some number of replicas on, and hold from another on."""

    prices: Sequence[float]
    counts: Sequence[tuple[int, ...]]
    meets_from: Sequence[int]
    holds_from: Sequence[int]
    asked: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])

    @property
    def known(self) -> list[Known]:
        """Nothing is known."""
        return [
            Known.of(
                Configuration(
                    place=place,
                    settings={},
                    label=str(place),
                    scenario=SCENARIO,
                    profile=PROFILE,
                    scheduler=SchedulerSettings(),
                    kv_blocks=1,
                    usd_per_replica_hour=price,
                    replicas=counts,
                )
            )
            for place, (price, counts) in enumerate(zip(self.prices, self.counts, strict=True))
        ]

    def meets(self, candidate: Candidate, likely: Sequence[Candidate] = ()) -> bool:
        """What a replay would say."""
        assert candidate not in likely
        self.asked.append(candidate.identity)
        return candidate.replicas >= self.meets_from[candidate.configuration.place]

    def holds(self, candidate: Candidate) -> bool:
        """What redrawn traffic would say; asked only of what meets."""
        assert candidate.replicas >= self.meets_from[candidate.configuration.place]
        return candidate.replicas >= self.holds_from[candidate.configuration.place]

    def best_usd(self, from_: Sequence[int]) -> float:
        """The least price of all that meets."""
        return min(
            (
                candidate.usd_per_hour
                for one in self.known
                for candidate in one.candidates
                if candidate.replicas >= from_[one.configuration.place]
            ),
            default=inf,
        )


@st.composite
def tables(draw: st.DrawFn) -> Table:
    """Prices that often tie, ranges with gaps, thresholds in and out of reach."""
    count = draw(st.integers(1, 7))
    some = st.lists(st.integers(1, MOST), min_size=1, max_size=MOST, unique=True)
    return Table(
        prices=[draw(st.sampled_from([0.5, 1.0, 1.3, 2.0, 3.9])) for _ in range(count)],
        counts=[tuple(sorted(draw(some))) for _ in range(count)],
        meets_from=(meets := [draw(st.integers(1, MOST + 6)) for _ in range(count)]),
        holds_from=[one + draw(st.integers(0, 6)) for one in meets],
    )


@given(tables())
def test_the_cheapest_that_meets_is_found(table: Table) -> None:
    known = table.known
    found = cheapest(known, table.meets)
    least = table.best_usd(table.meets_from)
    assert (found[1].usd_per_hour if found else inf) == least
    assert len(table.asked) == len(set(table.asked))
    for one in known:
        assert all(c.replicas < table.meets_from[one.configuration.place]
                   for c in one.candidates[: one.low])  # fmt: skip
        if one.high >= 0:
            place = one.configuration.place
            assert one.candidates[one.high].replicas >= table.meets_from[place]
    if found is not None:
        same = {one.candidates[at].identity for one, at in at_price(known, least)}
        assert same >= {
            candidate.identity
            for one in known
            for candidate in one.candidates
            if candidate.usd_per_hour == least
            and candidate.replicas >= table.meets_from[one.configuration.place]
        }


@given(tables())
def test_the_cheapest_that_holds_is_found(table: Table) -> None:
    found = cheapest(table.known, table.meets, table.holds)
    assert (found[1].usd_per_hour if found else inf) == table.best_usd(table.holds_from)


@given(tables(), st.floats(0.4, 60))
def test_only_what_is_cheaper_than_a_price_is_looked_for(table: Table, under: float) -> None:
    found = cheapest(table.known, table.meets, under_usd=under)
    best = table.best_usd(table.meets_from)
    assert (found[1].usd_per_hour if found else inf) == (best if best < under else inf)


@given(tables())
def test_a_configuration_that_cannot_win_is_asked_once(table: Table) -> None:
    """One replay each, and a bisection for each that betters what was known."""
    cheapest(table.known, table.meets)
    steps = 2 * log2(MOST) + 3
    asked = [place for place, _ in table.asked]
    better = sum(asked.count(place) > 1 for place in set(asked))
    assert len(asked) <= len(table.prices) + steps * better


def test_a_bound_spares_replays() -> None:
    table = Table([1.0, 1.0], [tuple(range(1, 9))] * 2, [6, 6], [6, 6])
    first, second = table.known
    known = [Known.of(first.configuration, 5), Known.of(second.configuration, None)]
    found = cheapest(known, table.meets)
    assert found is not None and found[1].replicas == 6
    assert all(place == 0 and replicas >= 5 for place, replicas in table.asked)


def test_where_prefixes_are_shared_the_fewest_replicas_are_asked_too() -> None:
    """More replicas hurt here: two meet, three and more miss."""
    table = Table([1.0], [(2, 3, 4, 5)], [1], [1])

    def meets(candidate: Candidate, likely: Sequence[Candidate] = ()) -> bool:
        return candidate.replicas == 2

    (plain,) = table.known
    assert cheapest([plain], meets) is None
    (doubtful,) = table.known
    doubtful.doubtful = True
    found = cheapest([doubtful], meets)
    assert found is not None and found[1].replicas == 2
    assert doubtful.contradictions


def test_the_order_of_what_meets() -> None:
    one = Table([1.0, 0.5], [(2, 4), (4,)], [1, 1], [1, 1]).known
    (two, four), (cheap,) = one[0].candidates, one[1].candidates
    assert order_of(two, 0.1) < order_of(four, 0.9)  # price first
    assert order_of(cheap, 0.2) < order_of(two, 0.1)  # then margin
    assert order_of(two, 0.1) < order_of(cheap, 0.1)  # then GPUs


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 40), st.integers(0, 60))
def test_fewest_replicas_from_any_start(threshold: int, start: int, least: int, more: int) -> None:
    most = max(start, least) + more
    start = max(start, least)
    asked: list[int] = []

    def meets(count: int) -> bool:
        assert least <= count <= most
        asked.append(count)
        return count >= threshold

    expected = max(threshold, least) if threshold <= most else None
    assert fewest(meets, start, least, most) == expected
