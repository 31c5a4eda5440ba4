"""Notebooks run from beginning to end, offline, and are kept without outputs."""

import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")


def executed(path: Path) -> Any:
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(path.parent)}}
    client = nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources=resources
    )
    return client.execute()


def answer(notebook: Any) -> int:
    """The value of the cell tagged `answer`."""
    (cell,) = [one for one in notebook.cells if "answer" in one.metadata.get("tags", ())]
    (value,) = [
        output.data["text/plain"]
        for output in cell.outputs
        if output.output_type == "execute_result"
    ]
    return int(value)


def printed(notebook: Any) -> str:
    outputs = [one for cell in notebook.cells for one in cell.get("outputs", ())]
    return "".join(one.text for one in outputs if one.output_type == "stream")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_outputs(path: Path):
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)


@pytest.mark.filterwarnings("default")
def test_without_the_azure_trace_the_sample_is_replayed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("KVCAST_SHARED", str(tmp_path))
    notebook = executed(ROOT / "notebooks" / "replicas-for-the-azure-hour.ipynb")
    assert "is about sample:chat" in printed(notebook)
    assert 1 <= answer(notebook) <= 4


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_the_azure_hour_needs_several_workstation_cards(
    monkeypatch: pytest.MonkeyPatch, shared: Path
):
    monkeypatch.setenv("KVCAST_SHARED", str(shared.resolve()))
    notebook = executed(ROOT / "notebooks" / "replicas-for-the-azure-hour.ipynb")
    assert "Replaying the Azure conversation hour." in printed(notebook)
    assert 3 <= answer(notebook) <= 7


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_agents_need_no_other_policy_than_lru_from_twice_their_live_set():
    notebook = executed(ROOT / "notebooks" / "eviction-for-agentic-traffic.ipynb")
    found = re.search(r"Typically ([0-9,]+) tokens are live", printed(notebook))
    assert found is not None
    live_set = int(found[1].replace(",", ""))
    assert live_set < answer(notebook) < 2.5 * live_set
    assert "Another policy than LRU gains a point up to 250k tokens" in printed(notebook)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("first-answer-in-five-minutes", 2, 3),  # times today's load on one GPU
        ("buy-h200s-or-quantize-the-cache", 130, 180),  # break-even price ratio with int8, percent
        ("gpus-for-next-quarter", 10, 14),  # GPUs for month 3
    ],
)
def test_a_planner_is_answered(name: str, low: int, high: int):
    assert low <= answer(executed(ROOT / "notebooks" / f"{name}.ipynb")) <= high
