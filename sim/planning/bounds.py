"""Fewest replicas that could do, before anything is simulated: sound, cheap, often far too few.

A step that computes t tokens takes at least t x c, c being the least time a token that any step
size of the configuration has (steps of one token to steps of the full budget). A request's prompt,
less what a prefix cache could know, therefore takes at least its tokens x c of a replica's time,
however it is cut into chunks and whoever shares its steps. Of the requests that arrive in a window
of w seconds all but those that the objective lets be late must have been computed within w + L
seconds, L being the limit: that takes so many replicas. And one request alone takes at least what
its own chunks do: where that is beyond the limit, no number of replicas helps.

Assumed of the cost model: a step is not shorter for computing more, which holds for all that come
with kvcast. Then looking at step sizes a factor RATIO apart misses the least time a token by no
more than that factor.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor, inf
from typing import Final

import numpy as np
from numpy.typing import NDArray

from calibration.costs import PICOSECONDS, CostModel
from engine.batch import Batch
from sim.planning.candidates import Configuration
from sim.planning.objectives import QUANTILES, Objective
from sim.scenario import Scenario
from traces.request import Request

RATIO: Final = 1.05
"""Between step sizes that are looked at."""

LEVELS: Final = 12
"""Windows are the trace's duration and halves of it, so many times."""

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Need:
    """What an objective demands of any fleet: of tokens a replica-second, at least."""

    objective: Objective
    tokens_per_s: float
    """Least rate at which the fleet must compute tokens, in its busiest window."""
    longest_tokens: int
    """Of the longest prompt, among those that must be within the limit, if the shortest are."""


@dataclass(frozen=True)
class Demand:
    """What a trace asks of any fleet; by whether prompts may be found in a prefix cache."""

    needs: Mapping[bool, Sequence[Need]]
    late_tokens: Mapping[bool, int]
    """Of the 99th percentile of prompts, less what may be found."""
    usual_tokens: int
    """Of the median prompt of those that are answered by several tokens."""
    most_output_tokens_per_s: float
    """Above any fleet's throughput: it can be no shorter busy than requests arrive."""

    def fewest(self, configuration: Configuration, cost: CostModel) -> int | None:
        """Replicas below which an objective is missed; None: it is missed by any number."""
        budget = configuration.scheduler.max_num_batched_tokens or 1
        fewest = 1
        token_s = least_token_s(cost, budget)
        for need in self.needs[configuration.scenario.cache.prefix_caching]:
            if need.objective.limit < least_prompt_s(cost, budget, need.longest_tokens):
                return None
            fewest = max(fewest, ceil(need.tokens_per_s * token_s))
        return fewest

    def least_ttft_s(self, configuration: Configuration, cost: CostModel) -> float:
        """At most the P99 TTFT of a configuration with any number of replicas."""
        budget = configuration.scheduler.max_num_batched_tokens or 1
        cached = configuration.scenario.cache.prefix_caching
        return least_prompt_s(cost, budget, self.late_tokens[cached])

    def least_tpot_s(self, cost: CostModel) -> float:
        """At most the median TPOT of a configuration with any number of replicas."""
        batch = Batch()
        batch.decodes = batch.decoding = 1
        batch.decode_context_tokens = self.usual_tokens
        return cost.progression(batch)[0] / PICOSECONDS


def demand_of(
    requests: Iterable[Request], objectives: Sequence[Objective], scenario: Scenario
) -> Demand:
    """Reads a trace once.

    Args:
        requests: in arrival order.
        objectives: those on TTFT and E2E give needs, the others none.
        scenario: says which requests are counted, and whether they come when the trace says.
    """
    if scenario.cluster.closed_loop:  # they come when the fleet lets them
        objectives = ()
    warmup_s = scenario.warmup_s
    known = list(requests)
    last_s = min(known[-1].arrival_s, scenario.end_s or inf) if known else 0.0
    span_s = last_s - warmup_s
    counted = [one for one in known if one.arrival_s >= warmup_s]
    needs = {
        cached: [
            need
            for objective in objectives
            if (need := _need(counted, objective, cached)) is not None
        ]
        for cached in (False, True)
    }
    return Demand(
        needs=needs,
        late_tokens={
            cached: _quantile([_least_tokens(one, cached) for one in counted], 0.99)
            for cached in (False, True)
        },
        usual_tokens=_quantile(
            [one.prompt_tokens for one in counted if one.output_tokens > 1], 0.5
        ),
        most_output_tokens_per_s=sum(one.output_tokens for one in counted) / span_s
        if span_s > 0
        else inf,
    )


