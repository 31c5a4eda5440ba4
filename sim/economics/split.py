"""Whose time a step is: prefill's and decode's shares of the time that replicas were busy.

A step of decodes alone is decode's, one of prefill chunks alone prefill's. A step of both is split
by what either would have taken as a step of its own: prefill's share is p / (p + d), with p and d
the cost model's durations of the chunks alone and of the decodes alone. So what they save by
sharing a step (weights are read once) is shared in proportion, and the two parts add up to the
whole.
"""

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from calibration.costs import CostModel
from calibration.fitting.prediction import step_batch
from engine.metrics import Rows, sum_exactly
from sim.records import SEGMENT_COLUMNS

GROUPS: Final = (16, 8)
"""Groups of alike mixed steps that are priced once, out of one block of segments: so many by
prefill tokens, and each of these so many by decode context."""

_AT: Final = {name: i for i, name in enumerate(SEGMENT_COLUMNS)}
_FEATURES: Final = (
    "decodes",
    "decode_context_tokens",
    "prefill_sequences",
    "prefill_tokens",
    "prefill_context_tokens",
    "prefill_pairs",
)


class StepSplit:
    """Adds up prefill's and decode's time over segments, a block at a time."""

    def __init__(self, cost: CostModel) -> None:
        """`cost` says what a step of either kind alone would take; it must draw nothing."""
        self._cost = cost
        self.prefill_ps = 0
        self.decode_ps = 0

    @property
    def prefill_share(self) -> float | None:
        """Prefill's share of all steps' time; None before there is any."""
        total = self.prefill_ps + self.decode_ps
        return self.prefill_ps / total if total else None

    def beside(self, sink: Callable[[Rows], None] | None) -> Callable[[Rows], None]:
        """A sink for segments that hands them on to another, if there is one."""
        if sink is None:
            return self.take

        def both(rows: Rows) -> None:
            self.take(rows)
            sink(rows)

        return both

    def take(self, rows: Rows) -> None:
        """Add segments, [segments, len(SEGMENT_COLUMNS)]."""
        duration = rows[:, _AT["end"]] - rows[:, _AT["start"]]
        prefills, decodes = rows[:, _AT["prefill_tokens"]] > 0, rows[:, _AT["decodes"]] > 0
        alone_ps = sum_exactly(duration[prefills & ~decodes])
        mixed = prefills & decodes
        mixed_ps = self._prefills(rows[mixed], duration[mixed])
        self.prefill_ps += alone_ps + mixed_ps
        self.decode_ps += sum_exactly(duration) - alone_ps - mixed_ps

    def _prefills(self, rows: Rows, duration: Rows) -> int:
        """Prefill's part of the time of mixed steps, ps; alike ones are priced as their mean."""
        if len(rows) == 0:
            return 0
        order, starts = _alike(rows)
        weights = duration[order].astype(np.float64)
        weighted = _midway(rows[order]) * weights[:, np.newaxis]
        spent = np.add.reduceat(weights, starts)
        means = np.add.reduceat(weighted, starts) / np.maximum(spent, 1)[:, np.newaxis]
        features = np.maximum(np.rint(means), 1).astype(np.int64).tolist()
        total = 0
        for time_ps, (decodes, context, *chunks) in zip(spent.tolist(), features, strict=True):
            prefill_ps = self._cost.progression(step_batch(0, 0, *chunks))[0]
            both_ps = prefill_ps + self._cost.progression(step_batch(decodes, context))[0]
            total += round(time_ps * prefill_ps / both_ps) if both_ps else 0
        return total


def _midway(rows: Rows) -> NDArray[np.float64]:
    """Features of the steps in the middle of segments; those that grow do so evenly."""
    features = rows[:, [_AT[name] for name in _FEATURES]].astype(np.float64)
    decodes, prefills, tokens = features[:, 0], np.maximum(features[:, 2], 1), features[:, 3]
    before = (rows[:, _AT["steps"]] - 1) / 2
    features[:, 1] += decodes * before
    features[:, 4] += tokens * before
    features[:, 5] += tokens * tokens / prefills * before
    return features


def _alike(rows: Rows) -> tuple[Rows, Rows]:
    """An order of rows, and where its groups of alike ones begin; few rows are a group each."""
    count, (by_prefill, by_context) = len(rows), GROUPS
    if count <= by_prefill * by_context:
        return np.arange(count), np.arange(count)
    order = np.argsort(rows[:, _AT["prefill_tokens"]], kind="stable")
    groups: list[Rows] = []
    for some in np.array_split(order, by_prefill):
        contexts = rows[some, _AT["decode_context_tokens"]]
        groups += np.array_split(some[np.argsort(contexts, kind="stable")], by_context)
    sizes = np.array([len(group) for group in groups])
    return np.concatenate(groups), (np.cumsum(sizes) - sizes)[sizes > 0]
