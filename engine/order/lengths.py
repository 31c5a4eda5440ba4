"""Orders by length that change as a request is served, or are learned from those that were."""

from __future__ import annotations

from collections.abc import Iterable
from heapq import heapify, heappop, heappush
from typing import Final

from engine.batch import Batch
from engine.order.discipline import FOREVER, QueueView
from engine.order.keys import work_left
from engine.order.stated import check_at_least
from engine.sequence import Sequence
from traces.errors import ConfigError


class ShortestRemaining:
    """Least work left first, with the true output length known; who has more left gives way.

    An oracle, as a bound: no order has a smaller mean time in the system on a single server.
    Source: Schrage, A Proof of the Optimality of the SRPT Discipline, 1968. A running request is
    preempted if the first that waits finds no place and has less left; what it computed stays in
    the prefix cache while there is room. Long requests starve under steady overload, and
    recomputing costs what a preemption saves where the cache is tight.
    """

    def __init__(self, view: QueueView, *, prompt_weight: float = 0.01) -> None:
        check_at_least("order 'shortest-remaining'", "prompt_weight", prompt_weight, 0)
        self._view: Final = view
        self._prompt_weight: Final = prompt_weight
        self._heap: list[tuple[float, int, Sequence]] = []

    def add(self, seq: Sequence, again: bool) -> None:
        """Queue by the work left; of equals, the one that came first."""
        heappush(self._heap, (work_left(seq, self._prompt_weight), seq.number, seq))

    def first(self) -> Sequence:
        """The least work left."""
        return self._heap[0][2]

    def remove(self, seq: Sequence) -> None:
        """Leave the queue."""
        self._heap = without(self._heap, seq)

    def outranked(self, running: Iterable[Sequence]) -> Sequence | None:
        """Whoever has most output left, if that is more than all that is left of the first."""
        least = self._heap[0][0]
        worst, most = None, least
        for seq in running:
            left = self._left(seq)
            if left > most:
                worst, most = seq, left
        return worst

    def _left(self, seq: Sequence) -> float:
        """Work left of a running sequence; nothing once its last token is scheduled."""
        if seq.decoding:
            return seq.finish_epoch - self._view.decodes.epoch
        to_prefill = seq.prefill_end - seq.base
        if to_prefill <= 0:
            return 0.0
        return seq.output_limit - seq.generated + self._prompt_weight * to_prefill


class LearnedShortest:
    """Least expected work first, as learned from the requests that have ended.

    Expects of a request the mean output of those of the same tenant, SLO class and size of prompt
    (its power of two), each finished one moving the mean by `learning_rate`; before it knows any,
    `first_guess` tokens. Ranks need to be right, not lengths. Source: Fu et al., Efficient LLM
    Scheduling by Learning to Rank, NeurIPS'24. Helps as far as lengths follow from what it looks
    at; requests it takes for long can starve.
    """

    def __init__(
        self,
        view: QueueView,
        *,
        learning_rate: float = 0.1,
        first_guess: int = 256,
        prompt_weight: float = 0.01,
    ) -> None:
        name = "order 'learned-shortest'"
        if not 0 < learning_rate <= 1:
            raise ConfigError(
                f"{name}: learning_rate must be above 0 and at most 1, got {learning_rate:g}"
            )
        check_at_least(name, "first_guess", first_guess, 1)
        check_at_least(name, "prompt_weight", prompt_weight, 0)
        self._learning_rate: Final = learning_rate
        self._first_guess: Final = first_guess
        self._prompt_weight: Final = prompt_weight
        self._means: dict[tuple[str, str, int], float] = {}
        self._heap: list[tuple[float, int, Sequence]] = []

    def add(self, seq: Sequence, again: bool) -> None:
        """Queue by what is expected now; it is not reconsidered while waiting."""
        expected = self._means.get(_kind(seq), float(self._first_guess))
        left = max(expected - seq.generated, 1.0)
        work = left + self._prompt_weight * (seq.prompt_tokens + seq.generated)
        heappush(self._heap, (work, seq.number, seq))

    def first(self) -> Sequence:
        """The least work expected."""
        return self._heap[0][2]

    def remove(self, seq: Sequence) -> None:
        """Leave the queue."""
        self._heap = without(self._heap, seq)

    def ended(self, seq: Sequence) -> None:
        """Learn how long it was, unless it was given up."""
        if seq.generated == seq.output_limit:
            kind = _kind(seq)
            mean = self._means.get(kind)
            if mean is None:
                self._means[kind] = float(seq.generated)
            else:
                self._means[kind] = mean + self._learning_rate * (seq.generated - mean)


