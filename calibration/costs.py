"""The cost model contract, and its simplest form."""

from dataclasses import dataclass
from math import isqrt
from typing import Protocol

from engine.batch import Batch

PICOSECONDS = 1_000_000_000_000
"""Picoseconds in a second: time inside is an integer, so that closed forms are exact."""


class CostModel(Protocol):
    """Duration of a step, as an arithmetic progression over repeats of the same batch."""

    def progression(self, batch: Batch) -> tuple[int, int, int]:
        """Cost of repeating `batch`.

        Returns:
            first_ps: duration of the first step, picoseconds.
            growth_ps: by how much each further step takes longer.
            steps: for how many steps this holds (at least 1; a kink of the cost function, such as
                attention overtaking another term, ends a progression).

        Exactness contract: the progression's j-th step equals the first step of the progression
        of the batch as it stands after j steps, to the last bit.
        """
        ...


def duration_ps(first_ps: int, growth_ps: int, steps: int) -> int:
    """Time that the first `steps` steps of a progression take together."""
    return steps * first_ps + growth_ps * (steps * (steps - 1) // 2)


def steps_to_cover(first_ps: int, growth_ps: int, elapsed_ps: int) -> int:
    """Least number of steps, at least 1, whose duration is `elapsed_ps` or more."""
    if elapsed_ps <= first_ps:
        return 1
    if growth_ps == 0:
        return -(-elapsed_ps // first_ps)
    # growth/2 k^2 + (first - growth/2) k >= elapsed, solved for k and corrected to the integer
    b = 2 * first_ps - growth_ps
    steps = (isqrt(b * b + 8 * growth_ps * elapsed_ps) - b) // (2 * growth_ps)
    # duration_ps, written out for speed
    while steps * first_ps + growth_ps * (steps * (steps - 1) // 2) < elapsed_ps:
        steps += 1
    return steps


def larger(
    one_ps: int, one_growth_ps: int, other_ps: int, other_growth_ps: int, steps: int
) -> tuple[int, int, int]:
    """The larger of two progressions that hold for `steps` steps, until the other overtakes it.

    Returns:
        first_ps, growth_ps: of the larger one.
        steps: up to and with the last step in which it is the larger.
    """
    ahead = one_ps - other_ps
    overtaken = other_growth_ps - one_growth_ps
    if ahead < 0:
        one_ps, one_growth_ps = other_ps, other_growth_ps
        ahead, overtaken = -ahead, -overtaken
    if overtaken > 0:
        steps = min(steps, ahead // overtaken + 1)
    return one_ps, one_growth_ps, steps


@dataclass(frozen=True)
class LinearCost:
    """Step time linear in what a step computes and reads; coefficients in picoseconds.

    The form used for the recorded scheduler decisions and for tests.
    """

    step_ps: int
    prefill_token_ps: int
    decode_ps: int
    context_token_ps: int

    def progression(self, batch: Batch) -> tuple[int, int, int]:
        """See CostModel.progression; a linear cost has no kink."""
        tokens = batch.prefill_tokens + batch.decodes
        if tokens == 0:
            return 0, 0, batch.horizon
        first = (
            self.step_ps
            + self.prefill_token_ps * batch.prefill_tokens
            + self.decode_ps * batch.decodes
            + self.context_token_ps * (batch.decode_context_tokens + batch.prefill_context_tokens)
        )
        return first, self.context_token_ps * tokens, batch.horizon
