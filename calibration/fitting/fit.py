"""From measured steps to a fitted cost: coefficients with intervals, held-out errors, noise."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from calibration.evidence import FitReport, HeldOutError, Validity
from calibration.fitted import (
    TERMS,
    Z_95,
    Coefficient,
    Correlation,
    Curve,
    FittedCost,
    FittedSettings,
    GraphSettings,
    fitted_cost,
    rounded,
)
from calibration.fitting.leastsquares import (
    CONDITION,
    Estimate,
    Problem,
    best_estimate,
    covariance,
    estimate_from,
    point_rows,
)
from calibration.fitting.outliers import mark_odd_steps, mark_repeats
from calibration.fitting.prediction import kind_of_step, predicted_s
from calibration.fitting.regressors import (
    DEVICE_TERMS,
    HOST_TERMS,
    checked,
    device_columns,
    host_columns,
    point_numbers,
    refuse_unidentified,
    variants,
)
from calibration.fitting.tokencurve import curved
from calibration.noise import Noise, noise_of
from traces.errors import ConfigError

if TYPE_CHECKING:
    import polars as pl

Numbers = NDArray[np.float64]

HOLD_OUT_EVERY: Final = 5
"""Of a frame without held-out steps every fifth point is held out."""

MOST_STARTING_POINTS: Final = 2000
"""Points that the form is chosen on."""

FOLDS: Final = 5

CURVE_GAIN: Final = 0.05
"""Share of the cross-validated error that a curve must take away to be kept."""

HOST_BOUND: Final = 1.05
"""Asynchronous steps this many times as long as their device part are the host's."""


@dataclass(frozen=True)
class Fit:
    """A fitted cost and what it rests on: the fields of a profile of the same names."""

    cost: FittedSettings
    validity: Validity
    noise: Noise
    report: FitReport
    steps: pl.DataFrame
    """The step frame, with outliers and held-out steps marked."""


def fit_steps(
    steps: pl.DataFrame,
    *,
    graph_sizes: Sequence[int] = (),
    graph_steps: Literal["decodes", "all"] = "decodes",
    async_scheduling: bool = False,
    without: Collection[str] = (),
) -> Fit:
    """Fit the form of calibration.fitted to measured steps.

    Relative errors are minimised, robustly. Where one of two rival terms (weights_s and token_s,
    pair_s and prefill_context_s), the elementwise term or eager_s is not to be seen in the data,
    it is left out, which the report says. A curve over tokens is added where it takes away some of
    the cross-validated error.

    Args:
        steps: see calibration.steps; in the order of measurement within each source. If no step is
            held out, every fifth point is. Where device_s is null everywhere, host time becomes
            part of the other terms.
        graph_sizes: captured sizes, increasing.
        graph_steps: which steps replay a graph: those of decodes alone, or all.
        async_scheduling: how the steps were measured: time_s is the longer of host and device,
            not their sum.
        without: terms not to fit (names in calibration.fitted.TERMS).

    Raises:
        ConfigError: a row that cannot be (see calibration.fitting.regressors.checked), or terms
            that these steps cannot tell: which, and what to measure.
    """
    if unknown := [term for term in without if term not in TERMS]:
        raise ConfigError(f"without: {unknown[0]!r} is unknown; known: {', '.join(TERMS)}")
    graphs = GraphSettings(sizes=tuple(graph_sizes), steps=graph_steps)
    steps = mark_repeats(_held_out(checked(steps)))
    _refuse_other_graphs(steps, graphs)
    cost = _fitted(steps, graphs, async_scheduling, frozenset(without))
    model = fitted_cost(cost, async_scheduling=async_scheduling)
    marked = mark_odd_steps(steps, predicted_s(model, steps))
    if marked["outlier"].sum() > steps["outlier"].sum():
        steps = marked
        cost = _fitted(steps, graphs, async_scheduling, frozenset(without))
        model = fitted_cost(cost, async_scheduling=async_scheduling)
    predicted = predicted_s(model, steps)
    return Fit(
        cost=cost,
        validity=_validity(_fitting(steps)),
        noise=_noise(steps, predicted),
        report=_report(steps, predicted, model),
        steps=steps,
    )


def _held_out(steps: pl.DataFrame) -> pl.DataFrame:
    import polars as pl

    if steps["held_out"].any():
        return steps
    every = point_numbers(steps) % HOLD_OUT_EVERY == HOLD_OUT_EVERY // 2
    return steps.with_columns(held_out=pl.Series(every))


def _fitting(steps: pl.DataFrame) -> pl.DataFrame:
    import polars as pl

    return steps.filter(~pl.col("held_out") & ~pl.col("outlier"))


