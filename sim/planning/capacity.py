"""How many requests a second a configuration sustains under objectives, and how sure that is.

What is found is the rate at which the objectives are met in a given `share` (by default half) of
the hours like the one traced: a quantile of the rates up to which single replications meet all of
them. Replications draw traffic of the trace's kind and what else is uncertain, as for `kvcast
compare`; see sim.planning.bisecting for the search and sim.planning.sequential for its error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import floor, fsum, log, log1p
from pathlib import Path
from typing import Any, Final

from calibration.profiles import Profile, load_profile
from sim.fit import fitted
from sim.planning.binding import Binding, binding
from sim.planning.bisecting import Bisection, Found
from sim.planning.judged import Judged, missed
from sim.planning.kept import KeptTraffic, Traced
from sim.planning.misses import bounded
from sim.planning.objectives import (
    Objective,
    check_objectives,
    parse_objective,
    parse_objectives,
)
from sim.planning.rates import By, Rates, doubling_of, way
from sim.planning.sequential import ShareTest
from sim.scenario import Scenario, load_scenario, scenario_of
from sim.sweep.cells import AS_IT_IS, Cell, draw_of
from sim.sweep.outcomes import Failure, Outcome
from sim.sweep.store import Store
from sim.sweep.sweep import Sweep
from sim.sweep.traffic import Traffic, traffic_for
from sim.uncertainty import Figures
from traces.errors import ConfigError

CONFIDENCE: Final = 0.95
PRECISION: Final = 0.02
REPLICATIONS: Final = 30
SHARE: Final = 0.5

BACKLOG: Final = "backlog <= 2%"
"""What is asked for beside objectives of which none bounds how long requests wait: a run has an
end, and any queue would be served by then."""

CURVE: Final = (0.25, 0.5, 0.7, 0.85, 0.95, 1.0, 1.05, 1.15, 1.3, 1.6)
"""Rates at which the trace itself is simulated to the end, for the picture: times the capacity."""

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Trial:
    """One simulation of the search: a replication at a rate."""

    rate_per_s: float
    replication: int
    met: bool
    missed: Sequence[str]
    """Objectives known to be missed; of a run that was stopped, the one that stopped it."""
    stopped_s: float | None
    """Simulated time at which it was stopped, since the verdict was known; None: it was not."""
    diverged: bool
    """It was stopped because its queue grew, not because it was certain to miss."""
    figures: Mapping[str, float] = field(repr=False)


@dataclass(frozen=True)
class Decision:
    """What was found of one rate."""

    rate_per_s: float
    simulated: int
    """Replications that were simulated at it."""
    met: int
    """Replications known to meet the objectives at it: here, or at a higher rate."""
    missed: int
    """Known to miss one: here, or at a lower rate."""
    verdict: str
    """met, missed, or undecided: at the stated confidence, by all that is known at the end."""


@dataclass(frozen=True)
class Point:
    """The trace itself at a rate, to its end."""

    rate_per_s: float
    figures: Mapping[str, float] = field(repr=False)


@dataclass(frozen=True)
class Capacity:
    """The rate that a configuration sustains; docs/capacity.md has the definitions."""

    name: str
    scenario: Scenario = field(repr=False)
    """As it was asked about."""
    at_capacity: Scenario = field(repr=False)
    """The same at the rate that was found."""
    objectives: Sequence[Objective]
    share: float
    """Of the hours like this one in which the objectives are met at this rate."""
    confidence: float | None
    """That the true rate is in the interval; None where nothing is drawn, so nothing is left to
    luck."""
    precision: float
    by: By
    drawn: Sequence[str]
    """What replications draw, in words."""
    rate_per_s: float
    low_per_s: float
    """Up to here the objectives are met, at the stated confidence."""
    high_per_s: float | None
    """From here on they are missed; None: not decided at any rate."""
    decided: bool
    """Whether the interval is as narrow as was asked for."""
    own_rate_per_s: float
    """Of the trace as it is."""
    replications: int
    replays: int
    """Simulations that the answer rests on, kept ones included."""
    computed: int
    """Those that were run now."""
    trials: Sequence[Trial] = field(repr=False)
    decisions: Sequence[Decision] = field(repr=False)
    """By rate."""
    curve: Sequence[Point] = field(repr=False)
    binding: Binding | None
    replicas: int
    gpus: int
    requests_per_s_per_gpu: float
    output_tokens_per_s_per_gpu: float
    prompt_tokens_per_s_per_gpu: float
    warnings: Sequence[str]

    @property
    def stopped(self) -> int:
        """Simulations that were not run to their end."""
        return sum(trial.stopped_s is not None for trial in self.trials)


def capacity(
    scenario: Scenario | Mapping[str, Any] | str | Path,
    objectives: Sequence[Objective | str],
    *,
    share: float = SHARE,
    confidence: float = CONFIDENCE,
    precision: float = PRECISION,
    replications: int = REPLICATIONS,
    traffic: str | None = None,
    blocks: int = 20,
    by: By = "time",
    jobs: int = 1,
    ray: str | None = None,
    store: Store | None = None,
    timeout_s: float | None = None,
    memory_bytes: int | None = None,
    explained: bool = True,
    progress: Progress | None = None,
) -> Capacity:
    """Find the highest rate at which a configuration meets all objectives.

    The same arguments give the same answer, whatever runs the simulations.

    Args:
        scenario: the configuration and its trace: a Scenario, its settings, or its file.
        objectives: what it has to keep; see sim.planning.objectives.
        share: of hours like the one traced in which all are to be met.
        confidence: that the interval holds the true rate.
        precision: wanted of the interval, 0.02: its ends are within 2 % of the rate.
        replications: simulated at most at any rate; 1: the trace itself alone, without confidence.
        traffic: what replications serve, a name in sim.sweep.traffic.METHODS; None: the trace made
            anew if it can be, else blocks of it.
        blocks: of the traffic of this name.
        by: how the rate is changed, a name in sim.planning.rates.WAYS.
        jobs: processes.
        ray: address of a Ray cluster; see sim.sweep.
        store: keeps figures from one call to the next.
        timeout_s: a simulation may take so long.
        memory_bytes: and so much memory.
        explained: look for what binds, and simulate the curve of figures by rate.
        progress: told now and then, in words, what is known.

    Raises:
        ConfigError, TraceError: settings, objectives or a trace that cannot be used; objectives
            that nothing meets, or that nothing misses.
    """
    scenario = _scenario(scenario)
    asked = _objectives(objectives)
    _check_numbers(share, confidence, precision, replications, by)
    profile = load_profile(scenario.profile)
    profile.require(model=scenario.model)
    fitted(scenario, profile)  # does it fit at all?
    traced = KeptTraffic().of(Cell(scenario))
    check_objectives(asked, scenario, traced.classes)
    if traced.rate_per_s is None:
        raise ConfigError(
            f"{scenario.trace.path}: all of its {len(traced.requests):,} requests arrive at once,"
            " so that it has no rate; expected arrivals at different times, or trace.rate_per_s"
        )
    warnings = [profile.warning] if profile.warning else []
    if not bounded(asked, scenario) and not scenario.cluster.closed_loop:
        asked = (*asked, parse_objective(BACKLOG))
        warnings.append(
            "no objective limits how long requests wait; a rate counts as sustained only if at most"
            " 2 % of all requests still wait when the last one arrives (backlog <= 2%)"
        )
    drawn_traffic, words = _drawn(scenario, profile, replications, traffic, blocks)
    test = ShareTest(share, (1 - confidence) / 2, replications) if words else None
    rates = Rates(scenario, doubling_of(precision), by)
    sweeping: dict[str, Any] = {
        "jobs": jobs,
        "ray": ray,
        "store": store,
        "timeout_s": timeout_s,
        "memory_bytes": memory_bytes,
    }
    search = _Search(rates, asked, drawn_traffic, progress)
    bisection = Bisection(
        meets=search.meets,
        test=test,
        doubling=rates.doubling,
        lowest=rates.lowest,
        highest=rates.highest,
        width=floor(log1p(precision) * rates.doubling / log(2)),
        first=1 if words else 0,
    )
    with Sweep(work=Judged(asked), **sweeping) as sweep:
        search.sweep = sweep
        found = bisection.run()
        computed = sweep.computed
    own, mean = traced.rate_per_s, search.mean_rate_per_s(traced.rate_per_s, drawn_traffic)
    if found.at >= rates.highest:
        raise ConfigError(_never_missed(rates, mean, traced, asked))
    with Sweep(work=Judged(asked, stop_early=False), **sweeping) as sweep:
        if found.low is None and found.high == rates.lowest:
            number = bisection.first
            raise ConfigError(_never_met(sweep, rates, mean, asked, number, drawn_traffic))
        # the trace itself may come a little faster than what was made like it
        here = found.at + round(log(mean / own) / log(2) * rates.doubling)
        steps = _curve_steps(rates, here) if explained else [here]
        curve = [
            Point(own * rates.factor(step), _figures(outcome))
            for step, outcome in zip(
                steps, sweep.run([Cell(rates.at(step)) for step in steps]), strict=True
            )
        ]
        computed += sweep.computed
    what_binds = None
    if explained:
        if progress is not None:
            progress("looking for what binds")
        number = bisection.first
        at = min(max(bisection.missed_from(number), rates.lowest), rates.highest)
        what_binds = binding(Cell(rates.at(at), number, drawn_traffic), asked)
    rate = mean * rates.factor(found.at)
    gpus = scenario.cluster.replicas * profile.tp
    throughput = _throughput(curve[steps.index(here)].figures)
    warnings += _non_monotone(curve, asked)
    return Capacity(
        name=_name(scenario),
        scenario=scenario,
        at_capacity=rates.at(here),
        objectives=asked,
        share=share,
        confidence=confidence if words else None,
        precision=precision,
        by=by,
        drawn=words,
        rate_per_s=rate,
        low_per_s=0.0 if found.low is None else mean * rates.factor(found.low),
        high_per_s=None if found.high is None else mean * rates.factor(found.high),
        decided=found.decided,
        own_rate_per_s=own,
        replications=found.replications,
        replays=len(search.trials) + len(curve),
        computed=computed,
        trials=search.shown(mean),
        decisions=search.decisions(bisection, found, mean),
        curve=curve if explained else (),
        binding=what_binds,
        replicas=scenario.cluster.replicas,
        gpus=gpus,
        requests_per_s_per_gpu=rate / gpus,
        output_tokens_per_s_per_gpu=rate * throughput["output_tokens"] / gpus,
        prompt_tokens_per_s_per_gpu=rate * throughput["prompt_tokens"] / gpus,
        warnings=warnings,
    )


class _Search:
    """Simulates replications at rates, and remembers what came of them."""

    def __init__(
        self,
        rates: Rates,
        objectives: Sequence[Objective],
        traffic: Traffic,
        progress: Progress | None,
    ) -> None:
        self.sweep: Sweep | None = None
        self.trials: list[tuple[int, Trial]] = []
        """With their steps of the grid; their rates are as if the trace's own were 1."""
        self._rates: Rates = rates
        self._objectives: Sequence[Objective] = objectives
        self._traffic: Traffic = traffic
        self._progress: Progress | None = progress

    def meets(self, step: int, numbers: Sequence[int]) -> list[bool]:
        """Which replications meet the objectives at a step of the grid."""
        assert self.sweep is not None
        scenario = self._rates.at(step)
        outcomes = self.sweep.run([Cell(scenario, number, self._traffic) for number in numbers])
        verdicts: list[bool] = []
        for number, outcome in zip(numbers, outcomes, strict=True):
            figures = _figures(outcome)
            short = [one.name for one in missed(self._objectives, figures)]
            trial = Trial(
                rate_per_s=self._rates.factor(step),
                replication=number,
                met=not short,
                missed=short,
                stopped_s=figures.get("stopped_s"),
                diverged="diverged" in figures,
                figures=figures,
            )
            self.trials.append((step, trial))
            verdicts.append(trial.met)
        if self._progress is not None:
            self._progress(self._known())
        return verdicts

    def mean_rate_per_s(self, own: float, traffic: Traffic) -> float:
        """The trace's own rate; where it is made anew, the mean of what was made."""
        if traffic.method != "reseeded":
            return own
        gaps: dict[int, float] = {}
        spans_s: dict[int, float] = {}
        for _, trial in self.trials:
            rate = trial.figures.get("offered.requests_per_s")
            if rate is not None:
                number = trial.replication
                gaps[number] = trial.figures["offered.requests"] - 1
                spans_s[number] = gaps[number] * trial.rate_per_s / rate
        return fsum(gaps.values()) / fsum(spans_s.values()) if gaps else own

    def shown(self, own: float) -> list[Trial]:
        """The trials in the order in which they were made."""
        return [
            Trial(
                own * trial.rate_per_s,
                trial.replication,
                trial.met,
                trial.missed,
                trial.stopped_s,
                trial.diverged,
                trial.figures,
            )
            for _, trial in self.trials
        ]

    def decisions(self, bisection: Bisection, found: Found, own: float) -> list[Decision]:
        """What is known of each rate, in ascending order."""
        decided: list[Decision] = []
        for step in sorted({step for step, _ in self.trials}):
            simulated = sum(at == step for at, _ in self.trials)
            met, short = bisection.counts(step, found.replications)
            verdict = "undecided"
            if found.low is not None and step <= found.low:
                verdict = "met"
            elif found.high is not None and step >= found.high:
                verdict = "missed"
            rate = own * self._rates.factor(step)
            decided.append(Decision(rate, simulated, met, short, verdict))
        return decided

    def _known(self) -> str:
        met = [step for step, trial in self.trials if trial.met]
        short = [step for step, trial in self.trials if not trial.met]
        words = f"{len(self.trials)} simulations"
        if met:
            words += f", met at {self._rates.factor(max(met)):.3g} times the trace's rate"
        if short:
            words += f", missed at {self._rates.factor(min(short)):.3g} times"
        return words


