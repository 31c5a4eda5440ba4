"""The pages name every order, victim and chunking, with every parameter."""

from pathlib import Path

import pytest

from engine.named import parameters
from engine.policies import CHUNKING, ORDER, VICTIM

DOCS = Path(__file__).parents[1] / "docs"
ALL = {**ORDER, **VICTIM, **CHUNKING}


@pytest.mark.parametrize("page", ["order.md", "scenario.md", "engine.md"])
def test_every_name_is_there(page: str) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    assert [name for name in ALL if f"`{name}`" not in text] == []


def test_every_parameter_is_there_in_the_row_of_its_policy() -> None:
    rows: list[tuple[str, str]] = []
    first = ""
    for line in (DOCS / "order.md").read_text(encoding="utf-8").splitlines():
        cells = line.split("|")
        if len(cells) > 2:
            first = cells[1] if cells[1].strip() else first
            rows.append((first, line))
    missing = [
        f"{name}: {parameter}"
        for name, policy in ALL.items()
        for parameter in parameters(policy)
        if not any(f"`{name}`" in whose and f"`{parameter}`" in line for whose, line in rows)
    ]
    assert missing == []
