"""The requests of cells, kept from one cell to the next: plans simulate one trace thousands of
times."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from engine.metrics import PICOSECONDS
from sim.sweep.cells import Cell
from sim.sweep.traffic import Traffic, before_hurry
from traces.pipeline import TraceSettings, apply_operations
from traces.request import Request

MOST_REQUESTS: Final = 250_000
"""Requests that are kept at most (some 300 bytes each), the last trace in any case."""

_Drawn = tuple[TraceSettings, Traffic, int, int]


@dataclass(frozen=True)
class Traced:
    """Requests in arrival order, numbered from 0, with some of their columns."""

    requests: list[Request]
    arrivals_ps: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    classes: tuple[str, ...]
    """SLO classes, an empty name first; `class_of` numbers them."""
    class_of: NDArray[np.int64]

    @property
    def rate_per_s(self) -> float | None:
        """Mean rate at which requests arrive; None where all arrive at once, or there is one."""
        span_ps = int(self.arrivals_ps[-1] - self.arrivals_ps[0]) if len(self.requests) else 0
        return (len(self.requests) - 1) * PICOSECONDS / span_ps if span_ps else None

    def of_class(self, slo_class: str | None) -> NDArray[np.bool_]:
        """Which requests are of a class; None: all are."""
        if slo_class is None:
            return np.ones(len(self.requests), dtype=bool)
        if slo_class not in self.classes:
            return np.zeros(len(self.requests), dtype=bool)
        return self.class_of == self.classes.index(slo_class)


class KeptTraffic:
    """Draws the requests of cells; what differs by its rate alone is drawn once."""

    def __init__(self, most_requests: int = MOST_REQUESTS) -> None:
        self._most: int = most_requests
        self._drawn: OrderedDict[_Drawn, list[Request]] = OrderedDict()
        self._last: tuple[_Drawn, Traced] | None = None

    def of(self, cell: Cell) -> Traced:
        """The requests that a cell serves: those of sim.sweep.cells.Simulator.

        Raises:
            ConfigError, TraceError: settings or a trace that cannot be used.
        """
        trace, seed, number = cell.scenario.trace, cell.scenario.seed, cell.replication
        traffic = cell.traffic if number else Traffic()
        asked = (trace, traffic, seed, number)
        if self._last is not None and self._last[0] == asked:
            return self._last[1]
        plain, hurry = before_hurry(trace)
        requests = list(apply_operations(self._plain((plain, traffic, seed, number)), hurry))
        traced = traced_of(requests)
        self._last = (asked, traced)
        return traced

    def _plain(self, asked: _Drawn) -> list[Request]:
        kept = self._drawn.get(asked)
        if kept is None:
            trace, traffic, seed, number = asked
            opened = trace.open(seed) if number == 0 else traffic.requests(trace, seed, number)
            kept = self._drawn[asked] = list(opened)
        self._drawn.move_to_end(asked)
        while len(self._drawn) > 1 and sum(map(len, self._drawn.values())) > self._most:
            self._drawn.popitem(last=False)
        return kept


def traced_of(requests: list[Request]) -> Traced:
    """The columns of requests."""
    classes = {"": 0}
    class_of = [classes.setdefault(request.slo_class, len(classes)) for request in requests]
    arrivals: Any = np.array([request.arrival_s for request in requests], dtype=np.float64)
    return Traced(
        requests,
        np.rint(arrivals * PICOSECONDS).astype(np.int64),
        np.array([request.output_tokens for request in requests], dtype=np.int64),
        tuple(classes),
        np.array(class_of, dtype=np.int64),
    )
