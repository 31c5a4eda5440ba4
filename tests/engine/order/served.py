"""A scheduler that is driven step by step, and what each tenant has had of it."""

from collections.abc import Iterable
from typing import Any

from engine.batch import Batch
from engine.config import CacheSettings, SchedulerSettings
from engine.scheduler import Scheduler
from engine.sequence import Sequence
from traces.request import Request

MS = 10**9
"""Picoseconds in a millisecond, which is what a step lasts here."""


class Steps:
    """Requests come between steps, with the next number and the time of the step as arrival."""

    def __init__(
        self,
        order: str = "fcfs",
        *,
        num_blocks: int = 10_001,
        block_tokens: int = 4,
        prefix_caching: bool = False,
        allocation: str = "paged",
        step_time: Any = None,
        named: bool = False,
        **scheduler: Any,
    ) -> None:
        limits: dict[str, Any] = {"max_num_batched_tokens": 10_000, "async_scheduling": False}
        cache: dict[str, Any] = {"block_tokens": block_tokens, "prefix_caching": prefix_caching}
        self.core = Scheduler(
            SchedulerSettings(**(limits | scheduler), order=order),
            CacheSettings(**cache, allocation=allocation),  # type: ignore[arg-type]
            num_blocks,
            named=named,
            step_time=step_time,
        )
        self.count = 0
        self.all: list[Sequence] = []
        self.admitted: list[Sequence] = []
        self.ended: list[Sequence] = []
        self.exhausted: set[Sequence] = set()
        self._in_flight: Batch | None = None

    def add(self, prompt: int, output: int, **request: Any) -> Sequence:
        number = request.pop("number", len(self.all))
        wanted = Request(number, self.count / 1000, prompt, output, **request)
        seq = self.core.sequence(wanted, self.count * MS)
        self.all.append(seq)
        self.core.add(seq)
        return seq

    def add_all(self, wanted: Iterable[tuple[int, int, str]]) -> list[Sequence]:
        return [self.add(prompt, output, tenant=tenant) for prompt, output, tenant in wanted]

    def step(self) -> Batch:
        self.core.moment.now = self.count * MS
        self.count += 1
        batch = self.core.schedule()
        if batch is not None:
            self.admitted += batch.admitted
            self.core.advance(batch, 1)
            self.exhausted |= set(batch.exhausted)
        done = batch
        if self.core.settings.async_scheduling:
            done, self._in_flight = self._in_flight, batch
        if done is not None:
            self.ended += self.core.output(done)
        return batch or Batch()

    def until_idle(self, most: int = 20_000) -> "Steps":
        for _ in range(most):
            if self.core.idle:
                return self
            self.step()
        raise AssertionError(f"not idle after {most} steps: {self.core.waiting} wait")

    def order(self) -> list[int]:
        """Requests by the order of their admissions."""
        return [seq.number - 1 for seq in self.admitted]

    def outputs(self, seq: Sequence) -> int:
        """Output tokens scheduled so far, from where the computation stands."""
        if seq.decoding:
            return self.core.decodes.computed(seq) - seq.prompt_tokens + 1
        if seq in self.exhausted:
            return seq.output_limit
        return seq.generated

    def service(self, input_weight: float = 1.0, output_weight: float = 2.0) -> dict[str, float]:
        """What each tenant has had: prompts count when they are admitted, outputs as produced."""
        had = dict.fromkeys((seq.request.tenant for seq in self.all), 0.0)
        for seq in dict.fromkeys(self.admitted):
            had[seq.request.tenant] += input_weight * seq.prompt_tokens
        for seq in self.all:
            had[seq.request.tenant] += output_weight * self.outputs(seq)
        return had

    def waits(self, tenant: str) -> bool:
        return any(seq.status == 0 and seq.request.tenant == tenant for seq in self.all)
