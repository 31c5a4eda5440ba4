"""The same cells on a Ray cluster: whatever dies, each is there once, and equal to the last bit."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Generator
from importlib.util import find_spec
from pathlib import Path

import duckdb
import pytest

from sim.sweep import on_ray
from sim.sweep.cells import Cell
from sim.sweep.outcomes import Failure
from sim.sweep.store import Store
from sim.sweep.sweep import Sweep, run_cells
from tests.sim.sweep.ray_sweep import CELLS, cells
from tests.sim.sweep.test_sweep import cells as seeded
from tests.sim.sweep.test_sweep import errors, seed_of, troubled
from traces.errors import ConfigError

ROOT = Path(__file__).parents[3]
GIB = 1 << 30

Run = Callable[..., tuple[int, str, str]]

pytestmark = pytest.mark.slow
needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="the package ray is not installed")


class RayCluster:
    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.sim.sweep.ray_cluster", "3"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.address = self._line("address").split()[1]

    def end_a_node(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        self._line("ended")

    def end(self) -> None:
        self._process.communicate(timeout=60)

    def _line(self, start: str) -> str:
        """The next line that begins so, among Ray's own."""
        assert self._process.stdout is not None
        return next(line for line in self._process.stdout if line.startswith(start))


@pytest.fixture(scope="module")
def cluster() -> Generator[RayCluster]:
    running = RayCluster()
    yield running
    running.end()


@pytest.fixture
def trace(tmp_path: Path) -> str:
    path = tmp_path / "t.csv"
    rows = "".join(f"{i / 50},{50 + 37 * i % 400},{2 + i % 5}\n" for i in range(15))
    path.write_text(f"arrival_s,prompt_tokens,output_tokens\n{rows}")
    return str(path)


@needs_ray
def test_cells_that_hang_crash_or_take_too_much_fail_alone(
    cluster: RayCluster, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    with Sweep(
        ray=cluster.address,
        store=Store(tmp_path),
        timeout_s=2.0,
        memory_bytes=GIB,
        work=troubled,
    ) as sweep:
        found = sweep.run(seeded(*range(1, 12)))
    assert [one for one in found if not isinstance(one, Failure)] == [
        seed_of(cell) for cell in seeded(1, 8, 9, 10, 11)
    ]
    bad, fault, killed, hung, large, ended = errors(found)
    assert bad == "seed: 2 is bad"
    assert fault.startswith("ZeroDivisionError: division by zero (") and "test_sweep" in fault
    assert killed == ended == "its process ended, 3 times; it may take 1 GiB"
    assert hung == "took longer than 2 s"
    assert large == "wanted more than the 1 GiB of memory that it may take"
    assert len(Store(tmp_path)) == 5
    assert capfd.readouterr() == ("", "")  # Ray itself says pages


@needs_ray
def test_a_search_on_ray(cluster: RayCluster, capfd: pytest.CaptureFixture[str]):
    with Sweep(ray=cluster.address, work=seed_of) as sweep:
        keys = {sweep.submit(cell) for cell in seeded(*range(40))}
        assert len(keys) == sweep.pending == 40
        cell, outcome = sweep.next()
        assert outcome == seed_of(cell)
        sweep.drop()
        assert sweep.pending <= 6
        while sweep.pending:
            sweep.next()
        assert sweep.run(seeded(39, 2)) == [seed_of(cell) for cell in seeded(39, 2)]
    assert capfd.readouterr() == ("", "")


@needs_ray
def test_a_node_and_the_driver_die_and_every_cell_is_there_once(
    cluster: RayCluster, tmp_path: Path, trace: str
):
    store = tmp_path / "store"

    def begin() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tests.sim.sweep.ray_sweep",
                cluster.address,
                str(store),
                trace,
            ],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )

    reported = 0
    with begin() as first:
        assert first.stdout is not None
        for line in first.stdout:
            reported = int(line)
            if reported == 300:
                os.kill(first.pid, signal.SIGKILL)
    assert 300 <= reported < CELLS

    counts: list[int] = []
    with begin() as second:
        assert second.stdout is not None
        for line in second.stdout:
            if line.startswith("["):
                computed, found = json.loads(line)
                break
            counts.append(int(line))
            if len(counts) == 100:
                cluster.end_a_node()
        else:
            raise AssertionError("it ended without a word")
    assert second.returncode == 0
    assert counts == list(range(counts[0], CELLS + 1))
    assert counts[0] >= reported  # nothing that was reported is lost
    assert computed == CELLS - counts[0]  # nor run again

    serial = run_cells(cells(trace))
    assert json.dumps(found) == json.dumps(serial)
    assert len({json.dumps(figures) for figures in found}) > CELLS // 10
    kept = duckdb.sql(f"SELECT key FROM read_parquet('{store}/*/*.parquet')").fetchall()
    assert Counter(Counter(kept).values()) == {1: CELLS}
    again = Store(store)
    assert json.dumps(run_cells(cells(trace), store=again)) == json.dumps(serial)


