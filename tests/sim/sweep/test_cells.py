"""A key is all that can change a figure."""

from pathlib import Path
from typing import Any

import pytest

from sim.scenario import Scenario, scenario_of
from sim.sweep.cells import Cell, Keys, key_of
from sim.sweep.stated import in_words, stated
from sim.sweep.traffic import Traffic
from sim.uncertainty import Figures


def test_a_key_is_all_that_can_change_a_figure(tmp_path: Path):
    trace = tmp_path / "t.csv"
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n0,5,5\n")
    base = {"trace": {"path": str(trace)}}
    key = Keys().of(Cell(scenario_of(base)))
    assert Keys().of(Cell(scenario_of(base | {"name": "other"}))) == key
    others = {
        Keys().of(Cell(scenario_of(base), 1)),
        Keys().of(Cell(scenario_of(base), 1, Traffic("blocks"))),
        Keys().of(Cell(scenario_of(base), 1, Traffic("blocks", 7))),
        Keys().of(Cell(scenario_of(base | {"seed": 1}))),
        Keys().of(Cell(scenario_of(base | {"cluster": {"replicas": 2}}))),
    }
    assert len(others) == 5 and key not in others
    assert Keys().of(Cell(scenario_of(base), 0, Traffic("blocks"))) == key  # it draws nothing
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n0,5,6\n")
    assert Keys().of(Cell(scenario_of(base))) not in {key, *others}


def test_a_policys_file_is_part_of_the_key(tmp_path: Path):
    path = tmp_path / "mine.yaml"
    path.write_text("a: 1\n")
    named = Cell(Scenario(profile=f"{path}:attribute:weight=2"))
    key = Keys().of(named)
    path.write_text("a: 2\n")
    assert Keys().of(named) != key


class Doing:
    def __init__(self, content: Any) -> None:
        self.content = content

    def __call__(self, cell: Cell) -> Figures:
        return {}


def test_what_is_done_beyond_a_simulation_is_part_of_the_key():
    cell = Cell(Scenario())
    plain = Keys().of(cell)
    assert Keys(Doing(None)).of(cell) == Keys(lambda _: {}).of(cell) == plain
    judged = {Keys(Doing(content)).of(cell) for content in ("a", ["a", 1], {"objectives": []})}
    assert len(judged | {plain}) == 4


def test_a_key_is_the_digest_of_what_it_stands_for():
    cell = Cell(Scenario(seed=3), 2)
    assert key_of(Keys().content(cell)) == Keys().of(cell)


@pytest.mark.parametrize(
    ("values", "replication", "words"),
    [
        ({}, 0, "all settings at their defaults"),
        ({"seed": 0}, 0, "all settings at their defaults"),
        ({"seed": 4, "cluster": {"replicas": 2}}, 0, "seed=4, cluster.replicas=2"),
        ({"slo": {"ttft_s": 1.5}}, 3, "slo.ttft_s=1.5, replication 3"),
        ({}, 1, "replication 1"),
    ],
)
def test_a_cell_in_words_is_what_it_states(values: dict[str, Any], replication: int, words: str):
    assert in_words(Cell(scenario_of(values), replication)) == words


def test_what_a_cell_states_gives_it_again():
    cell = Cell(scenario_of({"seed": 4, "cluster": {"replicas": 2, "router": "least-requests"}}))
    assert stated(cell) == {
        "seed": 4,
        "cluster.replicas": 2,
        "cluster.router": "least-requests",
    }
