"""A server in this process, and a real browser that looks at it."""

import importlib.util
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PATIENCE_MS = 30_000

Server = Callable[..., Any]


@pytest.fixture(scope="package")
def browser() -> Iterator[Any]:
    """Chromium; skips where it or playwright is absent."""
    if importlib.util.find_spec("playwright") is None:
        pytest.skip("no playwright: pip install playwright")
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip("no browser: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def serving(**arguments: Any) -> Iterator[Any]:
    """A server on a port of its own while the block runs."""
    from sim.app.server import AppServer
    from sim.app.stated import offer

    offered = offer(arguments.pop("traces", ()))
    server = AppServer(offered, port=0, **arguments)
    thread = Thread(target=server.serve)
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join()


@pytest.fixture(scope="package")
def long_trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trace that takes a while to replay."""
    path = tmp_path_factory.mktemp("traces") / "long.csv"
    rows = (f"{number / 50},200,100\n" for number in range(250_000))
    path.write_text("arrival_s,prompt_tokens,output_tokens\n" + "".join(rows))
    return path


@pytest.fixture(scope="package")
def app() -> Iterator[Any]:
    """The server that most tests share; uploads of up to 1 MiB."""
    pytest.importorskip("dash")
    from sim.app.bounds import GIB, MIB, Limits

    limits = Limits(seconds=120, memory_bytes=4 * GIB, upload_bytes=MIB)
    with serving(limits=limits) as server:
        yield server


@pytest.fixture(scope="package")
def finished_plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plan.json of a plan over a few candidates."""
    from sim.planning.plan import plan
    from sim.planning.plan_folder import write_folder

    few = {"path": "sample:chat", "operations": [{"limit": {"count": 100}}]}
    folder = tmp_path_factory.mktemp("plan") / "out"
    found = plan(
        {
            "name": "few",
            "scenario": {"trace": few},
            "space": {"gpu": ["l4", "h100"], "model": ["qwen3-8b"], "replicas": [1, 2, 3]},
            "objectives": ["p99 ttft <= 300ms"],
            "confidence": {"redraws": 0},
            "fronts": {"replays": 6},
            "growth": {"months": 0},
            "sensitivities": False,
        }
    )
    write_folder(found, folder)
    return folder / "plan.json"