@needs_ray
def test_files_that_are_not_the_same_on_a_node_fail_their_cells(
    cluster: RayCluster, tmp_path: Path, trace: str
):
    with Sweep(ray=cluster.address, work=seed_of) as sweep:
        (cell,) = cells(trace)[:1]
        assert sweep.run([cell]) == [seed_of(cell)]
        other = Cell(cell.scenario.model_copy(update={"seed": 1}))
        sweep._keys.of(other)
        Path(trace).write_text("changed")  # as another node may have it
        sweep._keys._digests[trace] = "0" * 64
        (found,) = sweep.run([other])
    assert isinstance(found, Failure) and "missing or another on the Ray node" in found.error


@needs_ray
def test_a_comparison_on_ray_writes_the_same_bytes(cluster: RayCluster, kvcast: Run):
    Path("t.csv").write_text(
        "arrival_s,prompt_tokens,output_tokens\n"
        + "".join(f"{i / 9},{50 + i},{5 + i % 9}\n" for i in range(40))
    )
    command = ("compare", "--trace", "t.csv", "--vary", "cluster.replicas=1,2")
    options = ("--replications", "3", "--metric", "duration_s")  # a relative path, from here
    here = kvcast(*command, *options, "--out", "here")
    there = kvcast(*command, *options, "--out", "there", "--ray", cluster.address)
    assert here[0] == 0 and there == (0, here[1].replace("here:", "there:"), "")
    written = [path.relative_to("here") for path in Path("here").rglob("*.*")]
    plain = [path for path in written if path.parts[0] != "store"]
    assert len(plain) > 5
    for path in plain:
        assert ("here" / path).read_bytes() == ("there" / path).read_bytes()


# ---- clusters that are not there


@needs_ray
def test_nobody_at_an_address_is_said_soon():
    with socket.socket() as taken:  # and nobody listens
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConfigError, match=f"^--ray {address}: cannot be reached: Connection"):
            run_cells(seeded(1), ray=address)


@needs_ray
def test_somebody_else_at_an_address_is_not_waited_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(on_ray, "JOIN_S", 2.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=accept, args=(server,), daemon=True).start()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(ConfigError, match=f"^--ray {address}: answers, but not as a Ray"):
            run_cells(seeded(1), ray=address)
        server.shutdown(socket.SHUT_RDWR)


def accept(server: socket.socket) -> None:
    held: list[socket.socket] = []
    try:
        while True:
            held.append(server.accept()[0])
    except OSError:
        for connection in held:
            connection.close()


@needs_ray
@pytest.mark.parametrize("address", ["", "here", "host:", ":6379", "host:port"])
def test_what_is_no_address_is_refused(address: str):
    with pytest.raises(ConfigError, match=r"expected auto, or HOST:PORT of a Ray cluster's head"):
        run_cells(seeded(1), ray=address)


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(on_ray, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"not installed; expected pip install 'kvcast\[plan\]'"):
        run_cells(seeded(1), ray="auto")