class FeedbackQueues:
    """Multi-level feedback with skip-join: who has been served least first (FastServe).

    A request's level follows from what it has been served, in output tokens (a prompt token counts
    `prompt_weight`): level k ends at quantum × (2^(k+1) - 1). A long prompt thus skips the levels
    that its first step would use up. Within a level in order of arrival; who runs on a higher level
    gives way if the first that waits finds no place. Who has waited for `promote_after` admissions
    goes before all levels and begins anew on the lowest, so that nobody starves. Knows no lengths
    in advance. Source: Wu et al., Fast Distributed Inference Serving for Large Language Models,
    2023 (time there, tokens here). Many preemptions where memory is tight.
    """

    def __init__(
        self,
        view: QueueView,
        *,
        quantum: int = 64,
        prompt_weight: float = 0.01,
        promote_after: int = 1000,
    ) -> None:
        name = "order 'feedback'"
        check_at_least(name, "quantum", quantum, 1)
        check_at_least(name, "prompt_weight", prompt_weight, 0)
        check_at_least(name, "promote_after", promote_after, 1)
        self._view: Final = view
        self._quantum: Final = quantum
        self._prompt_weight: Final = prompt_weight
        self._promote_after: Final = promote_after
        self._waiting: dict[Sequence, int] = {}
        """In order of arrival, with the number of admissions when it came."""
        self._heap: list[tuple[int, int, int, Sequence]] = []
        self._admissions: int = 0
        self._forgiven: dict[Sequence, float] = {}
        """What those that were promoted had been served by then: it no longer counts."""

    def add(self, seq: Sequence, again: bool) -> None:
        """Queue on its level."""
        self._waiting[seq] = self._admissions
        heappush(self._heap, (self._level(seq), seq.number, seq.preemptions, seq))

    def first(self) -> Sequence:
        """The first of the lowest level, or who has been overtaken too often."""
        oldest = next(iter(self._waiting))
        return oldest if self._is_overdue(oldest) else self._heap[0][3]

    def remove(self, seq: Sequence) -> None:
        """Leave the queue; who has waited too long has its level forgiven."""
        if self._is_overdue(seq):
            self._forgiven[seq] = self._served_in_all(seq)
        del self._waiting[seq]
        if self._heap[0][3] is seq:
            heappop(self._heap)
        else:
            self._heap = [entry for entry in self._heap if entry[3] is not seq]
            heapify(self._heap)

    def admitted(self, seq: Sequence) -> None:
        """Count those that may have overtaken others."""
        self._admissions += 1

    def ended(self, seq: Sequence) -> None:
        """Forget it."""
        self._forgiven.pop(seq, None)

    def outranked(self, running: Iterable[Sequence]) -> Sequence | None:
        """The last admitted of the highest level, if that is above the level of the first."""
        worst, highest = None, self._level(self.first())
        for seq in running:
            done = not seq.decoding and seq.base >= seq.prefill_end
            level = -1 if done else self._level(seq)
            if level > highest or (worst is not None and level == highest):
                worst, highest = seq, level
        return worst

    def steady_steps(self, batch: Batch) -> int:
        """Until a running request comes to its next level."""
        steps = FOREVER
        for seq in self._view.running:
            if seq.decoding:
                served = self._served(seq) - 1  # without the step that is decided already
                left = self._quantum * (2 ** (self._level_at(served) + 1) - 1) - served
                steps = min(steps, max(int(left), 1))
        return steps

    def _is_overdue(self, seq: Sequence) -> bool:
        return self._admissions - self._waiting[seq] >= self._promote_after

    def _served_in_all(self, seq: Sequence) -> float:
        return self._prompt_weight * seq.prompt_tokens + self._view.output_tokens(seq)

    def _served(self, seq: Sequence) -> float:
        return self._served_in_all(seq) - self._forgiven.get(seq, 0.0)

    def _level(self, seq: Sequence) -> int:
        return self._level_at(self._served(seq))

    def _level_at(self, served: float) -> int:
        """The least k with served < quantum × (2^(k+1) - 1)."""
        return (int(served / self._quantum) + 1).bit_length() - 1


def without(
    heap: list[tuple[float, int, Sequence]], seq: Sequence
) -> list[tuple[float, int, Sequence]]:
    """The heap without `seq`, which mostly is its first."""
    if heap[0][2] is seq:
        heappop(heap)
        return heap
    heap = [entry for entry in heap if entry[2] is not seq]
    heapify(heap)
    return heap


def _kind(seq: Sequence) -> tuple[str, str, int]:
    request = seq.request
    return (request.tenant, request.slo_class, request.prompt_tokens.bit_length())
