"""The run folder: scenario, summary, tables, report and timeline, written whole or not at all."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from engine.atomic import check_replaceable, replacing_folder
from sim.replay import Progress, Run
from sim.result import Result
from sim.scenario import Scenario
from traces.settings import to_yaml

SCENARIO = "scenario.yaml"
SUMMARY = "summary.json"
REQUESTS = "requests.parquet"
SEGMENTS = "segments.parquet"
REPORT = "report.html"
TIMELINE = "timeline.json.gz"
FILES = frozenset({SCENARIO, SUMMARY, REQUESTS, SEGMENTS, REPORT, TIMELINE})
MARKS = frozenset({SCENARIO, SUMMARY})


def replay_to_folder(
    scenario: Scenario,
    folder: Path,
    *,
    keep_requests: bool = True,
    keep_segments: bool = True,
    report: bool = True,
    progress: Progress | None = None,
    replicated: Progress | None = None,
    jobs: int = 1,
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
        replicated: told after each replication (`uncertainty`) how many are done.
        jobs: processes to share the replications; their number changes nothing but the time.

    Raises:
        ConfigError, TraceError: settings, a folder or a trace that cannot be used.
    """
    check_replaceable(folder, FILES, MARKS)
    run = Run(scenario)
    target = folder.resolve()
    with replacing_folder(folder) as part:
        _serve(run, part, keep_requests, keep_segments, progress)
        run.find_intervals(jobs, replicated)
        result = _result(run, part, keep_requests, keep_segments)
        (part / SCENARIO).write_text(to_yaml(scenario), encoding="utf-8")
        summary = json.dumps(result.summary, indent=2, allow_nan=False)
        (part / SUMMARY).write_text(summary + "\n", encoding="utf-8")
        if report:
            _draw(result, part)
    return _result(run, target, keep_requests, keep_segments)


def _serve(
    run: Run, part: Path, keep_requests: bool, keep_segments: bool, progress: Progress | None
) -> None:
    from engine.frames import ParquetSink, requests_schema, requests_table
    from sim.frames import segments_schema, segments_table

    requests = segments = None
    if keep_requests:
        requests = ParquetSink(
            part / REQUESTS, requests_schema(), lambda rows: requests_table(rows, run.names())
        )
    if keep_segments:
        segments = ParquetSink(part / SEGMENTS, segments_schema(), segments_table)
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
