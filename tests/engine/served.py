"""Engines without a device that serve traces, for tests."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from engine.config import EngineSettings
from engine.llm import LLMEngine
from engine.loading import LoadedModel
from engine.metrics import ServiceMetrics
from engine.records import ServiceRecords
from engine.roofline import Ceilings, Roofline
from engine.serve import ReplaySettings
from engine.shapes import ModelShape
from engine.work import Share, StepOutput, Work
from tests.engine.ledger import Done, Ledger
from traces.settings import settings_of

LIMITS = {"max_num_seqs": 8, "max_num_batched_tokens": 64, "max_model_len": 400}

SHAPE = ModelShape.from_hf_config(
    {
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 97,
        "max_position_embeddings": 4096,
    },
    "toy",
)


class Ticking:
    """A clock on which a look takes a tick, and that remembers what it was made to wait for."""

    def __init__(self, tick: int = 1000) -> None:
        self.time, self.tick = 0, tick
        self.waited: list[int] = []

    def now(self) -> int:
        self.time += self.tick
        return self.time

    def wait_until(self, time: int) -> None:
        self.waited.append(time)
        self.time = max(self.time, time)


class Timed(Ledger):
    """A ledger whose steps take so long as it says, and that keeps what it was asked to run."""

    def __init__(self, num_blocks: int, block_tokens: int) -> None:
        super().__init__(num_blocks, block_tokens)
        self.works: list[Work] = []

    def launch(self, work: Work) -> Done:
        self.works.append(Work(list(work.decodes), list(work.prefills)))
        return Landing(super().launch(work).tokens)


class Odd(Timed):
    """One that says something else, except where it must not."""

    def sample(self, share: Share, text: int) -> int:
        return super().sample(share, text + 1)


class Landing(Done):
    def wait(self) -> StepOutput:
        return StepOutput(self.tokens, 1e-3, 0, 0)


def settings(**changes: Any) -> ReplaySettings:
    """Of an engine with blocks of 4 tokens; `scheduler` and `cache` are merged."""
    scheduler = LIMITS | changes.pop("scheduler", {})
    cache = {"block_tokens": 4} | changes.pop("cache", {})
    values = {
        "model": "none",
        "device": "cpu",
        "dtype": "fp32",
        "kv_dtype": "fp32",
        "kernels": "torch",
        "num_blocks": 400,
        "scheduler": scheduler,
        "cache": cache,
    }
    return settings_of(ReplaySettings, values | changes)


@dataclass
class Loader:
    """Loads ledgers, and knows what became of them."""

    odd: Callable[[EngineSettings], bool] = lambda _: False
    models: list[LoadedModel] = field(default_factory=list)

    def __call__(self, asked: EngineSettings) -> LoadedModel:
        assert asked.num_blocks is not None
        kind = Odd if self.odd(asked) else Timed
        ledger = kind(asked.num_blocks, asked.cache.block_tokens)
        model = LoadedModel(ledger, asked, SHAPE, lambda: Ceilings(1e9, 1e9))
        self.models.append(model)
        return model

    @property
    def closed(self) -> bool:
        return all(model.executor.closed for model in self.models)  # type: ignore[attr-defined]


def engine(chosen: ReplaySettings, clock: Ticking | None = None) -> LLMEngine:
    assert chosen.num_blocks is not None
    ledger = Timed(chosen.num_blocks, chosen.cache.block_tokens)
    return LLMEngine(ledger, chosen, clock=clock or Ticking())


def records_of(it: LLMEngine, **slo_ps: int) -> ServiceRecords:
    return ServiceRecords(it, ServiceMetrics(slo_ps=slo_ps), Roofline(None, None))
