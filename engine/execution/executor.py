"""Runs the scheduler's steps on a device: plan, copy, compute, tokens back."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from time import perf_counter, sleep

import torch

from engine.config import EngineSettings
from engine.execution.checkpoint import open_model
from engine.execution.graphs import bucket_sizes
from engine.execution.kvcache import KvPool
from engine.execution.model import load_model
from engine.execution.offload import Offloader
from engine.execution.ops import load_ops
from engine.execution.parallel import Followers, Ranks
from engine.execution.plan import Plan
from engine.execution.planner import Planner
from engine.execution.runner import Mover, Ran, Runner
from engine.execution.sizing import (
    DTYPES,
    blocks_that_fit,
    layout_of,
    resolve_budget,
    resolve_device,
    resolve_length,
)
from engine.execution.staging import CpuStaging, CudaStaging, Staging
from engine.sequence import Sequence
from engine.shapes import ModelShape
from engine.work import StepOutput, Work
from traces.errors import ConfigError

LOOK_S = 1.0
"""How often who waits for the device looks whether the other ranks still live."""
NAP_S = 2e-5
"""Meanwhile, other threads get to run."""


class TorchExecutor:
    """The executor (see engine.work) of an engine on one device, or the leader of several."""

    def __init__(
        self, runner: Runner, settings: EngineSettings, followers: Followers | None = None
    ) -> None:
        """An executor that has run nothing.

        Args:
            runner: this process's device half.
            settings: with nothing left open.
            followers: the other ranks' processes; None: tp is 1.
        """
        self.settings = settings
        self.runner = runner
        self.num_blocks = runner.pool.num_blocks
        self.block_bytes = runner.pool.layout.block_bytes * settings.tp
        self.vocab = runner.model.shape.vocab
        self.planner = Planner(
            len(runner.last_token) - 1,
            runner.max_model_len,
            runner.pool.block_tokens,
            buckets=_buckets(settings),
            reuse=settings.kv_reuse,
        )
        self._followers = followers
        self._staging: list[Staging] = []
        """Not in use. There come to be as many as there are steps under way at once."""

    def launch(self, work: Work) -> "StepFlight":
        """Begin a step and return without waiting for it (on a CPU: when it is done).

        Raises:
            RuntimeError: for work that contradicts what a scheduler promises (see Planner.plan);
                a RankError when another rank has ended.
        """
        staging = self._staging.pop() if self._staging else self._more_staging()
        plan = self.planner.plan(work, staging.words)
        with self._with_followers():
            if self._followers is not None:
                self._followers.send(plan.vector)
            staging.begin()
            ran = self.runner.run(plan)
            staging.end(ran.tokens)
        return StepFlight(self, staging, ran)

    def land(self, staging: Staging) -> tuple[list[int], float]:
        """Wait for a launched step; its tokens, and the seconds it took on the device."""
        if self._followers is None:
            staging.wait()
        else:
            with self._with_followers():
                _wait_beside(staging, self._followers)
        taken = staging.take()
        self._staging.append(staging)
        return taken

    def drop(self, seq: Sequence) -> None:
        """Forget a sequence that ended or was preempted; it may come back as a new one."""
        self.planner.drop(seq)

    def lost(self) -> tuple[int, ...]:
        """Levels of tiers that failed on this rank since this was last asked: see Offloader."""
        return () if self.runner.mover is None else self.runner.mover.lost()

    def close(self) -> None:
        """Give back memory, processes and files; a second time does nothing."""
        if self._followers is not None:
            self._followers.close()
            self._followers = None
        self._staging.clear()
        self.runner.close()

    def _more_staging(self) -> Staging:
        words = len(self.runner.words)
        if self.runner.device.type == "cpu":
            return CpuStaging(words)
        return CudaStaging(words, len(self.runner.last_token))

    def _with_followers(self) -> AbstractContextManager[None]:
        return nullcontext() if self._followers is None else self._followers.expected()


class StepFlight:
    """A step that an executor has under way."""

    def __init__(self, executor: TorchExecutor, staging: Staging, ran: Ran) -> None:
        self._executor = executor
        self._staging = staging
        self._ran = ran
        self._output: StepOutput | None = None

    def wait(self) -> StepOutput:
        """Block until the step is done."""
        if self._output is None:
            tokens, device_s = self._executor.land(self._staging)
            moved_bytes = self._ran.moved_bytes * self._executor.settings.tp
            self._output = StepOutput(tokens, device_s, self._ran.graph_bucket, moved_bytes)
        return self._output


Fill = Callable[[KvPool], None]
"""Puts something into a fresh pool; every rank calls it, so it can be pickled."""


def load_executor(settings: EngineSettings, fill: Fill | None = None) -> TorchExecutor:
    """Load a model and everything that runs it.

    Arguments:
        settings: what is left open is filled in; see the executor's `settings`.
        fill: what the KV pool holds at first; None: zeros.

    Raises:
        ConfigError: for what the model, the device or its memory cannot do: which setting, its
            value, and what would be right.
        RankError: when another rank's process ends.
    """
    settings = resolve_device(settings)
    shape = _shape(settings)
    layout_of(settings, shape)
    settings = resolve_budget(settings, shape)
    if settings.tp == 1:
        runner, settings = _load(settings, None, fill)
        return TorchExecutor(runner, settings)
    life = partial(_follow, settings, fill)
    followers = Followers(settings.tp, torch.device(settings.device), life)
    try:
        with followers.expected():
            runner, settings = _load(settings, followers.ranks, fill)
    except BaseException:
        followers.close()
        raise
    return TorchExecutor(runner, settings, followers)


def _follow(settings: EngineSettings, fill: Fill | None, ranks: Ranks) -> None:
    """A follower's life: the leader's steps on its own share of the model."""
    runner, _ = _load(settings, ranks, fill)
    while (vector := ranks.receive()) is not None:
        runner.run(Plan.read(vector))
    runner.close()


def _load(
    settings: EngineSettings, ranks: Ranks | None, fill: Fill | None
) -> tuple[Runner, EngineSettings]:
    """This rank's device half, ready to run, and the settings with its limits."""
    rank = 0 if ranks is None else ranks.rank
    device = torch.device("cpu")
    if settings.device == "cuda":
        device = torch.device("cuda", rank)
        torch.cuda.set_device(device)
    model = load_model(
        settings.model,
        dtype=DTYPES[settings.dtype],
        device=device,
        ops=load_ops(settings.kernels),
        weights=settings.weights,
        seed=settings.seed,
        rank=rank,
        tp=settings.tp,
        max_positions=settings.scheduler.max_model_len,
    )
    layout = layout_of(settings, model.shape)
    blocks = blocks_that_fit(settings, model.shape, layout, device)
    blocks = blocks if ranks is None else ranks.least(blocks)
    settings = resolve_length(settings, model.shape, blocks)
    limits = settings.scheduler
    sequences, tokens = limits.max_num_seqs, limits.max_num_batched_tokens
    assert sequences is not None and tokens is not None and limits.max_model_len is not None
    pool = KvPool(layout, blocks, device=device, dtype=DTYPES[settings.dtype], rows=sequences + 1)
    if fill is not None:
        fill(pool)
    runner = Runner(
        model,
        pool,
        max_num_seqs=sequences,
        max_model_len=limits.max_model_len,
        max_tokens=tokens,
        mover=_mover(settings, pool),
    )
    if device.type == "cuda":
        runner.warm_up(tokens, _buckets(settings))
    return runner, settings


