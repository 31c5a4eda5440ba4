"""How far the figures of a run may be off: replications with other draws of what was measured.

A profile's coefficients are known within intervals, and steps scatter about what they predict. Each
replication draws both and serves the same traffic again; the spread of a figure over replications
says between what bounds the true one lies. A wrong form of the cost model and traffic other than
the trace's are not in it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, exp, floor, inf, log
from statistics import NormalDist
from typing import Any, Final

import numpy as np

from calibration.costs import CostModel
from calibration.noise import NoisyCost
from calibration.profiles import Profile
from calibration.slower import SLOWER
from sim.intervals import prediction_interval
from sim.scenario import Scenario
from traces.errors import ConfigError

Figures = dict[str, float]
"""A summary's numbers by their dotted names, such as latency.ttft_s.p99."""

GIVEN: Final = frozenset(
    {
        "replicas",
        "gpus",
        "goodput.slo",
        "kv.blocks_per_replica",
        "kv.block_tokens",
        "segments",
        "economics.given",
        "economics.usd_per_hour",
        "uncertainty",
    }
)
"""What of a summary is set, or says how the run was computed: numbers without an interval."""

SHARES: Final = frozenset(
    {
        "goodput.share",
        "cache.hit_rate",
        "kv.mean_occupancy",
        "kv.peak_occupancy",
        "utilization",
        "prefill_share",
    }
)
"""Figures that are at most 1."""

COEFFICIENTS, NOISE = range(2)
"""What a generator is for: part of its seed."""

Z_95: Final = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True)
class Draw:
    """What one run draws, traffic and routing apart.

    It follows from the scenario's seed and the replication's number alone: replication i of two
    scenarios with one seed and profile has the same coefficients, and replica by replica the same
    stream of noise, whatever their policies. Their figures differ by the policies, not by luck
    (common random numbers).
    """

    seed: int
    replication: int = 0
    """0 is the run itself; its replications count from 1."""
    coefficients: bool = False
    """Draw the profile's coefficients."""
    cost_share: float | None = None
    """Draw one factor for all times, with 95 % probability between 1 / (1 + this) and 1 + this."""
    noise: bool = False
    """Draw each step's deviation from what the cost model says."""

    def profile(self, fitted: Profile) -> Profile:
        """The profile to go by; raises ConfigError if it has no intervals to draw from."""
        return fitted.drawn(self._random(COEFFICIENTS)) if self.coefficients else fitted

    def cost(self, cost: CostModel) -> CostModel:
        """The cost model to go by, before noise."""
        if self.cost_share is None:
            return cost
        spread = log(1 + self.cost_share) / Z_95
        factor = exp(spread * self._random(COEFFICIENTS).standard_normal())
        return SLOWER[type(cost)](cost, factor)

    def noisy(self, cost: CostModel, profile: Profile, replica: int) -> CostModel:
        """One replica's cost model: with a stream of noise of its own, if noise is drawn."""
        if not self.noise:
            return cost
        assert profile.noise is not None
        return NoisyCost(cost, profile.noise, self._random(NOISE, replica))

    @property
    def in_words(self) -> list[str]:
        """What is drawn, for the reader of an interval."""
        words = ["step noise"] if self.noise else []
        if self.cost_share is not None:
            words.insert(0, f"all step times, assumed known within {100 * self.cost_share:g} %")
        if self.coefficients:
            words.insert(0, "fitted coefficients")
        return words

    def _random(self, use: int, replica: int = 0) -> np.random.Generator:
        key = (self.replication, use, replica)
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=key))


def the_run_itself(scenario: Scenario, profile: Profile) -> Draw:
    """What the run draws whose figures are reported: noise if the scenario says so, else nothing.

    Raises:
        ConfigError: noise is asked for and the profile has none.
    """
    if scenario.noise and profile.noise is None:
        raise ConfigError(
            f"noise: profile {profile.name} has no measured scatter of step times to draw from;"
            " expected a calibrated profile, or noise: false"
        )
    return Draw(scenario.seed, noise=scenario.noise)


