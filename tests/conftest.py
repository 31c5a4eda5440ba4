"""What every test runs under."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings

from tests.commands import Run

# The same code gets the same verdict; `pytest --hypothesis-profile=explore` draws anew each time.
settings.register_profile("repeatable", derandomize=True)
settings.register_profile("explore", derandomize=False)
settings.load_profile("repeatable")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests marked `gpu` where there is no torch or no CUDA device."""
    wanting = [item for item in items if item.get_closest_marker("gpu")]
    if wanting and not has_gpu():
        items[:] = [item for item in items if item not in wanting]
        config.hook.pytest_deselected(items=wanting)


def has_gpu() -> bool:
    """Whether torch is installed and sees a CUDA device."""
    if importlib.util.find_spec("torch") is None:
        return False
    import torch

    return torch.cuda.is_available()


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of recorded data (KVCAST_SHARED, default ../shared); skips where it is absent."""
    project = Path(__file__).parent.parent
    folder = Path(os.environ.get("KVCAST_SHARED", project.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no recorded data at {folder}; set KVCAST_SHARED")
    return folder


@pytest.fixture
def kvcast(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Run:
    """Runs a command line in an empty folder; returns exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("NO_COLOR", "1")

    from sim.cli import main

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["kvcast", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        said = capsys.readouterr()
        return int(left.value.code or 0), said.out, said.err

    return run