def _throughput(figures: Mapping[str, float]) -> dict[str, float]:
    """Tokens of a request that is served."""
    served = figures["throughput.requests_per_s"]
    return {
        what: figures[f"throughput.{what}_per_s"] / served if served else 0.0
        for what in ("output_tokens", "prompt_tokens")
    }


def _figures(outcome: Outcome) -> Figures:
    if isinstance(outcome, Failure):
        raise ConfigError(f"a simulation failed: {outcome}")
    return outcome


def _scenario(scenario: Scenario | Mapping[str, Any] | str | Path) -> Scenario:
    if isinstance(scenario, Scenario):
        return scenario
    if isinstance(scenario, (str, Path)):
        return load_scenario(scenario)
    return scenario_of(scenario)


def _objectives(asked: Sequence[Objective | str]) -> tuple[Objective, ...]:
    return parse_objectives([one if isinstance(one, str) else one.name for one in asked])


def _check_numbers(
    share: float, confidence: float, precision: float, replications: int, by: str
) -> None:
    if not 0 < share < 1:
        raise ConfigError(f"--share: must be above 0 and below 1, got {share:g}")
    if not 0.5 <= confidence < 1:
        raise ConfigError(f"--confidence: must be from 0.5 to below 1, got {confidence:g}")
    if not 0.001 <= precision <= 0.5:
        raise ConfigError(f"--precision: must be from 0.001 to 0.5, got {precision:g}")
    if replications < 1:
        raise ConfigError(f"--replications: must be at least 1, got {replications}")
    way(by)


