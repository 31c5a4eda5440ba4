"""A call that raises or never ends becomes one clear error; the process's alarm is left alone."""

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from engine.guard.alarm import ALARM, TICK_S, TooLong
from engine.guard.calls import Calls
from engine.named import chosen
from tests.commands import ROOT
from tests.engine.guard.own import own
from traces.errors import ConfigError, KvcastError, PolicyError
from traces.request import Request

SHORT_S = 0.05


def for_ever(*_: Any) -> None:
    while True:
        pass


def swallowing(seen: list[str]) -> None:
    """Takes any exception for none of its business, and any alarm once."""
    while True:
        try:
            time.sleep(10)
        except Exception:
            seen.append("exception")
        except TooLong:
            if seen:
                raise
            seen.append("alarm")


def calls(call_s: float = SHORT_S) -> Calls:
    return Calls("order", "mine.py:mine", call_s)


def test_a_call_that_does_not_end_is_stopped():
    with pytest.raises(PolicyError) as stopped:
        calls().call("the key", Request(7, 0.0, 1, 1), for_ever)
    assert str(stopped.value) == (
        "order 'mine.py:mine': the key was not done after 0.05 s; expected an answer at once,"
        " at request 7"
    )


def test_who_swallows_the_alarm_hears_it_again():
    seen: list[str] = []
    with pytest.raises(PolicyError, match="was not done"):
        calls().call("the key", None, swallowing, seen)
    assert seen == ["alarm"]


def wait(seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(0.01)


def test_soon_after_the_calls_the_alarm_is_as_it_was_before():
    ALARM.stop()
    before = signal.getsignal(signal.SIGALRM)
    assert calls(1000.0).call("the key", None, lambda: 7) == 7
    assert signal.getitimer(signal.ITIMER_REAL) != (0.0, 0.0)
    wait(3 * TICK_S)
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert signal.getsignal(signal.SIGALRM) is before
    with pytest.raises(PolicyError):
        calls().call("the key", None, for_ever)


def test_somebody_elses_alarm_rings_too():
    ALARM.stop()
    rung: list[float] = []
    before = signal.getsignal(signal.SIGALRM)
    try:
        for wanted_s, ours_first in ((0.1, False), (2.5 * TICK_S, False), (1.5 * TICK_S, True)):
            if not ours_first:
                ALARM.stop()
            signal.signal(signal.SIGALRM, lambda *_: rung.append(time.monotonic()))
            signal.setitimer(signal.ITIMER_REAL, wanted_s)
            begin = time.monotonic()
            while time.monotonic() < begin + wanted_s + 3 * TICK_S:
                assert calls(1000.0).call("the key", None, lambda: 7) == 7
            assert rung.pop() >= begin + wanted_s and rung == []
            with pytest.raises(PolicyError):  # the deadline is kept again
                calls().call("the key", None, for_ever)
        ALARM.stop()
        signal.setitimer(signal.ITIMER_REAL, 100.0)
        with pytest.raises(PolicyError):
            calls().call("the key", None, for_ever)
        ALARM.stop()
        left_s, _ = signal.setitimer(signal.ITIMER_REAL, 0.0)
        assert 90 < left_s <= 100
    finally:
        signal.signal(signal.SIGALRM, before)


def test_no_alarm_is_left_as_the_process_ends():
    program = (
        "import atexit, signal\n"
        "from engine.guard.calls import Calls\n"
        "atexit.register(lambda: print(signal.getitimer(signal.ITIMER_REAL)))\n"
        "Calls('order', 'mine.py:mine').call('the key', None, lambda: 7)\n"
        "print(signal.getitimer(signal.ITIMER_REAL)[1])\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run.stdout.split("\n") == [str(TICK_S), "(0.0, 0.0)", ""]


def test_within_a_call_its_deadline_holds():
    def outer() -> None:
        calls(1000.0).call("inner", None, for_ever)

    with pytest.raises(PolicyError, match=r"outer was not done after 0.05 s"):
        calls().call("outer", None, outer)
    assert calls().call("another", None, lambda: 7) == 7


def test_other_threads_are_called_without_a_deadline():
    answers: list[int] = []
    thread = threading.Thread(
        target=lambda: answers.append(calls().call("the key", None, lambda: 7))
    )
    thread.start()
    thread.join()
    assert answers == [7]


def test_an_exception_says_what_and_where(tmp_path: Path):
    spec = own(tmp_path, "def Mine(seq):\n    return 1 / 0\n")
    with pytest.raises(PolicyError) as raised:
        chosen("something", spec, {})(Request(3, 0.0, 1, 1))
    assert str(raised.value) == (
        f"something '{spec}': the call raised ZeroDivisionError: division by zero in line 2,"
        " at request 3"
    )
    assert isinstance(raised.value.__cause__, ZeroDivisionError)


def test_it_may_not_end_the_process(tmp_path: Path):
    spec = own(tmp_path, "import sys\ndef Mine(seq):\n    sys.exit('bye')\n")
    with pytest.raises(PolicyError, match="raised SystemExit: bye in line 3"):
        chosen("something", spec, {})(None)


def test_an_interruption_of_the_user_is_none_of_the_policys():
    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calls().call("the key", None, interrupted)


def test_a_policy_may_refuse_its_parameters_itself():
    def refuses() -> None:
        raise ConfigError("mine: alpha must be above 0, got -1")

    with pytest.raises(ConfigError, match=r"^mine: alpha must be above 0, got -1$"):
        calls().call("making it", None, refuses)


def test_a_policys_error_is_bad_input_and_keeps_its_cause_when_dated():
    cause = ValueError("inner")
    error = PolicyError("order 'mine.py:mine': said nonsense")
    error.__cause__ = cause
    dated = error.during("at 2.5 s")
    assert isinstance(dated, KvcastError) and isinstance(dated, PolicyError)
    assert str(dated) == "order 'mine.py:mine': said nonsense, at 2.5 s"
    assert dated.__cause__ is cause