def _refuse_other_graphs(steps: pl.DataFrame, graphs: GraphSettings) -> None:
    """The cost has to choose the graphs that were replayed."""
    columns = steps.select("decodes", "prefill_tokens", "graph_tokens").iter_rows()
    for row, (decodes, chunk, replayed) in enumerate(columns):
        chosen = graphs.size(decodes + chunk, chunk == 0)
        if chosen != replayed:
            raise ConfigError(
                f"steps: row {row}: a step of {decodes + chunk} tokens has graph_tokens {replayed};"
                f" graph_sizes {list(graphs.sizes)} ({graphs.steps}) say {chosen}"
            )


def _fitted(
    steps: pl.DataFrame, graphs: GraphSettings, async_scheduling: bool, without: frozenset[str]
) -> FittedSettings:
    fitting = _fitting(steps)
    known = fitting["device_s"].null_count() == 0
    seconds = fitting["device_s" if known else "time_s"].to_numpy()
    terms = tuple(
        term for term in DEVICE_TERMS if term not in without and (graphs.sizes or term != "eager_s")
    )
    problem = Problem.of(device_columns(fitting), terms, seconds, point_numbers(fitting))
    refuse_unidentified(problem, tuple(without))
    physics = _chosen(problem)
    problem = problem.without(frozenset(problem.terms) - set(physics.terms))
    parts, curve = [(physics, covariance(problem, physics.values))], Curve()
    if _curve_pays(problem, physics) and (bent := curved(problem, physics)):
        curve = bent.curve
        parts = [(bent.token_terms, bent.token_spread), (bent.other_terms, bent.other_spread)]
    if known and (asked := tuple(term for term in HOST_TERMS if term not in without)):
        host = _host_problem(fitting, asked, async_scheduling)
        refuse_unidentified(host, tuple(without))
        estimate = best_estimate(host)
        parts.append((estimate, covariance(host, estimate.values)))
    return _settings(parts, curve, graphs)


def _host_problem(fitting: pl.DataFrame, terms: tuple[str, ...], async_scheduling: bool) -> Problem:
    """Host time: what is left beside the device's, or, asynchronous, all of a longer step."""
    time_s, device_s = fitting["time_s"].to_numpy(), fitting["device_s"].to_numpy()
    rows = time_s > HOST_BOUND * device_s if async_scheduling else np.ones(len(time_s), bool)
    left_s = time_s if async_scheduling else time_s - device_s
    if not rows.any() or np.median(left_s[rows]) <= 0:
        raise ConfigError(
            f"steps: nothing to fit {' and '.join(terms)} to, as device_s is all of time_s: measure"
            f" with synchronous scheduling, or leave out: without={terms}"
        )
    points = np.unique(point_numbers(fitting)[rows], return_inverse=True)[1]
    return Problem.of(host_columns(fitting.filter(rows)), terms, left_s[rows], points)


def _chosen(problem: Problem) -> Estimate:
    """The form that explains distinct steps best for the number of its terms (BIC)."""
    points = _medians(problem)
    count = len(points.seconds)
    candidates: list[tuple[float, Estimate]] = []
    for variant in variants(points):
        estimate = best_estimate(variant)
        if estimate.condition <= CONDITION:
            size = len(variant.terms)
            score = count * np.log(max(estimate.loss, 1e-14)) + size * np.log(count)
            candidates.append((score, estimate))
    if not candidates:
        raise ConfigError(
            "steps: cannot tell the terms apart at the best fit found; measure steps that differ"
            " more, or leave terms out (without=...)"
        )
    chosen = min(candidates, key=lambda one: one[0])[1]
    return estimate_from(problem.without(frozenset(problem.terms) - set(chosen.terms)), chosen)


