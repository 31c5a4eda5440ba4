"""What an engine did for a trace: rows of requests and steps on their way to metrics and files."""

from collections.abc import Callable, Iterable
from typing import Any, Final

import numpy as np

from engine.llm import LLMEngine
from engine.metrics import (
    PICOSECONDS,
    REJECTED,
    REQUEST_COLUMNS,
    Rows,
    ServiceMetrics,
    request_row,
)
from engine.roofline import Roofline
from engine.sequence import Sequence
from engine.steps import steps_table
from engine.work import Generation
from traces.request import Request

BUFFER_ROWS: Final = 4096

_TIMES: Final = [
    REQUEST_COLUMNS.index(name)
    for name in ("arrival", "queued", "admitted", "scheduled", "first_token", "finish")
]
_FINISH: Final = REQUEST_COLUMNS.index("finish")


class ServiceRecords:
    """Collects what ends and what was stepped; in memory is what has not been handed on yet."""

    def __init__(
        self,
        engine: LLMEngine,
        metrics: ServiceMetrics,
        roofline: Roofline,
    ) -> None:
        """Records of what `engine` does from now on.

        Args:
            engine: its own lists of steps and gaps are emptied.
            metrics: takes the requests and the gaps between tokens.
            roofline: takes the steps.
        """
        self.metrics: Final = metrics
        self.roofline: Final = roofline
        self.refusals: dict[str, int] = {}
        """How many requests were rejected, by reason."""
        self.ended = 0
        self.generated_tokens = 0
        self.steps = 0
        self.graph_steps = 0
        self.last_end_ps = 0
        self.busy_s = self.device_s = self.host_s = self.scheduler_s = 0.0
        self.block_s = 0.0
        """Sum over steps of blocks in use x duration."""
        self.peak_blocks = 0
        self.moved_bytes = 0
        self._begin = 0
        self._engine: Final = engine
        self._request_sink: Callable[[Rows], None] | None = None
        self._step_sink: Callable[[Any], None] | None = None
        self._rows: list[tuple[int, ...]] = []
        self._names: dict[str, int] = metrics.names()

    @property
    def names(self) -> list[str]:
        """Tenants and SLO classes, by the numbers that request rows carry."""
        return list(self._names)

    def start(self) -> int:
        """Times count from now on; returns what the engine's clock says."""
        self._begin = self._engine.clock.now()
        return self._begin

    def send(self, requests: Callable[[Rows], None], steps: Callable[[Any], None]) -> None:
        """From now on, hand these blocks of request rows, and tables of `steps_schema`."""
        self._request_sink, self._step_sink = requests, steps

    def reject(self, request: Request, arrival: int, reason: str) -> None:
        """A request that the engine cannot serve."""
        self.refusals[reason] = self.refusals.get(reason, 0) + 1
        self._end(Sequence(request, 0, arrival), REJECTED, -1)

    def stepped(self, ended: Iterable[Generation]) -> None:
        """After a step of the engine: what ended with it, and its record if it is done."""
        for generation in ended:
            seq = generation.seq
            self.generated_tokens += seq.generated
            self._end(seq, generation.outcome, seq.finish)
        if len(self._engine.records) >= BUFFER_ROWS:
            self.flush()

    def flush(self) -> None:
        """Hand on everything."""
        self._flush_requests()
        self._flush_steps()
        gaps = self._engine.token_gaps
        self.metrics.latency["itl_s"].add(np.array(gaps, np.int64))
        gaps.clear()

    def _end(self, seq: Sequence, outcome: int, finish: int) -> None:
        request, names = seq.request, self._names
        tenant = names.setdefault(request.tenant, len(names)) if request.tenant else 0
        slo_class = names.setdefault(request.slo_class, len(names)) if request.slo_class else 0
        self._rows.append(request_row(seq, 0, outcome, finish, tenant, slo_class))
        self.ended += 1
        if len(self._rows) >= BUFFER_ROWS:
            self._flush_requests()

    def _flush_requests(self) -> None:
        if not self._rows:
            return
        rows = np.array(self._rows, np.int64)
        times = rows[:, _TIMES]
        rows[:, _TIMES] = np.where(times >= 0, times - self._begin, times)
        self._rows.clear()
        self.metrics.add(rows)
        self.last_end_ps = max(self.last_end_ps, int(rows[:, _FINISH].max()))
        if self._request_sink is not None:
            self._request_sink(rows)

    def _flush_steps(self) -> None:
        engine = self._engine
        if not engine.records:
            return
        for record in engine.records:
            for name in ("called_s", "start_s", "end_s"):
                record[name] -= self._begin / PICOSECONDS
        steps: Any = steps_table(engine.records, engine.settings.kv_dtype)
        engine.records.clear()
        self.roofline.add(steps)
        wall_s = steps["wall_time"].to_numpy()
        used = engine.scheduler.blocks.usable - steps["free_blocks"].to_numpy()
        self.steps += len(wall_s)
        self.graph_steps += int((steps["graph_bucket"].to_numpy() > 0).sum())
        self.busy_s += float(wall_s.sum())
        self.device_s += float(steps["device_s"].to_numpy().sum())
        self.host_s += float(steps["host_s"].to_numpy().sum())
        self.scheduler_s += float(steps["scheduler_s"].to_numpy().sum())
        self.block_s += float((used * wall_s).sum())
        self.peak_blocks = max(self.peak_blocks, int(used.max()))
        self.moved_bytes += int(steps["moved_bytes"].to_numpy().sum())
        if self._step_sink is not None:
            self._step_sink(steps)

    def summary(self) -> dict[str, Any]:
        """The simulator's keys, as far as they mean something here, and `engine`; after `flush`."""
        engine, blocks = self._engine, self._engine.scheduler.blocks
        duration_s = self.last_end_ps / PICOSECONDS
        served = self.metrics.summary(self.last_end_ps)
        served["cache"]["evicted_blocks"] = blocks.evicted
        span_s = max(duration_s, 1 / PICOSECONDS)
        return {
            "requests": served.pop("requests"),
            "duration_s": duration_s,
            **served,
            "kv": {
                "blocks_per_replica": blocks.usable,
                "block_tokens": blocks.block_tokens,
                "mean_occupancy": self.block_s / (span_s * blocks.usable),
                "peak_occupancy": self.peak_blocks / blocks.usable,
            },
            "utilization": self.busy_s / span_s,
            "steps": self.steps,
            "engine": {
                "num_blocks": engine.executor.num_blocks,
                "block_bytes": engine.executor.block_bytes,
                "device_share": self.device_s / span_s,
                "host_share": self.host_s / span_s,
                "scheduler_share": self.scheduler_s / span_s,
                "graph_steps": self.graph_steps,
                "moved_bytes": self.moved_bytes,
                "tiers": None if engine.tiers is None else engine.tiers.summary(),
                "roofline": self.roofline.summary(),
            },
        }
