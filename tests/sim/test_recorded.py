"""With the engine's own step times the simulator repeats its run, step by step, on time."""

from pathlib import Path
from random import Random
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import settings as repeated
from hypothesis import strategies as st

from engine.frames import MemorySink, requests_table
from engine.llm import LLMEngine
from engine.metrics import REQUEST_COLUMNS
from engine.policies import VICTIM
from engine.replay import replay
from engine.serve import ReplaySettings, serve
from engine.steps import steps_schema
from engine.work import Share, Work
from sim.recorded import DivergenceError, Retrace, recorded, retrace
from tests.engine.eviction.audit import SPECS
from tests.engine.ledger import Done, Ledger
from tests.engine.served import records_of, settings
from tests.engine.toy import toy_model
from tests.sim.clusters import orders
from traces.errors import ConfigError
from traces.request import Request
from traces.settings import load_settings, settings_of
from traces.writer import write_trace

VOCAB = 1 << 20


class Busy:
    """A clock on which everything takes time, no two things the same."""

    def __init__(self, seed: int, most_us: int) -> None:
        self.random, self.most_us = Random(seed), most_us
        self.time = 0

    def now(self) -> int:
        self.pass_by(self.random.choice((1, 1, self.most_us)))
        return self.time

    def wait_until(self, time: int) -> None:
        self.time = max(self.time, time)

    def pass_by(self, most_us: int) -> None:
        self.time += self.random.randint(1, 1000 * most_us) * 1000


class Device(Ledger):
    """Takes its time, and answers nobody as it answers another."""

    def __init__(self, num_blocks: int, block_tokens: int, clock: Busy) -> None:
        super().__init__(num_blocks, block_tokens, VOCAB)
        self.clock = clock

    def launch(self, work: Work) -> Done:
        self.clock.pass_by(300)
        return super().launch(work)

    def sample(self, share: Share, text: int) -> int:
        return super().sample(share, hash((text, share.generation.seq.number)) % VOCAB)


class Run:
    """What an engine with such a device did for some requests."""

    def __init__(self, chosen: ReplaySettings, requests: list[Request], seed: int, most_us: int):
        assert chosen.num_blocks is not None
        clock = Busy(seed, most_us)
        device = Device(chosen.num_blocks, chosen.cache.block_tokens, clock)
        it = LLMEngine(device, chosen, clock=clock)
        records, rows = records_of(it), MemorySink()
        tables: list[Any] = [steps_schema().empty_table()]
        records.send(rows.take, tables.append)
        serve(it, requests, records, speed=chosen.speed)
        table = requests_table(rows.rows(len(REQUEST_COLUMNS)), records.names)
        self.settings, self.requests = chosen, requests
        self.served = pl.DataFrame(pl.from_arrow(table))
        self.steps = pl.concat([pl.DataFrame(pl.from_arrow(one)) for one in tables])

    def retraced(self) -> Retrace:
        return retrace(self.requests, self.served, self.steps, self.settings)


