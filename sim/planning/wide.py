"""Spaces too large to be searched: Optuna samples configurations, replicas are bisected.

Each trial is a configuration; its two values are the price of its cheapest candidate that meets
every objective, and that candidate's P99 TTFT, both to be small. Nothing is guaranteed but that
what is found meets the objectives: the cheapest of what was tried is not the cheapest there is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from sim.planning.candidates import Configuration, Space
from sim.planning.evaluating import Judge
from sim.planning.pareto import TTFT
from sim.planning.search import Known, first_that_meets
from sim.planning.space import SearchSettings
from traces.errors import ConfigError

WORSE: Final = 2.0
"""A configuration that misses is told to the sampler as so many times the dearest price, and as
missing by so many times the longest TTFT that any other had."""

NSGA_POPULATION: Final = 24


def sampled(
    space: Space,
    judge: Judge,
    new: Callable[[Configuration], Known],
    settings: SearchSettings,
) -> list[Known]:
    """What is known of the configurations that were tried, by place.

    Args:
        space: to draw from.
        judge: replays candidates.
        new: what is known of a configuration without a replay.
        settings: how many trials, which sampler, its seed.

    Raises:
        ConfigError: Optuna is not installed, or nothing that was tried can be bought and run.
    """
    study = _study(settings)
    tried: dict[int, Known] = {}
    dearest, longest_s = 1.0, 1.0
    for _ in range(settings.trials):
        trial = study.ask()
        places = [
            trial.suggest_categorical(name, list(range(len(choices))))
            for name, choices in space.axes.items()
        ]
        configuration = space.at(places)
        values: tuple[float, float] | None = None
        if configuration is not None:
            if configuration.place not in tried:
                tried[configuration.place] = new(configuration)
            one = tried[configuration.place]
            dearest = max(dearest, one.candidates[-1].usd_per_hour)
            if first_that_meets(one, judge.meets):
                found = judge.evaluate(one.candidates[one.high])
                values = (found.candidate.usd_per_hour, found.figures.get(TTFT, 0.0))
                longest_s = max(longest_s, values[1])
        study.tell(trial, values or (WORSE * dearest, WORSE * longest_s))
    space.check()
    return [tried[place] for place in sorted(tried)]


def _study(settings: SearchSettings) -> Any:
    try:
        import optuna
    except ImportError:
        raise ConfigError(
            "search.method: optuna is not installed; expected pip install kvcast[plan], or method:"
            " exhaustive"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if settings.sampler == "nsga2":
        sampler: Any = optuna.samplers.NSGAIISampler(
            seed=settings.seed, population_size=NSGA_POPULATION
        )
    else:
        sampler = optuna.samplers.TPESampler(seed=settings.seed)
    return optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)
