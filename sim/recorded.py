"""An engine's run once more, with its own step times: does the simulator decide as it did?

Step times are the only thing that a simulator of an engine has to guess. Fed with the recorded
ones, it must form the same batches and put out every token at the same time, or its scheduler is
another one than the engine's.

The engine's loop spends time between its steps, the simulator's does not. So on the simulated
clock step i begins when step i - 1 ended, or, where nothing was left to do, when the engine's
scheduler was called for it, and lasts until its output was there. A request that the engine's
scheduler saw first when it was called for step i arrives when the simulated one is called for it:
as the step begins, or, where it was scheduled while the step before ran, as that one began.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from simpy.events import NORMAL, URGENT

from engine.batch import Batch
from engine.metrics import PICOSECONDS, Rows, ServiceMetrics
from engine.scheduler import Scheduler
from engine.sequence import Sequence
from sim.clock import happening, new_clock, run
from sim.records import Records
from sim.replica import Replica
from traces.errors import ConfigError, KvcastError
from traces.request import Request

if TYPE_CHECKING:
    import polars as pl

    from engine.config import EngineSettings

FEATURES: Final = (
    "num_prefill_requests",
    "sum_prefill_tokens",
    "sum_prefill_kv_tokens",
    "prefill_pairs",
    "num_decode_requests",
    "sum_decode_kv_tokens",
    "admitted",
    "preempted",
)
"""Columns of steps.parquet in which a simulated step must be the recorded one."""

SLACK_PS: Final = 500
"""Times of a wall clock are whole nanoseconds; to less than this, they were the same."""


class DivergenceError(KvcastError):
    """The simulator decided otherwise than the engine; says where first, and in what."""


class Arrival(NamedTuple):
    """When a request comes on the simulated clock."""

    request_id: int
    arrived_ps: int
    """When it did come, which orders requests of one priority."""
    seen_ps: int
    between: bool
    """After the first and before the second of two batches that are scheduled from rest."""


@dataclass(frozen=True, slots=True)
class Recording:
    """An engine's run on the simulated clock."""

    begins_ps: tuple[int, ...]
    ends_ps: tuple[int, ...]
    features: Mapping[str, tuple[int, ...]]
    """Each of FEATURES, by step."""
    arrivals: tuple[Arrival, ...]
    """In the order in which they came."""


@dataclass(frozen=True, slots=True)
class Retrace:
    """A run that the simulator repeated step by step."""

    steps: int
    requests: pl.DataFrame
    """request_id, first_token_s and finish_s as recorded, retraced_first_token_s and
    retraced_finish_s as simulated."""
    largest_error_s: float
    """Of all first tokens and finishes."""


class RecordedCost:
    """A cost model that reads out recorded durations, one step at a time."""

    def __init__(self, recording: Recording) -> None:
        """The first step asked for is the recording's first."""
        self._recording: Final = recording
        self.steps = 0
        """Steps read out."""

    def progression(self, batch: Batch) -> tuple[int, int, int]:
        """The next recorded step's duration.

        Raises:
            DivergenceError: `batch` is not what that step computed, or no step is left.
        """
        recording, step = self._recording, self.steps
        if step == len(recording.ends_ps):
            raise DivergenceError(f"step {step}: simulated, but the engine took {step} steps")
        for name, got in zip(FEATURES, _features(batch), strict=True):
            expected = recording.features[name][step]
            if got != expected:
                raise DivergenceError(f"step {step}: {name}: engine {expected}, simulated {got}")
        self.steps += 1
        return recording.ends_ps[step] - recording.begins_ps[step], 0, 1


def retrace(
    requests: Iterable[Request],
    served: pl.DataFrame,
    steps: pl.DataFrame,
    settings: EngineSettings,
    *,
    context_tokens: int = 0,
) -> Retrace:
    """Serve the requests of an engine's run in the simulator, with the engine's step times.

    Content that two answers have in common by chance, and the trace does not know of, is shared on
    the engine only.

    Args:
        requests: those the engine was given.
        served: its requests.parquet.
        steps: its steps.parquet.
        settings: its settings, resolved.
        context_tokens: as the engine was given, for eviction by the cost of computing anew.

    Raises:
        DivergenceError: the simulator forms another batch than the engine did.
        ConfigError: files of different runs, or a run with tiers below the GPU, which keep what
            only the engine knows the content of.
    """
    if settings.offload.cpu_bytes or settings.offload.disk_bytes:
        raise ConfigError("offload: a run with tiers below the GPU cannot be repeated step by step")
    if settings.num_blocks is None:
        raise ConfigError("num_blocks: is open; expected the settings that the run wrote")
    recording = recorded(served, steps)
    env: Any = new_clock()
    cost = RecordedCost(recording)
    # as the engine's: what is preempted in the step that scheduled it was never computed
    core = Scheduler(
        settings.scheduler,
        settings.cache,
        settings.num_blocks,
        executed=True,
        context_tokens=context_tokens,
    )
    done: list[Sequence] = []
    records = Records(ServiceMetrics())
    replica = Replica(env, 0, core, cost, records, lambda _, seq: done.append(seq))
    by_number = {request.request_id: request for request in requests}
    for arrival in recording.arrivals:
        request = by_number.get(arrival.request_id)
        if request is None:
            raise ConfigError(f"request {arrival.request_id}: was served, but is not in the trace")
        _submit(env, replica, core.sequence(request, arrival.arrived_ps), arrival)
    run(env)
    if cost.steps < len(recording.ends_ps):
        raise DivergenceError(
            f"the engine took {len(recording.ends_ps)} steps, simulated {cost.steps}"
        )
    return _compared(served, done, cost.steps)


