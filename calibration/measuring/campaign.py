"""What to measure next, and when to stop: a budget of time spent where it teaches most.

1. **Probes** climb ladders along each axis until the next rung would cost too much: now it is known
   how far the budget reaches.
2. A **space-filling** set within that reach, each point once, in random order. Edges of captured
   graphs belong to it.
3. As long as time is left, two visits of a point already known (the least visited first, never the
   last one again) for each new one. New points are **chosen** from many candidates: the one that,
   for the time it takes, lowers most what the variance of predictions is on average over all of
   them (an I-optimal design, built up point by point; Cohn, Neural Network Exploration Using
   Optimal Experiment Design, Neural Networks 9(6), 1996).

Every fourth point of 2 and 3 is a **test**: drawn, not chosen, and not fitted to. That, and serving
in what is left of the budget, is what a fit is judged by.

All decisions follow from the seed and the visits so far, so an interrupted campaign goes on.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import takewhile
from statistics import median
from typing import Final, NamedTuple

import numpy as np

from calibration.measuring.design import (
    FACTOR,
    Limits,
    Point,
    graph_edges,
    in_turns,
    ladders,
    space_filling,
)
from calibration.measuring.measure import Step
from calibration.measuring.surrogate import Surrogate, fit_surrogate

PROBE: Final = "probe"
FILLING: Final = "space-filling"
CHOSEN: Final = "chosen"
TEST: Final = "test"
FITTED: Final = (PROBE, FILLING, CHOSEN)
STAGES: Final = (*FITTED, TEST)
"""What a point can be there for."""

SERVING_SHARE: Final = 0.2
"""Of the budget, kept for serving at the end."""
PROBES_SHARE: Final = 0.3
"""Of the budget, after which no further rung is climbed."""
FILLING_SHARE: Final = 0.5
"""Of the budget, within which each point of the space-filling set is visited once."""
VISIT_SHARE: Final = 0.05
"""Of the budget, which no visit may cost."""
STEPS_SHARE: Final = 0.004
"""Of the budget: a visit measures as many steps as fit into this, within the next two."""
LEAST_STEPS: Final = 2
MOST_STEPS: Final = 4

POINTS: Final = 96
"""Of the space-filling set, if there is time."""
CANDIDATES: Final = 192
"""From which a new point is chosen."""
TEST_EVERY: Final = 4
NEW_EVERY: Final = 3

RUNGS: Final = 3
"""Of each ladder, less of a shorter one, that have to be climbed to tell what its axis costs."""
AXES: Final = ("prefill tokens", "decodes", "contexts of decodes", "contexts before prefills")
"""What the ladders of calibration.measuring.design are for."""

SAFETY: Final = 2.0
"""Times the budget that a few small steps let expect to be enough."""

SETUP_TOKENS: Final = 256
"""Setting a point up costs what so many tokens of its prompts do, and the tokens."""


class Task(NamedTuple):
    """What to do next."""

    stage: str
    point: Point
    steps: int
    cost_s: float
    """What the visit is expected to take."""


class Lacking(NamedTuple):
    """What a budget was too short for."""

    what: str
    budget_s: float
    """That would do, if costs grow no faster than the rungs of a ladder."""


@dataclass(frozen=True, slots=True)
class Visit:
    """What has been done."""

    stage: str
    """Of the point's first visit."""
    point: Point
    steps: tuple[Step, ...]
    began_s: float
    """Of the budget."""
    ended_s: float

    @property
    def step_s(self) -> float:
        """The median of its steps."""
        return median(step.time_s for step in self.steps)