def replications(
    scenario: Scenario, profile: Profile, cost: CostModel, *, profiled: bool
) -> list[Draw]:
    """What each replication of a scenario draws; empty if no uncertainty is asked for.

    Args:
        scenario: all settings.
        profile: the scenario's.
        cost: the run's cost model.
        profiled: it is the profile's own.

    Raises:
        ConfigError: there are no intervals to draw from.
    """
    settings = scenario.uncertainty
    if settings.replications is None:
        return []
    assumed = settings.cost_share is not None
    if assumed and type(cost) not in SLOWER:
        known = ", ".join(kind.__name__ for kind in SLOWER)
        raise ConfigError(
            f"uncertainty.cost_share: step times of a {type(cost).__name__} cannot be multiplied;"
            f" expected one of {known}"
        )
    if not assumed and not profiled:
        raise ConfigError(
            "uncertainty: a cost model that is passed in has no intervals; expected a calibrated"
            " profile's, or uncertainty.cost_share"
        )
    draws = [
        Draw(
            scenario.seed,
            number,
            coefficients=not assumed,
            cost_share=settings.cost_share,
            noise=settings.noise and profile.noise is not None,
        )
        for number in range(1, settings.replications + 1)
    ]
    try:
        draws[0].profile(profile)  # before a long run rather than after it
    except ConfigError as error:
        raise ConfigError(
            f"uncertainty: {error}; or state how well step times are known: uncertainty.cost_share"
        ) from error
    return draws


def simulate_all(
    simulate: Callable[[Draw], Figures],
    draws: Sequence[Draw],
    jobs: int = 1,
    progress: Callable[[int], None] | None = None,
) -> list[Figures]:
    """The figures of each replication, in order.

    Args:
        simulate: figures of one; with several jobs it is sent to other processes.
        draws: of the replications.
        jobs: processes to share them; their number changes nothing but the time.
        progress: told after each how many are done.
    """
    replicated: list[Figures] = []
    for found in _simulated(simulate, draws, jobs):
        replicated.append(found)
        if progress is not None:
            progress(len(replicated))
    return replicated


def uncertainty(
    summary: Mapping[str, Any], draws: Sequence[Draw], replicated: Sequence[Figures], level: float
) -> dict[str, Any]:
    """An interval for each figure of a run, as its summary's `uncertainty` has it.

    Args:
        summary: of the run itself.
        draws: of its replications, at least two.
        replicated: their figures.
        level: probability that an interval holds the true figure.
    """
    return {
        "replications": len(draws),
        "level": level,
        "drawn": draws[0].in_words,
        "intervals": {
            name: _interval(name, value, [found.get(name) for found in replicated], level)
            for name, value in figures(summary).items()
        },
    }


def figures(summary: Mapping[str, Any], above: str = "") -> Figures:
    """Every number of a summary that a run finds out, by its dotted name."""
    found: Figures = {}
    for key, value in summary.items():
        name = f"{above}{key}"
        if name in GIVEN or isinstance(value, bool):
            continue
        if isinstance(value, Mapping):
            found |= figures(value, f"{name}.")
        elif isinstance(value, (int, float)):
            found[name] = value
    return found


def _interval(
    name: str, value: float, values: Sequence[float | None], level: float
) -> list[float] | None:
    """Bounds within what the figure can be; None if some replication does not have it."""
    known = [one for one in values if one is not None]
    if len(known) < len(values):
        return None
    low, high = prediction_interval(known, level)
    low, high = max(low, 0.0), min(high, 1.0 if name in SHARES else inf)
    return [floor(low), ceil(high)] if isinstance(value, int) else [low, high]


def _simulated(
    simulate: Callable[[Draw], Figures], draws: Iterable[Draw], jobs: int
) -> Iterator[Figures]:
    if jobs == 1:
        yield from map(simulate, draws)
        return
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        yield from pool.map(simulate, draws)
