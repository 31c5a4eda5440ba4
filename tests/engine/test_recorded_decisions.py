"""The core decides what vLLM's scheduler was recorded to decide, however many steps at a time."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.decisions import compare_case
from tests.recorded import CASES, HERE, case_folder


@pytest.mark.parametrize("case", CASES)
def test_every_field_of_every_step_is_as_recorded(case: str) -> None:
    assert compare_case(case_folder(case)) is None


def test_a_case_can_be_run_by_hand() -> None:
    case = next(HERE.iterdir())
    done = subprocess.run(
        [sys.executable, "-m", "tests.decisions", str(case)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"{case.name}: identical\n"
