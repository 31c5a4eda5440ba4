"""Sums of terms with coefficients that are not negative, some terms the larger of two, fitted to
relative errors so that a few odd measurements do not decide."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Final

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]

CONTESTS: Final = (("weights_s", "token_s"), ("pair_s", "prefill_context_s"))
"""Terms of which a step takes the larger one alone."""

THRESHOLDS: Final = 10
"""Places where each contest is taken to turn, to start from."""

STARTS: Final = 3
"""Best of these that are followed to the end."""

ROUNDS: Final = 5
"""Of weights and coefficients after one another; they settle after two or three."""

CLIP: Final = 2.5
"""Robust standard deviations from which on a residual counts linearly, not squared."""

CONDITION: Final = 500.0
"""Terms whose columns, each of length 1, are nearer to collinear than this cannot be told apart:
a relative error of 2 % would become one of a whole term's share."""


@dataclass(frozen=True)
class Problem:
    """Steps to explain by a sum of terms."""

    terms: tuple[str, ...]
    columns: Numbers
    """[steps, terms]: what each coefficient is multiplied by."""
    seconds: Numbers
    """[steps], measured."""
    points: NDArray[np.int64]
    """[steps]: which distinct step each is a repeat of, counted from 0."""

    @staticmethod
    def of(
        columns: Mapping[str, Numbers],
        terms: tuple[str, ...],
        seconds: Numbers,
        points: NDArray[np.int64],
    ) -> Problem:
        """With the columns of these terms."""
        return Problem(terms, np.stack([columns[t] for t in terms], axis=1), seconds, points)

    def only(self, rows: NDArray[np.bool_]) -> Problem:
        """Some of the steps."""
        return Problem(self.terms, self.columns[rows], self.seconds[rows], self.points[rows])

    def without(self, terms: frozenset[str]) -> Problem:
        """With fewer terms."""
        kept = [i for i, term in enumerate(self.terms) if term not in terms]
        names = tuple(self.terms[i] for i in kept)
        return Problem(names, self.columns[:, kept], self.seconds, self.points)

    def less(self, seconds: Numbers) -> Problem:
        """With part of the time explained by something else."""
        return Problem(self.terms, self.columns, self.seconds - seconds, self.points)

    @cached_property
    def contests(self) -> tuple[tuple[int, int], ...]:
        """Indices of the terms that are rivals here."""
        return tuple(
            (self.terms.index(one), self.terms.index(other))
            for one, other in CONTESTS
            if one in self.terms and other in self.terms
        )

    @cached_property
    def scale(self) -> Numbers:
        """[terms]: coefficients that make each term about as large as the steps."""
        shares = self.columns / self.floored[:, None]
        length = np.sqrt((shares**2).mean(axis=0))
        return 1 / np.where(length > 0, length, 1.0)

    @cached_property
    def floored(self) -> Numbers:
        """Measured seconds, none of them so small that it would outweigh all others."""
        return np.maximum(self.seconds, 0.05 * np.median(self.seconds))

    def active(self, values: Numbers) -> Numbers:
        """The columns that count at these coefficients: of rivals the larger one's."""
        columns = self.columns.copy()
        for one, other in self.contests:
            wins = columns[:, one] * values[one] >= columns[:, other] * values[other]
            columns[wins, other] = 0.0
            columns[~wins, one] = 0.0
        return columns

    def predicted(self, values: Numbers) -> Numbers:
        """[steps] seconds at these coefficients."""
        return self.active(values) @ values


@dataclass(frozen=True)
class Estimate:
    """Coefficients that explain a problem's steps best."""

    terms: tuple[str, ...]
    values: Numbers
    loss: float
    """Mean of squared relative residuals, large ones counted linearly (Huber)."""
    condition: float
    """Of the columns at the solution: see CONDITION."""


def best_estimate(problem: Problem) -> Estimate:
    """The global optimum, as far as many starts find it: the terms' rivalries have several."""
    found = [_followed(problem, start) for start in _starts(problem)]
    return min(found, key=lambda one: one.loss)


def estimate_from(problem: Problem, start: Estimate) -> Estimate:
    """The optimum near another problem's."""
    return _followed(problem, start.values)


def covariance(problem: Problem, values: Numbers) -> Numbers:
    """[terms, terms] of the coefficients, whatever the scatter: a sandwich over distinct steps.

    Residuals of the repeats of a step may be alike (where the form does not quite fit it), so that
    points are what is taken to be independent (Liang and Zeger 1986). A point that pulls the fit
    towards itself has residuals that are too small: they are taken as if it had not been fitted to
    (the jackknife; Bell and McCaffrey 2002). Coefficients are taken to be free to be negative.
    """
    predicted = problem.predicted(values)
    residuals = problem.seconds / predicted - 1
    clip = CLIP * _spread(residuals)
    counted = (np.abs(residuals) <= clip)[:, None]
    slopes = problem.active(values) * problem.scale / predicted[:, None]
    bread = np.linalg.pinv((slopes * counted).T @ slopes)
    pulls = slopes * np.clip(residuals, -clip, clip)[:, None]
    identity, meat = np.eye(len(values)), np.zeros_like(bread)
    for rows in point_rows(problem.points):
        own = (slopes[rows] * counted[rows]).T @ slopes[rows]
        pull = np.linalg.lstsq(identity - own @ bread, pulls[rows].sum(axis=0))[0]
        meat += np.outer(pull, pull)
    return bread @ meat @ bread * np.outer(problem.scale, problem.scale)


