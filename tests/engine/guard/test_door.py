"""Own routers and admission policies."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from engine.guard import guarded
from traces.errors import PolicyError
from traces.request import Request

REQUEST = Request(7, 0.0, 1, 1)
VIEW = SimpleNamespace(replicas=3)


class Router:
    answer: Any = 0
    ended: Any = None

    def __init__(self, view: Any) -> None:
        self.view = view

    def choose(self, request: Request) -> Any:
        return self.answer

    def done(self, replica: int, request: Request) -> None:
        Router.ended = (replica, request)


def router() -> Any:
    return guarded("router", "mine.py:Mine", Router)(VIEW)


def test_a_router_chooses_a_replica_that_exists():
    for answer in (0, 2, np.int64(1)):
        Router.answer = answer
        chosen = router().choose(REQUEST)
        assert chosen == answer and type(chosen) is int
    for answer in (3, -1, None, 1.0, "0", True, [0]):
        Router.answer = answer
        with pytest.raises(PolicyError) as broken:
            router().choose(REQUEST)
        said = f"choose() returned {answer!r}; expected a replica, 0 to 2, at request 7"
        assert str(broken.value) == f"router 'mine.py:Mine': {said}"


def test_a_router_is_told_of_ends():
    router().done(1, REQUEST)
    assert Router.ended == (1, REQUEST)
    with pytest.raises(PolicyError, match=r"has no done\(\)"):
        guarded("router", "mine.py:Mine", type("Deaf", (Router,), {"done": None}))(VIEW)


def test_a_reason_is_text():
    class Admission:
        answer: Any = ""

        def __init__(self, view: Any) -> None:
            pass

        def refuse(self, request: Request, replica: int) -> Any:
            return self.answer

    for answer in ("", "no room"):
        Admission.answer = answer
        policy = guarded("admission", "mine.py:Mine", Admission)(VIEW)
        assert policy.refuse(REQUEST, 0) == answer
        assert not hasattr(policy, "done")
    for answer in (None, False, True, 0):
        Admission.answer = answer
        with pytest.raises(PolicyError, match=r"expected why the request is refused.*request 7"):
            guarded("admission", "mine.py:Mine", Admission)(VIEW).refuse(REQUEST, 0)
    with pytest.raises(PolicyError, match=r"has no refuse\(\)"):
        guarded("admission", "mine.py:Mine", Router)(VIEW)
