"""What a step takes apart from its mean: measured scatter, drawn step by step."""

from functools import cached_property
from math import erfc, sqrt
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np
from pydantic import Field, model_validator

from calibration.costs import CostModel
from calibration.fitted import rounded
from engine.batch import Batch
from traces.settings import Settings

if TYPE_CHECKING:
    from numpy.typing import NDArray

BUFFER_STEPS: Final = 4096
"""Steps whose factors are drawn at once."""

NODES: Final = 200
"""Points of the quadrature that the copula's correlation is computed with."""

HERMITE_TERMS: Final = 24

CLOSEST: Final = 0.99
"""Correlation of a step and the next at most: scores have to wander."""


class Noise(Settings):
    """Distribution of a step's relative residual, measured / predicted - 1."""

    quantiles: tuple[float, ...] = Field(min_length=1)
    """Of n, the i-th (from 0) is the quantile at (i + 1/2) / n: straight lines between, flat
    beyond. Steps that were marked as outliers are not in it."""
    autocorrelation: float = Field(default=0.0, ge=-CLOSEST, le=CLOSEST)
    """Of the residuals of a step and the next."""

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if any(
            right < left for left, right in zip(self.quantiles, self.quantiles[1:], strict=False)
        ):
            raise ValueError("quantiles: must not fall")
        if self.quantiles[0] <= -1:
            raise ValueError("quantiles: must be above -1, as a step takes time")
        return self

    def residuals(self, shares: "NDArray[np.float64]") -> "NDArray[np.float64]":
        """Residuals at shares of the distribution between 0 and 1."""
        size = len(self.quantiles)
        return np.interp(shares, (np.arange(size) + 0.5) / size, self.quantiles)

    @cached_property
    def normal_autocorrelation(self) -> float:
        """Correlation of normal scores from step to step that gives residuals theirs.

        A residual is a function of its score, q(z) = sum of c_k He_k(z); two scores with
        correlation r give residuals with covariance sum of c_k^2 k! r^k (Mehler's formula).
        """
        if self.autocorrelation == 0.0 or self.quantiles[0] == self.quantiles[-1]:
            return 0.0
        nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
        weights = weights / weights.sum()
        values = self.residuals(_shares(nodes))
        polynomials = np.polynomial.hermite_e.hermevander(nodes, HERMITE_TERMS)
        factorials = np.cumprod([1.0, *range(1, HERMITE_TERMS + 1)])
        parts = (polynomials.T @ (weights * values)) ** 2 / factorials
        variance = float((weights * values**2).sum() - parts[0])
        rest = max(0.0, variance - float(parts[1:].sum()))
        low, high = -CLOSEST, CLOSEST
        for _ in range(40):  # the covariance grows with r: halve the interval
            middle = (low + high) / 2
            powers = middle ** np.arange(1, HERMITE_TERMS + 1)
            covariance = float(parts[1:] @ powers) + rest * middle**HERMITE_TERMS
            low, high = (
                (middle, high) if covariance < self.autocorrelation * variance else (low, middle)
            )
        return (low + high) / 2


class NoisyCost:
    """Another cost model's steps, each with a factor of its own drawn from `noise`.

    Unlike other cost models it is no value: each call draws, so that a segment is a step long, and
    each replica needs its own. Factors follow one another as measured residuals do (an AR(1)
    process of normal scores, through the noise's distribution) and are above 0, and so are steps.
    """

    def __init__(self, cost: CostModel, noise: Noise, random: np.random.Generator) -> None:
        """The same generator state gives the same factors."""
        self.cost = cost
        self.noise = noise
        self._random = random
        self._correlation = noise.normal_autocorrelation
        self._score = float(random.standard_normal())
        self._factors: list[float] = []

    @property
    def roofline(self) -> Any:
        """That of the cost model behind, None where it has none."""
        return getattr(self.cost, "roofline", None)

    def progression(self, batch: Batch) -> tuple[int, int, int]:
        """See CostModel.progression; one step, which takes at least a picosecond."""
        first = self.cost.progression(batch)[0]
        if first == 0:
            return 0, 0, 1
        if not self._factors:
            self._factors = self._drawn()
        return max(1, round(first * self._factors.pop())), 0, 1

    def _drawn(self) -> list[float]:
        """Factors of the steps to come, the next one last."""
        fresh = sqrt(1 - self._correlation**2) * self._random.standard_normal(BUFFER_STEPS)
        scores: list[float] = []
        score = self._score
        for innovation in fresh.tolist():
            scores.append(score)
            score = self._correlation * score + innovation
        self._score = score
        return (1.0 + self.noise.residuals(_shares(np.array(scores)))).tolist()[::-1]


def noise_of(
    residuals: "NDArray[np.float64]", pairs: "NDArray[np.float64]", size: int = 101
) -> Noise:
    """Noise of measured residuals.

    Args:
        residuals: measured / predicted - 1 of all steps, [steps].
        pairs: those of steps and of the steps right after them, [2, pairs].
        size: quantiles to keep.
    """
    quantiles = np.quantile(residuals, (np.arange(size) + 0.5) / size)
    correlation = 0.0
    if pairs.shape[1] > 2 and pairs.std(axis=1).min() > 0:
        correlation = float(np.corrcoef(pairs)[0, 1])  # pyright: ignore[reportIndexIssue] [2, 2]
    return Noise(
        quantiles=tuple(rounded(value) for value in quantiles.tolist()),
        autocorrelation=rounded(min(max(correlation, -CLOSEST), CLOSEST)),
    )


def _shares(scores: "NDArray[np.float64]") -> "NDArray[np.float64]":
    """The standard normal distribution function."""
    return np.array([0.5 * erfc(-score / sqrt(2.0)) for score in scores.tolist()])
