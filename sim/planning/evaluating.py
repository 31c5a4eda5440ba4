"""Asks a sweep for what candidates do, once each, and counts what was asked for.

What is asked for follows from the plan alone: with several processes likely questions are looked at
ahead of time, but an answer counts only once its question is asked. So a plan is the same, byte for
byte, whatever the number of processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil, inf
from typing import TYPE_CHECKING, Any, Final

from sim.planning.candidates import Candidate
from sim.planning.objectives import Objective, least_margin, met
from sim.scenario import Scenario
from sim.sweep.cells import Cell
from sim.sweep.outcomes import Failure, Outcome
from sim.sweep.traffic import Traffic
from sim.uncertainty import Figures
from traces.pipeline import Operation

if TYPE_CHECKING:
    from collections.abc import Generator

    from sim.sweep.sweep import Sweep

STOPPED: Final = "stopped_s"
"""Figure of a run that was ended when it was certain to miss: the simulated time."""

Told = Callable[[str, int], None]
"""Told what is being done, and how many replays have been asked for."""


@dataclass(frozen=True)
class Evaluation:
    """What a replay of a candidate said."""

    candidate: Candidate
    figures: Figures
    """Empty where it failed; those of a run that was ended early are of its beginning."""
    met: bool
    margin: float
    """The least over all objectives; -inf where one has no figure."""
    error: str = ""

    @property
    def stopped(self) -> bool:
        """It was ended early, being certain to miss."""
        return STOPPED in self.figures

    def missed(self, objectives: Sequence[Objective]) -> list[Objective]:
        """The objectives that it is known to miss."""
        if self.met:
            return []
        named = [one for at, one in enumerate(objectives) if self.figures.get(f"missed.{at}")]
        if self.stopped:
            return named
        return [one for one in objectives if not one.met(self.figures)]


@dataclass(frozen=True)
class Redrawn:
    """How a candidate did on redrawn traffic."""

    results: Mapping[int, bool]
    """Whether every objective was met, by number of the redrawn trace."""
    redraws: int
    """How many there are; fewer were replayed where `asked` was out of reach."""
    asked: float
    """Share of them that is to be met."""

    @property
    def met(self) -> int:
        """On how many every objective was met."""
        return sum(self.results.values())

    @property
    def reached(self) -> bool:
        """The share that is asked for was reached."""
        return self.met >= self.asked * self.redraws - 1e-9

    @property
    def complete(self) -> bool:
        """All were replayed."""
        return len(self.results) == self.redraws

    def interval(self, level: float) -> tuple[float, float] | None:
        """Bounds of the share of such traffic on which every objective is met.

        Clopper and Pearson, The Use of Confidence or Fiducial Limits Illustrated in the Case of the
        Binomial, Biometrika 26, 1934; redrawn traces are taken as independent draws. None if not
        all were replayed: which ones were depends on how hard they are.
        """
        if not self.complete or not self.redraws:
            return None
        from scipy.stats import beta

        tail = (1 - level) / 2
        met, missed = self.met, self.redraws - self.met
        low = float(beta.ppf(tail, met, missed + 1)) if met else 0.0
        high = float(beta.ppf(1 - tail, met + 1, missed)) if missed else 1.0
        return low, high


@dataclass(frozen=True)
class Change:
    """What is altered of the traffic or the fleet, beside the replicas."""

    rate: float = 1.0
    """Factor of the arrival rate (compress_time)."""
    lengths: float = 1.0
    """Factor of prompts' and answers' tokens (scale_lengths)."""
    prefix_caching: bool = True
    """False: the prefix cache is off."""

    def of(self, scenario: Scenario) -> Scenario:
        """The altered scenario."""
        operations = list(scenario.trace.operations)
        if self.rate != 1:
            stated = {"compress_time": {"factor": self.rate}}
            operations.append(Operation.model_validate(stated))
        if self.lengths != 1:
            stated = {"scale_lengths": {"prompt": self.lengths, "output": self.lengths}}
            operations.append(Operation.model_validate(stated))
        update: dict[str, Any] = {}
        if len(operations) > len(scenario.trace.operations):
            trace = scenario.trace.model_copy(update={"operations": tuple(operations)})
            update["trace"] = trace
        if not self.prefix_caching:
            update["cache"] = scenario.cache.model_copy(update={"prefix_caching": False})
        return scenario.model_copy(update=update) if update else scenario


AS_IT_IS: Final = Change()


class Replays:
    """Outcomes of cells, by way of a sweep."""

    def __init__(self, sweep: Sweep, ahead: int, told: Told | None = None) -> None:
        """Over a sweep that others do not use.

        Args:
            sweep: runs the cells.
            ahead: cells that may run at once; 1: nothing is looked at ahead of time.
            told: see Told.
        """
        self._sweep = sweep
        self._ahead = ahead
        self._told = told
        self._purpose = ""
        self._found: dict[str, Outcome] = {}
        self._cells: dict[int, tuple[Cell, str]] = {}
        """Every cell that was submitted, by its address, with its key."""
        self._asked: set[str] = set()
        self.counts: dict[str, int] = {}
        """Replays asked for, by purpose, in order; one that was asked for before costs nothing."""

    @contextmanager
    def purpose(self, name: str) -> Generator[None]:
        """What is asked for inside counts for `name`."""
        before, self._purpose = self._purpose, name
        self.counts.setdefault(name, 0)
        self._tell()
        try:
            yield
        finally:
            self._purpose = before

    @property
    def total(self) -> int:
        """Replays asked for."""
        return len(self._asked)

    def one(self, cell: Cell, likely: Callable[[], Iterable[Cell]] = tuple) -> Outcome:
        """What comes of a cell; meanwhile others are begun that are likely to be asked for."""
        key = self._submit(cell)
        if key not in self._found and self._sweep.pending < self._ahead:
            for other in likely():
                self._submit(other)
                if self._sweep.pending >= self._ahead:
                    break
        self._wait({key})
        return self._answer(key)

    def all(self, cells: Sequence[Cell]) -> list[Outcome]:
        """What comes of cells, in their order."""
        keys = [self._submit(cell) for cell in cells]
        self._wait(set(keys))
        return [self._answer(key) for key in keys]

    def _submit(self, cell: Cell) -> str:
        if id(cell) not in self._cells:
            self._cells[id(cell)] = (cell, self._sweep.submit(cell))
        return self._cells[id(cell)][1]

    def _wait(self, keys: set[str]) -> None:
        while not keys <= self._found.keys():
            cell, outcome = self._sweep.next()
            self._found[self._cells[id(cell)][1]] = outcome

    def _answer(self, key: str) -> Outcome:
        if key not in self._asked:
            self._asked.add(key)
            self.counts[self._purpose] = self.counts.get(self._purpose, 0) + 1
            self._tell()
        return self._found[key]

    def _tell(self) -> None:
        if self._told is not None:
            self._told(self._purpose, self.total)


class Judge:
    """Whether candidates meet the objectives, on the trace as it is, altered, or drawn anew."""

    def __init__(
        self, replays: Replays, objectives: Sequence[Objective], traffic: Traffic, redraws: int
    ) -> None:
        """Candidates are asked for by what `evaluate` and its likes are given.

        Args:
            replays: gives the outcomes.
            objectives: of the plan.
            traffic: how replications redraw the trace.
            redraws: how many replications there are.
        """
        self.replays = replays
        self.objectives = objectives
        self.redraws = redraws
        self._traffic = traffic
        self._cells: dict[tuple[Any, ...], Cell] = {}
        self.evaluated: dict[tuple[int, int], Evaluation] = {}
        """Candidates that were asked for as they are, by identity, in order."""
        self._hard = dict.fromkeys(range(1, redraws + 1), 0)
        """How many candidates missed each redrawn trace."""

    def evaluate(self, candidate: Candidate, likely: Sequence[Candidate] = ()) -> Evaluation:
        """What a candidate does on the trace as it is."""
        if candidate.identity not in self.evaluated:
            outcome = self.replays.one(
                self._cell(candidate), lambda: [self._cell(one) for one in likely]
            )
            self.evaluated[candidate.identity] = self.judged(candidate, outcome)
        return self.evaluated[candidate.identity]

    def evaluate_all(self, candidates: Sequence[Candidate]) -> list[Evaluation]:
        """What each does on the trace as it is, in their order."""
        new = [one for one in candidates if one.identity not in self.evaluated]
        outcomes = self.replays.all([self._cell(one) for one in new])
        for one, outcome in zip(new, outcomes, strict=True):
            self.evaluated[one.identity] = self.judged(one, outcome)
        return [self.evaluated[one.identity] for one in candidates]

    def meets(self, candidate: Candidate, likely: Sequence[Candidate] = ()) -> bool:
        """Whether a candidate meets every objective on the trace as it is."""
        return self.evaluate(candidate, likely).met

    def altered(
        self, candidate: Candidate, change: Change, likely: Sequence[Change] = ()
    ) -> Evaluation:
        """What a candidate does on altered traffic; `likely` are the next such questions."""
        outcome = self.replays.one(
            self._cell(candidate, change), lambda: [self._cell(candidate, one) for one in likely]
        )
        return self.judged(candidate, outcome)

    def altered_all(self, candidate: Candidate, changes: Sequence[Change]) -> list[Evaluation]:
        """What a candidate does on traffic altered in several ways."""
        outcomes = self.replays.all([self._cell(candidate, one) for one in changes])
        return [self.judged(candidate, one) for one in outcomes]

    def redrawn(self, candidate: Candidate, share: float) -> Redrawn:
        """On how many redrawn traces a candidate meets every objective.

        Traces that others missed come first; it ends as soon as `share` is out of reach.
        """
        hardest = sorted(self._hard, key=lambda number: (-self._hard[number], number))
        allowed = self.redraws - ceil(share * self.redraws - 1e-9)
        cells = {number: self._cell(candidate, AS_IT_IS, number) for number in hardest}
        results: dict[int, bool] = {}
        for at, number in enumerate(hardest):
            outcome = self.replays.one(
                cells[number], lambda at=at: [cells[one] for one in hardest[at + 1 :]]
            )
            results[number] = self.judged(candidate, outcome).met
            self._hard[number] += not results[number]
            if sum(not one for one in results.values()) > allowed:
                break
        return Redrawn(dict(sorted(results.items())), self.redraws, share)

    def judged(self, candidate: Candidate, outcome: Outcome) -> Evaluation:
        """An outcome as an evaluation."""
        if isinstance(outcome, Failure):
            return Evaluation(candidate, {}, False, -inf, str(outcome))
        stopped = STOPPED in outcome
        good = not stopped and met(self.objectives, outcome)
        margin = -inf if stopped else least_margin(self.objectives, outcome)
        return Evaluation(candidate, outcome, good, margin)

    def _cell(self, candidate: Candidate, change: Change = AS_IT_IS, replication: int = 0) -> Cell:
        identity = (*candidate.identity, change, replication)
        if identity not in self._cells:
            self._cells[identity] = Cell(change.of(candidate.scenario), replication, self._traffic)
        return self._cells[identity]
