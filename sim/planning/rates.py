"""A scenario at other rates of requests, on a grid: each step the same factor."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, log, log1p
from typing import Final, Literal

from sim.scenario import Scenario
from traces.errors import ConfigError
from traces.pipeline import CompressTime, Operation, Thin, Tile

By = Literal["time", "users"]

WAYS: Final[dict[By, str]] = {
    "time": "the same requests, arriving faster or slower",
    "users": "more or fewer users, at their own pace",
}
"""How a rate is changed, in words."""

FINENESS: Final = 4
"""Steps of the grid in the precision that is asked for."""

LOWEST_DOUBLINGS: Final = -10
HIGHEST_DOUBLINGS: Final = {"time": 20, "users": 6}
"""Of the trace's own rate, by the way: time may shrink to nothing, users are held in memory."""


@dataclass(frozen=True)
class Rates:
    """Rates of a scenario's trace: 2 ** (step / doubling) times its own."""

    scenario: Scenario
    doubling: int
    """Steps that double the rate."""
    by: By = "time"

    @property
    def lowest(self) -> int:
        """The step of the lowest rate."""
        return LOWEST_DOUBLINGS * self.doubling

    @property
    def highest(self) -> int:
        """The step of the highest rate."""
        return HIGHEST_DOUBLINGS[self.by] * self.doubling

    def factor(self, step: int) -> float:
        """Of the trace's own rate."""
        return 2.0 ** (step / self.doubling)

    def at(self, step: int) -> Scenario:
        """The scenario at a step of the grid.

        By time, warm-up and cut-off are scaled too: the same requests count at every rate, and the
        pauses of sessions shrink with the rest. By users, sessions are copied whole
        (`traces.operations.tile`) to the next power of two and then left out by chance (`thin`);
        within a doubling, the users of a rate are among those of any higher one.
        """
        scenario, factor = self.scenario, self.factor(step)
        if step == 0:
            return scenario
        if self.by == "users":
            return _with(scenario, self._users(step, factor))
        scaled = {"warmup_s": scenario.warmup_s / factor}
        if scenario.end_s is not None:
            scaled["end_s"] = scenario.end_s / factor
        faster = _with(scenario, [Operation(compress_time=CompressTime(factor=factor))])
        return faster.model_copy(update=scaled)

    def _users(self, step: int, factor: float) -> list[Operation]:
        copies = 2 ** max(ceil(step / self.doubling), 0)
        seed = self.scenario.seed
        more = [Operation(tile=Tile(copies=copies, seed=seed))] if copies > 1 else []
        if factor == copies:
            return more
        return [*more, Operation(thin=Thin(factor=factor / copies, seed=seed))]


def way(name: str) -> By:
    """The way of this name; raises ConfigError for an unknown one."""
    for known in WAYS:
        if name == known:
            return known
    raise ConfigError(f"--by: must be one of {', '.join(WAYS)}, got {name!r}")


def doubling_of(precision: float) -> int:
    """Steps that double the rate, FINENESS of them in a precision such as 0.02."""
    return ceil(log(2) / log1p(precision / FINENESS))


def _with(scenario: Scenario, operations: list[Operation]) -> Scenario:
    trace = scenario.trace
    trace = trace.model_copy(update={"operations": (*trace.operations, *operations)})
    return scenario.model_copy(update={"trace": trace})
