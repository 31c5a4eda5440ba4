"""A linear step cost from request logs alone, without a simulator and without step times.

calibration.fitting.decode_timeline says how many steps lay between the tokens of a log, and so over
which sums of steps a request's decode time goes. Of these the cost (calibration.costs.LinearCost)
is the robust least-squares solution without negative coefficients:

    finish - first token = step_s x steps + prefill_token_s x prompt tokens computed meanwhile
                         + decode_s x tokens decoded + context_token_s x tokens attended to

all over the steps in between, its own and others'. The cost then says better how many steps to
expect where, and so on in rounds. The time to the first token is not fitted to: with asynchronous
scheduling it begins within a step, and it holds waits of clients and servers. Prompts cost what
they delay the decodes beside them.

A request that was preempted got fewer tokens than the steps that passed. It is recognised by that,
left out, and counted beside others with the share of steps that it took part in; what computing
its context anew took is charged to its neighbours. So a log of an engine short of KV cache gives
worse numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from calibration.cost_settings import LinearSettings
from calibration.fitted import Coefficient
from calibration.fitting.decode_timeline import (
    LEAST_TOKENS,
    Floats,
    even_steps,
    shares_of,
    steps_near,
    sums_of,
    timeline_of,
)
from traces.errors import ConfigError

if TYPE_CHECKING:
    from calibration.imports.requests import ServedRun

TERMS: Final = ("step_s", "prefill_token_s", "decode_s", "context_token_s")
"""Coefficients, as LinearSettings has them."""

MEASURE: Final = {
    "step_s": "requests with answers of several tokens",
    "prefill_token_s": "requests that arrive while others decode",
    "decode_s": "several request rates, so that now few and now many decode at once",
    "context_token_s": "prompts and answers of different lengths",
}
"""What tells a coefficient from the others."""

LEAST_REQUESTS: Final = 20
ROUNDS: Final = 4
REWEIGHTINGS: Final = 20
HUBER: Final = 1.345
"""Residuals beyond so many standard deviations lose weight: 95 % efficient for normal ones."""
DISTINCT: Final = 1e-4
"""Part of a column's square length that the other columns do not explain, at least."""
RESAMPLES: Final = 400
WIDER: Final = 1.5
"""A bootstrap takes the steps as known, which were estimated from the same times. On simulated logs
of noisy steps estimates scattered up to this many times as far as it says."""


@dataclass(frozen=True)
class DecodeError:
    """How decode times (first token to finish) are predicted, for the batches that the log shows.

    Not an error of a simulation: which requests ran side by side was known."""

    requests: int
    """That were not fitted to."""
    median: float
    """Of |predicted / measured - 1|."""
    p95: float
    mean: float
    """Of predicted / measured - 1: the bias."""


@dataclass(frozen=True)
class RequestFit:
    """A linear cost from request logs."""

    coefficients: dict[str, Coefficient]
    """By TERMS, with intervals of about 95 %: a bootstrap over runs of neighbouring requests."""
    correlation: tuple[tuple[float, ...], ...]
    """Of the estimates, in the order of TERMS."""
    held_out: DecodeError
    """Of a random half of the requests, by a fit to the other half."""
    requests: int
    """Fitted to."""
    unsteady: int
    """Left out, as they did not run all the time: mostly preempted."""

    @property
    def settings(self) -> LinearSettings:
        """The cost as a profile states it."""
        return LinearSettings(
            kind="linear", **{term: one.value for term, one in self.coefficients.items()}
        )


def fit_requests(
    runs: ServedRun | Sequence[ServedRun], *, seed: int = 0, resamples: int = RESAMPLES
) -> RequestFit:
    """Fit a linear step cost to request logs of one engine.

    Args:
        runs: one or several, of the same engine on the same device.
        seed: of the split into halves and of the bootstrap.
        resamples: of the bootstrap.

    Raises:
        ConfigError: too few requests; several replicas, whose requests cannot be told apart; a
            coefficient that nothing in the logs tells from the others, with what to measure.
    """
    runs = runs if isinstance(runs, Sequence) else [runs]
    parts = [_equations(run) for run in runs]
    sums = np.concatenate([part.sums for part in parts])
    spent_s = np.concatenate([part.spent_s for part in parts])
    if len(spent_s) < LEAST_REQUESTS:
        raise ConfigError(
            f"{len(spent_s)} requests decoded at least {LEAST_TOKENS} tokens without a pause;"
            f" expected at least {LEAST_REQUESTS}"
        )
    _refuse_unidentified(sums, spent_s)
    random = np.random.default_rng(seed)
    estimate, weights = _robust(sums, spent_s)
    draws = _bootstrap(sums, spent_s, weights, estimate, random, resamples)
    low, high = np.quantile(draws, (0.025, 0.975), axis=0)
    return RequestFit(
        coefficients={
            term: Coefficient(
                value=float(estimate[i]),
                low=float(min(low[i], estimate[i])),
                high=float(max(high[i], estimate[i])),
            )
            for i, term in enumerate(TERMS)
        },
        correlation=_correlation(draws),
        held_out=_held_out(sums, spent_s, random),
        requests=len(spent_s),
        unsteady=sum(part.unsteady for part in parts),
    )


# ---- from a log to equations


@dataclass(frozen=True)
class _Equations:
    """One row a request: sums over its decode's steps, [requests, TERMS], and what it took."""

    sums: Floats
    spent_s: Floats
    unsteady: int


