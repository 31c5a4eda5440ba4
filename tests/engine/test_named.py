"""Policies by name: parameters have types, a user's own are loaded, mistakes are one line."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.named import accepted, chosen, is_own, known_policy, loaded, parameters
from tests.engine.guard.own import own
from traces.errors import ConfigError, PolicyError


def plain(seq: Any) -> str:
    return "plain"


def tuned(
    seq: Any, *, count: int = 3, share: float = 0.5, strict: bool = False, name: str = "a"
) -> tuple[Any, ...]:
    return (count, share, strict, name)


def weighted(seq: Any, *, least: float = 1.0, **weight: float) -> tuple[Any, ...]:
    return (least, weight)


class Made:
    def __init__(self, view: Any, *, size: int = 4) -> None:
        self.said = (view, size)


class Bare:
    pass


TABLE = {"plain": plain, "tuned": tuned, "weighted": weighted, "made": Made}


def said(spec: str, table: Any = TABLE) -> str:
    with pytest.raises(ConfigError) as wrong:
        chosen("order", spec, table)
    return str(wrong.value)


def test_a_name_alone_is_the_policy_itself():
    assert chosen("order", "plain", TABLE) is plain
    assert chosen("order", "made", TABLE) is Made


@given(
    st.integers(-(10**9), 10**9),
    st.floats(allow_nan=False, allow_infinity=False),
    st.booleans(),
    st.text("abc-_ .=", max_size=8),
)
def test_parameters_have_the_types_of_their_defaults(
    count: int, share: float, strict: bool, name: str
):
    spec = f"tuned:count={count}:share={share!r}:strict={str(strict).lower()}:name={name}"
    assert chosen("order", spec, TABLE)(None) == (count, share, strict, name)


def test_what_is_not_stated_keeps_its_default():
    assert chosen("order", "tuned:share=2", TABLE)(None) == (3, 2.0, False, "a")
    assert chosen("order", "made:size=7", TABLE)("view").said == ("view", 7)


def test_parameters_of_any_name():
    assert chosen("order", "weighted:gold=2:least=3", TABLE)(None) == (3.0, {"gold": 2.0})
    assert accepted(weighted) == ("weight", "float")
    assert accepted(tuned) is None and accepted(Bare) is None


def test_parameters_are_the_keyword_only_arguments():
    assert parameters(tuned) == {"count": 3, "share": 0.5, "strict": False, "name": "a"}
    assert parameters(Made) == {"size": 4}
    assert parameters(plain) == parameters(Bare) == {}


@pytest.mark.parametrize(
    ("spec", "line"),
    [
        ("plian", "unknown order 'plian'; did you mean plain? known: plain, tuned, weighted, made"),
        ("zzz", "unknown order 'zzz'; known: plain, tuned, weighted, made"),
        ("", "unknown order ''; known: plain, tuned, weighted, made"),
        ("plain:a=1", "order 'plain': unknown parameter 'a'; known: it has none"),
        (
            "tuned:cuont=1",
            "order 'tuned': unknown parameter 'cuont'; did you mean count?"
            " known: count, share, strict, name",
        ),
        ("tuned:count", "order 'tuned': 'count' is no parameter; expected NAME=VALUE"),
        ("tuned:=3", "order 'tuned': '=3' is no parameter; expected NAME=VALUE"),
        ("tuned:", "order 'tuned': '' is no parameter; expected NAME=VALUE"),
        ("tuned:count=1.5", "order 'tuned': count is '1.5'; expected a value of type int"),
        ("tuned:share=x", "order 'tuned': share is 'x'; expected a value of type float"),
        ("tuned:share=nan", "order 'tuned': share is 'nan'; expected a finite number"),
        ("tuned:share=-inf", "order 'tuned': share is '-inf'; expected a finite number"),
        ("tuned:strict=yes", "order 'tuned': strict is 'yes'; expected a value of type bool"),
        ("tuned:count=1:count=1", "order 'tuned': count is stated twice; expected once"),
        ("weighted:gold=x", "order 'weighted': gold is 'x'; expected a value of type float"),
    ],
)
def test_mistakes_are_named(spec: str, line: str):
    assert said(spec) == line


def test_a_validator_refuses_in_the_same_words():
    from pydantic_core import PydanticCustomError

    assert known_policy("order", "tuned:count=1", TABLE) == "tuned:count=1"
    with pytest.raises(PydanticCustomError) as wrong:
        known_policy("order", "plian", TABLE)
    assert wrong.value.message() == said("plian")


# ---- a user's own


def test_a_file_of_ones_own_is_loaded_and_run_once(tmp_path: Path):
    source = """
        import sys
        sys.times_run = getattr(sys, "times_run", 0) + 1
        def Mine(seq, *, factor: float = 2.0, shift=None, name: str | None = None):
            return (factor, shift, name)
    """
    spec = own(tmp_path, source)
    assert is_own(spec) and not is_own("mine") and not is_own("py")
    assert parameters(loaded("order", spec)) == {"factor": 2.0, "shift": None, "name": None}
    assert chosen("something", f"{spec}:factor=3:shift=a:name=b", {})(None) == (3.0, "a", "b")
    import sys

    assert sys.__dict__.pop("times_run") == 1


def test_a_parameter_without_a_default_must_be_stated(tmp_path: Path):
    spec = own(tmp_path, "def Mine(seq, *, alpha: float, beta: int = 1):\n    return alpha\n")
    assert said(spec, {}) == (f"order '{spec}': alpha must be stated; expected {spec}:alpha=FLOAT")
    assert chosen("something", f"{spec}:alpha=2", {})(None) == 2.0


def test_a_relative_file_is_looked_for_where_one_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "below").mkdir()
    own(tmp_path / "below", "def Mine(seq):\n    return 7\n")
    monkeypatch.chdir(tmp_path)
    assert chosen("something", "below/mine.py:Mine", {})(None) == 7


def test_what_is_wrong_with_a_file_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert said("mine.py") == "order 'mine.py': which? expected FILE.py:NAME"
    assert said("mine.py:") == "order 'mine.py': which? expected FILE.py:NAME"
    assert said("none.py:Mine") == "order 'none.py:Mine': there is no file none.py"
    own(tmp_path, "from math import sin\nnumber = 3\ndef Mine(seq):\n    return 1\n")
    lacks = "mine.py has no function or class"
    assert said("mine.py:Mien") == f"order 'mine.py:Mien': {lacks} 'Mien'; did you mean Mine?"
    assert said("mine.py:number") == f"order 'mine.py:number': {lacks} 'number'"
    assert said("mine.py:Mine:a=1").startswith("order 'mine.py:Mine': unknown parameter 'a'")


@pytest.mark.parametrize(
    ("source", "raised"),
    [
        ("import nothing_of_the_kind\n", "ModuleNotFoundError: No module named"),
        ("x = 1\ny = x / 0\n", "ZeroDivisionError: division by zero in line 2"),
        ("def broken(:\n", "SyntaxError: invalid syntax"),
        ("import sys\nsys.exit()\n", "SystemExit"),
    ],
)
def test_a_file_that_cannot_be_run_is_tried_again(tmp_path: Path, source: str, raised: str):
    spec = own(tmp_path, source)
    for _ in range(2):
        with pytest.raises(PolicyError) as wrong:
            chosen("order", spec, {})
        file = spec.partition(":")[0]
        assert str(wrong.value).startswith(f"order '{spec}': running {file} raised {raised}")
