"""Orders of service that a request's own figures decide: least key first.

A key is a function of the sequence, evaluated when it comes into the queue. What a key needs
beyond that (lengths, deadlines) are parameters of the policy.
"""

from math import cos, exp, log, pi, sqrt
from typing import Final

from engine.sequence import Sequence

PS: Final = 10**12


def first_come_first_served(seq: Sequence) -> tuple[float, ...]:
    """In order of arrival, preempted requests in front: vLLM's default.

    Source: vLLM 0.33.0, scheduling policy "fcfs". Nobody starves. A long request delays all behind
    it (head-of-line blocking), which hurts the mean wait where lengths differ much.
    """
    return (seq.arrival,)


def by_priority(seq: Sequence) -> tuple[float, ...]:
    """Lower priority values first, then earlier arrivals, as in vLLM.

    Source: vLLM 0.33.0, scheduling policy "priority". Low classes can starve.
    """
    return (seq.priority, seq.arrival)


def shortest_prefill_first(seq: Sequence) -> tuple[float, ...]:
    """Cheap prompts first (what is cached is not looked up), ties in arrival order.

    Shortens the mean wait where lengths differ much; under steady overload long prompts starve.
    """
    return (seq.prompt_tokens + seq.generated, seq.arrival)


def work_left(seq: Sequence, prompt_weight: float) -> float:
    """What a waiting request still costs, in output tokens."""
    left = seq.output_limit - seq.generated
    return left + prompt_weight * (seq.prompt_tokens + seq.generated)


def shortest_job_first(seq: Sequence, *, prompt_weight: float = 0.01) -> tuple[float, ...]:
    """Least work first, with the true output length known: an oracle, as a bound.

    Work is counted in output tokens; a prompt token counts `prompt_weight` of one. Shortest first
    minimises the mean wait of a single server that is not interrupted. Source: Conway, Maxwell and
    Miller, Theory of Scheduling, 1967. Long requests starve under steady overload.
    """
    return (work_left(seq, prompt_weight), seq.arrival)


def noisy_shortest_job_first(
    seq: Sequence, *, error: float = 0.5, prompt_weight: float = 0.01, seed: int = 0
) -> tuple[float, ...]:
    """Least work first by a length predictor that errs: true output times exp(error × normal).

    `error` is the standard deviation of the logarithm; 0 is the oracle. Each request's error is
    drawn once from `seed` and its number. Shows how good a predictor must be to be worth it. A long
    request taken for a short one delays everybody behind it.
    """
    factor = exp(error * _normal(seed, seq.request.request_id))
    left = max(seq.output_limit * factor - seq.generated, 1.0)
    return (left + prompt_weight * (seq.prompt_tokens + seq.generated), seq.arrival)


def earliest_deadline_first(
    seq: Sequence, *, default_s: float = 1.0, **ttft_s: float
) -> tuple[float, ...]:
    """Earliest deadline of the first token first: arrival and the TTFT its SLO class is promised.

    `earliest-deadline:interactive=0.5:batch=30` states the TTFT of classes; `default_s` is that of
    all others. Meets every deadline that any order can meet on one server that may be interrupted;
    under overload it serves those already late first, and everybody comes late. Source: Liu and
    Layland, Scheduling Algorithms for Multiprogramming in a Hard-Real-Time Environment, 1973.
    """
    return (seq.arrival + ttft_s.get(seq.request.slo_class, default_s) * PS, seq.number)


def least_slack_first(
    seq: Sequence,
    *,
    ttft_s: float = 1.0,
    tpot_s: float = 0.05,
    prefill_tokens_per_s: float = 20_000.0,
) -> tuple[float, ...]:
    """Least time to spare first: until the next token is due, less what computing it takes.

    The first token is due `ttft_s` after arrival, each further one `tpot_s` later; a prompt (after
    a preemption with its output so far) takes its length over `prefill_tokens_per_s`. Time passes
    for all alike, so the order does not change while they wait. Long prompts come before short ones
    of the same age. Under overload it favours those that are lost already, as deadlines do.
    """
    due_s = ttft_s + tpot_s * seq.generated
    takes_s = (seq.prompt_tokens + seq.generated) / prefill_tokens_per_s
    return (seq.arrival + (due_s - takes_s) * PS, seq.number)


def _normal(seed: int, number: int) -> float:
    """A standard normal number, always the same for the same arguments (Box and Muller, 1958)."""
    first = (_mixed(2 * number + 1, seed) + 1) / 2**64
    second = _mixed(2 * number + 2, seed) / 2**64
    return sqrt(-2 * log(first)) * cos(2 * pi * second)


def _mixed(number: int, seed: int) -> int:
    """64 bits without a pattern: splitmix64's output (Steele, Lea and Flood, OOPSLA'14)."""
    bits = 2**64 - 1
    z = (number + (seed + 1) * 0x9E3779B97F4A7C15) & bits
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & bits
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & bits
    return z ^ (z >> 31)