def point_rows(points: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """The rows of each point, in order of the points."""
    order = np.argsort(points, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(points[order])) + 1)


def condition(columns: Numbers) -> tuple[float, Numbers]:
    """How near to collinear columns are, each taken at length 1, and by which combination.

    Returns:
        The ratio of the largest to the least singular value, inf where a column is 0, and the
        combination [columns] of columns that is nearest to 0, its largest entry 1 or -1.
    """
    lengths = np.sqrt((columns**2).sum(axis=0))
    if not lengths.all():
        return np.inf, (lengths == 0).astype(np.float64)
    _, values, rows = np.linalg.svd(columns / lengths, full_matrices=len(columns) < len(lengths))
    combination = rows[-1] / np.abs(rows[-1]).max()
    least = values[-1] if len(values) == len(lengths) else 0.0
    return (float(values[0] / least) if least > 0 else np.inf), combination


def _starts(problem: Problem) -> list[Numbers]:
    """Coefficients to start from: every contest decided at several places, the rest linear."""
    from scipy.optimize import nnls

    weights = 1 / problem.floored
    starts: list[tuple[float, Numbers]] = []
    for turns in product(*(_thresholds(problem, contest) for contest in problem.contests)):
        columns = problem.columns.copy()
        for (one, other), turn in zip(problem.contests, turns, strict=True):
            wins = columns[:, other] < turn * columns[:, one]
            columns[wins, other] = 0.0
            columns[~wins, one] = 0.0
        scaled = columns * problem.scale * weights[:, None]
        values = nnls(scaled, problem.seconds * weights)[0] * problem.scale
        residuals = problem.predicted(values) * weights - problem.seconds * weights
        starts.append((_huber(residuals, CLIP * _spread(residuals)), values))
    starts.sort(key=lambda start: start[0])
    return [values for _, values in starts[:STARTS]]


def _thresholds(problem: Problem, contest: tuple[int, int]) -> list[float]:
    """Ratios of the two columns between those there are, spread over them."""
    one, other = (problem.columns[:, i] for i in contest)
    ratios = np.unique(other[one > 0] / one[one > 0])
    if len(ratios) < 2:
        return [float(ratios[0]) * 2] if len(ratios) else [1.0]
    between = np.sqrt(np.maximum(ratios[1:] * ratios[:-1], 1e-300))
    spread = np.linspace(0, len(between) - 1, min(THRESHOLDS, len(between)))
    return [float(between[round(i)]) for i in spread]


def _followed(problem: Problem, start: Numbers) -> Estimate:
    """Robust least squares from a start; weights are 1 / predicted, taken anew a few times.

    Dividing by what was measured instead would favour low predictions wherever it is noisy.
    """
    from scipy.optimize import least_squares, nnls

    scale, values = problem.scale, start
    weights, clip, loss = 1 / problem.floored, 1.0, np.inf
    for _ in range(ROUNDS):
        predicted = problem.predicted(values)
        weights = 1 / np.maximum(predicted, 0.05 * np.median(problem.floored))
        residuals = (predicted - problem.seconds) * weights
        clip = max(CLIP * _spread(residuals), 1e-6)
        target = problem.seconds * weights

        def misses(scaled: Numbers, weights: Numbers = weights, target: Numbers = target):
            return problem.predicted(scaled * scale) * weights - target

        def slopes(scaled: Numbers, weights: Numbers = weights):
            return problem.active(scaled * scale) * scale * weights[:, None]

        solved = least_squares(
            misses,
            np.maximum(values / scale, 1e-9),
            jac=slopes,  # pyright: ignore[reportArgumentType] a function may stand here
            bounds=(0, np.inf),
            loss="huber",
            f_scale=clip,
            max_nfev=100,
        )
        values = solved.x * scale
        # Bounded steps end just above 0; where no contest turns any more the rest is linear.
        counts = np.sqrt(_huber_weights(solved.fun, clip)) * weights
        exact = nnls(problem.active(values) * scale * counts[:, None], problem.seconds * counts)
        candidates = [values, exact[0] * scale]
        losses = [_huber(problem.predicted(v) * weights - target, clip) for v in candidates]
        better = int(losses[1] <= losses[0] * (1 + 1e-9))
        values, before, loss = candidates[better], loss, losses[better]
        if abs(loss - before) <= 1e-9 * loss:
            break
    near = condition(problem.active(values) * weights[:, None])[0]
    return Estimate(problem.terms, values, loss, near)


def _spread(residuals: Numbers) -> float:
    """Standard deviation of normal residuals about 0 with this median of sizes."""
    return float(1.4826 * np.median(np.abs(residuals)))


def _huber(residuals: Numbers, clip: float) -> float:
    size = np.abs(residuals)
    return float(np.where(size <= clip, size**2, 2 * clip * size - clip**2).mean())


def _huber_weights(residuals: Numbers, clip: float) -> Numbers:
    return np.minimum(1.0, clip / np.maximum(np.abs(residuals), 1e-300))
