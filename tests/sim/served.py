"""Serve requests on simulated replicas, straight from settings, for tests."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np

from calibration.costs import CostModel
from engine.config import CacheSettings, SchedulerSettings
from engine.frames import MemorySink
from engine.metrics import REQUEST_COLUMNS, ServiceMetrics
from engine.scheduler import Scheduler
from engine.sequence import Sequence
from sim.clock import new_clock
from sim.cluster import Cluster
from sim.records import SEGMENT_COLUMNS, Records
from sim.replica import Replica
from sim.routing import router_of
from sim.routing.protocol import Router
from sim.routing.view import FleetView
from traces.request import Request


class StepByStep:
    """A cost model that never foresees more than one step: exact stepping on the same clock."""

    def __init__(self, cost: CostModel) -> None:
        self.cost = cost

    def progression(self, batch: Any) -> tuple[int, int, int]:
        first, growth, _ = self.cost.progression(batch)
        return first, growth, 1


class Observed:
    """A router of which a test looks at every choice before it is made."""

    def __init__(self, router: Router, look: Callable[[Request], None]) -> None:
        self.router = router
        self.look = look

    def choose(self, request: Request) -> int:
        self.look(request)
        return self.router.choose(request)

    def done(self, replica: int, request: Request) -> None:
        self.router.done(replica, request)


class Served:
    """What came of serving `requests`."""

    def __init__(
        self,
        requests: Iterable[Request],
        cost: CostModel,
        *,
        replicas: int = 1,
        num_blocks: int = 8193,
        scheduler: SchedulerSettings | None = None,
        cache: CacheSettings | None = None,
        router: str = "round-robin",
        seed: int = 0,
        metrics: ServiceMetrics | None = None,
        at_choice: Callable[["Served", Request], None] | None = None,
        **cluster: Any,
    ) -> None:
        self._requests, self._segments = MemorySink(), MemorySink()
        self.metrics = metrics or ServiceMetrics()
        self.records = Records(
            self.metrics, requests=self._requests.take, segments=self._segments.take
        )
        self.sequences: list[Sequence] = []
        env = new_clock()
        scheduler = scheduler or SchedulerSettings(async_scheduling=False)
        cache = cache or CacheSettings()
        clock: Any = env
        self.view = view = FleetView(
            replicas,
            np.random.default_rng(seed),
            clock=lambda: clock._now,
            cost=cost,
            block_tokens=cache.block_tokens,
            kv_blocks=num_blocks - 1,
            kv_block_bytes=1 << 16,
            step_tokens=scheduler.max_num_batched_tokens,
        )
        self.router = router_of(router, view)
        routing: Router = view.watching(self.router)
        if at_choice is not None:
            routing = Observed(routing, partial(at_choice, self))
        self.cluster = Cluster(env, routing, self.records, **cluster)
        for index in range(replicas):
            core = Scheduler(
                scheduler,
                cache,
                num_blocks,
                step_time=lambda batch: cost.progression(batch)[0],
            )
            self.cluster.replicas.append(Replica(env, index, core, cost, self.records, self._ended))
        view.attach(self.cluster.replicas)
        self.cluster.serve(requests)
        self.records.flush()

    def _ended(self, replica: Replica, seq: Sequence) -> None:
        self.sequences.append(seq)
        self.cluster.ended(replica, seq)

    @property
    def rows(self) -> Any:
        """Request rows by request id; tenants and SLO classes are numbered by their names' order,
        not by that of the ends, which of ends at one moment means nothing."""
        rows = self._requests.rows(len(REQUEST_COLUMNS))
        names = self.cluster.names
        rank = np.argsort(np.argsort(names))
        for column in ("tenant", "slo_class"):
            at = REQUEST_COLUMNS.index(column)
            rows[:, at] = rank[rows[:, at]]
        return rows[np.argsort(rows[:, 0], kind="stable")]

    def column(self, name: str) -> Any:
        return self.rows[:, REQUEST_COLUMNS.index(name)]

    @property
    def segments(self) -> Any:
        return self._segments.rows(len(SEGMENT_COLUMNS))

    def summary(self) -> dict[str, Any]:
        return self.metrics.summary(self.records.last_end_ps)

    def assert_empty(self) -> None:
        """Nothing is left on any replica."""
        for replica in self.cluster.replicas:
            core = replica.scheduler
            assert core.idle
            assert core.blocks.free == core.blocks.usable
            assert core.blocks.contested == 0
            assert core.decodes.size == 0