def _mover(settings: EngineSettings, pool: KvPool) -> Mover | None:
    """What copies this rank's blocks to the tiers below; a rank has its share of their room."""
    offload, tp = settings.offload, settings.tp
    if not (offload.cpu_bytes or offload.disk_bytes):
        return None
    share = {"cpu_bytes": offload.cpu_bytes // tp, "disk_bytes": offload.disk_bytes // tp}
    return Offloader(
        pool,
        offload.model_copy(update=share),
        pool.buffer.device,
        asynchronous=settings.scheduler.async_scheduling,
    )


def _shape(settings: EngineSettings) -> ModelShape:
    """Of the model in `settings`, whose config.json is small, before its weights are loaded."""
    path = Path(settings.model)
    config = open_model(path).config
    try:
        return ModelShape.from_hf_config(config, path.stem or str(path))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _buckets(settings: EngineSettings) -> tuple[int, ...]:
    """The decodes that graphs are captured for."""
    sequences = settings.scheduler.max_num_seqs
    return bucket_sizes(sequences) if settings.cuda_graphs and sequences else ()


def _wait_beside(staging: Staging, followers: Followers) -> None:
    """Wait, looking after the others: without one of them a step would never be done."""
    look = perf_counter() + LOOK_S
    while not staging.done():
        if perf_counter() > look:
            followers.check()
            look += LOOK_S
        sleep(NAP_S)
