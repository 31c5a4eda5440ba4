"""A quick stand-in for the fit while measuring goes on: what steps will cost, and how surely.

Linear in what the fitted form is made of; where that bends (compute overtaking memory) stand
hinges. Coefficients are not negative, so that no step is foretold to take less than a smaller one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from calibration.measuring.design import Features

Matrix = NDArray[np.float64]

HINGES: Final = (16, 64, 256)
"""Tokens of a step beyond which each further one may cost more."""

TERMS: Final = 8 + len(HINGES)

SWEEPS: Final = 200
SETTLED: Final = 1e-4
"""Relative change of a sweep that is as good as none."""
LEAST_NOISE: Final = 0.01
"""Relative error of one measurement, at least: a perfect fit of few steps knows nothing yet."""
WEAK: Final = 1e-6
"""Of the prior that keeps terms nobody measured yet from being anything."""


def terms(steps: Sequence[Features]) -> Matrix:
    """[steps, TERMS]: what a step's time is a sum of."""
    columns = np.array(steps, np.float64).reshape(-1, len(Features._fields)).T
    decodes, context, prefills, prefill_tokens, prefill_context, pairs, graph = columns
    tokens = np.where(graph > 0, graph, decodes + prefill_tokens)
    return np.stack(
        (
            np.ones_like(tokens),
            (graph == 0).astype(np.float64),
            tokens,
            *(np.maximum(tokens - hinge, 0.0) for hinge in HINGES),
            decodes + prefills,
            context,
            prefill_context,
            pairs,
            (prefills > 0).astype(np.float64),
        ),
        axis=1,
    )


@dataclass(frozen=True)
class Surrogate:
    """Fitted to relative errors."""

    scale: Matrix
    """[TERMS]: largest share of a step's time that a unit of each term can be."""
    coefficients: Matrix
    """[TERMS] of the scaled terms, seconds."""
    covariance: Matrix
    """[TERMS, TERMS] of the same."""
    noise: float
    """Standard deviation of what was fitted to, relative."""
    least_s: float
    """No step is foretold to take less."""

    def seconds(self, steps: Sequence[Features]) -> Matrix:
        """[steps]: what each will take."""
        return np.maximum(terms(steps) / self.scale @ self.coefficients, self.least_s)

    def variances(self, steps: Sequence[Features]) -> Matrix:
        """[steps]: of the relative error of `seconds`."""
        return np.diag(self._covariances(steps))

    def gains(self, steps: Sequence[Features]) -> Matrix:
        """[steps]: by how much measuring each lowers the mean of the variances of all of them."""
        joint = self._covariances(steps)
        return (joint**2).mean(axis=0) / (np.diag(joint) + self.noise**2)

    def _covariances(self, steps: Sequence[Features]) -> Matrix:
        """[steps, steps]: of the relative errors of `seconds`."""
        rows = terms(steps) / self.scale / self.seconds(steps)[:, None]
        return rows @ self.covariance @ rows.T


def fit_surrogate(steps: Sequence[Features], seconds: Sequence[float]) -> Surrogate:
    """The stand-in for measured steps, one at least."""
    took = np.asarray(seconds, np.float64)
    rows = terms(steps) / took[:, None]
    scale = rows.max(axis=0)
    scale[scale == 0] = 1.0
    rows = rows / scale
    products = rows.T @ rows + WEAK * np.eye(TERMS)
    coefficients = _not_negative(products, rows.T @ np.ones(len(took)))
    errors = rows @ coefficients - 1
    degrees = max(1, len(took) - int((coefficients > 0).sum()))
    noise = max(LEAST_NOISE, float(np.sqrt(errors @ errors / degrees)))
    return Surrogate(
        scale=scale,
        coefficients=coefficients,
        covariance=noise**2 * np.linalg.inv(products),
        noise=noise,
        least_s=0.5 * float(took.min()),
    )


def _not_negative(products: Matrix, wanted: Matrix) -> Matrix:
    """x >= 0 that minimises x'Px/2 - w'x, by coordinate descent."""
    found = np.zeros(len(wanted))
    for _ in range(SWEEPS):
        before = found.copy()
        for at in range(len(wanted)):
            left = wanted[at] - products[at] @ found
            found[at] = max(0.0, found[at] + left / products[at, at])
        if np.abs(found - before).max() <= SETTLED * np.abs(found).max():
            break
    return found
