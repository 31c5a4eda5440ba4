"""A worker does what it is told, within its bounds, and ends when it is told to."""

import gzip
import json
from pathlib import Path

import pytest

from sim.app.bounds import GIB, MIB, Limits
from sim.app.findings import LATENCIES
from sim.app.pictures import LEVELS
from sim.app.worker import Worker, Workers
from sim.replay import replay
from sim.report.html import report_html
from sim.scenario import scenario_of

GOOD = "arrival_s,prompt_tokens,output_tokens\n0,10,5\n0.5,20,3\n1,10,1\n"
LONG = {"trace": {"path": "sample:chat", "operations": [{"tile": {"copies": 3000}}]}}


@pytest.fixture(scope="module")
def workers():
    """Workers of the usual bounds; one that a test ends is replaced."""
    made = Workers(Limits())
    yield made
    made.end()


@pytest.fixture
def worker(workers: Workers) -> Worker:
    taken = workers.take(lambda: 0.0)
    assert taken is not None
    return taken


def answer(worker: Worker, task: str, **arguments):
    job = worker.begin(task, names=arguments.pop("names", {}), **arguments)
    assert job.wait(60)
    assert job.state == "done", job.error
    return job.answer


def error(worker: Worker, task: str, **arguments) -> str:
    job = worker.begin(task, names=arguments.pop("names", {}), **arguments)
    assert job.wait(60)
    assert job.state == "failed"
    assert "\n" not in job.error
    return job.error


def gone(worker: Worker) -> bool:
    """Whether its process has ended: soon, since it was killed."""
    worker._process.join(30)
    return worker._process.exitcode is not None


def test_a_run_gives_the_figures_of_a_replay(worker: Worker):
    settings = {"cluster": {"replicas": 3, "router": "least-kv"}, "slo": {"ttft_s": 0.02}}
    found = answer(worker, "run", settings=settings)
    result = replay(scenario_of(settings))
    assert found["summary"] == json.loads(json.dumps(result.summary))
    for column in LATENCIES:
        values = found["latencies"][column]
        assert len(values) == len(LEVELS)
        assert values == sorted(values)
        assert values[-1] == pytest.approx(result.summary["latency"][column]["max"], rel=1e-5)
    mean = sum(found["kv"]["mean"]) / len(found["kv"]["mean"])
    assert mean == pytest.approx(result.summary["kv"]["mean_occupancy"], rel=0.02)
    assert max(found["queue"]["peak"]) >= 1


def test_one_worker_does_many_things(worker: Worker):
    one = answer(worker, "run", settings={"seed": 1})
    assert error(worker, "run", settings={"sed": 1}) == (
        "settings: sed: unknown setting; did you mean seed?"
    )
    assert answer(worker, "run", settings={"seed": 1}) == one
    assert worker.alive


def test_a_run_tells_how_far_it_is(worker: Worker):
    job = worker.begin("run", settings={}, names={}, unknown=True)
    assert job.wait(60)
    assert job.described is not None
    assert job.described["requests"] == 2000
    assert 1024 <= job.arrived <= 2000


def test_a_report_is_that_of_the_command_line(
    worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "mine").write_text(GOOD)
    settings = {"trace": {"path": str(tmp_path / "mine")}}
    said = answer(worker, "report", settings=settings, names={str(tmp_path / "mine"): "mine.csv"})
    (tmp_path / "mine.csv").write_text(GOOD)
    monkeypatch.chdir(tmp_path)
    assert said == report_html(replay(scenario_of({"trace": {"path": "mine.csv"}})))
    assert str(tmp_path) not in said


def test_errors_name_files_as_their_users_do(worker: Worker, tmp_path: Path):
    bad = tmp_path / "0123456789abcdef"
    bad.write_text(GOOD + "2,x,1\n")
    said = error(worker, "describe", path=str(bad), names={str(bad): "mine.csv"})
    assert said == "mine.csv:5: prompt_tokens is 'x'; expected a whole number >= 1"


def test_lengths_without_times_are_described_and_want_a_rate(worker: Worker, tmp_path: Path):
    lengths = tmp_path / "lengths"
    lengths.write_text("prompt_tokens,output_tokens\n10,5\n20,3\n")
    assert answer(worker, "describe", path=str(lengths))["needs_rate"]
    assert not answer(worker, "describe", path="sample:chat")["needs_rate"]


def test_cancelling_ends_the_process(worker: Worker):
    job = worker.begin("run", settings=LONG, names={})
    while not job.arrived:
        assert not job.wait(0.01)
    worker.end()
    assert job.ended.is_set()
    assert job.state == "cancelled"
    assert gone(worker)


def test_a_run_that_takes_too_long_is_ended():
    worker = Worker(Limits(seconds=1.0))
    assert error(worker, "run", settings=LONG) == "took longer than 1 s and was ended"
    assert not worker.alive
    assert gone(worker)


def test_a_bomb_does_not_get_the_memory_it_wants(tmp_path: Path):
    """A few kB that unpack to one line of 8 GiB."""
    bomb = tmp_path / "bomb"
    head = b'{"timestamp":0,"input_length":1,"output_length":1,"hash_ids":['
    member = gzip.compress(b" " * 64 * MIB)
    bomb.write_bytes(gzip.compress(head) + member * 128)
    worker = Worker(Limits(memory_bytes=2 * GIB))
    said = error(worker, "describe", path=str(bomb), names={str(bomb): "bomb.gz"})
    assert "needs more than the 2 GiB of memory" in said
    worker.end()


def test_a_file_that_is_none_is_an_error(worker: Worker, tmp_path: Path):
    for content in (
        b"PAR1 and so on",
        b"\x1f\x8b\x08broken",
        b"\x00" * 5000,
        b"PAR1" + b"\xff" * 999,
    ):
        path = tmp_path / "x"
        path.write_bytes(content)
        assert "x" in error(worker, "describe", path=str(path), names={str(path): "x"})
    assert worker.alive


def test_there_are_only_so_many_workers():
    workers = Workers(Limits(), most=2)
    try:
        first, second = (workers.take(lambda: 1.0), workers.take(lambda: 2.0))
        assert first and second
        first.begin("run", settings=LONG, names={})
        third = workers.take(lambda: 3.0)
        assert third is not None
        assert not second.alive  # it was idle
        assert first.alive
        third.begin("run", settings=LONG, names={})
        assert workers.take(lambda: 4.0) is None
    finally:
        workers.end()
    assert gone(first)
    assert gone(third)
