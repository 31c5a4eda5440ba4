"""Spends a budget of time on an engine: designed steps as a campaign asks for, then serving."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

import numpy as np

from calibration.measuring.campaign import FITTED, PROBE, SERVING_SHARE, STAGES, Campaign, Visit
from calibration.measuring.conditions import Host, Sample, said
from calibration.measuring.design import Limits, Point, ladders
from calibration.measuring.measure import Bench, plainly
from calibration.measuring.partial import Partial
from calibration.measuring.serving import Workload, serve
from calibration.steps import step_frame
from engine.config import EngineSettings
from engine.llm import Clock
from engine.loading import LoadedModel
from engine.metrics import PICOSECONDS
from engine.units import seconds as duration
from traces.errors import ConfigError

if TYPE_CHECKING:
    import polars as pl

SERVING: Final = "serving"
ASYNCHRONOUS: Final = "asynchronous serving"

LEVELS: Final = 4
"""Numbers of users that are served, one after the other."""
PROMPT_TOKENS: Final = 256
ANSWER_TOKENS: Final = 64
"""Median lengths of what they ask, unless time or the model's limit allows only shorter ones."""
LEAST_TOKENS: Final = 4
WAVE_SHARE: Final = 0.3
"""Of the time of a level, within which a prompt of each user is computed, or an answer."""

MEASURING: Final = 1
WARM_UP: Final = 2
"""What tokens are drawn for."""

LEAST_RUNGS: Final = 2
"""Of prefills and of decodes, that an engine's limits have to allow."""

LOOK_S: Final = 10.0
"""How often clocks, temperatures and load are looked at."""

Tell = Callable[[float, str], None]
"""Seconds of the budget that are spent, and a few words."""


