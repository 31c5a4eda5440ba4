"""The SimPy clock, in integer picoseconds."""

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
