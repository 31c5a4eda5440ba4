"""Laws of served traces with tiers: what is free, what never pays, what overlaps, what queues."""

import json
from io import StringIO
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from calibration.costs import LinearCost
from calibration.profiles import load_profile
from engine.config import CacheSettings, OffloadSettings
from engine.moment import Moment
from engine.sequence import Sequence
from engine.work import CPU, DISK, TIERS, Place
from sim.links import Link, Links
from sim.replay import replay
from sim.report.found import found, found_line
from sim.report.fragments import facts
from sim.report.table import summary_table
from sim.scenario import scenario_of
from sim.tiers import Cheaper, block_bytes_below
from tests.sim.test_tiers import BLOCK_BYTES
from traces.errors import ConfigError
from traces.request import Request
from traces.settings import merged

COST = LinearCost(10**9, 10**8, 10**7, 10**4)
FREE = dict.fromkeys(("cpu_bytes_per_s", "disk_bytes_per_s", "remote_bytes_per_s"), 1e30)
NEVER = dict.fromkeys(FREE, 1e-3)
PROFILE = """
name: made-up
measured: true
provenance: made up
model: qwen3-0.6b
gpu: l4
copies: {block_s: 0.0, remote_latency_s: 0.0}
"""


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Without costs beside bytes."""
    path = tmp_path_factory.mktemp("profiles") / "made-up.yaml"
    path.write_text(PROFILE)
    return str(path)


def run(profile: str, requests: list[Request], **values: Any) -> Any:
    least = {"profile": profile, "memory": {"num_blocks": 60}}
    return replay(scenario_of(merged(least, values)), requests, cost=COST)


def tiers(cpu: int = 0, disk: int = 0, remote: int = 0, **offload: Any) -> dict[str, Any]:
    """Tiers with room for so many blocks."""
    rooms = {"cpu_bytes": cpu, "disk_bytes": disk, "remote_bytes": remote}
    return {name: blocks * BLOCK_BYTES for name, blocks in rooms.items()} | offload


def served(result: Any) -> list[tuple[Any, ...]]:
    columns = ["request_id", "first_token_s", "finish_s", "cached_tokens", "preemptions"]
    return sorted(result.requests.select(columns).rows())


def asking(number: int, at_s: float, family: int, blocks: int, own: int, output: int) -> Request:
    """A request whose first blocks are those of its family."""
    hashes = tuple(1000 * (family + 1) + i for i in range(blocks))
    return Request(number, at_s, 16 * blocks + own, output, hashes, 16, 16 * blocks)


def asked(drawn: list[tuple[int, int, int, int]]) -> list[Request]:
    now, requests = 0.0, list[Request]()
    for number, (family, shared, own, gap_ms) in enumerate(drawn):
        now += gap_ms / 1000
        requests.append(asking(number, now, family, 6 * shared, own, own))
    return requests


conversations = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 4), st.integers(1, 40), st.integers(0, 300)),
    min_size=4,
    max_size=24,
)
"""Families, sixths of the blocks in common, own tokens (and as many of the answer), gaps in ms."""


@settings(max_examples=50, deadline=None)
@given(
    conversations,
    st.sampled_from([4, 40, 400]),
    st.sampled_from(["on_evict", "through"]),
    st.sampled_from(["never", "on_arrival"]),
    st.sampled_from(["always", "cheaper"]),
    st.sampled_from([1, 2]),
)
def test_every_prompt_token_is_found_somewhere_or_computed(
    profile: str,
    drawn: list[tuple[int, int, int, int]],
    blocks: int,
    write: str,
    prefetch: str,
    reload: str,
    replicas: int,
):
    requests = asked(drawn)
    values = {
        "offload": tiers(
            blocks, 2 * blocks, 3 * blocks, write=write, prefetch=prefetch, reload=reload
        ),
        "cluster": {"replicas": replicas},
    }
    result = run(profile, requests, **values)
    counts = result.summary["tiers"]
    hits = [counts[f"{tier}_hit_tokens"] for tier in TIERS]
    assert sum(hits) + counts["computed_tokens"] == sum(r.prompt_tokens for r in requests)
    assert sum(hits) == result.summary["cache"]["hit_tokens"]
    assert min(*hits, counts["computed_tokens"]) >= 0
    assert counts["cpu_blocks"] <= replicas * blocks
    assert counts["disk_blocks"] <= replicas * 2 * blocks
    assert counts["remote_blocks"] <= 3 * blocks
    again = run(profile, requests, **values)
    assert json.dumps(again.summary) == json.dumps(result.summary)
    assert served(again) == served(result)


@settings(max_examples=40, deadline=None)
@given(conversations, st.booleans(), st.sampled_from(["never", "on_arrival"]))
def test_what_never_pays_is_never_done(
    profile: str, drawn: list[tuple[int, int, int, int]], asynchronous: bool, prefetch: str
):
    """`cheaper` over links that carry next to nothing is the same as no tiers at all."""
    requests, scheduler = asked(drawn), {"async_scheduling": asynchronous}
    without = run(profile, requests, scheduler=scheduler)
    offload = tiers(40, 40, 40, reload="cheaper", prefetch=prefetch, **NEVER)
    result = run(profile, requests, scheduler=scheduler, offload=offload)
    assert served(result) == served(without)
    assert result.summary["tiers"]["saved_blocks"] == 0


@settings(max_examples=40, deadline=None)
@given(
    conversations,
    st.booleans(),
    st.sampled_from(["on_evict", "through"]),
    st.sampled_from(["never", "on_arrival"]),
)
def test_links_without_limit_are_as_no_links(
    profile: str,
    drawn: list[tuple[int, int, int, int]],
    asynchronous: bool,
    write: str,
    prefetch: str,
):
    """Each step takes what it takes alone, and whatever lies below pays."""
    requests, scheduler = asked(drawn), {"async_scheduling": asynchronous}
    offload = tiers(30, 30, 400, write=write, prefetch=prefetch, **FREE)
    always = run(profile, requests, scheduler=scheduler, offload=offload)
    for row in always.segments.iter_rows(named=True):
        context = row["decode_context_tokens"] + row["prefill_context_tokens"]
        alone = 10**9 + 10**8 * row["prefill_tokens"] + 10**7 * row["decodes"] + 10**4 * context
        assert round(row["first_step_s"] * 10**12) == alone
    cheaper = run(profile, requests, scheduler=scheduler, offload={**offload, "reload": "cheaper"})
    assert served(cheaper) == served(always)


def first_token_s(result: Any, number: int) -> float:
    return dict(result.requests.select("request_id", "first_token_s").rows())[number]


def finish_s(result: Any, number: int) -> float:
    return dict(result.requests.select("request_id", "finish_s").rows())[number]


@pytest.mark.parametrize("arrival_s", [20.02, 20.005, 20.15])
def test_prefetch_loads_while_a_request_waits(profile: str, arrival_s: float):
    """Ten blocks of 10 ms each are there 100 ms after the request came, or after its turn came."""
    requests = [
        asking(0, 0.0, 1, 10, 1, 1),
        asking(1, 10.0, 2, 55, 1, 1),  # pushes the first out
        asking(2, 20.0, 3, 0, 160, 60),
        asking(3, arrival_s, 1, 10, 1, 1),
    ]
    values = {"scheduler": {"max_num_seqs": 1, "async_scheduling": False}}
    rate = {"cpu_bytes_per_s": BLOCK_BYTES / 0.01, "write": "through"}
    late, early = (
        run(profile, requests, **values, offload=tiers(99, prefetch=prefetch, **rate))
        for prefetch in ("never", "on_arrival")
    )
    step_s = (10**9 + 10**8 + 161 * 10**4) / 10**12
    turn_s = max(arrival_s, finish_s(late, 2))
    assert finish_s(early, 2) == finish_s(late, 2)
    assert first_token_s(late, 3) == pytest.approx(turn_s + 0.1 + step_s, abs=1e-9)
    assert first_token_s(early, 3) == pytest.approx(max(turn_s, arrival_s + 0.1) + step_s, abs=1e-9)
    for result in (late, early):
        assert result.summary["tiers"]["cpu_hit_tokens"] == 160


def test_replicas_that_load_at_once_from_the_pool_share_its_link(profile: str):
    requests = [asking(0, 0.0, 1, 10, 1, 1), *(asking(i, 5.0, 1, 10, 1, 1) for i in (1, 2))]
    result = run(
        profile,
        requests,
        offload=tiers(remote=99, write="through", remote_bytes_per_s=BLOCK_BYTES / 0.01),
        cluster={"replicas": 3},
        scheduler={"async_scheduling": False},
    )
    step_s = (10**9 + 10**8 + 161 * 10**4) / 10**12
    assert first_token_s(result, 1) == pytest.approx(5.1 + step_s, abs=1e-9)
    assert first_token_s(result, 2) == pytest.approx(5.2 + step_s, abs=1e-9)
    assert result.summary["tiers"]["remote_hit_tokens"] == 2 * 160


@pytest.mark.parametrize(
    ("cpu_ms", "disk_ms", "busy_ms", "expected"),
    # blocks of 16 tokens are computed in 16 ms; ten lie in CPU memory, then ten on disk
    [
        (1, 1, 0, 20),
        (1, 100, 0, 10),
        (1, 20, 0, 10),
        (15, 31, 0, 20),  # both links together take 310 ms, the tokens 320
        (15, 33, 0, 10),
        (100, 100, 0, 0),
        (1, 1, 1000, 0),
        (1, 1, 145, 20),
    ],
)
def test_what_is_loaded_is_what_is_there_sooner_than_it_is_computed(
    cpu_ms: int, disk_ms: int, busy_ms: int, expected: int
):
    ms = 10**9
    links = Links({CPU: Link(cpu_ms * ms), DISK: Link(disk_ms * ms)})
    if busy_ms:
        links.links[CPU].read(99, (busy_ms - cpu_ms) * ms)
    moment = Moment()
    worth = Cheaper(LinearCost(0, ms, 0, 0), links, moment, 16, 64)
    seq = Sequence(Request(0, 0.0, 1000, 1), 0, 0)
    places = [*(Place(CPU, i) for i in range(10)), *(Place(DISK, i) for i in range(10))]
    assert worth.blocks_to_load(seq, 3, places) == expected
    moment.now = busy_ms * ms
    assert worth.blocks_to_load(seq, 3, places[:10]) == (10 if cpu_ms <= 16 else 0)
    assert worth.is_worth_keeping(5, CPU) == (cpu_ms <= 16)
    assert worth.is_worth_keeping(5, DISK) == (disk_ms <= 16)


def test_fewer_bytes_below_hold_more_and_take_less_time(profile: str):
    cache, made = CacheSettings(), load_profile(profile)
    sizes = {
        dtype: block_bytes_below(OffloadSettings(dtype=dtype), cache, made)
        for dtype in ("same", "fp8", "int8", "int4")
    }
    # of a head of 128 channels, docs/engine.md
    assert [size * 512 // sizes["same"] for size in sizes.values()] == [512, 256, 264, 136]
    requests = [asking(i, 1.0 * i, i, 50, 1, 1) for i in range(6)]
    counts = {
        dtype: run(profile, requests, offload=tiers(20, dtype=dtype)).summary["tiers"]
        for dtype in sizes
    }
    held = {dtype: counts[dtype]["cpu_blocks"] for dtype in sizes}
    assert held == {dtype: 20 * sizes["same"] // size for dtype, size in sizes.items()}


def test_larger_blocks_below_are_refused(tmp_path: Any):
    path = tmp_path / "fp8.yaml"
    path.write_text(PROFILE + "kv_dtype: fp8\n")
    with pytest.raises(ConfigError, match=r"offload.dtype: int8 blocks of [\d,]+ bytes"):
        run(str(path), [], offload=tiers(9, dtype="int8"))
    assert run(str(path), [], offload=tiers(9, dtype="int4")).summary["tiers"]["cpu_blocks"] == 0


def test_an_unknown_policy_is_refused(profile: str):
    with pytest.raises(ConfigError, match=r"offload\.eviction: unknown policy 'lur'; did you mean"):
        run(profile, [], offload=tiers(9, eviction="lur"))


def test_the_report_says_where_prompts_were_found(profile: str):
    requests = [asking(i, 5.0 * i, i % 3, 40, 8, 1) for i in range(9)]
    summary = run(profile, requests, offload=tiers(20, remote=400)).summary
    rows = found(summary)
    assert [name for name, _, _ in rows] == ["GPU", "CPU", "pool", "computed"]
    assert sum(tokens for _, tokens, _ in rows) == 9 * 648
    assert sum(share for _, _, share in rows) == pytest.approx(1)
    line = found_line(summary)
    assert line.endswith(" %") and ", pool " in line
    console = Console(width=80, record=True, file=StringIO())
    console.print(summary_table(summary))
    assert f"prompts from  {line}\n" in console.export_text().replace(" \n", "\n")
    assert line in facts(summary)
    plain = run(profile, requests).summary
    assert found(plain) == [] and "Prompts came" not in facts(plain)