class Experiment:
    """A measurement of one engine, that goes on from what is kept of it."""

    def __init__(
        self,
        model: LoadedModel,
        machine: Host,
        kept: Partial,
        budget_s: float,
        seed: int,
        clock: Clock,
        tell: Tell | None = None,
    ) -> None:
        """An experiment whose budget runs from now on, less what was spent before.

        Raises:
            ConfigError: limits within which steps hardly differ.
        """
        self.limits: Final = limits_of(model)
        _refuse_narrow(self.limits)
        self.campaign: Final = Campaign(
            self.limits, budget_s, seed, (one for one in kept.visits if one.stage in STAGES)
        )
        self.samples: list[Sample] = []
        """States of the machine, in order."""
        self._model = model
        self._machine = machine
        self._kept = kept
        self._budget_s = budget_s
        self._seed = seed
        self._clock = clock
        self._tell = tell
        self._start = clock.now()
        self._before_s = max((visit.ended_s for visit in kept.visits), default=0.0)
        self._looked_s = -LOOK_S

    def run(self) -> None:
        """Measure all that there is time for.

        Raises:
            ConfigError: the budget is too short.
        """
        self._measure_points()
        self._serve_levels()

    def elapsed_s(self) -> float:
        """Of the budget."""
        return self._before_s + (self._clock.now() - self._start) / PICOSECONDS

    def _measure_points(self) -> None:
        bench = Bench(self._model.executor, self._model.settings, self._clock)
        first = self.campaign.next(self.elapsed_s())
        if first is not None:
            bench.measure(first.point, first.steps, self._random(WARM_UP))
        probing = True
        while (task := self.campaign.next(self.elapsed_s())) is not None:
            if probing and task.stage != PROBE:
                self._refuse_short_budget()
                probing = False
            began_s = self.elapsed_s()
            steps = bench.measure(task.point, task.steps, self._random())
            visit = Visit(task.stage, task.point, tuple(steps), began_s, self.elapsed_s())
            self.campaign.add(visit)
            self._kept.append(visit)
            self._look()
        self._refuse_short_budget()

    def _refuse_short_budget(self) -> None:
        lacking = self.campaign.lacking()
        if lacking is not None:
            raise ConfigError(
                f"budget: {duration(self._budget_s)} is too short to tell what {lacking.what} cost;"
                f" about {duration(lacking.budget_s)} would do"
            )

    def _serve_levels(self) -> None:
        """Few and many users, each for an equal part of the time that is left."""
        done = {visit.stage for visit in self._kept.visits}
        levels = [level for level in self._levels() if level[0] not in done]
        for number, (stage, workload, settings) in enumerate(levels):
            began_s = self.elapsed_s()
            left_s = (self._budget_s - began_s) / (len(levels) - number)
            steps = serve(
                self._model.executor,
                settings,
                self._clock,
                workload,
                left_s,
                self._random(),
                self._look,
            )
            if steps:
                visit = Visit(stage, Point(), tuple(steps), began_s, self.elapsed_s())
                self._kept.append(visit)

    def _levels(self) -> Iterator[tuple[str, Workload, EngineSettings]]:
        """What to call it, who asks for what, of which engine."""
        asked, reach = self._model.settings, self.campaign.reach()
        counts = np.geomspace(1, reach.max_sequences, LEVELS).round().astype(int).tolist()
        synchronous = plainly(asked, reach.max_tokens)
        workload = Workload(1, 1, 1)
        for users in dict.fromkeys(counts):
            workload = self._workload(users, reach)
            yield f"{SERVING}, {users} at once", workload, synchronous
        if asked.device == "cuda" and asked.scheduler.async_scheduling:
            settings = plainly(asked, reach.max_tokens, asynchronous=True)
            yield f"{ASYNCHRONOUS}, {workload.users} at once", workload, settings

    def _workload(self, users: int, reach: Limits) -> Workload:
        """Lengths as people have them, or shorter ones, so that some are served in the time."""
        wave_s = WAVE_SHARE * SERVING_SHARE * self._budget_s / LEVELS
        chunk = min(reach.max_tokens, PROMPT_TOKENS)
        prefill = Point(prefills=1, chunk_tokens=chunk)
        decode = Point(decodes=users, context_tokens=PROMPT_TOKENS)
        prefill_s, decode_s = self.campaign.seconds([prefill, decode])
        prompt = min(PROMPT_TOKENS, reach.max_context_tokens // 8)
        prompt = min(prompt, int(wave_s / users * chunk / prefill_s))
        answer = min(ANSWER_TOKENS, int(wave_s / decode_s))
        return Workload(users, max(prompt, LEAST_TOKENS), max(answer, LEAST_TOKENS))

    def _random(self, what: int = MEASURING) -> np.random.Generator:
        """Of the next visit, or of what runs before it: the same tokens would be cached."""
        return np.random.default_rng((self._seed, what, len(self._kept.visits)))

    def _look(self) -> None:
        """At the machine, now and then; and tell how far it is."""
        elapsed_s = self.elapsed_s()
        if elapsed_s - self._looked_s >= LOOK_S:
            self._looked_s = elapsed_s
            self.samples.append(self._machine.sample())
        if self._tell is not None:
            steps = sum(len(visit.steps) for visit in self._kept.visits)
            parts = (f"{self.campaign.points} points", f"{steps} steps", said(self.samples[-1]))
            self._tell(elapsed_s, ", ".join(part for part in parts if part))


def limits_of(model: LoadedModel) -> Limits:
    """What a step of an engine can be."""
    settings = model.settings
    scheduler = settings.scheduler
    sequences, tokens = scheduler.max_num_seqs, scheduler.max_num_batched_tokens
    assert sequences is not None and tokens is not None and scheduler.max_model_len is not None
    sizes: tuple[int, ...] = ()
    if settings.cuda_graphs:
        from engine.execution.graphs import bucket_sizes

        sizes = bucket_sizes(sequences)
    return Limits(
        max_sequences=sequences,
        max_tokens=tokens,
        max_context_tokens=scheduler.max_model_len,
        pool_blocks=model.executor.num_blocks - 1,
        block_tokens=settings.cache.block_tokens,
        graph_sizes=sizes,
    )


def _refuse_narrow(limits: Limits) -> None:
    tokens, decodes, *_ = ladders(limits)
    for what, ladder in (("prefills", tokens), ("decodes", decodes)):
        if len(ladder) < LEAST_RUNGS:
            raise ConfigError(
                f"scheduler: leaves no room to measure different {what}: max_num_seqs"
                f" {limits.max_sequences}, max_num_batched_tokens {limits.max_tokens},"
                f" max_model_len {limits.max_context_tokens}, {limits.pool_blocks} blocks of"
                f" {limits.block_tokens} tokens; expected at least 4 sequences, 32 batched tokens,"
                " 100 tokens of length and 32 blocks"
            )


def frame_of(visits: Iterable[Visit]) -> "pl.DataFrame":
    """The step frame of visits, one at least, in their order; tests and serving are held out."""
    rows = [
        asdict(step) | {"source": visit.stage, "held_out": visit.stage not in FITTED}
        for visit in visits
        for step in visit.steps
    ]
    return step_frame({name: [row[name] for row in rows] for name in rows[0]})
