"""Foretell what a real engine did, and say how far off that is.

The same requests are replayed in the simulator, at the times at which they really came and under
the settings of the real run, and both are summed up by the same definitions (sim.validation.served
and .figures). TTFT and end-to-end latency count from when the scheduler first saw a request, on
both sides, where the real run tells (as vLLM's own statistics do), else from arrival.

What of an error is chance? Replications shift every arrival by a normal deviate of stated size, the
timing noise of a log, and show how far each figure moves; resampling the requests shows how much
it depends on which of them came.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from calibration.costs import CostModel
from calibration.profiles import load_profile
from engine.atomic import check_replaceable, replacing_folder
from sim.replay import replay
from sim.result import Result
from sim.scenario import Scenario, UncertaintySettings
from sim.validation.figures import (
    Comparison,
    Figures,
    arrived_below,
    bootstrap,
    by_request,
    compared,
    figures,
)
from sim.validation.real import Real, Timeline, check_profile
from sim.validation.served import Origin, Served, of_frame, paired
from sim.validation.thresholds import verdicts
from sim.validation.validation import BELOW, NEAR, Jitter, Validation
from traces.errors import ConfigError
from traces.request import Request
from traces.settings import to_yaml

SCENARIO: Final = "scenario.yaml"
NUMBERS: Final = "validation.json"
PAGE: Final = "validation.html"
REQUESTS: Final = "requests.parquet"
ENGINE: Final = "engine"
"""Folder of the real run, where it was made for the comparison."""
FILES: Final = frozenset({SCENARIO, NUMBERS, PAGE, REQUESTS, ENGINE})
MARKS: Final = FILES - {ENGINE}

BOOTSTRAP: Final = 0
"""What a generator is for, part of its seed; jittered replications count from 1."""

Progress = Callable[[int], None]


def validate(
    scenario: Scenario,
    real: Real,
    *,
    cost: CostModel | None = None,
    thresholds: Mapping[str, float] | None = None,
    jitter: Jitter | None = None,
    progress: Progress | None = None,
) -> Validation:
    """Simulate a real run and compare.

    Args:
        scenario: with the settings of the real run; its trace is not used.
        real: what was served, and to whom.
        cost: instead of the profile's cost model.
        thresholds: greatest errors, as shares, by the name of the figure.
        jitter: of arrivals; None: none.
        progress: told after each replication how many are done.

    Raises:
        ConfigError, TraceError: settings that cannot be used, a profile of something else than
            what ran, or a threshold on what the run does not tell.
    """
    check_profile(load_profile(scenario.profile), real)
    scenario = scenario.model_copy(update={"uncertainty": UncertaintySettings()})
    result = replay(scenario, real.requests, cost=cost)
    assert result.requests is not None
    ours, theirs = paired(of_frame(result.requests), real.served)
    known = theirs.knows("queued_s") and ours.knows("queued_s")
    origin: Origin = "queued" if known else "arrival"
    jitter = jitter or Jitter(0.0, 0)
    jittered = _jittered(scenario, real, cost, theirs, origin, jitter, progress)
    random = _random(scenario.seed, BOOTSTRAP)
    found = compared(
        figures(ours, origin) | _itl(result.summary["latency"]["itl_s"]),
        figures(theirs, origin) | _itl(real.itl_s),
        jittered,
        bootstrap(ours, theirs, origin, random),
    )
    below = arrived_below(theirs)
    return Validation(
        scenario=scenario,
        real=real,
        summary=result.summary,
        origin=origin,
        jitter=jitter,
        simulated_served=ours,
        real_served=theirs,
        figures=found,
        by_load=_by_load(ours, theirs, origin, below),
        by_request=by_request(ours, theirs, origin),
        below=below,
        timeline=_timeline(result),
        verdicts=verdicts(thresholds or {}, found),
        warnings=_warnings(result, real, len(theirs)),
    )


def check_folder(folder: Path) -> None:
    """Check, before a long run, that `write_folder` may write there; raises ConfigError."""
    check_replaceable(folder, FILES, MARKS)


def write_folder(validation: Validation, folder: Path, engine: Path | None = None) -> None:
    """Write the page, all numbers, the requests of both sides and the scenario; all or none.

    Args:
        validation: what to write.
        folder: new, empty, or an earlier validation's.
        engine: the folder of the real run, to be moved here.

    Raises:
        ConfigError: the folder holds something else, or cannot be written.
    """
    from sim.validation.page import write_page

    check_folder(folder)
    with replacing_folder(folder) as part:
        (part / SCENARIO).write_text(to_yaml(validation.scenario), encoding="utf-8")
        text = json.dumps(validation.as_json(), indent=2, allow_nan=False)
        (part / NUMBERS).write_text(text + "\n", encoding="utf-8")
        _write_requests(validation, part / REQUESTS)
        write_page(validation, part / PAGE)
        if engine is not None:
            engine.rename(part / ENGINE)


def shifted(
    requests: Sequence[Request], sigma_s: float, random: np.random.Generator
) -> list[Request]:
    """The requests with each arrival shifted by a normal deviate, in order of the new arrivals;
    none comes before 0."""
    shifts = random.normal(0.0, sigma_s, len(requests)).tolist()
    moved = [
        request._replace(arrival_s=max(0.0, request.arrival_s + shift))
        for request, shift in zip(requests, shifts, strict=True)
    ]
    return sorted(moved, key=lambda request: request.arrival_s)


def _jittered(
    scenario: Scenario,
    real: Real,
    cost: CostModel | None,
    answered: Served,
    origin: Origin,
    jitter: Jitter,
    progress: Progress | None,
) -> list[Figures]:
    """Figures of each replication, of the requests that both sides answered."""
    found: list[Figures] = []
    for number in range(1, jitter.replications + 1):
        requests = shifted(real.requests, jitter.sigma_s, _random(scenario.seed, number))
        result = replay(scenario, requests, cost=cost, keep_segments=False)
        assert result.requests is not None
        ours, _ = paired(of_frame(result.requests), answered)
        found.append(figures(ours, origin) | _itl(result.summary["latency"]["itl_s"]))
        if progress is not None:
            progress(number)
    return found


def _random(seed: int, use: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(use,)))


def _itl(statistics: Mapping[str, float] | None) -> Figures:
    """Gaps between tokens, of which no request's record tells: by the runs' own histograms, whose
    percentiles are exact to 0.1 %."""
    return {f"itl.{name}": value for name, value in (statistics or {}).items() if name != "max"}


def _by_load(
    ours: Served,
    theirs: Served,
    origin: Origin,
    below: NDArray[np.bool_] | None,
) -> dict[str, dict[str, Comparison]]:
    if below is None:
        return {}
    found: dict[str, dict[str, Comparison]] = {}
    for load, which in ((BELOW, below), (NEAR, ~below)):
        if which.any():
            both = compared(
                figures(ours.taken(which), origin), figures(theirs.taken(which), origin)
            )
            found[load] = {name: one for name, one in both.items() if "throughput" not in name}
    return found


def _timeline(result: Result) -> Timeline | None:
    if result.summary["replicas"] > 1 or result.segments is None:
        return None
    segments = result.segments
    usable = result.summary["kv"]["blocks_per_replica"]
    start_s, running, waiting, used = (
        segments[name].to_numpy().astype(float)
        for name in ("start_s", "running", "waiting", "kv_blocks_used")
    )
    return Timeline(start_s, running, waiting, used / usable)


def _warnings(result: Result, real: Real, answered: int) -> list[str]:
    warning = result.summary["profile"]["warning"]
    warnings = [warning] if warning else []
    warnings += result.summary["warnings"]
    if answered < real.total:
        warnings.append(
            f"{real.total - answered:,} of {real.total:,} requests are not compared: the engine or"
            " the simulator did not answer them"
        )
    decisions = real.decisions
    if decisions is not None and decisions.difference:
        warnings.append(f"decisions: {decisions.difference}")
    return warnings


def _write_requests(validation: Validation, path: Path) -> None:
    import polars as pl

    real, simulated = validation.real_served, validation.simulated_served
    columns: dict[str, Any] = {
        "request_id": real.request_id,
        "arrival_s": real.arrival_s,
        "output_tokens": real.tokens,
    }
    if validation.below is not None:
        columns["below_saturation"] = validation.below
    ours = simulated.latencies(validation.origin)
    for name, values in real.latencies(validation.origin).items():
        columns[f"real_{name}_s"] = values
        columns[f"simulated_{name}_s"] = ours[name]
    frame = pl.DataFrame(columns).with_columns(pl.col(pl.Float64).fill_nan(None))
    try:
        frame.write_parquet(path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror or error}") from None