def recorded(served: pl.DataFrame, steps: pl.DataFrame) -> Recording:
    """An engine's run on the simulated clock, from its requests.parquet and steps.parquet.

    Raises:
        ConfigError: a column is missing, or they are not of the same run.
    """
    _require(served, "requests.parquet", ("request_id", "arrival_s", "queued_s"))
    _require(steps, "steps.parquet", ("called_s", "end_s", "running", "num_queued_requests"))
    _require(steps, "steps.parquet", FEATURES)
    seen = served.drop_nulls("queued_s").sort("queued_s", "request_id")
    called, ends = _ps(steps["called_s"]), _ps(steps["end_s"])
    at_step = np.searchsorted(called, _ps(seen["queued_s"]) - SLACK_PS)
    if (at_step == len(called)).any():
        number = seen["request_id"][int(np.argmax(at_step))]
        raise ConfigError(f"request {number}: no step follows it; the files are of different runs")
    ended = np.concatenate([[called[0] if len(called) else 0], ends[:-1]])[: len(called)]
    in_flight = called < ended
    in_flight[:1] = False
    known = (steps["running"] + steps["num_queued_requests"]).to_numpy()
    idle = known == np.bincount(at_step, minlength=len(called))
    idle[:1] = True
    begins = np.where(idle & ~in_flight, called, ended)
    late = in_flight[at_step]
    seen_ps = begins[at_step - late]
    return Recording(
        begins_ps=tuple(begins.tolist()),
        ends_ps=tuple(ends.tolist()),
        features={name: tuple(steps[name].to_list()) for name in FEATURES},
        arrivals=tuple(
            Arrival(*one)
            for one in zip(
                seen["request_id"].to_list(),
                _ps(seen["arrival_s"]).tolist(),
                seen_ps.tolist(),
                (late & ~in_flight[at_step - late]).tolist(),
                strict=True,
            )
        ),
    )


def _submit(env: Any, replica: Replica, seq: Sequence, arrival: Arrival) -> None:
    """Have a sequence arrive."""

    def now(event: Any) -> None:
        replica.submit(seq)

    def after_the_wake_up(event: Any) -> None:
        later = happening(env)
        later.callbacks = [now]
        env.schedule(later, NORMAL, 0)

    event = happening(env)
    event.callbacks = [after_the_wake_up if arrival.between else now]
    env.schedule(event, URGENT, arrival.seen_ps)


def _features(batch: Batch) -> tuple[int, ...]:
    """A step's FEATURES, counted as the engine does: the recomputation of one output token is a
    chunk like any other."""
    chunks = sum(chunk for _, chunk in batch.prefills)
    reached = sum(seq.base for seq, _ in batch.prefills)
    return (
        len(batch.prefills),
        chunks,
        reached - chunks,
        batch.prefill_pairs,
        batch.decoding,
        batch.context_tokens - reached,
        len(batch.admitted),
        len(batch.preempted),
    )


def _compared(served: pl.DataFrame, done: list[Sequence], steps: int) -> Retrace:
    import polars as pl

    retraced = pl.DataFrame(
        {
            "request_id": [seq.request.request_id for seq in done],
            "retraced_first_token_s": [seq.first_token / PICOSECONDS for seq in done],
            "retraced_finish_s": [seq.finish / PICOSECONDS for seq in done],
        },
        schema_overrides={"request_id": pl.Int64},
    )
    columns = ("request_id", "first_token_s", "finish_s")
    both = served.drop_nulls("finish_s").select(columns).join(retraced, "request_id", how="left")
    missing = both.filter(pl.col("retraced_finish_s").is_null())
    if missing.height:
        raise DivergenceError(f"request {missing['request_id'][0]}: is done on the engine only")
    errors_s = [
        float((both[name] - both[f"retraced_{name}"]).abs().max() or 0.0)  # pyright: ignore[reportArgumentType] a column of floats
        for name in ("first_token_s", "finish_s")
    ]
    return Retrace(steps, both.sort("request_id"), max(errors_s))


def _ps(seconds: pl.Series) -> Rows:
    return np.rint(seconds.to_numpy() * PICOSECONDS).astype(np.int64)


def _require(frame: pl.DataFrame, file: str, columns: Iterable[str]) -> None:
    for name in columns:
        if name not in frame.columns:
            raise ConfigError(f"{file}: has no column {name}; expected one that this engine wrote")
