"""Who is better: every combination against the baseline, and pairs along a curve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from sim.comparing import metrics as named
from sim.comparing.grid import Variant
from sim.comparing.pairing import SAME, Difference, Scale, Verdict, holm, paired, verdict
from sim.uncertainty import Figures


@dataclass(frozen=True, slots=True)
class Entry:
    """A combination of settings, at one value of the curve, and what came of it."""

    variant: Variant
    itself: Figures | None
    """The figures of the run itself, replication 0; None if it failed."""
    replications: Sequence[Figures]
    """Of replications 1, 2, ...; empty if only the run itself was asked for, or one failed."""
    error: str = ""
    """Why it failed, empty if it did not."""

    def values(self, metric: str) -> list[float] | None:
        """A figure of each replication, or of the run itself; None if one of them lacks it."""
        if self.itself is None or self.error:
            return None
        values = [one.get(metric) for one in self.replications or (self.itself,)]
        known = [value for value in values if value is not None]
        return known if len(known) == len(values) else None


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of one entry against the baseline's at the same value of the curve."""

    entry: Entry
    metric: str
    difference: Difference
    adjusted: float | None
    """Holm's adjusted probability; None for a single run."""
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Flip:
    """Two settings whose order by a figure changes along the curve."""

    metric: str
    better_below: str
    """Label of the setting that is better, or lower, at `below` and before."""
    better_above: str
    """Label of the setting that is so at `above`."""
    below: Any
    above: Any


def judged(
    entries: Sequence[Entry], scales: Mapping[str, Scale], base: str, level: float
) -> list[Row]:
    """Every entry against the baseline; verdicts hold for all of them at once."""
    there = {entry.variant.at: entry for entry in entries if entry.variant.label == base}
    found: list[tuple[Entry, str, Difference]] = []
    for entry in entries:
        if entry.variant.label == base:
            continue
        for metric, scale in scales.items():
            difference = _difference(entry, there[entry.variant.at], metric, level, scale)
            if difference is not None:
                found.append((entry, metric, difference))
    adjusted = _adjusted([difference for _, _, difference in found])
    return [
        Row(entry, metric, one, p, verdict(one.difference, p, level, named.good(metric)))
        for (entry, metric, one), p in zip(found, adjusted, strict=True)
    ]


def flips(entries: Sequence[Entry], scales: Mapping[str, Scale], level: float) -> list[Flip]:
    """Where two settings change places, each time distinguishably, all tests taken together."""
    by_label: dict[str, list[Entry]] = {}
    for entry in entries:
        by_label.setdefault(entry.variant.label, []).append(entry)
    found: list[tuple[str, str, str, Any, Difference]] = []
    for metric, scale in scales.items():
        for one, other in combinations(by_label, 2):
            for here, there in zip(by_label[one], by_label[other], strict=True):
                difference = _difference(here, there, metric, level, scale)
                if difference is not None and difference.p is not None:
                    found.append((metric, one, other, here.variant.at, difference))
    adjusted = _adjusted([one[-1] for one in found])
    found_flips: list[Flip] = []
    last: dict[tuple[str, str, str], tuple[Any, bool]] = {}
    for (metric, one, other, at, difference), p in zip(found, adjusted, strict=True):
        said = verdict(difference.difference, p, level, named.good(metric) or "lower")
        if said == SAME or not said:
            continue
        pair, better = (metric, one, other), said == "better"
        if pair in last and last[pair][1] != better:
            before = last[pair][0]
            found_flips.append(
                Flip(metric, *((other, one) if better else (one, other)), before, at)
            )
        last[pair] = (at, better)
    return found_flips


def scale_of(entries: Sequence[Entry], metric: str) -> Scale:
    """Latencies are compared by their ratios, as long as none is 0."""
    values = [value for entry in entries for value in entry.values(metric) or ()]
    return "ratio" if named.multiplies(metric) and min(values, default=0.0) > 0 else "difference"


def _difference(
    here: Entry, there: Entry, metric: str, level: float, scale: Scale
) -> Difference | None:
    ours, theirs = here.values(metric), there.values(metric)
    return None if ours is None or theirs is None else paired(ours, theirs, level, scale)


def _adjusted(differences: Sequence[Difference]) -> list[float | None]:
    ps = [one.p for one in differences if one.p is not None]
    return list(holm(ps)) if ps and len(ps) == len(differences) else [None] * len(differences)
