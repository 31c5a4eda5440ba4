"""Replicas on the SimPy clock serve recorded cases at the recorded times."""

import json
from pathlib import Path

import pytest

from calibration.costs import LinearCost
from tests.decisions import PS, as_requests, rows, settings_of
from tests.recorded import CASES, case_folder
from tests.sim.served import Served, StepByStep


@pytest.mark.parametrize("exact", [False, True], ids=["fast-forward", "step-by-step"])
@pytest.mark.parametrize("case", CASES)
def test_requests_are_served_at_the_recorded_times(case: str, exact: bool) -> None:
    folder: Path = case_folder(case)
    params = json.loads((folder / "meta.json").read_text())["params"]
    scheduler, cache = settings_of(params)
    named = as_requests(rows(folder / "requests.jsonl.gz"), cache.block_tokens)
    requests = sorted((request for request, _ in named), key=lambda r: r.arrival_s)
    unit = params["step_time_ns"]
    cost = LinearCost(unit["d"] * PS, unit["a"] * PS, unit["b"] * PS, unit["c"] * PS)
    served = Served(
        requests,
        StepByStep(cost) if exact else cost,
        num_blocks=params["num_blocks"],
        scheduler=scheduler,
        cache=cache,
    )
    served.assert_empty()
    recorded = rows(folder / "per_request.jsonl.gz")
    sequences = {seq.request.request_id: seq for seq in served.sequences}
    got = [
        {
            "id": name,
            "first_scheduled_ns": sequences[i].first_scheduled // PS,
            "first_token_ns": sequences[i].first_token // PS,
            "finish_ns": sequences[i].finish // PS,
            "preemptions": sequences[i].preemptions,
            "cached_tokens": sequences[i].cached_tokens,
            "resumed_cached_tokens": list(sequences[i].resumed_cached),
        }
        for i, (_, name) in enumerate(named)
    ]
    fields = got[0].keys()
    assert got == [{field: row[field] for field in fields} for row in recorded]
