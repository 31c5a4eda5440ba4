"""`kvcast policies` lists and explains every policy; `--policy` uses one."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from engine.named import parameters
from sim.kinds import KINDS
from sim.policies_cli import documentation, first_sentence, sentences, source_of
from sim.scenario import Scenario
from tests.commands import Run, refused
from tests.engine.guard.own import LRU, SHORTEST_PROMPT, own
from traces.settings import setting_names

POLICIES = [(kind, name) for kind in KINDS for name in KINDS[kind].table]


@pytest.mark.parametrize(("kind", "name"), POLICIES)
def test_every_policy_is_documented_in_more_than_one_sentence(kind: str, name: str):
    said = sentences(documentation(KINDS[kind].table[name]))
    assert len(said) > 1
    assert all(one[0].isupper() or not one[0].isalpha() or "." in one for one in said)


def test_every_kind_has_its_setting_and_a_default_that_is_in_its_table():
    names = set(setting_names(Scenario))
    values = Scenario().model_dump()
    for kind in KINDS.values():
        section, _, setting = kind.setting.partition(".")
        assert kind.setting in names
        assert values[section][setting] is None or values[section][setting] in kind.table


def test_all_are_listed(kvcast: Run):
    code, out, err = kvcast("policies")
    assert (code, err) == (0, "")
    for kind, name in POLICIES:
        row = next(line for line in out.splitlines() if line.split()[:1] == [name])
        begin = first_sentence(documentation(KINDS[kind].table[name])).split()[0]
        assert row and begin in out
        for parameter, default in parameters(KINDS[kind].table[name]).items():
            assert f"{parameter}={default}" in out


def test_one_kind_is_listed(kvcast: Run):
    code, out, _ = kvcast("policies", "admission")
    assert code == 0 and "token-bucket" in out and "cluster.admission" in out
    assert "round-robin" not in out and "scheduler.order" not in out


@pytest.mark.parametrize(("kind", "name"), POLICIES)
def test_the_whole_of_one_is_shown(kind: str, name: str, kvcast: Run):
    code, out, _ = kvcast("policies", name)
    said = " ".join(out.split())
    assert code == 0
    assert " ".join(documentation(KINDS[kind].table[name]).split()) in said
    assert f"--set {KINDS[kind].setting}={name}" in said


def test_ones_own_is_shown_too(kvcast: Run, tmp_path: Path):
    own(tmp_path, 'def Mine(seq, *, a: int = 3):\n    """Odd ones. Then even."""\n')
    code, out, _ = kvcast("policies", "mine.py:Mine")
    assert code == 0 and "mine.py:Mine, order" in out and "Odd ones. Then even." in out
    assert "--set scheduler.order=mine.py:Mine:a=3" in out


def test_an_unknown_one_is_refused(kvcast: Run):
    assert refused(kvcast("policies", "slru2")).endswith("called 'slru2'; did you mean slru?")
    assert "known kinds: order, victim" in refused(kvcast("policies", "qqqq"))


def test_sentences_and_sources():
    text = """Serves by name, e.g. by that of Sheng et al., and no other.

    Long lines
    are joined. Source: Sheng et al., "Fair: a study", OSDI'24, 2: it says more. The end.
    """
    assert sentences(text) == [
        "Serves by name, e.g. by that of Sheng et al., and no other.",
        "Long lines are joined.",
        'Source: Sheng et al., "Fair: a study", OSDI\'24, 2: it says more.',
        "The end.",
    ]
    assert source_of(text) == 'Sheng et al., "Fair: a study", OSDI\'24, 2'
    assert source_of("Source: Preble: Efficient. More.") == "Preble: Efficient"
    assert source_of("None.") == first_sentence("") == ""


# ---- --policy


FEW = ("--op", "limit:count=40")


def scenario(folder: Path) -> Any:
    return yaml.safe_load((folder / "scenario.yaml").read_text())


def test_replay_takes_policies(kvcast: Run, tmp_path: Path):
    own(tmp_path, LRU)
    given = ("--policy", "mine.py:Mine", "--policy", "vtc:gold=2", "--policy", "router=random")
    code, _, err = kvcast("replay", *FEW, *given, "--no-report", "--out", "out")
    assert (code, err) == (0, "")
    written = scenario(tmp_path / "out")
    assert written["cache"]["eviction"] == "mine.py:Mine"
    assert written["scheduler"]["order"] == "vtc:gold=2"
    assert written["cluster"]["router"] == "random"


def test_a_setting_is_stronger_than_a_policy(kvcast: Run, tmp_path: Path):
    given = ("--policy", "fifo", "--set", "cache.eviction=sieve")
    assert kvcast("replay", *FEW, *given, "--no-report", "--out", "out")[0] == 0
    assert scenario(tmp_path / "out")["cache"]["eviction"] == "sieve"


def test_what_a_policy_breaks_is_one_line(kvcast: Run, tmp_path: Path):
    own(tmp_path, "def Mine(seq):\n    return seq.prompt_tokens\n")
    line = refused(kvcast("replay", *FEW, "--policy", "mine.py:Mine", "--out", "out"))
    assert line.startswith("order 'mine.py:Mine': returned ") and "request 0, at 0." in line
    assert not (tmp_path / "out").exists()
    assert "unknown kind" in refused(kvcast("replay", "--policy", "evict=lru"))


def test_compare_takes_several_of_a_kind(kvcast: Run, tmp_path: Path):
    own(tmp_path, SHORTEST_PROMPT)
    given = ("--policy", "fcfs", "--policy", "mine.py:Mine", "--replications", "1")
    code, out, err = kvcast("compare", *FEW, *given, "--out", "out")
    assert code == 0, err
    assert "mine.py:Mine" in out and "fcfs" in out
    both = (*given, "--vary", "scheduler.order=fcfs,vtc")
    assert "--vary has scheduler.order" in refused(kvcast("compare", *FEW, *both))