def _medians(problem: Problem) -> Problem:
    """One step for each point, with the median time of its repeats; not more than a start needs."""
    repeats = point_rows(problem.points)
    repeats = repeats[:: -(-len(repeats) // MOST_STARTING_POINTS)]
    columns = np.array([problem.columns[rows].mean(axis=0) for rows in repeats])
    medians = np.array([np.median(problem.seconds[rows]) for rows in repeats])
    return Problem(problem.terms, columns, medians, np.arange(len(repeats)))


def _curve_pays(problem: Problem, physics: Estimate) -> bool:
    """Whether a curve foretells distinct steps better that were left out in turn."""
    points = _medians(problem)
    plain_error = curved_error = 0.0
    for fold in range(FOLDS):
        tested = points.points % FOLDS == fold
        fitted, test = points.only(~tested), points.only(tested)
        plain = estimate_from(fitted, physics)
        bent = curved(fitted, plain)
        if bent is None:
            return False
        plain_error += _error(test, test.predicted(plain.values))
        curved_error += _error(test, bent.predicted(test))
    return curved_error < (1 - CURVE_GAIN) * plain_error


def _error(problem: Problem, predicted: Numbers) -> float:
    return float(np.minimum(np.abs(predicted / problem.seconds - 1), 1.0).sum())


def _settings(
    parts: Sequence[tuple[Estimate, Numbers]], curve: Curve, graphs: GraphSettings
) -> FittedSettings:
    """Estimates and their covariances as a profile states them."""
    coefficients: dict[str, Any] = {}
    blocks: list[Numbers] = []
    for estimate, spread in parts:
        deviations = np.sqrt(np.diag(spread))
        blocks.append(spread / np.outer(*[np.where(deviations > 0, deviations, 1.0)] * 2))
        for term, value, reach in zip(
            estimate.terms, estimate.values.tolist(), (Z_95 * deviations).tolist(), strict=True
        ):
            coefficients[term] = Coefficient(
                value=rounded(value),
                low=rounded(max(0.0, value - reach)),
                high=rounded(value + reach),
            )
    return FittedSettings(
        kind="fitted",
        **coefficients,
        correlation=_correlation(tuple(coefficients), blocks),
        curve=curve,
        graphs=graphs,
    )


def _correlation(terms: tuple[str, ...], blocks: Sequence[Numbers]) -> Correlation:
    """Estimates of different blocks have nothing to do with each other."""
    whole = np.eye(len(terms))
    at = 0
    for block in blocks:
        size = len(block)
        symmetric = np.clip((block + block.T) / 2, -1, 1)
        whole[at : at + size, at : at + size] = symmetric.round(4)
        at += size
    np.fill_diagonal(whole, 1.0)
    return Correlation(terms=terms, rows=tuple(map(tuple, whole.tolist())))


def _validity(fitting: pl.DataFrame) -> Validity:
    import polars as pl

    tokens = pl.col("decodes") + pl.col("prefill_tokens")
    context = pl.max_horizontal(
        pl.col("decode_context_tokens") // pl.max_horizontal("decodes", 1),
        pl.col("prefill_context_tokens") // pl.max_horizontal("prefills", 1),
    )
    largest = fitting.select(
        tokens=tokens.max(),
        sequences=(pl.col("decodes") + pl.col("prefills")).max(),
        context=context.max(),
    ).row(0)
    most_tokens, most_sequences, most_context = (max(1, int(value)) for value in largest)
    return Validity(
        max_tokens=most_tokens, max_sequences=most_sequences, max_context_tokens=most_context
    )


def _noise(steps: pl.DataFrame, predicted: Numbers) -> Noise:
    """Of the steps fitted to; a step and the next follow each other within a source."""
    residuals = steps["time_s"].to_numpy() / predicted - 1
    fitting = ~(steps["held_out"] | steps["outlier"]).to_numpy()
    sources = steps["source"].to_numpy()
    followed = fitting[:-1] & fitting[1:] & (sources[:-1] == sources[1:])
    pairs = np.stack([residuals[:-1][followed], residuals[1:][followed]])
    return noise_of(residuals[fitting], pairs)


def _report(steps: pl.DataFrame, predicted: Numbers, model: FittedCost) -> FitReport:
    import polars as pl

    errors = steps.with_columns(error=np.abs(predicted / steps["time_s"].to_numpy() - 1))
    tested = errors.filter(pl.col("held_out") & ~pl.col("outlier"))
    kinds = ("decode", "prefill", "mixed")
    by_kind = {kind: _held_out_error(tested.filter(kind_of_step() == kind)) for kind in kinds}
    fitted_terms = {term for term, _ in model.settings.coefficients()}
    return FitReport(
        steps=_fitting(steps).height,
        held_out=tested.height,
        outliers=int(steps["outlier"].sum()),
        left_out=tuple(term for term in TERMS if term not in fitted_terms),
        curve=bool(model.settings.curve.tokens),
        async_scheduling=model.overlap,
        all=_held_out_error(tested) or HeldOutError(steps=0, median=0.0, p95=0.0),
        **by_kind,
    )


def _held_out_error(tested: pl.DataFrame) -> HeldOutError | None:
    if not tested.height:
        return None
    median, p95 = np.quantile(tested["error"].to_numpy(), (0.5, 0.95)).tolist()
    return HeldOutError(steps=tested.height, median=rounded(median), p95=rounded(p95))
