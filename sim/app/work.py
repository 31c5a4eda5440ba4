"""What a worker process does: runs, reports, and reading what was uploaded."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from signal import SIG_IGN, SIGINT, signal
from traceback import format_exc
from typing import TYPE_CHECKING, Any, Final

from sim.app.bounds import GIB, Limits, allow_seconds, confine
from traces.errors import KvcastError, TraceError

if TYPE_CHECKING:
    from traces.pipeline import TraceSettings

Tell = Callable[[Mapping[str, Any]], None]
"""Told what is known before the end: `described`, a trace in numbers; `arrived`, a count."""

WARM_REQUESTS: Final = 20


def serve(pipe: Any, limits: Limits) -> None:
    """A worker's life: until the server closes the pipe or is gone."""
    signal(SIGINT, SIG_IGN)  # an interrupt is the server's to deal with
    confine(limits)
    with suppress(EOFError, OSError):
        _warm_up()
        while True:
            task, arguments = pipe.recv()
            allow_seconds(limits.seconds)
            _say(pipe, _outcome(task, arguments, partial(_say, pipe), limits))


def _outcome(task: str, arguments: Mapping[str, Any], tell: Tell, limits: Limits) -> dict[str, Any]:
    """The answer, or what is wrong in one line; what only a programmer can mend goes to stderr."""
    try:
        return {"answer": TASKS[task](tell=tell, **arguments)}
    except KvcastError as error:
        return {"error": _with_names(str(error), arguments.get("names", {}))}
    except MemoryError:
        return {"error": f"needs more than the {limits.memory_bytes / GIB:.3g} GiB of memory"}
    except Exception as error:
        print(format_exc(), file=sys.stderr)
        said = " ".join(str(error).split())
        return {"error": _with_names(f"{type(error).__name__}: {said}", arguments.get("names", {}))}


def _say(pipe: Any, said: Mapping[str, Any]) -> None:
    pipe.send_bytes(json.dumps(said, allow_nan=False).encode())


def _with_names(text: str, names: Mapping[str, str]) -> str:
    """`text` with files called what their users call them, on one line."""
    for path, name in names.items():
        text = text.replace(path, name)
    return " ".join(text.split())


def run(
    *, settings: Mapping[str, Any], names: Mapping[str, str], unknown: bool = False, tell: Tell
) -> dict[str, Any]:
    """A scenario's findings.

    Args:
        settings: the scenario's.
        names: paths, and what to call them.
        unknown: describe the trace first.
        tell: see Tell.
    """
    from calibration.profiles import load_profile
    from sim.app.findings import findings
    from sim.replay import replay
    from sim.scenario import scenario_of

    scenario = scenario_of(settings, "settings")
    if unknown:
        trace = scenario.trace.model_copy(update={"operations": ()})
        tell({"described": in_numbers(trace)})
    result = replay(scenario, progress=lambda count: tell({"arrived": count}))
    return findings(result, scenario, load_profile(scenario.profile))


def report(*, settings: Mapping[str, Any], names: Mapping[str, str], tell: Tell) -> str:
    """The page that `kvcast replay --out` writes for the scenario."""
    from sim.replay import replay
    from sim.report.html import report_html
    from sim.scenario import scenario_of

    result = replay(
        scenario_of(settings, "settings"), progress=lambda count: tell({"arrived": count})
    )
    trace = {**result.scenario["trace"]}
    trace["path"] = names.get(trace["path"], trace["path"])
    return report_html(replace(result, scenario={**result.scenario, "trace": trace}))


def describe(*, path: str, names: Mapping[str, str], tell: Tell) -> dict[str, Any]:
    """An uploaded trace in numbers, every row of it checked.

    Lengths without arrivals have no rate yet: any will do to read them.
    """
    from traces.pipeline import TraceSettings

    try:
        return in_numbers(TraceSettings(path=path))
    except TraceError as error:
        if "rate_per_s" not in str(error):
            raise
        return in_numbers(TraceSettings(path=path, rate_per_s=1.0)) | {"needs_rate": True}


def in_numbers(trace: TraceSettings) -> dict[str, Any]:
    """A trace's description as JSON, and its format."""
    from traces.describe import describe as described

    opened = trace.open()
    found = asdict(described(opened))
    return {"format": opened.format, "needs_rate": False, **found}


def read_plan(*, path: str, names: Mapping[str, str], tell: Tell) -> dict[str, Any]:
    """What the page shows of a plan's plan.json."""
    from pathlib import Path

    from sim.app.plans import digest

    return digest(Path(path))


TASKS: Final[Mapping[str, Callable[..., Any]]] = {
    "run": run,
    "report": report,
    "describe": describe,
    "plan": read_plan,
}
"""By name; each takes `tell` and the arguments that the server states, and gives JSON."""


def _warm_up() -> None:
    """A run of few requests, so that the first real one need not import anything."""
    few = {"path": "sample:chat", "operations": [{"limit": {"count": WARM_REQUESTS}}]}
    run(settings={"trace": few}, names={}, tell=lambda _: None)
