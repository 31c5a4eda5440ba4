"""The run folder: scenario, summary, tables, report and timeline, written whole or not at all."""

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from os import getpid
from pathlib import Path
from typing import Any

from engine.metrics import REQUEST_COLUMNS
from sim.records import SEGMENT_COLUMNS
from sim.replay import Progress, Run
from sim.result import Result
from sim.scenario import Scenario, to_yaml
from traces.errors import ConfigError

SCENARIO = "scenario.yaml"
SUMMARY = "summary.json"
REQUESTS = "requests.parquet"
SEGMENTS = "segments.parquet"
REPORT = "report.html"
TIMELINE = "timeline.json.gz"
FILES = frozenset({SCENARIO, SUMMARY, REQUESTS, SEGMENTS, REPORT, TIMELINE})


def replay_to_folder(
    scenario: Scenario,
    folder: Path,
    *,
    keep_requests: bool = True,
    keep_segments: bool = True,
    report: bool = True,
    progress: Progress | None = None,
) -> Result:
    """Run a scenario and write `folder`; equal scenarios give byte-identical files.

    Rows stream to disk, and the report reads them back a piece at a time: what grows in memory is
    a few columns of the requests. An earlier run's folder is replaced when this one is complete.

    Args:
        scenario: all settings.
        folder: new, empty, or an earlier run's.
        keep_requests: write requests.parquet.
        keep_segments: write segments.parquet.
        report: write report.html and timeline.json.gz.
        progress: told now and then how many requests have arrived.

    Raises:
        ConfigError, TraceError: settings, a folder or a trace that cannot be used.
    """
    _check_replaceable(folder)
    run = Run(scenario)
    target = folder.resolve()
    part = target.with_name(f".{target.name}.{getpid()}.part")
    new = [parent for parent in part.parents if not parent.exists()]
    try:
        part.mkdir(parents=True)
        _serve(run, part, keep_requests, keep_segments, progress)
        result = _result(run, part, keep_requests, keep_segments)
        (part / SCENARIO).write_text(to_yaml(scenario), encoding="utf-8")
        summary = json.dumps(result.summary, indent=2, allow_nan=False)
        (part / SUMMARY).write_text(summary + "\n", encoding="utf-8")
        if report:
            _draw(result, part)
        _replace(target, part)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
        with suppress(OSError):
            for parent in new:
                parent.rmdir()  # as long as they are empty
    return _result(run, target, keep_requests, keep_segments)


def _serve(
    run: Run, part: Path, keep_requests: bool, keep_segments: bool, progress: Progress | None
) -> None:
    from sim.frames import ParquetSink, requests_table, segments_table

    requests = segments = None
    if keep_requests:
        columns = len(REQUEST_COLUMNS)
        requests = ParquetSink(part / REQUESTS, requests_table, run.names, columns)
    if keep_segments:
        columns = len(SEGMENT_COLUMNS)
        segments = ParquetSink(part / SEGMENTS, segments_table, list, columns)
    try:
        run.serve(
            requests_to=requests.take if requests else None,
            segments_to=segments.take if segments else None,
            progress=progress,
        )
    finally:
        for sink in (requests, segments):
            if sink is not None:
                sink.close()


def _result(run: Run, folder: Path, keep_requests: bool, keep_segments: bool) -> Result:
    def table(kept: bool, name: str) -> Callable[[], Any] | None:
        return partial(_scan, folder / name) if kept else None

    return run.result(table(keep_requests, REQUESTS), table(keep_segments, SEGMENTS))


def _scan(path: Path) -> Any:
    import polars as pl

    return pl.scan_parquet(path, glob=False)


def _draw(result: Result, folder: Path) -> None:
    from sim.report.html import write_report
    from sim.report.timeline import write_timeline

    write_report(result, folder / REPORT)
    if result.segment_rows is not None:
        write_timeline(result, folder / TIMELINE)


def _check_replaceable(folder: Path) -> None:
    """Only what kvcast wrote is ever replaced: a stray file may be somebody's work."""
    try:
        held = {path.name for path in folder.iterdir()} if folder.exists() else set[str]()
    except NotADirectoryError:
        raise ConfigError(f"{folder}: is a file; expected a folder to write") from None
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be read: {error.strerror or error}") from None
    foreign = sorted(held - FILES)
    if not foreign and held and not {SCENARIO, SUMMARY} <= held:
        foreign = sorted(held)
    if foreign:
        raise ConfigError(
            f"{folder}: holds {foreign[0]}, which is not from an earlier run;"
            " expected a new, empty or run folder"
        )


def _replace(folder: Path, part: Path) -> None:
    old = folder.with_name(f".{folder.name}.{getpid()}.old")
    if folder.exists():
        folder.rename(old)
    try:
        part.rename(folder)
    except BaseException:
        if old.exists():
            old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)
