"""What every test runs under."""

import importlib.util
import os
from pathlib import Path

import pytest
from hypothesis import settings

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
