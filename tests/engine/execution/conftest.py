"""Where there is no GPU, kernels run on Triton's interpreter: it must know before it is loaded."""

import os

import pytest

from tests.conftest import has_gpu

if not has_gpu():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Models this small are computed faster by one thread than by several that wait for each other,
    and far faster where other work takes the cores."""
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)


@pytest.fixture
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """New memory is full of NaN: what a kernel leaves out shows."""
    import torch

    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, **kind: empty(*size, **kind).fill_(torch.nan))
