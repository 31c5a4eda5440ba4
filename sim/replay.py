"""Replay a trace on a simulated cluster: the main job, from settings to answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Final, Protocol

import numpy as np

from calibration.costs import PICOSECONDS, CostModel
from calibration.profiles import Profile, load_profile
from engine.batch import Batch
from engine.metrics import REQUEST_COLUMNS, ServiceMetrics
from engine.scheduler import Scheduler
from sim.admission import Door, admission_policy
from sim.clock import new_clock
from sim.cluster import Cluster
from sim.economics.bill import check, economics
from sim.economics.prices import old_price
from sim.economics.split import StepSplit
from sim.fit import fitted
from sim.foresight import foreseen
from sim.records import SEGMENT_COLUMNS, Records
from sim.replica import Replica
from sim.result import Result
from sim.routing import router_of
from sim.routing.view import FleetView
from sim.scenario import Scenario
from sim.tiers import memory_below
from sim.uncertainty import (
    Draw,
    Figures,
    figures,
    replications,
    simulate_all,
    the_run_itself,
    uncertainty,
)
from traces.reader import Trace
from traces.request import Request
from traces.version import installed_version

Progress = Callable[[int], None]

ARRIVALS_BETWEEN: Final = 1024
"""How many requests arrive before progress is told again."""

FEW_SEQUENCES: Final = 8
"""A pool that holds fewer at once, because each reserves the most it may need, is pointed out."""


def replay(
    scenario: Scenario,
    requests: Iterable[Request] | None = None,
    *,
    cost: CostModel | None = None,
    keep_requests: bool = True,
    keep_segments: bool = True,
    progress: Progress | None = None,
    replicated: Progress | None = None,
    jobs: int = 1,
) -> Result:
    """Run a scenario in memory.

    Args:
        scenario: all settings.
        requests: replayed instead of the scenario's trace, in arrival order.
        cost: instead of the profile's cost model.
        keep_requests: keep what `Result.requests` shows.
        keep_segments: keep what `Result.segments` shows.
        progress: told now and then how many requests have arrived.
        replicated: told after each replication (`uncertainty`) how many are done.
        jobs: processes to share the replications; their number changes nothing but the time.

    Raises:
        ConfigError, TraceError: settings or a trace that cannot be used.
    """
    from engine.frames import MemorySink, requests_table
    from sim.frames import segments_table

    if requests is not None and scenario.uncertainty.replications is not None:
        requests = list(requests)

    kept_requests = MemorySink() if keep_requests else None
    kept_segments = MemorySink() if keep_segments else None
    run = Run(scenario, requests, cost)
    run.serve(
        requests_to=kept_requests.take if kept_requests else None,
        segments_to=kept_segments.take if kept_segments else None,
        progress=progress,
    )

    def all_requests() -> Any:
        assert kept_requests is not None
        return requests_table(kept_requests.rows(len(REQUEST_COLUMNS)), run.names())

    def all_segments() -> Any:
        assert kept_segments is not None
        return segments_table(kept_segments.rows(len(SEGMENT_COLUMNS)))

    run.find_intervals(jobs, replicated)
    return run.result(
        all_requests if keep_requests else None, all_segments if keep_segments else None
    )


def replicate(
    scenario: Scenario,
    requests: Iterable[Request] | None = None,
    *,
    cost: CostModel | None = None,
    jobs: int = 1,
    progress: Progress | None = None,
) -> list[Figures]:
    """The figures of each replication of a scenario, without the run itself.

    Replication i of two scenarios with one seed and profile draws the same: they are pairs.

    Args:
        scenario: all settings; `uncertainty.replications` is how many.
        requests: replayed instead of the scenario's trace, in arrival order.
        cost: instead of the profile's cost model.
        jobs: processes to share the replications; their number changes nothing but the time.
        progress: told after each replication how many are done.

    Raises:
        ConfigError, TraceError: settings or a trace that cannot be used.
    """
    requests = None if requests is None else list(requests)
    return Run(scenario, requests, cost).replicate(jobs, progress)


def replication(
    scenario: Scenario,
    profile: Profile,
    requests: Iterable[Request] | None,
    cost: CostModel | None,
    draw: Draw,
) -> Figures:
    """The figures of a scenario with what `draw` draws; arguments as those of `Run`."""
    run = Run(scenario, requests, cost, profile=profile, draw=draw)
    run.serve()
    return figures(run.summary())


class Watch(Protocol):
    """Looks on while a run is served, and may end it by an exception of its own."""

    @property
    def arrivals_between(self) -> int:
        """How many requests arrive between two looks."""
        ...

    def begins(self, run: Run) -> None:
        """The cluster stands, and nothing has arrived."""
        ...

    def arrived(self, count: int) -> None:
        """So many requests have arrived."""
        ...


class Run:
    """One run: set up from a scenario, served once, then summed up."""

    def __init__(
        self,
        scenario: Scenario,
        requests: Iterable[Request] | None = None,
        cost: CostModel | None = None,
        *,
        profile: Profile | None = None,
        draw: Draw | None = None,
    ) -> None:
        """Check everything that can be checked before the clock starts.

        Args:
            scenario: all settings.
            requests: replayed instead of the scenario's trace; `replicate` goes through them again.
            cost: instead of the profile's cost model.
            profile: the scenario's, where it is loaded already.
            draw: makes the run a replication of another.
        """
        if profile is None:
            profile = load_profile(scenario.profile)
        profile.require(model=scenario.model)
        check(profile, scenario.economics)
        self._draw = draw or the_run_itself(scenario, profile)
        self.profile = self._draw.profile(profile)
        self.scheduler, self.num_blocks = fitted(scenario, self.profile)
        self.scenario = scenario
        self.cost: CostModel = self._draw.cost(
            cost or self.profile.cost_model(async_scheduling=self.scheduler.async_scheduling)
        )
        self._replications = (
            [] if draw else replications(scenario, profile, self.cost, profiled=cost is None)
        )
        self._replication = partial(replication, scenario, profile, requests, cost)
        self._uncertainty: dict[str, Any] = {}
        self.trace: Trace | None = None
        if requests is None:
            self.trace = scenario.trace.open(scenario.seed)
            requests = self.trace
        self._requests = requests
        self._below = memory_below(scenario.offload, scenario.cache, self.profile)
        self.split = StepSplit(self.cost)
        self.records: Records
        self.cluster: Cluster

    def names(self) -> list[str]:
        """Tenants and SLO classes by the numbers that request rows carry."""
        return self.cluster.names

    def serve(
        self,
        *,
        requests_to: Callable[[Any], None] | None = None,
        segments_to: Callable[[Any], None] | None = None,
        progress: Progress | None = None,
        watch: Watch | None = None,
    ) -> None:
        """Serve the trace; rows go to the given functions, block by block.

        `watch` looks on, instead of `progress`; what it raises ends the run.
        """
        scenario = self.scenario
        settings = scenario.cluster
        slo = scenario.slo
        metrics = ServiceMetrics(_ps(scenario.warmup_s), slo.limits_ps(), slo.classes_ps())
        self.records = records = Records(
            metrics, requests=requests_to, segments=self.split.beside(segments_to)
        )
        requests, future = foreseen(scenario, self._requests)
        env = new_clock()
        view = self._view(env)
        router = router_of(settings.router, view)
        door = Door(view, self.cost, scenario.slo)
        admission = admission_policy(settings.admission, door)
        self.cluster = cluster = Cluster(
            env,
            view.watching(router),
            records,
            admission=admission,
            max_queue=settings.max_queue,
            timeout_ps=_ps_if(settings.request_timeout_s),
            closed_loop=settings.closed_loop,
            end_ps=_ps_if(scenario.end_s),
            on_arrival=progress if watch is None else watch.arrived,
            arrivals_between=ARRIVALS_BETWEEN if watch is None else watch.arrivals_between,
            future=future,
        )
        for index in range(settings.replicas):
            cost = self._draw.noisy(self.cost, self.profile, index)
            tiers = None if self._below is None else self._below.tiers()
            scheduler = Scheduler(
                self.scheduler,
                scenario.cache,
                self.num_blocks,
                named=tiers is not None,
                executed=tiers is not None,
                tiers=tiers,
                step_time=partial(_first_step_ps, self.cost),
                context_tokens=self.profile.shape.even_context_tokens,
                future=future,
            )
            if self._below is not None:
                cost = self._below.cost(scheduler, cost, self.cost)
            cluster.replicas.append(Replica(env, index, scheduler, cost, records, cluster.ended))
        view.attach(cluster.replicas)
        if watch is not None:
            watch.begins(self)
        cluster.serve(requests)
        records.flush()

    def _view(self, env: Any) -> FleetView:
        """What the router, and whoever stands at the door, may know of the replicas."""
        block_tokens = self.scenario.cache.block_tokens
        profile = self.profile
        return FleetView(
            self.scenario.cluster.replicas,
            np.random.default_rng(self.scenario.seed),
            clock=lambda: env._now,
            cost=self.cost,
            block_tokens=block_tokens,
            kv_blocks=self.num_blocks - 1,
            kv_block_bytes=profile.tp
            * profile.shape.kv_block_bytes(profile.kv_dtype, block_tokens, profile.tp),
            step_tokens=self.scheduler.max_num_batched_tokens,
        )

    def replicate(self, jobs: int = 1, progress: Progress | None = None) -> list[Figures]:
        """The figures of each replication; see the function of this name."""
        return simulate_all(self._replication, self._replications, jobs, progress)

    def find_intervals(self, jobs: int = 1, progress: Progress | None = None) -> None:
        """Put intervals on the figures of the run, which has been served, if it is to have any."""
        if self._replications:
            replicated = self.replicate(jobs, progress)
            level = self.scenario.uncertainty.level
            found = uncertainty(self.summary(), self._replications, replicated, level)
            self._uncertainty = {"uncertainty": found}

    def result(
        self, requests: Callable[[], Any] | None, segments: Callable[[], Any] | None
    ) -> Result:
        """The finished run; `requests` and `segments` make the tables behind its frames."""
        return Result(
            scenario=self.scenario.model_dump(mode="json"),
            summary=self.summary() | self._uncertainty,
            roofline=getattr(self.cost, "roofline", None),
            _requests=requests,
            _segments=segments,
        )

    def summary(self) -> dict[str, Any]:
        """The run in a few dozen numbers, without intervals."""
        records, cluster = self.records, self.cluster
        replicas = len(cluster.replicas)
        duration_ps = records.last_end_ps
        if self.scenario.end_s is not None:
            duration_ps = max(duration_ps, _ps(self.scenario.end_s))
        served = records.metrics.summary(duration_ps)
        usable = self.num_blocks - 1
        span = max(replicas * duration_ps, 1)
        gpus = replicas * self.profile.tp
        served["cache"]["evicted_blocks"] = sum(
            replica.scheduler.blocks.evicted for replica in cluster.replicas
        )
        summary: dict[str, Any] = {
            "kvcast": installed_version(),
            "name": self.scenario.name,
            "profile": {
                "name": self.profile.name,
                "measured": self.profile.measured,
                "warning": self.profile.warning,
            },
            "requests": served.pop("requests"),
            "duration_s": duration_ps / PICOSECONDS,
            "replicas": replicas,
            "gpus": gpus,
            "gpu_hours": gpus * duration_ps / PICOSECONDS / 3600,
            **served,
            "kv": {
                "blocks_per_replica": usable,
                "block_tokens": self.scenario.cache.block_tokens,
                "mean_occupancy": records.block_ps / (span * usable),
                "peak_occupancy": records.peak_blocks / usable,
            },
            "tiers": self._tiers(),
            "utilization": records.busy_ps / span,
            "prefill_share": self.split.prefill_share,
            "steps": records.steps,
            "segments": records.segments,
            "warnings": self._warnings(),
        }
        paid_by = self.scenario.economics
        return summary | {"economics": economics(summary, self.profile, paid_by)}

    def _tiers(self) -> dict[str, int] | None:
        """Where prefixes were found and what was copied, in all replicas; None without tiers."""
        if self._below is None:
            return None
        tiers = [replica.scheduler.tiers for replica in self.cluster.replicas]
        return self._below.summary([each for each in tiers if each is not None])

    def _warnings(self) -> list[str]:
        warnings = [
            f"{count:,} requests rejected: {reason}"
            for reason, count in self.cluster.refusals.items()
        ]
        longest = self.scheduler.max_model_len or 0
        if self.scenario.cache.allocation == "contiguous":
            pool = (self.num_blocks - 1) * self.scenario.cache.block_tokens
            if pool // longest < FEW_SEQUENCES:
                warnings.append(
                    f"contiguous memory has room for {pool // longest} sequences at once, of"
                    f" {longest:,} tokens each; a smaller scheduler.max_model_len makes room"
                )
        truncated = self.records.metrics.outcomes[1]
        if truncated:
            warnings.append(
                f"{truncated:,} answers cut short at {self.scheduler.max_model_len:,} tokens"
                " (scheduler.max_model_len)"
            )
        if self.trace is not None:
            if self.trace.skipped:
                warnings.append(f"{self.trace.skipped:,} malformed rows of the trace skipped")
            if self.trace.failed:
                warnings.append(f"{self.trace.failed:,} failed requests of the trace left out")
        beyond = self.profile.beyond(
            tokens=self.records.most_tokens,
            sequences=self.records.most_sequences,
            context_tokens=self.records.most_context_tokens,
        )
        if beyond:
            warnings.append(beyond)
        if old := old_price(self.profile, self.scenario.economics):
            warnings.append(old)
        return warnings


def _first_step_ps(cost: CostModel, batch: Batch) -> int:
    """What one step of `batch` takes."""
    return cost.progression(batch)[0]


def _ps(seconds: float) -> int:
    return round(seconds * PICOSECONDS)


def _ps_if(seconds: float | None) -> int | None:
    return None if seconds is None else _ps(seconds)
