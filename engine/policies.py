"""Who is served first, and who gives way when the pool is full."""

from collections.abc import Callable

from engine.sequence import Sequence


def by_priority(seq: Sequence) -> tuple[float, ...]:
    """Lower priority values first, then earlier arrivals. Low classes can starve."""
    return (seq.priority, seq.arrival)


def shortest_prefill_first(seq: Sequence) -> tuple[float, ...]:
    """Cheap prompts first (what is cached is not looked up), ties in arrival order.

    Shortens the mean wait where lengths differ much; under steady overload long prompts starve.
    """
    return (seq.prompt_tokens + seq.generated, seq.arrival)


ORDER: dict[str, Callable[[Sequence], tuple[float, ...]] | None] = {
    "fcfs": None,
    "priority": by_priority,
    "shortest-prefill": shortest_prefill_first,
}
"""Key of the waiting queue, least first; None: arrival order, preempted sequences in front."""


def last_admitted(running: dict[Sequence, None]) -> Sequence:
    """vLLM's victim under FCFS: who came last loses least."""
    return next(reversed(running))


def least_important(running: dict[Sequence, None]) -> Sequence:
    """vLLM's victim under priority: greatest (priority, arrival); of equals the first admitted."""
    return max(running, key=by_priority)


VICTIM: dict[str, Callable[[dict[Sequence, None]], Sequence]] = {
    "fcfs": last_admitted,
    "priority": least_important,
}
"""Who is preempted when a running sequence finds no block, by the order of service."""
