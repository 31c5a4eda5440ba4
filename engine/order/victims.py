"""Who gives way when a running sequence finds no block."""

from engine.decoding import DecodeSet
from engine.order.keys import by_priority
from engine.sequence import Sequence

Running = dict[Sequence, None]
"""In admission order; at least one."""


def last_in(running: Running, decodes: DecodeSet) -> Sequence:
    """Who was admitted last: vLLM's choice under FCFS.

    Source: vLLM 0.33.0. It has mostly computed least. The same request may be chosen again and
    again.
    """
    return next(reversed(running))


def least_important(running: Running, decodes: DecodeSet) -> Sequence:
    """Who has the greatest (priority, arrival), of equals the first admitted: vLLM's by priority.

    Source: vLLM 0.33.0. Requests of a low class may never get through.
    """
    return max(running, key=by_priority)


def largest(running: Running, decodes: DecodeSet) -> Sequence:
    """Who has most tokens in the cache; of equals the last admitted.

    Frees most blocks, so that the fewest are preempted; what it frees is the most to recompute, and
    long requests come last.
    """
    return max(reversed(running), key=decodes.computed)


def least_progress(running: Running, decodes: DecodeSet) -> Sequence:
    """Who has produced the fewest output tokens; of equals the last admitted.

    Spares those that are nearly done as far as anybody can know; new requests may wait long.
    """

    def output_tokens(seq: Sequence) -> int:
        return decodes.computed(seq) - seq.prompt_tokens

    return min(reversed(running), key=output_tokens)
