"""The numbers in which a simulation and the real run are compared, and how sure they are.

All are computed alike on both sides, from exact values: percentiles with linear interpolation
(numpy's default). An error is simulated / real - 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from sim.intervals import prediction_interval
from sim.validation.served import Floats, Origin, Served

STATISTICS: Final = {"mean": None, "p50": 50.0, "p90": 90.0, "p95": 95.0, "p99": 99.0}
"""Statistics of a latency; percentiles by their level, in percent."""

RATES: Final = ("throughput.requests_per_s", "throughput.output_tokens_per_s")

BOOTSTRAPS: Final = 1000
LEVEL: Final = 0.95

ADMITTED_AT_ONCE_S: Final = 1e-3

Figures = dict[str, float]
"""By dotted name: `ttft.mean`, ..., and RATES."""

Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Comparison:
    """One figure on both sides."""

    simulated: float
    real: float
    jitter: Interval | None = None
    """The error, by how much it moves when arrivals do."""
    bootstrap: Interval | None = None
    """The error, by which requests happened to come."""

    @property
    def error(self) -> float | None:
        """Simulated / real - 1; None where the real figure is 0."""
        return relative(self.simulated, self.real)

    @property
    def jitter_share(self) -> float | None:
        """Half the width of `jitter`: `moves by +-1.8 %`."""
        return None if self.jitter is None else (self.jitter[1] - self.jitter[0]) / 2

    def as_json(self) -> dict[str, Any]:
        """All of it, as validation.json has it."""
        return {
            "simulated": self.simulated,
            "real": self.real,
            "error": self.error,
            "jitter": None if self.jitter is None else list(self.jitter),
            "bootstrap": None if self.bootstrap is None else list(self.bootstrap),
        }


def relative(simulated: float, real: float) -> float | None:
    """Simulated / real - 1; None where real is 0."""
    return simulated / real - 1 if real else None


def figures(served: Served, origin: Origin) -> Figures:
    """Every figure of one side."""
    found = {
        f"{name}.{statistic}": value
        for name, values in served.latencies(origin).items()
        for statistic, value in statistics(values).items()
    }
    return found | {f"throughput.{name}": rate for name, rate in served.throughput().items()}


def statistics(values: Floats) -> Figures:
    """STATISTICS of a latency, without the requests that do not have it; empty if none has."""
    known = values[~np.isnan(values)]
    if not len(known):
        return {}
    levels = [level for level in STATISTICS.values() if level is not None]
    found = [float(known.mean()), *np.percentile(known, levels).tolist()]
    return dict(zip(STATISTICS, found, strict=True))


def compared(
    simulated: Figures,
    real: Figures,
    jittered: Sequence[Figures] = (),
    bootstrapped: Mapping[str, Interval] | None = None,
) -> dict[str, Comparison]:
    """The figures that both sides have.

    Args:
        simulated: of the simulation.
        real: of the real run.
        jittered: of simulations with arrivals a little off, at least two or none.
        bootstrapped: intervals of errors.
    """
    return {
        name: Comparison(
            value,
            real[name],
            _moved([one[name] for one in jittered if name in one], real[name]),
            (bootstrapped or {}).get(name),
        )
        for name, value in simulated.items()
        if name in real
    }


def _moved(values: Sequence[float], real: float) -> Interval | None:
    if len(values) < 2 or not real:
        return None
    low, high = prediction_interval(values, LEVEL)
    return low / real - 1, high / real - 1


def bootstrap(
    simulated: Served, real: Served, origin: Origin, random: np.random.Generator
) -> dict[str, Interval]:
    """Intervals of the errors over BOOTSTRAPS resamples of the requests, the same on both sides.

    A resample has no span of time, so rates have no interval. Requests of one run depend on each
    other through the queue, so the intervals are rather too narrow.
    """
    sides = simulated.latencies(origin), real.latencies(origin)
    errors: dict[str, list[float]] = {}
    for _ in range(BOOTSTRAPS):
        index = random.integers(0, len(real), len(real))
        for name in sides[1]:
            one, other = (statistics(side[name][index]) for side in sides)
            for statistic in one.keys() & other.keys():
                error = relative(one[statistic], other[statistic])
                if error is not None:
                    errors.setdefault(f"{name}.{statistic}", []).append(error)
    tail = 50 * (1 - LEVEL)
    return {
        name: tuple(np.percentile(values, [tail, 100 - tail]).tolist())
        for name, values in errors.items()
    }


def arrived_below(real: Served) -> NDArray[np.bool_] | None:
    """Which requests the real engine admitted at once, [requests]; None where it did not tell.

    A request arrived *below* saturation if the first call of the scheduler that saw it admitted
    it: it waited less than ADMITTED_AT_ONCE_S from being queued to being admitted. All others
    arrived *near* saturation: pool, batch or the step's token budget were full.
    """
    waited_s = real.latencies("arrival").get("queue")
    return None if waited_s is None else waited_s < ADMITTED_AT_ONCE_S


def by_request(simulated: Served, real: Served, origin: Origin) -> dict[str, dict[str, float]]:
    """How alike single requests are: Pearson correlation, and quantiles of the absolute error."""
    found: dict[str, dict[str, float]] = {}
    there = real.latencies(origin)
    for name, ours in simulated.latencies(origin).items():
        theirs = there.get(name)
        if theirs is None:
            continue
        known = ~np.isnan(ours) & ~np.isnan(theirs)
        ours, theirs = ours[known], theirs[known]
        positive = theirs > 0
        if not positive.any():
            continue
        errors = np.abs(ours[positive] / theirs[positive] - 1)
        found[name] = {
            "median_absolute_error": float(np.median(errors)),
            "p90_absolute_error": float(np.percentile(errors, 90)),
        }
        if len(ours) > 1 and ours.std() > 0 and theirs.std() > 0:
            found[name]["correlation"] = float(np.corrcoef(ours, theirs)[0, 1])
    return found
