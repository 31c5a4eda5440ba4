"""The core against a slow, plain reading of the same rules, on random workloads."""

import importlib.util
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, reject, settings

from tests.decisions import compare
from tests.workloads import Record, cases

EXAMPLES = int(os.environ.get("KVCAST_EXAMPLES", "2000"))
"""Random workloads of each kind."""


@pytest.fixture(scope="session")
def reference(shared: Path) -> ModuleType:
    """The reference implementation, as a module; it is data here, not part of the project."""
    spec = importlib.util.spec_from_file_location(
        "reference", shared / "vllm-scheduler" / "reference.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _agree(reference: Any, case: tuple[Record, list[Record]]) -> None:
    params, requests = case
    try:
        steps, per_request = reference.decide(params, requests, max_steps=4_000)
    except RuntimeError:
        reject()  # endless: by the rules, priorities can preempt each other for ever in a tiny pool
    assert compare(params, requests, steps, per_request) is None


_SLOW = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@_SLOW
@given(case=cases(asynchronous=False))
def test_synchronous_decisions_are_the_references(
    reference: ModuleType, case: tuple[Record, list[Record]]
) -> None:
    _agree(reference, case)


@_SLOW
@given(case=cases(asynchronous=True))
def test_asynchronous_decisions_are_the_references(
    reference: ModuleType, case: tuple[Record, list[Record]]
) -> None:
    _agree(reference, case)
