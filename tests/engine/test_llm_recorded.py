"""The engine's own loop decides, step by step and block by block, what was recorded.

The executor here checks every block it is given to read; a model of a few thousand parameters runs
some of the same cases in tests/engine/execution/test_recorded.py.
"""

import json

import pytest

from tests.decisions import rows
from tests.engine.ledger import Ledger
from tests.engine.timed import first_difference
from tests.recorded import CASES, case_folder


@pytest.mark.parametrize("case", CASES)
def test_the_loop_decides_what_was_recorded(case: str) -> None:
    folder = case_folder(case)
    params = json.loads((folder / "meta.json").read_text())["params"]
    difference = first_difference(
        params,
        rows(folder / "requests.jsonl.gz"),
        rows(folder / "steps.jsonl.gz"),
        rows(folder / "per_request.jsonl.gz"),
        Ledger,
    )
    assert difference is None
