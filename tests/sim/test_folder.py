from pathlib import Path

import polars as pl

from sim.folder import REPORT, TIMELINE, replay_to_folder
from sim.replay import replay
from sim.report.html import report_html
from sim.report.timeline import write_timeline
from sim.scenario import Scenario, scenario_of


def chats() -> Scenario:
    return scenario_of({"trace": {"path": "sample:chat"}, "cluster": {"replicas": 2}})


def test_a_run_looks_the_same_from_memory_and_from_files(tmp_path):
    held, folder = replay(chats()), tmp_path / "out"
    written = replay_to_folder(chats(), folder)
    assert report_html(held) == report_html(written) == (folder / REPORT).read_text()
    write_timeline(held, tmp_path / TIMELINE)
    assert (tmp_path / TIMELINE).read_bytes() == (folder / TIMELINE).read_bytes()


def test_rows_stay_on_disk_until_they_are_asked_for(tmp_path, monkeypatch):
    held = replay(chats())
    monkeypatch.chdir(tmp_path)
    written = replay_to_folder(chats(), Path("a[1]*"))  # no pattern, and no longer relative
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert isinstance(written.segment_rows, pl.LazyFrame)
    assert written.segments.equals(held.segments)
    assert written.requests.equals(held.requests)
