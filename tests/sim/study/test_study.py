"""Studies: several caches, several processes, ranks that flip, and what was published."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

import sim
from sim.study import folder, tables
from sim.study.caches import Tallies, Tally
from sim.study.page import page
from sim.study.spread import SPREADS
from sim.study.study import Row, Study, StudySettings, capacity, parse_capacity
from tests.commands import Run
from tests.prefixes import prefix_traces
from traces.errors import ConfigError, KvcastError
from traces.reader import open_trace
from traces.request import Request
from traces.settings import load_settings


def study(requests: Sequence[Request] | None = None, jobs: int = 1, **how: Any) -> Study:
    return sim.cache_study(StudySettings.model_validate(how), requests, jobs=jobs)


def prompts(*contents: str, tenant: str = "") -> list[Request]:
    """A request for each text, of which a letter is the content of four tokens."""
    return [
        Request(
            number,
            float(number),
            4 * len(text) + 1,
            1,
            tuple(hash(text[: end + 1]) & ((1 << 62) - 1) for end in range(len(text))),
            4,
            4 * len(text),
            tenant=tenant,
        )
        for number, text in enumerate(contents)
    ]


@settings(max_examples=60, deadline=None)
@given(prefix_traces(4), st.integers(1, 4), st.integers(1, 8), st.sampled_from(sorted(SPREADS)))
def test_nothing_hits_more_than_the_bound(
    requests: list[Request], replicas: int, blocks: int, router: str
):
    found = study(
        requests,
        eviction=("lru", "fifo", "lfu", "s3fifo"),
        capacity_tokens=(4 * blocks, None),
        block_tokens=4,
        replicas=replicas,
        router=router,
    )
    for row in found.rows:
        assert row.of_bound is None or row.of_bound <= 1
        assert row.total.requests == len(requests)
    assert [row.eviction for row in found.rows[-1:]] == ["belady"]


@settings(max_examples=60, deadline=None)
@given(prefix_traces(4), st.integers(1, 10), st.sampled_from([1, 2, 4]))
def test_the_bound_holds_for_the_tree_too(requests: list[Request], blocks: int, page_tokens: int):
    found = study(
        requests,
        eviction=("lru", "lfu", "slru", "mru", "filo"),
        capacity_tokens=(4 * blocks,),
        block_tokens=page_tokens,
        index="radix",
    )
    for row in found.rows:
        assert row.total.hit_tokens <= found.rows[-1].total.hit_tokens


@settings(max_examples=30, deadline=None)
@given(prefix_traces(4), st.sampled_from(sorted(SPREADS)))
def test_one_cache_needs_no_router(requests: list[Request], router: str):
    alone = study(requests, capacity_tokens=(24,), block_tokens=4)
    assert alone.rows == study(requests, capacity_tokens=(24,), block_tokens=4, router=router).rows


def test_routers_send_requests_where_they_say():
    requests = prompts("ab", "xy", "ab", "ab", "xy", "xy")
    room = {"capacity_tokens": (None,), "block_tokens": 4, "replicas": 2}
    hits = {name: study(requests, router=name, **room).rows[0].total.hit_tokens for name in SPREADS}
    # in turn: ab goes to 0, 0, 1 and xy to 1, 0, 1, so that each is hit once
    assert hits["round-robin"] == 2 * 8
    assert hits["longest-match"] == 4 * 8
    assert hits["better-of-two"] == 4 * 8  # of two caches both are drawn
    sessions = [one._replace(session_id=one.hashes[0] % 7) for one in requests]
    assert study(sessions, router="session", **room).rows[0].total.hit_tokens == 4 * 8


def test_processes_change_nothing():
    requests = prompts(*("abcd"[: 1 + i % 4] + "xyz"[i % 3] for i in range(40)))
    how: dict[str, Any] = {
        "eviction": ("lru", "lfu"),
        "capacity_tokens": (12, 20, None),
        "block_tokens": 4,
    }
    one, two = study(requests, **how), study(requests, jobs=2, **how)
    assert one.as_json() == two.as_json()


def of_hits(**hits: Sequence[int]) -> Study:
    """A study of caches of 10, 20, ... tokens with so many hit tokens of 1,000 by policy."""
    capacities = tuple(10 * (1 + at) for at in range(len(hits["one"])))
    made = StudySettings(eviction=tuple(hits), capacity_tokens=capacities, block_tokens=1)
    rows = [
        Row(name, tokens, Tallies(Tally(prompt_tokens=1000, hit_tokens=of_policy[at])))
        for at, tokens in enumerate(capacities)
        for name, of_policy in hits.items()
    ]
    return Study(made, tuple(rows))


def test_ranks_that_flip_are_pointed_out(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sim.study.study.EVICTION", dict.fromkeys(("one", "two"), object))
    (flip,) = of_hits(one=[300, 300, 500], two=[200, 300, 600]).flips
    assert (flip.ahead_small, flip.ahead_large) == ("one", "two")
    assert (flip.small_tokens, flip.large_tokens) == (10, 30)
    assert (flip.lead_small, flip.lead_large) == pytest.approx((0.1, 0.1))
    assert str(flip) == (
        "one is ahead of two at 10 tokens (by 10.0 points of token hit ratio),"
        " behind it at 30 (by 10.0)"
    )
    assert of_hits(one=[300, 400], two=[200, 300]).flips == []
    assert of_hits(one=[301, 400], two=[300, 401]).flips != []
    assert len(of_hits(one=[3, 1, 3], two=[1, 3, 1]).flips) == 2


def test_leads_too_small_to_matter_are_none(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sim.study.study.EVICTION", dict.fromkeys(("one", "two"), object))
    monkeypatch.setattr("sim.study.study.APART", 0.01)
    assert of_hits(one=[305, 400], two=[300, 420]).flips == []


def test_flips_name_both_sides():
    requests = list(open_trace("sample:chat"))
    found = study(
        requests, eviction=("lru", "fifo", "lfu"), capacity_tokens=(10_000, 100_000, None)
    )
    for flip in found.flips:
        small = found.row(flip.ahead_small, flip.small_tokens).token_hit_ratio
        assert small > found.row(flip.ahead_large, flip.small_tokens).token_hit_ratio
        large = found.row(flip.ahead_large, flip.large_tokens).token_hit_ratio
        assert large > found.row(flip.ahead_small, flip.large_tokens).token_hit_ratio
        assert asdict(flip) | {"said": str(flip)} in found.as_json()["flips"]
        assert flip.ahead_small in page(found).partition('id="flips"')[2]


NAMES = tuple(f"p{number}" for number in range(12))


def crossing() -> Study:
    """Policies of which later ones lead ever more where the cache is small, and trail where it is
    large; the first of them hits as much as `one`."""
    hits = {name: [100 + 10 * at, 900 - 20 * at] for at, name in enumerate(NAMES)}
    return of_hits(one=[100, 900], **hits, belady=[900, 900])


def test_few_flips_are_shown_and_all_are_kept(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        "sim.study.study.EVICTION", dict.fromkeys(("one", *NAMES, "belady"), object)
    )
    found = crossing()
    assert found.alike[0] == ["one", "p0"]
    assert len(found.flips) == 13 * 12 // 2 - 1
    shown = tables.telling_flips(found)
    assert len(shown) == tables.TELLING
    assert (shown[0].ahead_small, shown[0].ahead_large) == ("p11", "one")
    assert not any("p0" in (flip.ahead_small, flip.ahead_large) for flip in shown)
    least = min(min(flip.lead_small, flip.lead_large) for flip in shown)
    firsts = {group[0] for group in found.alike}
    for flip in found.flips:
        if flip not in shown and {flip.ahead_small, flip.ahead_large} <= firsts:
            assert min(flip.lead_small, flip.lead_large) <= least
    text = printed(found, 80)
    assert f"{len(found.flips) - tables.TELLING} more" in " ".join(text.split())
    assert "p0 hits as much as one at every capacity." in text
    assert len(found.as_json()["flips"]) == len(found.flips)


def printed(found: Study, width: int) -> str:
    console = Console(width=width, file=StringIO())
    console.print(tables.study_table(found, width))
    return console.file.getvalue()


@pytest.mark.parametrize("width", [40, 80, 200])
def test_every_share_is_whole_however_narrow_the_terminal(width: int):
    """Capacities that do not fit go below; no cell is cut or broken."""
    requests = list(open_trace("sample:chat"))[:300]
    capacities = tuple(1000 * 2**i for i in range(12))
    found = study(requests, eviction=("lru", "w-tinylfu:window=0.05"), capacity_tokens=capacities)
    text = printed(found, width)
    assert all(len(line.rstrip()) <= width for line in text.splitlines())
    for grid in tables.grids(found):
        for policy, *cells in grid.rows:
            lines = [line.split() for line in text.splitlines()]
            for begin in range(len(cells)):
                assert any(cells[begin] in line for line in lines), (policy, begin)
    heads = [line.split()[1:] for line in text.splitlines() if line.startswith("eviction")]
    assert [one for head in heads for one in head] == 2 * list(map(capacity, capacities))
    assert (len(heads) > 2) == (width < 200)


def test_lines_of_policies_that_hit_alike_do_not_hide_each_other():
    found = study(prompts("ab", "ab", "ac"), eviction=("lru", "fifo"), capacity_tokens=(64,))
    assert found.alike == [["lru", "fifo"]]
    names = [line.name for line in found.plot("hits").data]
    assert names == ["lru = fifo", "belady"]


def test_a_study_is_one_line_of_text_and_tables_in_a_notebook():
    found = study(prompts("ab", "ab"), eviction=("lru", "fifo"), capacity_tokens=(64, None))
    assert repr(found) == "Study(sample:chat: policies=3, capacities=2)"
    assert found._repr_html_().count("<table>") == 2
    assert set(found.plot()) == {"hits", "bound"}
    with pytest.raises(KeyError, match="no picture 'x'; there are hits, bound"):
        found.plot("x")
    assert study(prompts("ab")).plot() == {}


def test_the_legend_is_below_the_picture():
    found = study(prompts("ab", "ab"), eviction=("lru", "fifo"), capacity_tokens=(64,))
    for picture in found.plot().values():
        assert picture.layout.legend.y < 0 and picture.layout.legend.yanchor == "top"


def test_tenants_add_up():
    requests = prompts("ab", "ab", tenant="a") + [
        one._replace(request_id=one.request_id + 2, tenant="b") for one in prompts("ab", "cd")
    ]
    row = study(requests, capacity_tokens=(None,), block_tokens=4).rows[0]
    hits = {name: tally.hit_tokens for name, tally in row.tallies.tenants.items()}
    assert hits == {"a": 8, "b": 8}
    assert sum(hits.values()) == row.total.hit_tokens


@pytest.mark.parametrize(
    ("text", "tokens"), [("3M", 3_000_000), ("512k", 512_000), ("1.5G", 1_500_000_000), ("7", 7)]
)
def test_capacities_are_read_and_said_alike(text: str, tokens: int):
    assert parse_capacity(text) == tokens
    assert parse_capacity(capacity(tokens)) == tokens
    assert parse_capacity("inf") is None
    assert capacity(None) == "inf"


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"eviction": ("lruu",)}, "did you mean lru"),
        ({"eviction": ("arc",), "index": "radix"}, "unknown radix rank 'arc'"),
        ({"capacity_tokens": (3,)}, "a capacity of 3 tokens holds no block of so many"),
        ({"capacity_tokens": (0,)}, "must be at least 1 token each"),
        ({"router": "least"}, "unknown router 'least'"),
    ],
)
def test_settings_that_make_no_sense(how: dict[str, Any], said: str):
    with pytest.raises((ConfigError, ValueError), match=said):
        study(prompts("a"), **how)


# ---- the command line


def test_the_command_writes_page_numbers_and_settings(kvcast: Run, tmp_path: Path):
    code, out, err = kvcast(
        "cache", "sample:chat", "--capacity", "20k,100k,inf", "--eviction", "lru,fifo,belady",
        "--out", "study",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert "belady" in out
    written = tmp_path / "study"
    assert {path.name for path in written.iterdir()} == set(folder.FILES)
    numbers = json.loads((written / folder.NUMBERS).read_text())
    assert [row["eviction"] for row in numbers["rows"]] == ["lru", "fifo", "belady"] * 3
    again = sim.cache_study(load_settings(StudySettings, written / folder.SETTINGS))
    assert again.as_json() == numbers
    assert page(again) == (written / folder.PAGE).read_text()
    assert again.frame.height == 9


def test_room_in_gigabytes_is_that_of_the_profile(kvcast: Run):
    code, out, _ = kvcast("cache", "sample:chat", "--gb", "10", "--profile", "h200-llama-3.1-8b")
    # 32 layers x 8 heads x 128 numbers x 2 (K and V) x 2 bytes = 131,072 bytes a token
    assert code == 0
    assert capacity(10**10 // (16 * 131_072) * 16) in out


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--capacity 3X", "--capacity 3X: is no number of tokens"),
        ("--capacity 8", "a capacity of 8 tokens holds no block of so many tokens, got 16"),
        ("--capacity 1M,,2M", "--capacity '': is no number of tokens"),
        ("--gb 1e-9 --profile h200-llama-3.1-8b", "--gb 1e-9: holds no block of 16 tokens"),
        ("--eviction ,", "--eviction: names no policy"),
        ("--gb 10", "--gb: needs --profile"),
        ("--gb 10 --capacity 3M", "--gb: goes without --capacity"),
        ("--gb x --profile h200-llama-3.1-8b", "--gb x: is no size"),
        ("--eviction lur", "did you mean lru?"),
        ("--index tree", "index"),
        ("--block-tokens 0", "block_tokens: must be at least 1, got 0"),
    ],
)
def test_bad_input_is_one_line(kvcast: Run, line: str, said: str):
    code, out, err = kvcast("cache", "sample:chat", *line.split())
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1


def test_a_folder_of_somebody_else_is_left_alone(kvcast: Run, tmp_path: Path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    code, _, err = kvcast("cache", "sample:chat", "--capacity", "inf", "--out", "mine")
    assert code == 2
    assert "thesis.txt" in err


# ---- published figures: FAST'25 (see benchmarks/mooncake.py), and an independent computation


def mooncake(shared: Path, name: str) -> list[Request]:
    return list(open_trace(shared / f"traces/mooncake/{name}_trace.jsonl"))


INDEPENDENT = {
    "conversation": {
        ("lru", None): 37.4,
        ("lru", 3_000_000): 13.8,
        ("lfu:history=true", 3_000_000): 15.4,
        ("belady", 3_000_000): 35.7,
        ("lru", 10_000_000): 29.1,
        ("lfu:history=true", 10_000_000): 25.2,
        ("belady", 10_000_000): 37.4,
    },
    "synthetic": {
        ("lru", None): 65.1,
        ("lru", 3_000_000): 31.5,
        ("lfu:history=true", 3_000_000): 29.6,
        ("belady", 3_000_000): 55.6,
    },
}
"""Per cent of prompt tokens hit in blocks of 512."""


@pytest.mark.slow
@pytest.mark.parametrize("name", INDEPENDENT)
def test_token_hit_ratios_computed_elsewhere(shared: Path, name: str):
    found = study(
        mooncake(shared, name),
        eviction=("lru", "lfu:history=true"),
        capacity_tokens=(3_000_000, 10_000_000, None),
        block_tokens=512,
    )
    for (policy, tokens), expected in INDEPENDENT[name].items():
        assert 100 * found.row(policy, tokens).token_hit_ratio == pytest.approx(expected, abs=1.0)
    # figure 9, and table 2's cache ratio
    most = found.row("lru", None).total.ratios()
    of_most = found.row("lru", 3_000_000).token_hit_ratio / most["token_hit_ratio"]
    published = {"conversation": (0.40, 0.41), "synthetic": (0.66, 0.46)}[name]
    assert most["block_hit_ratio"] == pytest.approx(published[0], abs=0.05)
    assert of_most == pytest.approx(published[1], abs=0.05)
    flipped = {(flip.ahead_small, flip.ahead_large) for flip in found.flips}
    assert (("lfu:history=true", "lru") in flipped) == (name == "conversation")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "hits", "work"), [("conversation", 2.22, 0.76), ("synthetic", 2.36, 0.52)]
)
def test_one_cache_for_ten_nodes_against_ten_of_their_own(
    shared: Path, name: str, hits: float, work: float
):
    requests = mooncake(shared, name)
    how: dict[str, Any] = {"block_tokens": 512, "context_tokens": 22_528}
    one = study(requests, capacity_tokens=(30_000_000,), **how).rows[0].total.ratios()
    ten = study(requests, capacity_tokens=(3_000_000,), replicas=10, router="better-of-two", **how)
    local = ten.rows[0].total.ratios()
    assert one["token_hit_ratio"] / local["token_hit_ratio"] == pytest.approx(hits, rel=0.15)
    assert one["prefill_work_left"] / local["prefill_work_left"] == pytest.approx(work, rel=0.15)


def test_errors_are_kvcasts_own():
    with pytest.raises(KvcastError, match="comes as number 0"):
        study([one._replace(request_id=3) for one in prompts("a")])
