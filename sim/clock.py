"""The SimPy clock, in integer picoseconds."""

from heapq import heappop
from typing import Any

from simpy import Environment
from simpy.events import Event


def new_clock() -> Environment:
    """A SimPy environment that stands at 0 picoseconds; all delays on it are whole numbers."""
    return Environment(0)  # type: ignore[arg-type]


def happening(env: Any) -> Any:
    """An event without a value, to be scheduled by its user; once fired, it can be used again."""
    event: Any = Event(env)
    event._ok = True
    event._value = None
    return event


def agenda(env: Any) -> tuple[Any, Any]:
    """What `env.schedule` puts events into: a heap of (time, priority, number, event), and the
    numbers, which go up. For who schedules so often that the call counts."""
    return env._queue, env._eid


def run(env: Any) -> None:
    """Let everything happen that is scheduled: `env.run()`, faster, for events that cannot fail.

    All are made by `happening`. There is no process that one could interrupt, and nothing to stop
    at before the end.
    """
    queue = env._queue
    while queue:
        env._now, _, _, event = heappop(queue)
        callbacks = event.callbacks
        event.callbacks = None
        for callback in callbacks:
            callback(event)
