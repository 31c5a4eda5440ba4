"""The engine's loop, too, ends with one clear error; with exit code 2 on the command line."""

from pathlib import Path
from typing import Any

import pytest

from engine.serve import serve
from tests.engine.guard.own import LRU, QUEUE, SHORTEST_PROMPT, own
from tests.engine.served import engine, records_of, settings
from traces.errors import PolicyError
from traces.request import Request

TRACE = [Request(i, 0.0, 9 + i % 5, 4, priority=i % 3) for i in range(40)]


def served(**changes: Any) -> Any:
    it = engine(settings(**changes))
    records = records_of(it)
    serve(it, TRACE, records, speed=None)
    return records.summary()["requests"]


@pytest.mark.parametrize(
    ("setting", "source"),
    [
        (("scheduler", "order"), SHORTEST_PROMPT),
        (("scheduler", "order"), QUEUE),
        (("cache", "eviction"), LRU),
        (("scheduler", "victim"), "def Mine(running, decodes):\n    return next(iter(running))\n"),
    ],
)
def test_policies_of_ones_own_serve_everybody(
    setting: tuple[str, str], source: str, tmp_path: Path
):
    section, name = setting
    done = served(**{section: {name: own(tmp_path, source)}}, num_blocks=16)
    assert done["finished"] == len(TRACE)


def broken(spec: str, setting: str, **changes: Any) -> str:
    section, _, name = setting.partition(".")
    with pytest.raises(PolicyError) as stopped:
        served(**{section: {name: spec, **changes}}, num_blocks=16)
    return str(stopped.value)


def test_the_step_and_the_time_are_named(tmp_path: Path):
    spec = own(tmp_path, "def Mine(seq):\n    return (1 / (seq.number - 8),)\n")
    line = broken(spec, "scheduler.order")
    assert line.startswith(f"order '{spec}': the key raised ZeroDivisionError")
    assert "in line 2, at request 7, in step 0, at 0.0" in line


def test_a_victim_that_does_not_run(tmp_path: Path):
    spec = own(tmp_path, "def Mine(running, decodes):\n    return None\n")
    line = broken(spec, "scheduler.victim")
    assert "returned None; expected one of the " in line and " in step " in line


def test_a_request_starves(tmp_path: Path):
    source = QUEUE.replace("return self.waiting[0]", "return self.waiting[len(self.waiting) // 2]")
    spec = own(tmp_path, source)
    assert broken(spec, "scheduler.order", starvation_limit=3, max_num_seqs=1).startswith(
        f"order '{spec}': request 0 was passed over by 4 that came after it: it starves"
    )


def test_an_eviction_of_what_has_gone(tmp_path: Path):
    kept = "self.pieces[piece] = None\n            self.ever = getattr(self, 'ever', piece)"
    source = LRU.replace("self.pieces[piece] = None", kept)
    source = source.replace("next(iter(self.pieces))", "self.ever")
    line = broken(own(tmp_path, source), "cache.eviction")
    assert "victim() returned blocks [" in line and "evicted already; expected a piece" in line