def _equations(run: ServedRun) -> _Equations:
    replicas = run.settings.get("cluster", {}).get("replicas", 1)
    if replicas != 1:
        raise ConfigError(
            f"the log is of {replicas} replicas, whose requests cannot be told apart; expected a"
            " log for each"
        )
    line = timeline_of(run)
    spent_s, long = line.spent_s, line.long
    expected, use, sums = even_steps(line), long, np.zeros((len(long), len(TERMS)))
    for _ in range(ROUNDS):
        steps = steps_near(line, expected)
        share = shares_of(line, steps)
        use = long & (share == 1.0)
        if use.sum() < len(TERMS):
            break
        parts = sums_of(line, steps, share)
        sums = line.over_decode(parts)
        estimate, _ = _robust(sums[use], spent_s[use])
        expected = _expected(parts, line.lasting_s, estimate)
    return _Equations(sums[use], spent_s[use], int((long & ~use).sum()))


def _expected(parts: Floats, lasting_s: Floats, estimate: Floats) -> Floats:
    """Steps in each interval, if steps cost that much."""
    steps = np.maximum(parts[:, 0], 1e-9)
    prefill_s = estimate[1] * parts[:, 1]
    step_s = (parts[:, (0, 2, 3)] @ estimate[[0, 2, 3]]) / steps
    return np.maximum(lasting_s - prefill_s, 0.0) / np.maximum(step_s, 1e-12)


# ---- from equations to coefficients


def _robust(sums: Floats, spent_s: Floats) -> tuple[Floats, Floats]:
    """Least squares without negative coefficients, far residuals losing weight; and the weights.

    Errors of a sum over steps grow like its root, so squares are weighted by 1 / time.
    """
    weights = 1.0 / spent_s
    estimate = _least_squares(sums, spent_s, weights)
    for _ in range(REWEIGHTINGS):
        residuals = np.abs(spent_s - sums @ estimate) / np.sqrt(spent_s)
        deviation = 1.4826 * float(np.median(residuals))
        far = residuals > max(HUBER * deviation, 1e-15)
        weights = np.where(far, HUBER * deviation / np.maximum(residuals, 1e-30), 1.0) / spent_s
        estimate = _least_squares(sums, spent_s, weights)
    return estimate, weights


def _least_squares(sums: Floats, spent_s: Floats, weights: Floats) -> Floats:
    """Weighted, coefficients >= 0; each column at unit length while it is solved."""
    from scipy.optimize import nnls

    roots = np.sqrt(weights)
    rows = sums * roots[:, None]
    lengths = np.linalg.norm(rows, axis=0)
    lengths[lengths == 0] = 1.0
    return nnls(rows / lengths, spent_s * roots)[0] / lengths


def _refuse_unidentified(sums: Floats, spent_s: Floats) -> None:
    """Each column must be there, and differ from any mix of the others."""
    rows = sums / np.sqrt(spent_s)[:, None]
    lengths = np.linalg.norm(rows, axis=0)
    missing: list[str] = []
    for i, term in enumerate(TERMS):
        others = np.delete(rows, i, axis=1) / np.maximum(np.delete(lengths, i), 1e-30)
        rest = rows[:, i] - others @ np.linalg.lstsq(others, rows[:, i], rcond=None)[0]
        if lengths[i] == 0 or rest @ rest < DISTINCT * lengths[i] ** 2:
            missing.append(term)
    if missing:
        ways = "; ".join(f"{term} ({MEASURE[term]})" for term in missing)
        raise ConfigError(f"the log does not tell these apart, it would take: {ways}")


def _bootstrap(
    sums: Floats,
    spent_s: Floats,
    weights: Floats,
    estimate: Floats,
    random: np.random.Generator,
    resamples: int,
) -> Floats:
    """Estimates from resampled requests, [resamples, TERMS], WIDER times as far from `estimate`.

    Neighbours share steps, and so errors: they are drawn in runs of the square root of their
    number.
    """
    count = len(spent_s)
    length = max(1, round(count**0.5))
    offsets = np.arange(length)
    draws = np.empty((resamples, len(TERMS)))
    for i in range(resamples):
        starts = random.integers(0, count, -(-count // length))
        rows = ((starts[:, None] + offsets) % count).ravel()[:count]
        draws[i] = _least_squares(sums[rows], spent_s[rows], weights[rows])
    return np.maximum(estimate + WIDER * (draws - estimate), 0.0)


def _correlation(draws: Floats) -> tuple[tuple[float, ...], ...]:
    """Of the columns; one that never varies is correlated with nothing."""
    deviations = draws.std(axis=0)
    varying = (draws - draws.mean(axis=0)) / np.where(deviations > 0, deviations, 1.0)
    matrix = np.clip(varying.T @ varying / len(draws), -1.0, 1.0)
    np.fill_diagonal(matrix, 1.0)
    return tuple(tuple(float(value) for value in row) for row in matrix)


def _held_out(sums: Floats, spent_s: Floats, random: np.random.Generator) -> DecodeError:
    """Fit a random half, predict the other."""
    order = random.permutation(len(spent_s))
    fitted, others = np.array_split(order, 2)
    estimate, _ = _robust(sums[fitted], spent_s[fitted])
    errors = sums[others] @ estimate / spent_s[others] - 1.0
    return DecodeError(
        requests=len(others),
        median=float(np.median(np.abs(errors))),
        p95=float(np.quantile(np.abs(errors), 0.95)),
        mean=float(errors.mean()),
    )