def least_token_s(cost: CostModel, budget: int) -> float:
    """Least time of a step a token that it computes, in seconds, over step sizes to `budget`."""

    def step_ps(tokens: int) -> int:
        """Of several chunks, perhaps, which attend to next to nothing."""
        return chunk_ps(cost, tokens, pairs=tokens)

    return min(step_ps(size) / size for size in step_sizes(budget)) / RATIO / PICOSECONDS


def least_prompt_s(cost: CostModel, budget: int, tokens: int) -> float:
    """Least time that a prompt's chunks take, in seconds, however it is cut and shared with."""
    if tokens == 0:
        return 0.0

    def step_ps(size: int) -> int:
        """Of one chunk, which attends to itself at least."""
        return chunk_ps(cost, size, pairs=size * (size + 1) // 2)

    largest = min(budget, tokens)
    return tokens * min(step_ps(size) / size for size in step_sizes(largest)) / RATIO / PICOSECONDS


def step_sizes(largest: int) -> list[int]:
    """Step sizes from 1 to `largest`, at most RATIO apart where they are not neighbours."""
    sizes = [1]
    while sizes[-1] < largest:
        sizes.append(min(largest, max(sizes[-1] + 1, floor(sizes[-1] * RATIO))))
    return sizes


def chunk_ps(cost: CostModel, tokens: int, pairs: int) -> int:
    """A step of one chunk, of so many pairs of tokens that attend to each other, picoseconds."""
    batch = Batch()
    batch.prefill_tokens = tokens
    batch.prefill_context_tokens = tokens
    batch.prefill_pairs = pairs
    return cost.progression(batch)[0]


def _quantile(tokens: Sequence[int], share: float) -> int:
    """The least of `tokens` that so many are not above; 0 without any."""
    ordered = sorted(tokens)
    return ordered[max(0, ceil(share * len(ordered) - 1e-9) - 1)] if ordered else 0


def _need(counted: Sequence[Request], objective: Objective, cached: bool) -> Need | None:
    """What one objective demands; None where it says nothing of the work."""
    if objective.metric not in ("ttft", "e2e") or objective.statistic == "mean":
        return None
    mine = [one for one in counted if objective.slo_class in (None, one.slo_class)]
    if not mine:
        return None
    arrivals_s = np.array([one.arrival_s for one in mine])
    tokens = np.array([_least_tokens(one, cached) for one in mine], dtype=np.float64)
    late = len(mine) - ceil(QUANTILES.get(objective.statistic, 1.0) * len(mine) - 1e-9)
    return Need(
        objective,
        tokens_per_s=_busiest(arrivals_s, tokens, late, objective.limit),
        longest_tokens=int(np.sort(tokens)[len(mine) - late - 1]),
    )


def _least_tokens(request: Request, cached: bool) -> int:
    """Tokens of the prompt that are computed for certain, whatever a prefix cache knows."""
    if cached:
        return max(1, request.prompt_tokens - request.hashed_tokens)
    return request.prompt_tokens


def _busiest(arrivals_s: Numbers, tokens: Numbers, late: int, limit_s: float) -> float:
    """Tokens a second in the busiest window, without the `late` largest requests of each."""
    whole_s = float(arrivals_s[-1] - arrivals_s[0])
    most = 0.0
    for level in range(LEVELS):
        width_s = whole_s / 2**level
        if width_s <= 0:
            break
        step_s = width_s / 2
        starts_s = arrivals_s[0] + step_s * np.arange(max(1, 2 ** (level + 1) - 1))
        begins = np.searchsorted(arrivals_s, starts_s, "left")
        ends = np.searchsorted(arrivals_s, starts_s + width_s, "right")
        for begin, end in zip(begins.tolist(), ends.tolist(), strict=True):
            if end - begin <= late:
                continue
            inside = tokens[begin:end]
            kept = (
                inside
                if late == 0
                else np.partition(inside, end - begin - late)[: end - begin - late]
            )
            most = max(most, float(kept.sum()) / (width_s + limit_s))
    return most
