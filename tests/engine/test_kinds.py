"""A policy's kind, by its name or its shape, and the setting that chooses it."""

import inspect
from pathlib import Path

import pytest

from engine.kinds import KINDS, kind_of, policy_settings, policy_values
from sim.kinds import KINDS as ALL
from tests.engine.guard.own import LRU, QUEUE, SHORTEST_PROMPT, own
from traces.errors import ConfigError

SHAPES = {
    "order": [SHORTEST_PROMPT, QUEUE, "def Mine(seq, *, a: int = 1):\n    return (a,)\n"],
    "victim": ["def Mine(running, decodes):\n    return next(iter(running))\n"],
    "chunking": [
        "class Mine:\n    varies = False\n    def __init__(self, step_time): pass\n"
        "    def budget(self, decodes, context_tokens, prefix_tokens): return 7\n"
    ],
    "eviction": [LRU],
    "router": [
        "class Mine:\n    def __init__(self, view): pass\n    def choose(self, request): return 0\n"
        "    def done(self, replica, request): pass\n"
    ],
    "admission": [
        "class Mine:\n    def __init__(self, view): pass\n"
        "    def refuse(self, request, replica): return ''\n"
    ],
}


@pytest.mark.parametrize("kind", SHAPES)
def test_a_policy_of_ones_own_is_recognised_by_its_shape(kind: str, tmp_path: Path):
    for number, source in enumerate(SHAPES[kind]):
        (tmp_path / str(number)).mkdir()
        spec = own(tmp_path / str(number), source)
        assert kind_of(spec, ALL) == kind
        assert policy_values([spec], ALL) == {ALL[kind].setting: [spec]}


@pytest.mark.parametrize("kind", ALL)
def test_kvcasts_own_have_the_shape_of_their_kind_and_no_other(kind: str, tmp_path: Path):
    for name, policy in ALL[kind].table.items():
        if not inspect.isclass(policy) and not ALL[kind].arguments:
            continue  # a function that makes one looks like an order
        source = f"from {policy.__module__} import {policy.__qualname__} as Mine"
        (tmp_path / name).mkdir()
        assert kind_of(own(tmp_path / name, source), ALL) == kind, name


def test_the_settings_of_policies_section_by_section():
    given = ["lru-2", "order=vtc:gold=2.5", "token-bucket:gold=3", "sglang"]
    assert policy_settings(given, ALL) == {
        "cache": {"eviction": "lru-2"},
        "scheduler": {"order": "vtc:gold=2.5"},
        "cluster": {"admission": "token-bucket:gold=3", "router": "sglang"},
    }


def test_a_spec_with_parameters_is_no_kind(tmp_path: Path):
    spec = own(tmp_path, "def Mine(seq, *, error: float = 1.0):\n    return (error,)\n")
    stated = f"{spec}:error=0.5"
    for given in (stated, f"order={stated}"):
        assert policy_settings([given]) == {"scheduler": {"order": stated}}


def test_several_of_a_kind_are_values_in_their_order():
    assert policy_values(["lru", "fifo", "eviction=sieve"]) == {
        "cache.eviction": ["lru", "fifo", "sieve"]
    }


def test_what_cannot_be_told(tmp_path: Path):
    def said(*given: str) -> str:
        with pytest.raises(ConfigError) as wrong:
            policy_settings(given, ALL)
        return str(wrong.value)

    two = [name for name, kind in ALL.items() if "priority" in kind.table]
    if len(two) > 1:
        assert said("priority").endswith(f"expected {two[0]}=priority or {two[1]}=priority")
    assert said("sievee") == "--policy sievee: there is no policy 'sievee'; did you mean sieve?"
    assert "known kinds: order, victim" in said("qqqqqq")
    assert said("evict=lru").startswith(
        "--policy evict=lru: unknown kind 'evict'; did you mean eviction? known: order,"
    )
    assert said("lru", "fifo") == (
        "--policy fifo: cache.eviction is lru already; expected one of a kind"
    )
    strange = own(tmp_path, "class Mine:\n    pass\n")
    assert said(strange).startswith(
        f"--policy {strange}: looks like no kind of policy; expected KIND={strange}. Known are"
        " order: a function of one argument or a class with add, first, remove; victim: a function"
    )
    (tmp_path / "both").mkdir()
    both = own(
        tmp_path / "both",
        "class Mine:\n    def choose(self, r): pass\n    done = refuse = choose\n",
    )
    assert "may be router or admission; expected KIND=" in said(both)


def test_the_engine_knows_no_cluster():
    assert list(ALL) == [*KINDS, "router", "admission"]
