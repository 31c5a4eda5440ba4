"""The scheduler's policies by name: who is served first, who gives way, how prompts are cut."""

from typing import Any, Final

from engine.order.chunks import FixedChunk, LatencyBounded, StallFree
from engine.order.fair import (
    DeficitLongestPrefixMatch,
    DeficitRoundRobin,
    VirtualTokenCounter,
)
from engine.order.keys import (
    by_priority,
    earliest_deadline_first,
    first_come_first_served,
    least_slack_first,
    noisy_shortest_job_first,
    shortest_job_first,
    shortest_prefill_first,
)
from engine.order.lengths import FeedbackQueues, LearnedShortest, ShortestRemaining
from engine.order.prefixes import LongestPrefixMatch
from engine.order.victims import largest, last_in, least_important, least_progress

ORDER: Final[dict[str, Any]] = {
    "fcfs": first_come_first_served,
    "priority": by_priority,
    "shortest-prefill": shortest_prefill_first,
    "shortest-job": shortest_job_first,
    "noisy-shortest-job": noisy_shortest_job_first,
    "learned-shortest": LearnedShortest,
    "shortest-remaining": ShortestRemaining,
    "earliest-deadline": earliest_deadline_first,
    "least-slack": least_slack_first,
    "longest-prefix-match": LongestPrefixMatch,
    "feedback": FeedbackQueues,
    "vtc": VirtualTokenCounter,
    "deficit-round-robin": DeficitRoundRobin,
    "dlpm": DeficitLongestPrefixMatch,
}
"""Who is served first: a key function of the sequence (engine.order.keys), or a class made with a
QueueView (engine.order.discipline)."""

VICTIM: Final[dict[str, Any]] = {
    "last-in": last_in,
    "least-important": least_important,
    "largest": largest,
    "least-progress": least_progress,
}
"""Who gives way when a running sequence finds no block: a function of those that run."""

CHUNKING: Final[dict[str, Any]] = {
    "fixed": FixedChunk,
    "stall-free": StallFree,
    "latency-bounded": LatencyBounded,
}
"""How many tokens a step takes: a class made with what a step takes (engine.order.chunks)."""
