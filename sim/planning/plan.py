"""From traffic, objectives and a budget to a fleet: the cheapest candidate, and why it is."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from calibration.costs import CostModel
from sim.planning.bounds import Demand, demand_of
from sim.planning.candidates import Candidate, Configuration, Dropped, Space
from sim.planning.evaluating import Evaluation, Judge, Redrawn, Replays, Told
from sim.planning.explaining import Cheaper, impossible, nearest_cheaper
from sim.planning.growth import Growth, Headroom, growth, headroom
from sim.planning.judged import Judged
from sim.planning.objectives import Objective, check_objectives, parse_objectives
from sim.planning.pareto import (
    Front,
    contradictions,
    cost_against_ttft,
    front_of,
    gpu_against_user,
    walk,
)
from sim.planning.search import Known, at_price, cheapest, order_of
from sim.planning.sensitivity import Tornado, tornado
from sim.planning.slowed import Slowed
from sim.planning.space import PlanSettings, base_values, load_plan_settings, plan_settings_of
from sim.planning.wide import sampled
from sim.scenario import Scenario, scenario_of
from sim.sweep.store import Store
from sim.sweep.sweep import Sweep
from sim.sweep.traffic import Traffic, traffic_for
from traces.errors import ConfigError

if TYPE_CHECKING:
    import plotly.graph_objects as go
    import polars as pl

ON_RAY: Final = 16
"""Cells that are begun ahead of time on a Ray cluster."""


@dataclass(frozen=True)
class Choice:
    """A candidate that meets every objective on the trace as it is, and on redrawn ones."""

    evaluation: Evaluation
    redrawn: Redrawn | None
    """None: traffic was not redrawn."""

    @property
    def candidate(self) -> Candidate:
        """Which it is."""
        return self.evaluation.candidate


@dataclass(frozen=True)
class Plan:
    """A fleet, and the evidence for it; docs/planning.md has the fields of plan.json."""

    name: str
    settings: PlanSettings = field(repr=False)
    objectives: Sequence[Objective] = field(repr=False)
    axes: Mapping[str, tuple[Any, ...]] = field(repr=False)
    stated: int
    """Candidates of the space."""
    dropped: Sequence[Dropped] = field(repr=False)
    method: str
    """`exhaustive` or `optuna`."""
    tried: int
    """Configurations that were looked at, of `configurations`."""
    configurations: int
    winner: Choice
    nominal: Choice
    """The cheapest on the trace as it is, whatever it does on redrawn traffic."""
    confident: bool
    """The winner meets every objective on the share of redrawn traffic that is asked for."""
    runner_up: Choice | None = field(repr=False)
    """The next best of another configuration."""
    cheaper: Sequence[Cheaper] = field(repr=False)
    """The nearest candidates that are cheaper than the winner."""
    fronts: Mapping[str, Front] = field(repr=False)
    tornado: Tornado | None = field(repr=False)
    headroom: Headroom | None = field(repr=False)
    growth: Growth | None = field(repr=False)
    rate_per_s: float
    """Mean arrival rate of the trace."""
    known: Sequence[Known] = field(repr=False)
    judge: Judge = field(repr=False)
    redrawn: Mapping[tuple[int, int], Redrawn] = field(repr=False)
    """Of every candidate that was tried on redrawn traffic, by identity."""
    traffic: Traffic = field(repr=False)
    replays: Mapping[str, int] = field(repr=False)
    """How many were asked for, by purpose."""
    warnings: Sequence[str] = field(repr=False)

    @property
    def scenario(self) -> Scenario:
        """The winner's: `kvcast replay` of it gives the winner's figures."""
        return self.winner.candidate.scenario

    @cached_property
    def candidates(self) -> pl.DataFrame:
        """One row a candidate, see docs/planning.md."""
        from sim.planning.plan_frames import candidates_frame

        return candidates_frame(self)

    @cached_property
    def margins(self) -> pl.DataFrame:
        """One row an objective: what the winner does, and how much of the limit is left."""
        from sim.planning.plan_frames import margins_frame

        return margins_frame(self)

    def plot(self, name: str | None = None) -> go.Figure | dict[str, go.Figure]:
        """The picture `name` of the page, or all of them; raises KeyError for an unknown one."""
        from sim.planning.plan_pictures import pictures
        from sim.report.chosen import chosen

        return chosen(pictures(self), name)

    def _repr_html_(self) -> str:
        from sim.planning.plan_page import summary_html

        return summary_html(self)


def plan(
    settings: PlanSettings | Mapping[str, Any] | str | Path,
    *,
    jobs: int = 1,
    ray: str | None = None,
    store: Store | None = None,
    timeout_s: float | None = None,
    memory_bytes: int | None = None,
    progress: Told | None = None,
) -> Plan:
    """The cheapest fleet that meets every objective, and the evidence for it.

    Args:
        settings: of the plan, or its file.
        jobs: processes; their number changes nothing but the time.
        ray: "auto" or a Ray cluster's address, which runs the replays instead.
        store: keeps figures from one call to the next.
        timeout_s: a replay that takes longer is ended, and its candidate counts as missing.
        memory_bytes: the same for memory.
        progress: told what is being done, and how many replays were asked for.

    Raises:
        ConfigError, TraceError: settings or a trace that cannot be used, or objectives that no
            candidate meets: which, and the nearest miss.
    """
    folder: Path | None = None
    if isinstance(settings, (str, Path)):
        folder = Path(settings).parent
        settings = load_plan_settings(Path(settings))
    elif not isinstance(settings, PlanSettings):
        settings = plan_settings_of(settings)
    planner = _Planner(settings, base_values(settings, folder))
    limits: dict[str, Any] = {"timeout_s": timeout_s, "memory_bytes": memory_bytes}
    with (
        Sweep(jobs=jobs, ray=ray, store=store, work=Judged(planner.objectives), **limits) as sweep,
        Sweep(store=store, work=Judged(planner.objectives, stop_early=False), **limits) as in_full,
    ):
        replays = Replays(sweep, ON_RAY if ray is not None else jobs, progress)
        return planner.plan(replays, Replays(in_full, 1), {"store": store, **limits})


class _Planner:
    """A plan in the making."""

    def __init__(self, settings: PlanSettings, values: Mapping[str, Any]) -> None:
        self.settings = settings
        self.objectives = parse_objectives(settings.objectives, "objectives")
        self.space = Space(settings, values)
        base = scenario_of(values)
        requests = list(base.trace.open(base.seed))
        if not requests:
            raise ConfigError(f"scenario.trace: {base.trace.path} has no requests to plan for")
        check_objectives(self.objectives, base, {one.slo_class for one in requests})
        self.demand: Demand = demand_of(requests, self.objectives, base)
        self.shares = any(one.hashes for one in requests)
        span_s = requests[-1].arrival_s - requests[0].arrival_s
        self.rate_per_s = (len(requests) - 1) / span_s if span_s else 0.0
        confidence = settings.confidence
        self.redraws = confidence.redraws
        self.traffic = Traffic()
        if self.redraws:
            self.traffic = traffic_for(base.trace, confidence.traffic, confidence.blocks)
        self.base = base
        self._costs: dict[tuple[str, bool], CostModel] = {}

    def plan(self, replays: Replays, in_full: Replays, here: Mapping[str, Any]) -> Plan:
        """Search, then explain; `here` are arguments of further sweeps in this process."""
        settings, share = self.settings, self.settings.confidence.share
        judge = Judge(replays, self.objectives, self.traffic, self.redraws)
        full = Judge(in_full, self.objectives, self.traffic, 0)
        redrawn: dict[tuple[int, int], Redrawn] = {}

        def holds(candidate: Candidate) -> bool:
            """On enough redrawn traces; whoever asks knows that it meets on the trace itself."""
            if not self.redraws:
                return True
            if candidate.identity not in redrawn:
                with replays.purpose("confidence"):
                    redrawn[candidate.identity] = judge.redrawn(candidate, share)
            return redrawn[candidate.identity].reached

        def choice(candidate: Candidate) -> Choice:
            return Choice(judge.evaluate(candidate), redrawn.get(candidate.identity))

        with replays.purpose("search"):
            method, known = self._known(judge)
            found = cheapest(known, judge.meets)
            if found is None:
                raise impossible(known, judge, full, self.space.stated)
            warnings = self._check_around(known, found[0], judge)
            nominal = _best_at(known, found[0].candidates[found[0].high], judge, None)
            winner, confident = nominal, holds(nominal)
            if not confident:
                sure = cheapest(known, judge.meets, holds)
                if sure is not None:
                    winner, confident = _best_at(known, sure[1], judge, holds), True
        with replays.purpose("runner-up"):
            runner_up = self._runner_up(known, winner, judge, holds if confident else None)
        with replays.purpose("prices"):
            rivals = self._rivals(known, winner, judge)
        fronts = self._fronts(known, judge, method, judge.evaluate(winner))
        with replays.purpose("sensitivities"):
            swings = self._tornado(judge, full, judge.evaluate(winner), rivals, here)
        with replays.purpose("head-room"):
            room = headroom(judge, winner)
        grown: Growth | None = None
        if settings.growth.months:
            with replays.purpose("growth"):
                grown = growth(
                    judge,
                    full,
                    winner,
                    settings.growth.percent_a_month,
                    settings.growth.months,
                    settings.constraints,
                )
        cheaper = nearest_cheaper(known, winner, judge, full, redrawn)
        replays.counts["explanation"] = in_full.total
        if not confident:
            seen = redrawn[winner.identity]
            warnings.append(
                f"no candidate meets every objective on {100 * share:g} % of redrawn traffic; the"
                f" winner does on {seen.met} of {len(seen.results)} that were looked at"
            )
        return Plan(
            name=settings.name or self.base.name,
            settings=settings,
            objectives=self.objectives,
            axes=self.space.axes,
            stated=self.space.stated,
            dropped=self.space.dropped,
            method=method,
            tried=len(known),
            configurations=self.space.size,
            winner=choice(winner),
            nominal=choice(nominal),
            confident=confident,
            runner_up=choice(runner_up) if runner_up is not None else None,
            cheaper=cheaper,
            fronts=fronts,
            tornado=swings,
            headroom=room,
            growth=grown,
            rate_per_s=self.rate_per_s,
            known=known,
            judge=judge,
            redrawn=redrawn,
            traffic=self.traffic,
            replays=dict(replays.counts),
            warnings=[*self._notes(known, judge), *warnings],
        )

    def _known(self, judge: Judge) -> tuple[str, list[Known]]:
        """The method, and the configurations to choose from."""
        search = self.settings.search
        method = search.method
        if method == "auto":
            small = self.space.size <= search.exhaustive_up_to
            method = "exhaustive" if small else "optuna"
        if method == "optuna":
            return method, sampled(self.space, judge, self._new, search)
        return method, [self._new(one) for one in self.space.every()]

    def _new(self, configuration: Configuration) -> Known:
        """What is known of a configuration without a replay."""
        doubtful = self.shares and configuration.scenario.cache.prefix_caching
        return Known.of(configuration, self._fewest(configuration), doubtful=doubtful)

    def _fewest(self, configuration: Configuration) -> int | None:
        return self.demand.fewest(configuration, self._cost(configuration))

    def _cost(self, configuration: Configuration) -> CostModel:
        overlap = configuration.scheduler.async_scheduling
        key = (configuration.scenario.profile, overlap)
        if key not in self._costs:
            self._costs[key] = configuration.profile.cost_model(async_scheduling=overlap)
        return self._costs[key]

    def _check_around(self, known: Sequence[Known], best: Known, judge: Judge) -> list[str]:
        """Whether more replicas help where it matters: one fewer than the best's, and one more.

        One fewer that meets takes the best's place; what contradicts the assumption is said.
        """
        said: list[str] = []
        at = best.high
        while at > best.bound and judge.meets(best.candidates[at - 1]):
            at -= 1
            best.high, best.low = at, min(best.low, at)
        above = at + 1
        if above < len(best.candidates):
            found = judge.evaluate(best.candidates[above])
            if not found.met:
                names = ", ".join(one.name for one in found.missed(self.objectives))
                said.append(
                    f"more replicas hurt: {best.candidates[above].label} misses {names}, which"
                    f" {best.candidates[at].label} meets; the search assumes the contrary"
                )
        contrary = sum(len(one.contradictions) for one in known)
        if contrary:
            said.append(
                f"{contrary} replays contradict that more replicas never hurt, which the search"
                " assumes: cheaper candidates may have been passed over"
            )
        return said

    def _runner_up(
        self,
        known: Sequence[Known],
        winner: Candidate,
        judge: Judge,
        holds: Callable[[Candidate], bool] | None,
    ) -> Candidate | None:
        """The best of the other configurations."""
        others = [one for one in known if one.configuration is not winner.configuration]
        found = cheapest(others, judge.meets, holds)
        return None if found is None else _best_at(others, found[1], judge, holds)

    def _rivals(
        self,
        known: Sequence[Known],
        winner: Candidate,
        judge: Judge,
    ) -> list[Candidate]:
        """The cheapest on another GPU, if it is cheaper than the winner at the dearest price.

        On the trace as it is: so are the replicas of all swings.
        """
        share = self.settings.sensitivities.price
        others = [one for one in known if one.configuration.gpu != winner.configuration.gpu]
        if not share or not others:
            return []
        found = cheapest(others, judge.meets, under_usd=winner.usd_per_hour * (1 + share))
        return [] if found is None else [found[1]]

    def _fronts(
        self, known: Sequence[Known], judge: Judge, method: str, winner: Evaluation
    ) -> dict[str, Front]:
        settings, demand = self.settings.fronts, self.demand

        def least_ttft_s(one: Configuration) -> float:
            return demand.least_ttft_s(one, self._cost(one))

        def least_tpot_s(one: Configuration) -> float:
            return demand.least_tpot_s(self._cost(one))

        both = (
            (cost_against_ttft(), least_ttft_s),
            (gpu_against_user(demand.most_output_tokens_per_s), least_tpot_s),
        )
        fronts: dict[str, Front] = {}
        for axes, least_y in both:
            with judge.replays.purpose("fronts"):
                if method == "exhaustive" and settings.replays:
                    fronts[axes.name] = walk(
                        known,
                        judge,
                        axes,
                        settings.tolerance,
                        settings.replays,
                        least_y,
                        settings.reach * axes.x(winner),
                    )
        for axes, _ in both:  # what the second walk replayed may better the first front
            old = fronts.get(axes.name)
            most_x = settings.reach * axes.x(winner)
            points = front_of(judge.evaluated.values(), axes, most_x)
            gap, replays = (old.gap, old.replays) if old is not None else (inf, 0)
            contrary = contradictions(judge.evaluated.values(), axes)
            fronts[axes.name] = Front(axes.name, points, gap, replays, contrary)
        return fronts

    def _tornado(
        self,
        judge: Judge,
        full: Judge,
        winner: Evaluation,
        rivals: Sequence[Candidate],
        here: Mapping[str, Any],
    ) -> Tornado | None:
        asked = self.settings.sensitivities
        if not any((asked.price, asked.rate, asked.lengths, asked.prefix_reuse, asked.step_times)):
            return None
        rivals = [_best_known(one, judge) for one in rivals]
        with self._slowed(here) as slowed:
            return tornado(
                judge,
                full,
                winner,
                asked,
                slowed=slowed,
                shares=self.shares,
                rivals=rivals,
            )

    @contextmanager
    def _slowed(self, here: Mapping[str, Any]) -> Generator[Callable[[float], Judge]]:
        """Judges whose every step is a factor longer, in this process."""
        sweeps: list[Sweep] = []

        def slowed(factor: float) -> Judge:
            work = Slowed(self.objectives, stop_early=False, factor=round(factor, 6))
            sweep = Sweep(work=work, **here)
            sweeps.append(sweep)
            return Judge(Replays(sweep, 1), self.objectives, self.traffic, 0)

        try:
            yield slowed
        finally:
            for sweep in sweeps:
                sweep.__exit__()

    def _notes(self, known: Sequence[Known], judge: Judge) -> list[str]:
        """What a reader has to know of the candidates, profiles and prices."""
        notes = [
            f"{one.candidates:,} candidates left out, {one.reason}: {one.example}"
            for one in self.space.dropped
            if one.reason in ("does not fit", "is not possible")
        ]
        unmeasured = [one for one in known if not one.configuration.profile.measured]
        if unmeasured:
            notes.append(
                f"{len(unmeasured)} of {len(known)} configurations have profiles that are NOT"
                " MEASURED: step times follow from data sheets and assumed efficiencies"
            )
        failed = [one for one in judge.evaluated.values() if one.error]
        if failed:
            notes.append(
                f"{len(failed)} replays failed, and count as missing every objective:"
                f" {failed[0].error}"
            )
        gpus = {one.configuration.gpu for one in known}
        stated = known[0].configuration.scenario.economics.usd_per_gpu_hour
        if stated is not None and len(gpus) > 1:
            notes.append(
                f"economics.usd_per_gpu_hour: ${stated:g} is taken for every GPU"
                f" ({', '.join(sorted(gpus))}); a price file (economics.prices) tells them apart"
            )
        return notes


def _best_known(candidate: Candidate, judge: Judge) -> Candidate:
    """Of the candidates of this GPU and price that are known to meet, the one with most margin."""
    same = [
        one
        for one in judge.evaluated.values()
        if one.met
        and one.candidate.configuration.gpu == candidate.configuration.gpu
        and one.candidate.usd_per_hour == candidate.usd_per_hour
    ]
    return min(same, key=lambda one: order_of(one.candidate, one.margin)).candidate


def _best_at(
    known: Sequence[Known],
    found: Candidate,
    judge: Judge,
    holds: Callable[[Candidate], bool] | None,
) -> Candidate:
    """Of the candidates of this price that meet, the one with the most margin; that holds, too."""
    same = [one.candidates[index] for one, index in at_price(known, found.usd_per_hour)]
    good = [one for one in judge.evaluate_all(same) if one.met]
    good.sort(key=lambda one: order_of(one.candidate, one.margin))
    for one in good:
        if holds is None or holds(one.candidate):
            return one.candidate
    return found
