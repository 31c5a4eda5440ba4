"""A request is queued when a scheduler is first called with it waiting, admitted by a call."""

from typing import Any

import pytest
from hypothesis import given, settings

from engine.metrics import REQUEST_COLUMNS
from engine.scheduler import Scheduler
from sim.replica import Replica
from tests.sim.clusters import Setup, crowded_setups, setups
from tests.sim.served import Served

Call = tuple[int, set[int], set[int]]
"""A call of a scheduler: when, who waited, whom it admitted."""


def watched(setup: Setup) -> tuple[Served, list[Call]]:
    """Serve one step at a time, and write down every call of a scheduler."""
    calls: list[Call] = []
    clock: list[Any] = []
    queues: dict[Scheduler, set[int]] = {}
    schedule, submit, abort = Scheduler.schedule, Replica.submit, Scheduler.abort

    def watch(core: Scheduler) -> Any:
        queue = queues.setdefault(core, set())
        waiting = set(queue)
        batch = schedule(core)
        admitted = {seq.request.request_id for seq in batch.admitted} if batch else set[int]()
        if batch:
            queue |= {seq.request.request_id for seq in batch.preempted}
        queue -= admitted
        calls.append((clock[0]._now, waiting, admitted))
        return batch

    def given_up(core: Scheduler, seq: Any) -> None:
        queues[core].discard(seq.request.request_id)
        abort(core, seq)

    def note(replica: Replica, seq: Any) -> None:
        clock[:] = [replica._env]
        queues.setdefault(replica.scheduler, set()).add(seq.request.request_id)
        submit(replica, seq)

    def never_ahead(replica: Replica, time: int) -> bool:
        replica._wake_at(time)  # so that the clock shows the time of every call
        return False

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Scheduler, "schedule", watch)
        patch.setattr(Scheduler, "abort", given_up)
        patch.setattr(Replica, "submit", note)
        patch.setattr(Replica, "_passes", never_ahead)
        return setup.serve(exact=True), calls


@settings(deadline=None, max_examples=150)
@given(setups(max_replicas=2) | crowded_setups())
def test_queued_and_admitted_are_moments_of_calls(setup: Setup):
    """As seen from outside, step by step; fast-forwarding, tests/sim/test_fast_forward.py says,
    gives the same rows."""
    served, calls = watched(setup)
    first_seen: dict[int, int] = {}
    first_admitted: dict[int, int] = {}
    for now, waiting, admitted in calls:
        for number in waiting:
            first_seen.setdefault(number, now)
        for number in admitted:
            first_admitted.setdefault(number, now)
    for values in served.rows.tolist():
        row = dict(zip(REQUEST_COLUMNS, values, strict=True))
        number = row["request_id"]
        assert row["queued"] == first_seen.get(number, -1)
        assert row["admitted"] == first_admitted.get(number, -1)
        if row["admitted"] >= 0:
            assert row["arrival"] <= row["queued"] <= row["admitted"] <= row["scheduled"]
        if not setup.scheduler.async_scheduling:
            assert row["admitted"] == row["scheduled"]
