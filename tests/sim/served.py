"""Serve requests on simulated replicas, straight from settings, for tests."""

from collections.abc import Iterable
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
from sim.router import ROUTERS
from traces.request import Request


class StepByStep:
    """A cost model that never foresees more than one step: exact stepping on the same clock."""

    def __init__(self, cost: CostModel) -> None:
        self.cost = cost

    def progression(self, batch: Any) -> tuple[int, int, int]:
        first, growth, _ = self.cost.progression(batch)
        return first, growth, 1


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
        **cluster: Any,
    ) -> None:
        self._requests, self._segments = MemorySink(), MemorySink()
        self.metrics = metrics or ServiceMetrics()
        self.records = Records(
            self.metrics, requests=self._requests.take, segments=self._segments.take
        )
        self.sequences: list[Sequence] = []
        env = new_clock()
        random = np.random.default_rng(seed)
        self.cluster = Cluster(env, ROUTERS[router](replicas, random), self.records, **cluster)
        for index in range(replicas):
            core = Scheduler(
                scheduler or SchedulerSettings(async_scheduling=False),
                cache or CacheSettings(),
                num_blocks,
            )
            self.cluster.replicas.append(Replica(env, index, core, cost, self.records, self._ended))
        self.cluster.serve(requests)
        self.records.flush()

    def _ended(self, replica: Replica, seq: Sequence) -> None:
        self.sequences.append(seq)
        self.cluster.ended(replica, seq)

    @property
    def rows(self) -> Any:
        """Request rows by request id."""
        rows = self._requests.rows(len(REQUEST_COLUMNS))
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
