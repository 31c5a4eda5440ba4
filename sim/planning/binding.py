"""What binds a configuration at its capacity: an experiment for each resource.

The same requests are served once more, at the rate and by the luck at which the objectives were
just missed, with a tenth more of one resource and everything else as it was. A limit on memory,
sequences or tokens binds if more of it alone brings the figure back within its limit, furthest of
all that do. A faster GPU always helps; it is what binds where no such limit does. Where nothing
helps, it is the objective itself that is too strict. How full each resource was is told beside it,
as evidence: a resource can be full without binding, and bind without being full.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from calibration.costs import CostModel
from calibration.profiles import Profile, load_profile
from calibration.roofline import RooflineCost, roofline_cost
from calibration.slower import SLOWER
from engine.config import SchedulerSettings
from sim.fit import fitted
from sim.planning.judged import Judged
from sim.planning.kept import KeptTraffic
from sim.planning.objectives import Objective
from sim.records import SEGMENT_COLUMNS
from sim.replay import Run
from sim.scenario import Scenario
from sim.sweep.cells import Cell, drawn
from traces.errors import KvcastError

MORE: Final = 1.1
"""How much more of a resource an experiment grants."""

_AT: Final = {name: i for i, name in enumerate(SEGMENT_COLUMNS)}

RESOURCES: Final = {
    "kv": "KV memory",
    "sequences": "sequences at once (scheduler.max_num_seqs)",
    "tokens": "tokens in a step (scheduler.max_num_batched_tokens)",
    "arithmetic": "the GPU's arithmetic",
    "bandwidth": "the GPU's memory bandwidth",
    "steps": "the time of a step",
    "objective": "nothing that a replica could have more of",
}
"""What may bind, in words."""


LIMITS: Final = ("kv", "sequences", "tokens")
"""Resources that are a limit, rather than a speed."""


@dataclass(frozen=True)
class Experiment:
    """One resource enlarged."""

    resource: str
    """A name in RESOURCES."""
    margin: float
    """Of the objective that was missed, with more of it; see Objective.margin."""
    value: float | None
    """The objective's figure with more of it."""


@dataclass(frozen=True)
class Binding:
    """What binds, and how that is known."""

    resource: str
    """A name in RESOURCES."""
    objective: Objective
    """The one that is missed first."""
    margin: float
    """Of that objective, without more of anything."""
    value: float | None
    experiments: Sequence[Experiment]
    """What binds first, then the most helpful."""
    evidence: dict[str, float]
    """How full things were in the run that just missed, shares of busy time unless their name says
    otherwise."""

    @property
    def in_words(self) -> str:
        """What binds."""
        return RESOURCES[self.resource]


def binding(cell: Cell, objectives: Sequence[Objective]) -> Binding | None:
    """What binds in a cell that misses an objective; None where it meets all.

    Raises:
        KvcastError: settings or a trace that cannot be used.
    """
    lab = _Lab(cell, tuple(objectives))
    figures, evidence = lab.run()
    objective = min(objectives, key=lambda one: one.margin(figures))
    if objective.met(figures):
        return None
    margin = objective.margin(figures)
    found: list[Experiment] = []
    for resource, change in lab.changes():
        try:
            changed, _ = lab.run(**change)
        except KvcastError:
            continue  # more than there can be, such as longer steps than the model's context
        found.append(Experiment(resource, objective.margin(changed), objective.value(changed)))
    found.sort(key=lambda one: (one.resource not in LIMITS or one.margin < 0, -one.margin))
    helps = bool(found) and found[0].margin > margin
    return Binding(
        resource=found[0].resource if helps else "objective",
        objective=objective,
        margin=margin,
        value=objective.value(figures),
        experiments=found,
        evidence=evidence,
    )


