"""Replay a trace on a simulated cluster: the main job, from settings to answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

import numpy as np

from calibration.costs import PICOSECONDS, CostModel
from calibration.profiles import load_profile
from engine.metrics import REQUEST_COLUMNS, ServiceMetrics
from engine.scheduler import Scheduler
from sim.clock import new_clock
from sim.cluster import Cluster
from sim.fit import fitted
from sim.records import SEGMENT_COLUMNS, Records
from sim.replica import Replica
from sim.result import Result
from sim.router import ROUTERS
from sim.scenario import Scenario
from traces.reader import Trace
from traces.request import Request
from traces.version import installed_version

Progress = Callable[[int], None]

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
) -> Result:
    """Run a scenario in memory.

    Args:
        scenario: all settings.
        requests: replayed instead of the scenario's trace, in arrival order.
        cost: instead of the profile's cost model.
        keep_requests: keep what `Result.requests` shows.
        keep_segments: keep what `Result.segments` shows.
        progress: told now and then how many requests have arrived.

    Raises:
        ConfigError, TraceError: settings or a trace that cannot be used.
    """
    from engine.frames import MemorySink, requests_table
    from sim.frames import segments_table

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

    return run.result(
        all_requests if keep_requests else None, all_segments if keep_segments else None
    )


class Run:
    """One run: set up from a scenario, served once, then summed up."""

    def __init__(
        self,
        scenario: Scenario,
        requests: Iterable[Request] | None = None,
        cost: CostModel | None = None,
    ) -> None:
        """Check everything that can be checked before the clock starts."""
        self.profile = load_profile(scenario.profile)
        if scenario.model is not None:
            self.profile.require_model(scenario.model)
        self.scheduler, self.num_blocks = fitted(scenario, self.profile)
        self.scenario = scenario
        self.cost: CostModel = cost or self.profile.cost_model(
            async_scheduling=self.scheduler.async_scheduling
        )
        self.trace: Trace | None = None
        if requests is None:
            self.trace = scenario.trace.open(scenario.seed)
            requests = self.trace
        self._requests = requests
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
    ) -> None:
        """Serve the trace; rows go to the given functions, block by block."""
        scenario = self.scenario
        settings = scenario.cluster
        metrics = ServiceMetrics(_ps(scenario.warmup_s), scenario.slo.limits_ps())
        self.records = records = Records(metrics, requests=requests_to, segments=segments_to)
        env = new_clock()
        random = np.random.default_rng(scenario.seed)
        self.cluster = cluster = Cluster(
            env,
            ROUTERS[settings.router](settings.replicas, random),
            records,
            max_queue=settings.max_queue,
            timeout_ps=_ps_if(settings.request_timeout_s),
            closed_loop=settings.closed_loop,
            end_ps=_ps_if(scenario.end_s),
            on_arrival=progress,
        )
        for index in range(settings.replicas):
            scheduler = Scheduler(self.scheduler, scenario.cache, self.num_blocks)
            cluster.replicas.append(
                Replica(env, index, scheduler, self.cost, records, cluster.ended)
            )
        cluster.serve(self._requests)
        records.flush()

    def result(
        self, requests: Callable[[], Any] | None, segments: Callable[[], Any] | None
    ) -> Result:
        """The finished run; `requests` and `segments` make the tables behind its frames."""
        knows_work = hasattr(self.cost, "work")
        return Result(
            scenario=self.scenario.model_dump(mode="json"),
            summary=self._summary(),
            roofline=self.cost if knows_work else None,
            _requests=requests,
            _segments=segments,
        )

    def _summary(self) -> dict[str, Any]:
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
        return {
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
            "utilization": records.busy_ps / span,
            "steps": records.steps,
            "segments": records.segments,
            "warnings": self._warnings(),
        }

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
            tokens=self.records.most_tokens, sequences=self.records.most_sequences
        )
        if beyond:
            warnings.append(beyond)
        return warnings


def _ps(seconds: float) -> int:
    return round(seconds * PICOSECONDS)


def _ps_if(seconds: float | None) -> int | None:
    return None if seconds is None else _ps(seconds)
