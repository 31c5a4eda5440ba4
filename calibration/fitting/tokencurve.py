"""What a step's time does over its tokens beyond the fitted terms: straight lines between knots."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from calibration.fitted import Curve, rounded
from calibration.fitting.leastsquares import Estimate, Problem, covariance, estimate_from

Numbers = NDArray[np.float64]

TOKEN_TERMS: Final = ("step_s", "weights_s", "token_s", "elementwise_token_s")
"""What the curve is added to: all that depends on a step's tokens alone."""

MOST_KNOTS: Final = 10

TOKENS_A_KNOT: Final = 3
"""Distinct numbers of tokens for each knot, at least."""


@dataclass(frozen=True)
class Curved:
    """Terms with a curve beside those in T; `spread` is the covariance of each estimate."""

    token_terms: Estimate
    token_spread: Numbers
    other_terms: Estimate
    other_spread: Numbers
    curve: Curve

    def predicted(self, problem: Problem) -> Numbers:
        """[steps] seconds of a problem that has all of the terms."""
        of_tokens = _only(problem, self.token_terms.terms).predicted(self.token_terms.values)
        others = _only(problem, self.other_terms.terms).predicted(self.other_terms.values)
        tokens = tokens_of(problem)
        assert tokens is not None
        return of_tokens + others + curve_s(self.curve, tokens)


def tokens_of(problem: Problem) -> Numbers | None:
    """T of each step, [steps]; None where no term has it."""
    for term in ("token_s", "elementwise_token_s"):
        if term in problem.terms:
            return problem.columns[:, problem.terms.index(term)]
    return None


def curved(problem: Problem, physics: Estimate) -> Curved | None:
    """Fit a curve over T together with all terms that are not in T, then the terms in T to it.

    The curve's sum with the terms in T has rises between knots that are not negative: it never
    falls. The terms keep what they can explain of the sum, the curve has the rest.

    Args:
        problem: steps to explain.
        physics: its estimate without a curve, to start from.

    Returns:
        None where there are too few different numbers of tokens, or no other terms.
    """
    tokens = tokens_of(problem)
    others = tuple(term for term in problem.terms if term not in TOKEN_TERMS)
    if tokens is None or not others:
        return None
    values = dict(zip(physics.terms, physics.values.tolist(), strict=True))
    knots = _knots(tokens, values)
    if len(knots) < 3:
        return None
    joint = _joint(problem, others, _ramps(tokens, knots))
    start = Estimate(joint.terms, _start(joint, problem, physics), 0.0, 0.0)
    estimate = estimate_from(joint, start)
    spread = covariance(joint, estimate.values)
    size = len(others)
    other = Estimate(others, estimate.values[-size:], estimate.loss, estimate.condition)
    alone = _only(problem, tuple(t for t in problem.terms if t in TOKEN_TERMS)).less(
        _only(problem, others).predicted(other.values)
    )
    of_tokens = estimate_from(
        alone, Estimate(alone.terms, np.array([values[t] for t in alone.terms]), 0.0, 0.0)
    )
    sums = np.cumsum(estimate.values[:-size])
    rounded_terms = np.array([rounded(value) for value in of_tokens.values.tolist()])
    explained = _at(alone.terms, knots).predicted(rounded_terms)
    curve = Curve(
        tokens=tuple(int(knot) for knot in knots.tolist()),
        seconds=tuple(rounded(rest) for rest in (sums - explained).tolist()),
    )
    left = alone.less(curve_s(curve, tokens))
    return Curved(
        token_terms=of_tokens,
        token_spread=covariance(left, of_tokens.values),
        other_terms=other,
        other_spread=spread[-size:, -size:],
        curve=curve,
    )


def curve_s(curve: Curve, tokens: Numbers) -> Numbers:
    """Seconds of the curve at each number of tokens."""
    return np.interp(tokens, curve.tokens, curve.seconds)


def _joint(problem: Problem, others: tuple[str, ...], ramps: Numbers) -> Problem:
    """The problem with ramps in place of the terms in T."""
    columns = np.concatenate([ramps, _only(problem, others).columns], axis=1)
    names = tuple(f"ramp {i}" for i in range(ramps.shape[1]))
    return Problem((*names, *others), columns, problem.seconds, problem.points)


def _start(joint: Problem, problem: Problem, physics: Estimate) -> Numbers:
    """The other terms as they were, and the ramps so as to fit what they leave."""
    from scipy.optimize import nnls

    others = [term for term in joint.terms if term in problem.terms]
    values = np.array([physics.values[physics.terms.index(term)] for term in others])
    rest_s = problem.seconds - _only(problem, tuple(others)).predicted(values)
    weights = 1 / problem.floored
    ramps = joint.columns[:, : -len(others)] * weights[:, None]
    scale = float(np.median(problem.seconds))
    return np.concatenate([nnls(ramps * scale, rest_s * weights)[0] * scale, values])


def _only(problem: Problem, terms: tuple[str, ...]) -> Problem:
    return problem.without(frozenset(problem.terms) - frozenset(terms))


def _at(terms: tuple[str, ...], tokens: Numbers) -> Problem:
    """The terms in T at these numbers of tokens; nothing is measured there."""
    ones = np.ones_like(tokens)
    columns = [tokens if term.endswith("token_s") else ones for term in terms]
    return Problem(terms, np.stack(columns, axis=1), ones, np.arange(len(tokens)))


def _ramps(tokens: Numbers, knots: Numbers) -> Numbers:
    """[steps, knots]: a constant, and for each further knot a rise from the one before to it."""
    left, right = knots[:-1], knots[1:]
    rises = np.clip((tokens[:, None] - left) / (right - left), 0.0, 1.0)
    return np.concatenate([np.ones((len(tokens), 1)), rises], axis=1)


def _knots(tokens: Numbers, values: dict[str, float]) -> Numbers:
    """0, the largest number of tokens, the terms' kink and quantiles between; whole numbers."""
    distinct = np.unique(tokens)
    count = min(MOST_KNOTS, len(distinct) // TOKENS_A_KNOT)
    if count < 2:
        return np.zeros(0)
    knots = distinct[np.linspace(0, len(distinct) - 1, count + 1).round().astype(int)[1:]]
    token_s, weights_s = values.get("token_s", 0.0), values.get("weights_s", 0.0)
    if token_s > 0 and distinct[0] < weights_s / token_s < distinct[-1]:
        knots = np.append(knots, round(weights_s / token_s))
    return np.unique(np.append(knots, 0.0))
