"""Who is let in: closed forms of rates, early rejection by the prediction, and the whole run."""

from collections import Counter, defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as repeated
from hypothesis import strategies as st

from calibration.costs import PICOSECONDS, LinearCost
from engine.slo import SloSettings
from sim.admission import ADMISSION, admission_policy
from sim.replay import replay
from sim.scenario import scenario_of
from tests.commands import Run, refused
from tests.sim.clusters import Setup, crowded_setups
from traces.errors import ConfigError, PolicyError
from traces.request import Request

MS = PICOSECONDS // 1000
MINUTE = 60 * PICOSECONDS


class Door(SimpleNamespace):
    """A clock, promises and predictions that a test sets."""

    def foresee(self) -> None:
        self.foreseen = True


def door(**rest: Any) -> Any:
    return Door(**({"now_ps": 0, "slo": SloSettings(), "fleet": None} | rest))


def ask(policy: Any, view: Any, arrivals: list[tuple[int, str, int, int]]) -> list[bool]:
    """Whether each arrival (time, tenant, prompt, output) is let in."""
    admitted: list[bool] = []
    for number, (time, tenant, prompt, output) in enumerate(arrivals):
        view.now_ps = time
        request = Request(number, time / PICOSECONDS, prompt, output, tenant=tenant)
        admitted.append(policy.refuse(request, 0) == "")
    return admitted