def _drawn(
    scenario: Scenario, profile: Profile, replications: int, method: str | None, blocks: int
) -> tuple[Traffic, list[str]]:
    """How replications draw their traffic, and in words what they draw; nothing: there is one."""
    if replications == 1:
        return AS_IT_IS, []
    traffic = traffic_for(scenario.trace, method, blocks)
    words = [traffic.in_words] if traffic.in_words else []
    words += draw_of(scenario, profile, 1).in_words
    return (traffic, words) if words else (AS_IT_IS, [])


def _curve_steps(rates: Rates, at: int) -> list[int]:
    steps = [at + round(log(factor) / log(2) * rates.doubling) for factor in CURVE]
    return sorted({min(max(step, rates.lowest), rates.highest) for step in (*steps, at)})


def _never_met(
    sweep: Sweep,
    rates: Rates,
    own: float,
    objectives: Sequence[Objective],
    number: int,
    traffic: Traffic,
) -> str:
    """Which objective nothing meets, and how close the lowest rate comes."""
    (outcome,) = sweep.run([Cell(rates.at(rates.lowest), number, traffic)])
    figures = _figures(outcome)
    short = [one for one in objectives if not one.met(figures)] or list(objectives)
    worst = min(short, key=lambda one: one.margin(figures))
    value = worst.value(figures)
    nearest = f"{worst.what} is {worst.shown(value)}" if value is not None else "it has no figure"
    others = [one.name for one in short if one is not worst]
    also = f"; missed too: {', '.join(others)}" if others else ""
    return (
        f"objective {worst.name!r}: cannot be met: even at {own * rates.factor(rates.lowest):.3g}"
        f" requests/s, {rates.factor(rates.lowest):.3g} of the trace's own rate, {nearest}{also}"
    )


