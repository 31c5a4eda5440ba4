"""Command lines in tests."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]

Run = Callable[..., tuple[int, str, str]]
"""Runs a command line; returns exit code, stdout and stderr."""


def below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def refused(outcome: tuple[int, str, str]) -> str:
    """The one line that an erring command said, without its `error: `."""
    code, out, err = outcome
    assert (code, out) == (2, ""), err
    assert err.startswith("error: ") and err.endswith("\n") and err.count("\n") == 1, err
    assert "Traceback" not in err and "pydantic" not in err
    return err.removeprefix("error: ").rstrip("\n")


def start(*arguments: str, folder: Path) -> "subprocess.Popen[str]":
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    program = f"{heed}; import sys; from sim.cli import main; sys.argv[0] = 'kvcast'; main()"
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