class _Lab:
    """Serves a cell, as it is and with more of something."""

    def __init__(self, cell: Cell, objectives: tuple[Objective, ...]) -> None:
        self._judge: Judged = Judged(objectives, stop_early=False)
        self._traced: Any = KeptTraffic().of(cell)
        self._objectives: tuple[Objective, ...] = objectives
        profile = load_profile(cell.scenario.profile)
        self._scenario, self._draw = drawn(cell, profile)
        self._profile: Profile = profile
        settings, blocks = fitted(self._scenario, self._draw.profile(profile))
        self._settings: SchedulerSettings = settings
        self._blocks: int = blocks

    def run(
        self,
        scenario: Scenario | None = None,
        faster: Callable[[CostModel], CostModel] | None = None,
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Figures, and how full things were."""
        tally = _Fullness(self._settings, self._blocks - 1)
        cost, draw = None, self._draw
        if faster is not None:
            drawn_profile = draw.profile(self._profile)
            cost = faster(
                drawn_profile.cost_model(async_scheduling=self._settings.async_scheduling)
            )
        run = Run(
            scenario or self._as_fitted(),
            self._traced.requests,
            cost,
            profile=self._profile,
            draw=draw,
        )
        figures = self._judge.judge(run, self._traced, segments_to=tally.take)
        return figures, tally.shares() | {
            name: figures[name]
            for name in ("kv.mean_occupancy", "kv.peak_occupancy", "utilization", "preemptions")
        }

    def changes(self) -> list[tuple[str, dict[str, Any]]]:
        """What to enlarge, by resource."""
        scenario, settings = self._as_fitted(), self._settings
        memory = scenario.memory.model_copy(update={"num_blocks": round(self._blocks * MORE)})
        found: list[tuple[str, dict[str, Any]]] = [
            ("kv", {"scenario": scenario.model_copy(update={"memory": memory})})
        ]
        for resource, name in (
            ("sequences", "max_num_seqs"),
            ("tokens", "max_num_batched_tokens"),
        ):
            limit = getattr(settings, name)
            if limit is not None:
                more = scenario.scheduler.model_copy(
                    update={name: max(limit + 1, round(limit * MORE))}
                )
                found.append(
                    (resource, {"scenario": scenario.model_copy(update={"scheduler": more})})
                )
        cost = self._draw.profile(self._profile).cost_model(
            async_scheduling=settings.async_scheduling
        )
        if isinstance(cost, RooflineCost):
            found += [
                ("arithmetic", {"faster": _more_flops}),
                ("bandwidth", {"faster": _more_bandwidth}),
            ]
        elif type(cost) in SLOWER:
            found.append(("steps", {"faster": _shorter_steps}))
        return found

    def _as_fitted(self) -> Scenario:
        """The scenario with what follows from the GPU stated, so that one limit can be changed
        and the others stay."""
        memory = self._scenario.memory.model_copy(update={"num_blocks": self._blocks})
        return self._scenario.model_copy(update={"memory": memory, "scheduler": self._settings})


class _Fullness:
    """Adds up, over segments of steps, how long each limit was reached."""

    def __init__(self, settings: SchedulerSettings, usable_blocks: int) -> None:
        self._sequences: int = settings.max_num_seqs or 1 << 60
        self._tokens: int = settings.max_num_batched_tokens or 1 << 60
        self._blocks: int = usable_blocks
        self._busy: float = 0.0
        self._sums: dict[str, float] = dict.fromkeys(
            ("waiting", "sequences_full", "tokens_full", "kv_full"), 0.0
        )
        self._running: float = 0.0
        self._most_running: int = 0

    def take(self, rows: Any) -> None:
        """Rows of segments."""
        duration = (rows[:, _AT["end"]] - rows[:, _AT["start"]]).astype(np.float64)
        waiting = rows[:, _AT["waiting"]] > 0
        running = rows[:, _AT["running"]]
        tokens = rows[:, _AT["decodes"]] + rows[:, _AT["prefill_tokens"]]
        free = self._blocks - rows[:, _AT["kv_blocks_used"]]
        self._busy += float(duration.sum())
        for name, full in (
            ("waiting", waiting),
            ("sequences_full", waiting & (running >= self._sequences)),
            ("tokens_full", tokens >= self._tokens),
            ("kv_full", waiting & (free <= 0.05 * self._blocks)),
        ):
            self._sums[name] += float(duration[full].sum())
        self._running += float((duration * running).sum())
        self._most_running = max(self._most_running, int(running.max(initial=0)))

    def shares(self) -> dict[str, float]:
        """Shares of busy time, and how many sequences ran."""
        busy = max(self._busy, 1.0)
        return {name: value / busy for name, value in self._sums.items()} | {
            "mean_running_sequences": self._running / busy,
            "most_running_sequences": float(self._most_running),
        }


def _shorter_steps(cost: CostModel) -> CostModel:
    return SLOWER[type(cost)](cost, 1 / MORE)


def _more_flops(cost: CostModel) -> CostModel:
    return _with_gpu(cost, ("bf16_flops_per_s", "fp8_flops_per_s", "int8_ops_per_s"))


def _more_bandwidth(cost: CostModel) -> CostModel:
    return _with_gpu(cost, ("memory_bytes_per_s",))


def _with_gpu(cost: CostModel, rates: Sequence[str]) -> CostModel:
    assert isinstance(cost, RooflineCost)
    gpu = cost.gpu
    more = {name: rate * MORE for name in rates if (rate := getattr(gpu, name)) is not None}
    return roofline_cost(
        cost.shape,
        gpu.model_copy(update=more),
        cost.tp,
        cost.weight_dtype,
        cost.kv_dtype,
        cost.efficiencies,
        cost.host,
    )