def _never_missed(rates: Rates, own: float, traced: Traced, objectives: Sequence[Objective]) -> str:
    names = ", ".join(one.name for one in objectives)
    factor = rates.factor(rates.highest)
    if rates.by == "users":
        return (
            f"all objectives ({names}) are met by {factor:.0f} times the users, the most that are"
            " tried; expected a trace with more users, fewer replicas, or --by time"
        )
    return (
        f"all objectives ({names}) are met at every rate, even by the trace's"
        f" {len(traced.requests):,} requests at {own * factor:,.0f} requests/s, as good as at once;"
        " expected a longer trace or stricter objectives"
    )


def _name(scenario: Scenario) -> str:
    """The scenario's; where nobody gave it one, what is asked about."""
    if scenario.name != Scenario.model_fields["name"].default:
        return scenario.name
    return f"{scenario.trace.path} on {scenario.profile}"


def _non_monotone(curve: Sequence[Point], objectives: Sequence[Objective]) -> list[str]:
    """A warning where the trace itself meets an objective at a higher rate than one it misses."""
    warnings: list[str] = []
    for objective in objectives:
        short = [point for point in curve if not objective.met(point.figures)]
        if not short:
            continue
        first = short[0].rate_per_s
        later = [p for p in curve if p.rate_per_s > first and objective.met(p.figures)]
        if later:
            warnings.append(
                f"{objective.name}: the trace itself misses it at {first:.3g} requests/s and meets"
                f" it at {later[-1].rate_per_s:.3g}; the search takes it that who meets a rate"
                " meets all lower ones"
            )
    return warnings