class Campaign:
    """Decides; who measures tells it."""

    def __init__(
        self, limits: Limits, budget_s: float, seed: int, visits: Iterable[Visit] = ()
    ) -> None:
        """A campaign that begins, or goes on after `visits`."""
        self._limits = limits
        self._budget_s = budget_s
        self._seed = seed
        self._ladders = tuple(in_turns(ladders(limits)))
        self._filling: list[Task] | None = None
        self._times: dict[Point, list[float]] = {}
        """Of each point, its visits' step times."""
        self._stages: dict[Point, str] = {}
        self._setup_tokens = 0
        self._setup_s = 0.0
        self.visits: list[Visit] = []
        for visit in visits:
            self.add(visit)

    def add(self, visit: Visit) -> None:
        """Take note of a visit."""
        self.visits.append(visit)
        self._times.setdefault(visit.point, []).append(visit.step_s)
        self._stages.setdefault(visit.point, visit.stage)
        took_s = visit.ended_s - visit.began_s
        self._setup_s += max(0.0, took_s - (len(visit.steps) + 1) * visit.step_s)
        self._setup_tokens += SETUP_TOKENS + visit.point.prompt_tokens()

    @property
    def points(self) -> int:
        """Points visited so far."""
        return len(self._times)

    def next(self, elapsed_s: float) -> Task | None:
        """What to measure, `elapsed_s` of the budget being spent; None: it is time to serve."""
        room_s = (1 - SERVING_SHARE) * self._budget_s - elapsed_s
        if not self.visits:
            return Task(PROBE, self._ladders[0][1], LEAST_STEPS, 0.0)
        known = self.surrogate(self.visits)
        if self._filling is None:
            task = self._probe(known, elapsed_s)
            if task is not None:
                return task if task.cost_s <= room_s else None
            self._filling = self._filling_set()
        unvisited = [task for task in self._filling if task.point not in self._times]
        for task in self._tasks(known, ((one.stage, one.point) for one in unvisited)):
            if task.cost_s <= room_s:
                return task
        return self._beyond(known, room_s)

    def surrogate(self, visits: Iterable[Visit]) -> Surrogate:
        """What is known after some visits, without what tests showed."""
        learnt = [visit for visit in visits if visit.stage != TEST]
        features = [visit.point.features(self._limits) for visit in learnt]
        return fit_surrogate(features, [visit.step_s for visit in learnt])

    def reach(self) -> Limits:
        """Limits of the steps that were measured: what may be asked of a fit."""
        sizes = zip(*(_sizes(visit.point) for visit in self.visits), strict=True)
        sequences, tokens, context = (max(size) for size in sizes)
        return replace(
            self._limits,
            max_sequences=sequences,
            max_tokens=tokens,
            max_context_tokens=min(context, self._limits.max_context_tokens),
        )

    def seconds(self, points: list[Point]) -> list[float]:
        """What a step of each is expected to take."""
        known = self.surrogate(self.visits)
        return known.seconds([point.features(self._limits) for point in points]).tolist()

    def lacking(self) -> Lacking | None:
        """The axis that is known least, if the budget was too short to know one."""
        known = self.surrogate(self.visits)
        lacking: list[Lacking] = []
        for what, ladder in zip(AXES, ladders(self._limits), strict=True):
            rungs = ladder[:RUNGS]
            if all(point in self._times for point in rungs):
                continue
            *below, last = self._tasks(known, ((PROBE, point) for point in rungs))
            feared_s = [self._feared_s(task.point, known) for task in below[-1:]] or [0.0]
            needed_s = max(last.cost_s, *feared_s) / VISIT_SHARE
            lacking.append(Lacking(what, SAFETY * max(needed_s, self._budget_s)))
        return max(lacking, key=lambda one: one.budget_s, default=None)

    # ---- the three stages

    def _probe(self, known: Surrogate, elapsed_s: float) -> Task | None:
        """The next rung that can be afforded."""
        only = len(self._stages) == len(self.visits) and {*self._stages.values()} == {PROBE}
        if not only or elapsed_s > PROBES_SHARE * self._budget_s:
            return None
        rungs = ((PROBE, point) for _, point in self._ladders)
        feared_s: dict[int, float] = {}
        stopped: set[int] = set()
        for (ladder, point), task in zip(self._ladders, self._tasks(known, rungs), strict=True):
            if point in self._times:
                feared_s[ladder] = self._feared_s(point, known)
                continue
            if max(task.cost_s, feared_s.get(ladder, 0.0)) > VISIT_SHARE * self._budget_s:
                stopped.add(ladder)
            if ladder not in stopped:
                return task._replace(steps=LEAST_STEPS)
        return None

    def _feared_s(self, rung: Point, known: Surrogate) -> float:
        """What a visit of the next rung would take if its time grew as fast as the rungs do."""
        features = rung.features(self._limits)
        step_s = (
            self._times[rung][0] if rung in self._times else float(known.seconds([features])[0])
        )
        return (LEAST_STEPS + 1) * FACTOR * step_s

    def _filling_set(self) -> list[Task]:
        """Points that can all be visited once within their share of the budget."""
        probes = list(takewhile(lambda visit: visit.stage == PROBE, self.visits))
        random = np.random.default_rng(self._seed)
        points = [*graph_edges(self._limits), *space_filling(self._limits, POINTS, random)]
        points = [points[number] for number in random.permutation(len(points)).tolist()]
        within = self._within_reach(points, probes)
        left_s = FILLING_SHARE * self._budget_s - probes[-1].ended_s
        chosen: list[Task] = []
        for task in self._tasks(self.surrogate(probes), ((FILLING, point) for point in within)):
            if task.cost_s <= min(VISIT_SHARE * self._budget_s, left_s):
                test = len(chosen) % TEST_EVERY == TEST_EVERY - 1
                chosen.append(task._replace(stage=TEST) if test else task)
                left_s -= task.cost_s
        return chosen

    def _beyond(self, known: Surrogate, room_s: float) -> Task | None:
        """Known points again, and now and then a new one; None: no time is left."""
        random = np.random.default_rng((self._seed, len(self.visits)))
        again = self._again(known, room_s, random)
        if again is not None and len(self.visits) % NEW_EVERY:
            return again
        return self._new(known, room_s, random) or again

    def _again(self, known: Surrogate, room_s: float, random: np.random.Generator) -> Task | None:
        """One of the points that were visited least, but not the last one."""
        last = self.visits[-1].point
        known_points = ((stage, point) for point, stage in self._stages.items() if point != last)
        tasks = [task for task in self._tasks(known, known_points) if task.cost_s <= room_s]
        fewest = min((len(self._times[task.point]) for task in tasks), default=0)
        tasks = [task for task in tasks if len(self._times[task.point]) == fewest]
        return tasks[int(random.integers(len(tasks)))] if tasks else None

    def _new(self, known: Surrogate, room_s: float, random: np.random.Generator) -> Task | None:
        """The candidate that teaches most for its time; each fourth time, any."""
        drawn = space_filling(self._limits, CANDIDATES, random)
        new = [point for point in drawn if point not in self._times]
        new = self._within_reach(new, self.visits)
        most_s = min(VISIT_SHARE * self._budget_s, room_s)
        tasks = self._tasks(known, ((CHOSEN, point) for point in new))
        tasks = [task for task in tasks if task.cost_s <= most_s]
        if not tasks:
            return None
        added = sum(stage != PROBE for stage in self._stages.values())
        if added % TEST_EVERY == TEST_EVERY - 1:
            return tasks[0]._replace(stage=TEST)
        gains = known.gains([task.point.features(self._limits) for task in tasks])
        return tasks[int(np.argmax(gains / np.array([task.cost_s for task in tasks])))]

    def _tasks(self, known: Surrogate, points: Iterable[tuple[str, Point]]) -> list[Task]:
        """Visits of points, given with their stages, and what they would take."""
        staged = list(points)
        if not staged:
            return []
        times_s = known.seconds([point.features(self._limits) for _, point in staged]).tolist()
        setup_s = self._setup_s / self._setup_tokens
        tasks: list[Task] = []
        for (stage, point), step_s in zip(staged, times_s, strict=True):
            steps = int(STEPS_SHARE * self._budget_s / step_s)
            steps = min(max(steps, LEAST_STEPS), MOST_STEPS)
            cost_s = setup_s * (SETUP_TOKENS + point.prompt_tokens()) + (steps + 1) * step_s
            tasks.append(Task(stage, point, steps, cost_s))
        return tasks

    def _within_reach(self, points: list[Point], visits: list[Visit]) -> list[Point]:
        """Those that lie at most a rung beyond what was probed, along each axis."""
        probed = [_sizes(visit.point) for visit in visits if visit.stage == PROBE]
        most = [FACTOR * max(size) for size in zip(*probed, strict=True)]
        return [
            point
            for point in points
            if all(size <= limit for size, limit in zip(_sizes(point), most, strict=True))
        ]


def _sizes(point: Point) -> tuple[int, int, int]:
    """Sequences, tokens and longest context of a step."""
    tokens = point.decodes + point.prefills * point.chunk_tokens
    return point.decodes + point.prefills, tokens, point.longest_tokens()
