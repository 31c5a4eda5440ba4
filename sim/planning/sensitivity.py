"""What the answer depends on: each assumption varied alone, the others as stated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from sim.planning.candidates import CENT, Candidate
from sim.planning.evaluating import AS_IT_IS, Change, Evaluation, Judge
from sim.planning.growth import MOST_REPLICAS, fewest
from sim.planning.objectives import Objective
from sim.planning.space import SensitivitySettings

REACH: Final = 8
"""Times the winner's replicas, up to which more are looked for."""


@dataclass(frozen=True)
class Swing:
    """One assumption at one value."""

    factor: str
    """`price`, `rate`, `lengths`, `prefix reuse` or `step times`."""
    change: float
    """Share by which it is changed; -1 where it is switched off."""
    label: str
    """For a reader: `rate +20 %`."""
    replicas: int | None
    """The fewest of the winner's configuration that meet every objective; None: none do."""
    usd_per_hour: float | None
    """What they cost, at the changed price if that is what is changed."""
    margin: float | None
    """The winner's least margin, infinitely below 0 where a figure is lacking; None: not asked."""
    binding: str
    """The objective that it is of."""
    instead: str = ""
    """Another candidate that is cheaper then, if one is known."""


@dataclass(frozen=True)
class Tornado:
    """All swings, and what they are measured from."""

    replicas: int
    """The fewest of the winner's configuration on the trace as it is."""
    usd_per_hour: float
    margin: float
    """The winner's least, on the trace as it is."""
    swings: Sequence[Swing]
    """The most weighty assumption first; of each the lower value first."""


Does = Callable[[Candidate], Evaluation]
"""What a candidate does under some assumption."""


def tornado(
    judge: Judge,
    full: Judge,
    winner: Evaluation,
    settings: SensitivitySettings,
    *,
    slowed: Callable[[float], Judge],
    shares: bool,
    rivals: Sequence[Candidate],
) -> Tornado:
    """Vary each assumption alone.

    Replicas are those of the winner's configuration that meet every objective on the trace as it
    is (without redrawn traffic), so that all swings are seen against the same.

    Args:
        judge: ends runs that are certain to miss.
        full: runs to the end, for margins.
        winner: what the winner does.
        settings: by how much.
        slowed: runs to the end, with all step times multiplied.
        shares: requests of the trace share content, so that a prefix cache can matter.
        rivals: the best known candidates on other GPUs.
    """
    candidate = winner.candidate
    configuration = candidate.configuration
    most = min(MOST_REPLICAS, REACH * candidate.replicas)

    def needed(does: Does) -> int | None:
        def meets(count: int) -> bool:
            return does(configuration.with_replicas(count)).met

        return fewest(meets, candidate.replicas, 1, most)

    nominal = needed(_altered(judge, AS_IT_IS))
    assert nominal is not None  # the winner meets
    nominal_usd = configuration.with_replicas(nominal).usd_per_hour
    swings: list[Swing] = []
    for share in _ends(settings.price):
        usd = round(nominal_usd * (1 + share), CENT)
        cheaper = [one for one in rivals if one.usd_per_hour < usd]
        best = min(cheaper, key=lambda one: one.usd_per_hour, default=None)
        label = f"{configuration.gpu} price {_percent(share)}"
        instead = "" if best is None else best.label
        usd = usd if best is None else best.usd_per_hour
        swings.append(Swing("price", share, label, nominal, usd, winner.margin, "", instead))

    def vary(factor: str, share: float, label: str, does: Does, does_fully: Does) -> None:
        replicas = needed(does)
        found = does(candidate)
        found = found if found.met else does_fully(candidate)
        usd = None if replicas is None else configuration.with_replicas(replicas).usd_per_hour
        binds = tightest(judge.objectives, found)
        swings.append(Swing(factor, share, label, replicas, usd, found.margin, binds))

    changes = _changes(settings, shares and configuration.scenario.cache.prefix_caching)
    judge.altered_all(candidate, [change for *_, change in changes])
    for factor, share, label, change in changes:
        vary(factor, share, label, _altered(judge, change), _altered(full, change))
    for share in _ends(settings.step_times):
        slow = slowed(1 + share).evaluate
        vary("step times", share, f"step times {_percent(share)}", slow, slow)
    return Tornado(nominal, nominal_usd, winner.margin, _by_weight(swings, nominal_usd))


def _changes(
    settings: SensitivitySettings, prefix_cache: bool
) -> list[tuple[str, float, str, Change]]:
    """What is altered of the traffic or the cache: factor, share, label and how."""
    made: list[tuple[str, float, str, Change]] = []
    for share in _ends(settings.rate):
        change = Change(rate=round(1 + share, 6))
        made.append(("rate", share, f"rate {_percent(share)}", change))
    for share in _ends(settings.lengths):
        change = Change(lengths=round(1 + share, 6))
        made.append(("lengths", share, f"lengths {_percent(share)}", change))
    if settings.prefix_reuse and prefix_cache:
        made.append(("prefix reuse", -1.0, "no prefix reuse", Change(prefix_caching=False)))
    return made


def _altered(judge: Judge, change: Change) -> Does:
    return lambda candidate: judge.altered(candidate, change)


def tightest(objectives: Sequence[Objective], found: Evaluation) -> str:
    """Name of the objective with the least margin."""
    return min(objectives, key=lambda one: one.margin(found.figures)).name


def _ends(share: float) -> tuple[float, ...]:
    return (-share, share) if share else ()


def _percent(share: float) -> str:
    return f"{'+' if share > 0 else '−'}{abs(100 * share):g} %"  # noqa: RUF001 a minus, as in print


def _by_weight(swings: Sequence[Swing], usd: float) -> list[Swing]:
    """The assumption that moves the cost most first; of equal cost the margin's move decides."""

    def weight(factor: str) -> tuple[float, float]:
        mine = [one for one in swings if one.factor == factor]
        costs = [abs((one.usd_per_hour or 1e9 * usd) - usd) for one in mine]
        margins = [one.margin for one in mine if one.margin is not None]
        return max(costs), max(margins) - min(margins) if margins else 0.0

    order = sorted(dict.fromkeys(one.factor for one in swings), key=weight, reverse=True)
    return sorted(swings, key=lambda one: (order.index(one.factor), one.change))