@st.composite
def traces(draw: st.DrawFn) -> list[Request]:
    """Bursts and pauses; prompts that begin alike, and answers that later ones begin with.

    No two are equals under `priority`: vLLM has them preempt each other for ever.
    """
    arrival_s, requests = 0.0, list[Request]()
    for number in range(draw(st.integers(1, 20))):
        arrival_s += draw(st.sampled_from([1e-9, 1e-6, 1e-4, 1e-3, 0.1]))
        prompt = draw(st.sampled_from([1, 4, 9, 40, 40, 160, 400]))
        output = draw(st.sampled_from([1, 2, 5, 17, 60, 200]))
        hashes = draw(st.sampled_from([(), (1,), (1, 2), (1, 2, 5, 6), (1, 3), (4, 7)]))
        hashed = min(8 * len(hashes), prompt + output)
        hashes = hashes[: -(-hashed // 8)]
        request = Request(number, arrival_s, prompt, output, hashes, 8 * bool(hashes), hashed)
        requests.append(
            request._replace(
                priority=draw(st.integers(0, 2)),
                tenant=draw(st.sampled_from(["t0", "t1", "t2"])),
                slo_class=draw(st.sampled_from(["", "class 1"])),
            )
        )
    return requests


EVICTIONS = [spec for spec in SPECS if spec != "lfu:history=true"]

schedulers = st.fixed_dictionaries(
    {
        "async_scheduling": st.booleans(),
        "order": orders,
        "victim": st.sampled_from([None, None, *VICTIM]),
        "chunking": st.sampled_from([None, None, "fixed:tokens=5", "stall-free:tokens=9"]),
        "max_num_seqs": st.integers(2, 8),
        "max_num_batched_tokens": st.sampled_from([7, 24, 64, 400]),
        "long_prefill_token_threshold": st.sampled_from([0, 0, 3]),
        "reserve_full_sequence": st.booleans(),
    }
)


@repeated(max_examples=400, deadline=None)
@given(
    traces(),
    schedulers,
    st.booleans(),
    st.sampled_from(EVICTIONS),
    st.sampled_from([75, 80, 100, 400]),
    st.sampled_from([None, 1.0, 1.0]),
    st.integers(0, 2**32),
    st.sampled_from([1, 100, 5000]),
)
def test_the_simulator_repeats_a_run(
    requests, scheduler, caching, eviction, num_blocks, speed, seed, most_us
):
    scheduler["max_model_len"] = 290
    if speed is None:
        requests = [one._replace(priority=100 * one.priority + one.request_id) for one in requests]
    chosen = settings(
        scheduler=scheduler,
        cache={"prefix_caching": caching, "eviction": eviction},
        num_blocks=num_blocks,
        speed=speed,
    )
    run = Run(chosen, requests, seed, most_us)
    retraced = run.retraced()
    assert retraced.steps == run.steps.height
    assert retraced.requests.height == run.served["finish_s"].count()
    assert retraced.largest_error_s < 2e-12


def small_run(**scheduler: Any) -> Run:
    requests = [Request(number, number * 1e-4, 20 + number, 9) for number in range(6)]
    return Run(settings(scheduler=scheduler), requests, 1, 100)


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("column", ["sum_decode_kv_tokens", "sum_prefill_tokens", "admitted"])
def test_the_first_step_that_differs_is_named(asynchronous: bool, column: str):
    run = small_run(async_scheduling=asynchronous)
    step = int(run.steps[column].arg_max() or 0)
    was = run.steps[column][step]
    changed = pl.when(pl.col("step") == step).then(pl.col(column) + 1).otherwise(pl.col(column))
    run.steps = run.steps.with_columns(changed)
    with pytest.raises(
        DivergenceError, match=rf"^step {step}: {column}: engine {was + 1}, simulated {was}$"
    ):
        run.retraced()


def test_a_run_of_another_length_is_no_repetition():
    run = small_run()
    whole = run.steps
    run.steps = pl.concat([whole, whole.tail(1)])
    with pytest.raises(DivergenceError, match=f"engine took {whole.height + 1} steps, simulated "):
        run.retraced()
    run.steps = whole.head(whole.height - 1)
    with pytest.raises(
        DivergenceError, match=f"step {whole.height - 1}: simulated, but the engine took"
    ):
        run.retraced()


def test_files_of_different_runs_are_refused():
    run = small_run()
    later = run.served.with_columns(pl.col("queued_s") + 1000)
    with pytest.raises(ConfigError, match="request 0: no step follows it"):
        recorded(later, run.steps)
    with pytest.raises(ConfigError, match=r"requests\.parquet: has no column queued_s"):
        recorded(run.served.drop("queued_s"), run.steps)
    with pytest.raises(ConfigError, match=r"request 5: was served, but is not in the trace"):
        retrace(run.requests[:5], run.served, run.steps, run.settings)


def test_a_run_with_tiers_is_refused():
    run = small_run()
    tiers = run.settings.model_copy(
        update={"offload": run.settings.offload.model_copy(update={"cpu_bytes": 1})}
    )
    with pytest.raises(ConfigError, match="offload: a run with tiers below the GPU"):
        retrace(run.requests, run.served, run.steps, tiers)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_model_on_a_cpu_is_repeated(asynchronous: bool, tmp_path: Path):
    """Preemptions, prefix hits, pauses: by the wall clock, with whatever it does."""
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    random = Random(3)
    requests: list[Request] = []
    arrival_s = 0.0
    for number in range(40):
        arrival_s += random.choice([0.0, 0.0, 0.001, 0.02])
        chain = random.choice([(1, 2, 3), (1, 2, 4), (1, 5), ()])
        prompt = 8 * len(chain) + random.randint(1, 60)
        output = random.randint(1, 60)
        requests.append(
            Request(number, arrival_s, prompt, output, chain, 8 * bool(chain), 8 * len(chain))
        )
    write_trace(requests, tmp_path / "t.parquet")
    chosen = settings_of(
        ReplaySettings,
        {
            "model": toy_model(tmp_path / "toy"),
            "weights": "dummy",
            "device": "cpu",
            "num_blocks": 80,
            "scheduler": {
                "async_scheduling": asynchronous,
                "max_num_batched_tokens": 100,
                "max_num_seqs": 12,
            },
            "cache": {"block_tokens": 4},
            "trace": {"path": str(tmp_path / "t.parquet")},
        },
    )
    replay(chosen, tmp_path / "out")
    served = pl.read_parquet(tmp_path / "out" / "requests.parquet")
    steps = pl.read_parquet(tmp_path / "out" / "steps.parquet")
    resolved = load_settings(ReplaySettings, tmp_path / "out" / "settings.yaml")
    assert steps["preempted"].sum() > 0
    assert served["cached_tokens"].sum() > 0
    retraced = retrace(chosen.trace.open(chosen.seed), served, steps, resolved)
    assert retraced.steps == steps.height
    assert retraced.requests.height == 40
    assert retraced.largest_error_s < 1e-9