@st.composite
def arrivals(draw: st.DrawFn, gap: int) -> list[tuple[int, str, int, int]]:
    time, rows = 0, list[tuple[int, str, int, int]]()
    for _ in range(draw(st.integers(1, 40))):
        time += draw(st.sampled_from([0, 1, gap // 3, gap, 2 * gap]))
        tokens = st.integers(1, 60)
        rows.append((time, draw(st.sampled_from("ab")), draw(tokens), draw(tokens)))
    return rows


# ---- token bucket


@given(arrivals(gap=700 * MS), st.integers(0, 40), st.integers(1, 100), st.booleans())
@repeated(max_examples=200, deadline=None)
def test_a_bucket_admits_no_more_than_its_rate_and_burst_in_any_span(
    rows: Any, rate: int, burst: int, total: bool
):
    view = door()
    spec = f"token-bucket:tokens_per_s={rate}:burst_tokens={burst}"
    spec += ":count=total" if total else ""
    admitted = ask(admission_policy(spec, view), view, rows)
    taken: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for (time, tenant, prompt, output), let_in in zip(rows, admitted, strict=True):
        if let_in:
            taken[tenant].append((time, prompt + output if total else prompt))
    for row in taken.values():
        for first in range(len(row)):
            span_tokens = 0
            for time, tokens in row[first:]:
                span_tokens += tokens
                # exact: whole tokens against whole picoseconds
                allowed = burst * PICOSECONDS + rate * (time - row[first][0])
                assert span_tokens * PICOSECONDS <= allowed


@given(arrivals(gap=700 * MS), st.integers(0, 40), st.integers(1, 100))
@repeated(max_examples=200, deadline=None)
def test_a_bucket_refuses_only_who_would_exceed_that(rows: Any, rate: int, burst: int):
    """Against a level that is kept as a fraction."""
    view = door()
    policy = admission_policy(f"token-bucket:tokens_per_s={rate}:burst_tokens={burst}", view)
    levels: dict[str, tuple[int, int]] = {}
    for row, let_in in zip(rows, ask(policy, view, rows), strict=True):
        time, tenant, tokens, _ = row
        level, since = levels.get(tenant, (burst * PICOSECONDS, time))
        level = min(burst * PICOSECONDS, level + rate * (time - since))
        assert let_in == (tokens * PICOSECONDS <= level)
        levels[tenant] = (level - tokens * PICOSECONDS * let_in, time)


def test_a_bucket_is_full_again_to_the_picosecond():
    view = door()
    policy = admission_policy("token-bucket:tokens_per_s=3:burst_tokens=10", view)
    full = -(-10 * PICOSECONDS // 3)
    rows = [(0, "a", 10, 1), (full - 1, "a", 10, 1), (full, "a", 10, 1), (2 * full, "a", 11, 1)]
    assert ask(policy, view, rows) == [True, False, True, False]


def test_a_tenant_may_have_a_rate_of_its_own():
    view = door()
    policy = admission_policy("token-bucket:tokens_per_s=0:burst_tokens=5:gold=2.5", view)
    rows = [(0, "gold", 5, 1), (0, "b", 5, 1)]
    rows += [(2 * PICOSECONDS, "gold", 5, 1), (2 * PICOSECONDS, "b", 1, 1)]
    assert ask(policy, view, rows) == [True, True, True, False]


# ---- requests per minute


@given(arrivals(gap=9 * PICOSECONDS), st.integers(0, 5))
@repeated(max_examples=200, deadline=None)
def test_sliding_minutes_are_exact(rows: Any, limit: int):
    view = door()
    admitted = ask(admission_policy(f"rpm:requests={limit}", view), view, rows)
    for i, (time, tenant, _, _) in enumerate(rows):
        recent = sum(
            let_in and other == tenant and then > time - MINUTE
            for (then, other, _, _), let_in in zip(rows[:i], admitted[:i], strict=True)
        )
        assert admitted[i] == (recent < limit)


@given(arrivals(gap=9 * PICOSECONDS), st.integers(0, 5))
@repeated(max_examples=200, deadline=None)
def test_fixed_minutes_are_exact(rows: Any, limit: int):
    view = door()
    admitted = ask(admission_policy(f"rpm:requests={limit}:window=fixed", view), view, rows)
    asked = Counter((tenant, time // MINUTE) for time, tenant, _, _ in rows)
    let_in = Counter(
        (tenant, time // MINUTE)
        for (time, tenant, _, _), yes in zip(rows, admitted, strict=True)
        if yes
    )
    assert all(let_in[window] == min(count, limit) for window, count in asked.items())


def test_around_the_turn_of_a_fixed_minute_twice_as_many_come():
    rows = [(MINUTE + shift, "a", 1, 1) for shift in (-2, -1, 0, 1, 2)]
    for window, admitted in {"fixed": [1, 1, 1, 1, 0], "sliding": [1, 1, 0, 0, 0]}.items():
        view = door()
        policy = admission_policy(f"rpm:requests=2:window={window}", view)
        assert ask(policy, view, rows) == [bool(one) for one in admitted]


def test_a_tenant_may_have_a_limit_of_its_own():
    view = door()
    policy = admission_policy("rpm:requests=1:gold=2", view)
    rows = [(0, tenant, 1, 1) for tenant in ("a", "a", "gold", "gold", "gold")]
    assert ask(policy, view, rows) == [True, False, True, True, False]


# ---- early rejection


def test_early_rejection_goes_by_the_predicted_ttft():
    view = door(predicted_ttft_ps=lambda request, replica: request.prompt_tokens * MS)
    policy = admission_policy("early-reject:ttft_s=0.02", view)
    assert view.foreseen
    rows = [(0, "", 20, 1), (0, "", 21, 1)]
    assert ask(policy, view, rows) == [True, False]


def test_its_limit_is_the_scenarios_unless_it_is_stated():
    view = door(slo=SloSettings(ttft_s=0.02), predicted_ttft_ps=lambda *_: 30 * MS)
    assert ask(admission_policy("early-reject", view), view, [(0, "", 1, 1)]) == [False]
    stated = admission_policy("early-reject:ttft_s=0.03", view)
    assert ask(stated, view, [(0, "", 1, 1)]) == [True]
    with pytest.raises(ConfigError, match=r"expected early-reject:ttft_s=SECONDS, or slo\.ttft_s"):
        admission_policy("early-reject", door())


def loaded_door() -> Any:
    """Prefill takes 10 ms; a decode step 1 ms a sequence and 1 us a token of context."""
    return door(
        predicted_ttft_ps=lambda *_: 10 * MS,
        predicted_step_ps=lambda decodes, context: decodes * MS + context * MS // 1000,
    )


def test_predicted_load_counts_who_decodes_when_prefill_is_done():
    view = loaded_door()
    policy = admission_policy("early-reject-load:ttft_s=1:tpot_s=0.003:decode_s=0.1", view)
    rows = [(0, "", 1, 1)] * 4
    assert ask(policy, view, rows) == [True, True, False, False]  # 2 ms + 2 tokens; 3 ms + 3
    # those of time 0 decode from 10 to 110 ms; prefill of who comes at 100 ms is done at 110
    assert ask(policy, view, [(99 * MS, "", 1, 1), (100 * MS, "", 1, 1)]) == [False, True]


def test_predicted_load_leaves_out_who_will_still_prefill():
    view = loaded_door()
    view.predicted_ttft_ps = lambda request, replica: request.prompt_tokens * MS
    policy = admission_policy("early-reject-load:ttft_s=1:tpot_s=0.0015", view)
    assert ask(policy, view, [(0, "", 100, 1), (0, "", 10, 1), (0, "", 11, 1)]) == [
        True,
        True,
        False,
    ]


def test_predicted_load_learns_how_long_decoding_takes():
    view = loaded_door()
    policy: Any = admission_policy("early-reject-load:ttft_s=1:tpot_s=0.0025", view)
    first, other = Request(0, 0.0, 1, 1), Request(1, 0.0, 1, 1)
    assert policy.refuse(first, 0) == policy.refuse(other, 0) == ""
    late = Request(2, 0.0, 1, 1)
    view.now_ps = 10**6 * MS
    assert "time between tokens is above 0.0025 s" in policy.refuse(late, 0)  # for all it knows
    view.now_ps = 60 * MS
    policy.done(0, first)  # it decoded for 50 ms
    assert policy.refuse(late, 0) == ""  # one decodes on, until 60 ms; then this one alone


def test_predicted_load_looks_at_one_replica():
    view = loaded_door()
    policy: Any = admission_policy("early-reject-load:ttft_s=1:tpot_s=0.0015", view)
    assert policy.refuse(Request(0, 0.0, 1, 1), 0) == ""
    assert policy.refuse(Request(1, 0.0, 1, 1), 1) == ""
    assert policy.refuse(Request(2, 0.0, 1, 1), 0) != ""


def test_predicted_load_keeps_the_limit_of_ttft_too():
    view = loaded_door()
    policy: Any = admission_policy("early-reject-load:ttft_s=0.005:tpot_s=1", view)
    assert "predicted TTFT is above 0.005 s" in policy.refuse(Request(0, 0.0, 1, 1), 0)


# ---- at the door of a cluster


class Drawn:
    """Lets in whom it is told to, and remembers who ended."""

    def __init__(self, pattern: list[bool]) -> None:
        self.pattern = pattern
        self.refused: list[int] = []
        self.inside: set[int] = set()

    def refuse(self, request: Request, replica: int) -> str:
        if self.pattern[request.request_id % len(self.pattern)]:
            self.inside.add(request.request_id)
            return ""
        self.refused.append(request.request_id)
        return "drawn"

    def done(self, replica: int, request: Request) -> None:
        self.inside.remove(request.request_id)


@given(crowded_setups(), st.lists(st.booleans(), min_size=1, max_size=4))
@repeated(max_examples=30, deadline=None)
def test_the_refused_are_rejected_and_the_others_end(setup: Setup, pattern: list[bool]):
    admission = Drawn(pattern)
    served = setup.serve(admission=admission)
    outcome = served.column("outcome")
    ids = served.column("request_id")
    assert admission.inside == set() or setup.end_ps is not None
    assert {int(i) for i, o in zip(ids, outcome, strict=True) if o == 2} >= set(admission.refused)
    assert served.cluster.refusals.get("drawn", 0) == len(admission.refused)


@given(crowded_setups())
@repeated(max_examples=20, deadline=None)
def test_everybody_let_in_is_no_admission_at_all(setup: Setup):
    rows = setup.serve(admission=Drawn([True])).rows.tolist()
    assert rows == setup.serve().rows.tolist()


CHAT = {
    "trace": {"operations": [{"tile": {"copies": 4}}, {"limit": {"count": 1600}}]},
    "profile": "rtx-4090-llama-3.1-8b",
}


def chat(**cluster: Any) -> Any:
    values = CHAT | {"cluster": cluster, "slo": {"ttft_s": 0.5, "tpot_s": 0.04}}
    return replay(scenario_of(values), keep_segments=False)


def test_early_rejection_shortens_what_it_lets_in():
    everybody, early = chat(), chat(admission="early-reject")
    rejected = early.summary["requests"]["rejected"]
    assert 0 < rejected < everybody.summary["requests"]["total"] / 2
    reason = "the predicted TTFT is above 0.5 s (admission early-reject)"
    assert early.summary["warnings"] == [f"{rejected:,} requests rejected: {reason}"]
    one, other = (it.summary["latency"]["ttft_s"]["p99"] for it in (everybody, early))
    assert other < one / 3


@pytest.mark.parametrize("name", sorted(ADMISSION))
def test_equal_runs_are_equal(name: str):
    one, other = chat(admission=name, replicas=2), chat(admission=name, replicas=2)
    assert one.summary == other.summary and one.requests.equals(other.requests)


def test_a_steady_stream_passes_a_bucket_at_its_rate():
    from tests.sim.served import Served

    rate, count = 50, 1000
    stream = [Request(i, i / 100, 1, 1) for i in range(count)]  # twice the rate
    view = door()
    policy: Any = admission_policy(f"token-bucket:tokens_per_s={rate}:burst_tokens=10", view)

    class Clocked:
        def refuse(self, request: Request, replica: int) -> str:
            view.now_ps = round(request.arrival_s * PICOSECONDS)
            return policy.refuse(request, replica)

    served = Served(stream, LinearCost(1000, 0, 0, 0), admission=Clocked())
    finished = count - served.cluster.refusals.popitem()[1]
    assert finished == 10 + rate * (count - 1) // 100


# ---- bad input


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("tokenbucket", "unknown admission 'tokenbucket'; did you mean token-bucket? known: every"),
        ("rpm:request=3", ""),
        ("rpm:window=fix", "admission 'rpm': window must be sliding or fixed, got 'fix'"),
        ("rpm:requests=-1", "admission 'rpm': requests must be at least 0, got -1"),
        ("rpm:gold=-1", "admission 'rpm': gold must be at least 0, got -1"),
        (
            "token-bucket:burst_tokens=0",
            "admission 'token-bucket': burst_tokens must be at least 1, got 0",
        ),
        (
            "token-bucket:tokens_per_s=-0.5",
            "admission 'token-bucket': tokens_per_s must be at least 0, got -0.5",
        ),
        (
            "token-bucket:count=all",
            "admission 'token-bucket': count must be prompt or total, got 'all'",
        ),
        (
            "early-reject:ttft_s=-1",
            "admission 'early-reject': ttft_s must be at least 0, got -1",
        ),
        (
            "early-reject-load:ttft_s=1",
            "admission 'early-reject-load': has no limit to keep; expected"
            " early-reject-load:tpot_s=SECONDS, or slo.tpot_s",
        ),
    ],
)
def test_bad_settings_are_one_line(spec: str, said: str, kvcast: Run):
    if said:
        assert said in refused(kvcast("replay", "--set", f"cluster.admission={spec}"))
    else:  # a tenant may have any name
        assert admission_policy(spec, door()) is not None


def test_a_policy_of_ones_own_is_asked_and_guarded(tmp_path: Path):
    file = tmp_path / "mine.py"
    file.write_text(
        "class Every:\n"
        "    def __init__(self, view, *, other: int = 2):\n"
        "        self.other = other\n"
        "    def refuse(self, request, replica):\n"
        "        return 'not this one' if request.request_id % self.other else ''\n"
        "class Wrong(Every):\n"
        "    def refuse(self, request, replica):\n"
        "        return request.request_id == 3\n"
    )
    half = chat(admission=f"{file}:Every").summary["requests"]
    assert half["rejected"] == half["total"] // 2
    third = chat(admission=f"{file}:Every:other=4").summary["requests"]
    assert third["rejected"] == third["total"] * 3 // 4
    with pytest.raises(PolicyError, match=r"refuse\(\) returned False; .*, at request 0, at 0\.\d"):
        chat(admission=f"{file}:Wrong")
