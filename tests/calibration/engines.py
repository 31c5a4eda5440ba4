"""Engines whose steps take what a known law says, on a clock that nothing else moves."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from calibration.fitted import ABSENT, FittedCost, FittedSettings, fitted_cost
from calibration.fitting.prediction import step_batch
from calibration.measuring.conditions import Host
from engine.config import EngineSettings, SchedulerSettings
from engine.loading import LoadedModel
from engine.sequence import Sequence
from engine.work import Share, StepOutput, Work

VOCAB = 1000
PS = 10**12

TRUTH = FittedSettings.model_validate(
    {
        "kind": "fitted",
        "step_s": 0.002,
        "weights_s": 0.010,
        "token_s": 0.0002,
        "decode_s": 0.0001,
        "context_s": 4e-7,
        "chunk_s": 0.0002,
        "pair_s": 3e-8,
        "host_step_s": 0.001,
        "host_sequence_s": 0.00002,
    }
)

MACHINE = Host("Toy 1000", 2**34, "", 1, {"kvcast": "0", "torch": "0"})


class HandClock:
    """Time passes when somebody says so."""

    def __init__(self) -> None:
        self.time = 0

    def now(self) -> int:
        return self.time

    def wait_until(self, time: int) -> None:
        self.time = max(self.time, time)

    def pass_s(self, seconds: float) -> None:
        self.time += round(seconds * PS)


@dataclass
class Lawful:
    """An executor whose steps follow a cost, with noise; its device is done when waited for.

    As real ones do, it refuses decodes of whom it has never seen prefill.
    """

    clock: HandClock
    truth: FittedSettings = TRUTH
    noise: float = 0.0
    num_blocks: int = 2000
    block_tokens: int = 16
    block_bytes: int = 1
    vocab: int = VOCAB
    odd: Callable[[int], float] = lambda step: 1.0
    """By number of a step: how many times as long it takes."""
    interrupt_after: int = 10**9
    """Steps, before Ctrl-C."""
    launched: list[Work] = field(default_factory=list)
    rows: set[Sequence] = field(default_factory=set)
    blocks_seen: set[int] = field(default_factory=set)
    closed: bool = False

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(1)
        hostless = {"host_step_s": ABSENT, "host_sequence_s": ABSENT}
        device = self.truth.model_copy(update=hostless)
        self.device: FittedCost = fitted_cost(device, async_scheduling=False)

    def launch(self, work: Work) -> "LawfulFlight":
        if len(self.launched) >= self.interrupt_after:
            raise KeyboardInterrupt
        self.launched.append(work)
        for share in work.prefills:
            self.rows.add(share.generation.seq)
            assert len(share.generation.tokens) >= share.context
        named: list[int] = []
        for share in work.decodes + work.prefills:
            assert share.generation.seq in self.rows
            blocks = -(-share.context // self.block_tokens)
            assert len(share.generation.seq.table) >= blocks
            named += share.generation.seq.table[:blocks]
        assert len(set(named)) == len(named), "two sequences share a block"
        sequences = len(work.decodes) + len(work.prefills)
        truth = self.truth
        self.clock.pass_s(truth.host_step_s.value + sequences * truth.host_sequence_s.value)
        device_s = self.device.progression(step_batch(*features_of(work)))[0] / PS
        device_s *= float(np.exp(self.noise * self.random.standard_normal()))
        return LawfulFlight(self, sequences, device_s * self.odd(len(self.launched)))

    def drop(self, seq: Sequence) -> None:
        self.rows.discard(seq)

    def lost(self) -> tuple[int, ...]:
        return ()

    def close(self) -> None:
        self.closed = True


@dataclass
class LawfulFlight:
    executor: Lawful
    sequences: int
    device_s: float

    def wait(self) -> StepOutput:
        self.executor.clock.pass_s(self.device_s)
        return StepOutput([0] * self.sequences, self.device_s, 0, 0)


def features_of(work: Work) -> tuple[int, ...]:
    """Of a step, from its shares alone."""
    pairs = sum(
        s.chunk * (s.context - s.chunk) + s.chunk * (s.chunk + 1) // 2 for s in work.prefills
    )
    return (
        len(work.decodes),
        _contexts(work.decodes),
        len(work.prefills),
        sum(share.chunk for share in work.prefills),
        _contexts(work.prefills),
        pairs,
    )


def _contexts(shares: list[Share]) -> int:
    return sum(share.context for share in shares)


def lawful_settings(**scheduler: object) -> EngineSettings:
    limits = {
        "max_num_seqs": 64,
        "max_num_batched_tokens": 1024,
        "max_model_len": 4096,
        "async_scheduling": False,
    }
    return EngineSettings(
        model="toy",
        device="cpu",
        dtype="fp32",
        kv_dtype="fp32",
        kernels="torch",
        cuda_graphs=False,
        scheduler=SchedulerSettings.model_validate(limits | scheduler),
    )


def lawful_model(executor: Lawful, settings: EngineSettings | None = None) -> LoadedModel:
    return LoadedModel(executor, settings or lawful_settings())
