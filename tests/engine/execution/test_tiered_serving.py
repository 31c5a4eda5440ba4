"""The whole engine with too few blocks and tiers below them says what it says with plenty."""

from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config import OffloadSettings
from engine.execution.executor import TorchExecutor, load_executor
from engine.kvformats import block_layout
from engine.llm import LLMEngine
from engine.metrics import FINISHED
from engine.work import CPU
from tests.engine.execution import driving
from tests.engine.execution.rehearsal import largest_file

ROOMY = 400
SCARCE = 14
KV_DTYPES = ["fp32", "int8", "k8v4"]
"""What a token reads does not depend on the chunks it was computed in; of int4_channel it does."""


@pytest.fixture(scope="module")
def roomy(tmp_path_factory):
    """An engine for each KV format that never runs out of blocks and shares none."""
    folder = tmp_path_factory.mktemp("roomy")
    engines = {kv: engine(folder, num_blocks=ROOMY, kv_dtype=kv) for kv in KV_DTYPES}
    yield engines
    for it in engines.values():
        it.close()


def engine(
    folder: Path,
    tier_blocks: tuple[int, int] = (0, 0),
    *,
    kv_dtype: str,
    write: str = "on_evict",
    scheduler: dict | None = None,
    **changes,
) -> LLMEngine:
    """The CPU and the disk tier hold so many blocks; prefixes are shared if there are any."""
    (folder / "model").mkdir(exist_ok=True)
    block_bytes = block_layout(kv_dtype, 2, 2, 64, driving.BLOCK_TOKENS).block_bytes
    cpu_bytes, disk_bytes = (blocks * block_bytes for blocks in tier_blocks)
    limits = {"max_num_batched_tokens": 24, "max_model_len": 44, "max_num_seqs": 5}
    chosen = driving.settings(
        folder,
        model=driving.model_folder(folder / "model", head_dim=64),
        kv_dtype=kv_dtype,
        scheduler=limits | (scheduler or {}),
        cache={"prefix_caching": any(tier_blocks)},
        offload=OffloadSettings(
            cpu_bytes=cpu_bytes,
            disk_bytes=disk_bytes,
            disk_path=str(folder / "tier"),
            write=write,
        ),
        **changes,
    )
    executor = load_executor(chosen)
    assert executor.block_bytes == block_bytes
    driving.exaggerate(executor.runner.model)
    return LLMEngine(executor, executor.settings)


def conversations(random: Random) -> list[tuple[list[int], int]]:
    """Prompts that begin like others that came before, and how much is to be said."""
    stems = [[random.randrange(driving.VOCAB) for _ in range(24)] for _ in range(3)]
    return [
        (
            random.choice(stems)[: random.choice([0, 5, 8, 16, 24])]
            + [random.randrange(driving.VOCAB) for _ in range(random.randint(1, 8))],
            random.randint(1, 12),
        )
        for _ in range(20)
    ]


def serve(it: LLMEngine, wanted: list[tuple[list[int], int]], random: Random) -> list[list[int]]:
    """What is said to each, where they come a few at a time."""
    made = []
    for prompt, tokens in wanted:
        made.append(it.add(prompt, tokens))
        for _ in range(random.choice([0, 0, 1, 4, 30])):
            step(it)
    while it.work_left:
        step(it)
    assert all(one.outcome == FINISHED for one in made)
    return [one.output for one in made]


def step(it: LLMEngine) -> None:
    if it.work_left:
        it.step()


def nothing_leaked(it: LLMEngine) -> None:
    blocks, executor = it.scheduler.blocks, it.executor
    assert isinstance(executor, TorchExecutor)
    assert blocks.free == blocks.usable
    assert executor.planner.free_rows == it.settings.scheduler.max_num_seqs
    if it.tiers is not None:
        for tier in it.tiers.tiers:
            assert tier.free + tier.blocks == tier.slots


choices = st.fixed_dictionaries(
    {
        "kv_dtype": st.sampled_from(KV_DTYPES),
        "write": st.sampled_from(["on_evict", "through"]),
        "scheduler": st.fixed_dictionaries(
            {
                "async_scheduling": st.booleans(),
                "preemption": st.sampled_from(["recompute", "swap"]),
            }
        ),
    }
)
rooms = st.tuples(st.integers(1, 12), st.integers(0, 30))


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32), tier_blocks=rooms, chosen=choices)
def test_tiers_change_nothing_that_is_said(roomy, seed, tier_blocks, chosen):
    wanted = conversations(Random(seed))
    with TemporaryDirectory() as folder:
        it = engine(Path(folder), tier_blocks, num_blocks=SCARCE, **chosen)
        said = serve(it, wanted, Random(seed))
        nothing_leaked(it)
        assert sum(it.executor.runner.mover.moved_bytes.values()) == sum(
            record["moved_bytes"] for record in it.records
        )
        it.close()
    assert said == serve(roomy[chosen["kv_dtype"]], wanted, Random(seed))


@pytest.mark.gpu
@pytest.mark.parametrize("tier_blocks", [(6, 0), (0, 20), (3, 20)])
@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("write", ["on_evict", "through"])
def test_tiers_change_nothing_that_is_said_on_a_gpu(tmp_path, tier_blocks, asynchronous, write):
    wanted = conversations(Random(7))
    said = []
    for blocks, tiers in ((ROOMY, (0, 0)), (SCARCE, tier_blocks)):
        it = engine(
            tmp_path,
            tiers,
            num_blocks=blocks,
            device="cuda",
            dtype="fp32",
            kv_dtype="fp32",
            scheduler={"async_scheduling": asynchronous},
            write=write,
        )
        said.append(serve(it, wanted, Random(7)))
        nothing_leaked(it)
        it.close()
    assert said[0] == said[1]


@pytest.mark.parametrize("write", ["on_evict", "through"])
def test_whole_blocks_of_int4_channel_come_and_go(tmp_path, write):
    it = engine(
        tmp_path,
        (6, 20),
        num_blocks=SCARCE,
        kv_dtype="int4_channel",
        scheduler={"preemption": "swap"},
        write=write,
    )
    serve(it, conversations(Random(3)), Random(3))
    assert it.tiers.loaded > 0
    nothing_leaked(it)
    it.close()


def test_without_its_disk_an_engine_goes_on(roomy, tmp_path, caplog):
    wanted = conversations(Random(2))
    it = engine(tmp_path, (2, 30), num_blocks=SCARCE, kv_dtype="fp32")
    with largest_file(4 * it.executor.block_bytes):
        said = serve(it, wanted, Random(2))
    assert [tier.level for tier in it.tiers.tiers] == [CPU]
    assert len(caplog.records) == 1
    nothing_leaked(it)
    it.close()
    assert said == serve(roomy["fp32"], wanted, Random(2))
