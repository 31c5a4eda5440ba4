"""From a step frame to what is fitted: checked rows, one column a term, terms that can be told."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from calibration.fitted import TERMS
from calibration.fitting.leastsquares import CONDITION, CONTESTS, Problem, condition
from calibration.fitting.prediction import FEATURES
from calibration.steps import STEP_FRAME
from traces.errors import ConfigError

if TYPE_CHECKING:
    import polars as pl

Numbers = NDArray[np.float64]

DEVICE_TERMS: Final = tuple(term for term in TERMS if not term.startswith("host_"))
HOST_TERMS: Final = tuple(term for term in TERMS if term.startswith("host_"))

COUNTS: Final = ("decodes", "prefills", "prefill_tokens", "graph_tokens")
CONTEXTS: Final = ("decode_context_tokens", "prefill_context_tokens", "prefill_pairs")

CONTEXT_BINS: Final = 20
"""In a factor of e: contexts this near count as alike, as they grow while a step is repeated."""

POINTS_A_TERM: Final = 2
"""Distinct steps for each term that a fit needs at least."""

IN_COLLINEAR: Final = 0.1
"""Share of the largest from which on a column takes part in a combination that is nearly 0."""

MEASURE: Final[Mapping[str, str]] = {
    "step_s": "steps of different sizes",
    "token_s": "steps of few and of many tokens",
    "elementwise_token_s": "steps of few and of many tokens",
    "weights_s": "steps of few and of many tokens",
    "decode_s": "decodes in batches of two or more sizes",
    "context_s": "decodes at two or more contexts",
    "chunk_s": "steps with several prefill chunks",
    "pair_s": "prefill chunks of two or more sizes",
    "prefill_context_s": "prefill chunks with context before them",
    "host_step_s": "steps of few and of many sequences",
    "host_sequence_s": "steps of few and of many sequences",
}
"""What tells a term from the others."""


def checked(steps: pl.DataFrame) -> pl.DataFrame:
    """A step frame with a number for each row, in which every time is one.

    Raises:
        ConfigError: a column is missing, there is no step, a time is not a positive number, or
            device_s is known for some rows only or exceeds time_s: the first such row.
    """
    import polars as pl

    if missing := [name for name in STEP_FRAME if name not in steps.columns]:
        raise ConfigError(
            f"steps: column {missing[0]} is missing; expected {', '.join(STEP_FRAME)}"
        )
    if not steps.height:
        raise ConfigError("steps: there is none to fit to")
    steps = steps.select(list(STEP_FRAME))
    for name in FEATURES:
        _refuse(steps, name, pl.col(name).is_null() | (pl.col(name) < 0), "at least 0")
    idle = pl.col("decodes") + pl.col("prefill_tokens") == 0
    _refuse(steps, "prefill_tokens", idle, "at least 1 where there are no decodes")
    good_s = pl.col("time_s").is_not_null() & pl.col("time_s").is_finite() & (pl.col("time_s") > 0)
    _refuse(steps, "time_s", ~good_s, "a positive number of seconds")
    unknown = steps["device_s"].null_count()
    if unknown == steps.height:
        return steps
    whole = "a positive number of seconds in every row, or null in every row"
    good_s = pl.col("device_s").is_finite() & (pl.col("device_s") > 0)
    _refuse(steps, "device_s", pl.col("device_s").is_null() | ~good_s, whole)
    return steps


def alike() -> list[pl.Expr]:
    """What repeats of one point share: all counts, and contexts within 5 %."""
    import polars as pl

    binned = [(pl.col(name).log1p() * CONTEXT_BINS).round().alias(name) for name in CONTEXTS]
    return [
        (pl.col("decodes") + pl.col("prefill_tokens")).alias("tokens"),
        *map(pl.col, COUNTS),
        *binned,
    ]


def point_numbers(steps: pl.DataFrame) -> NDArray[np.int64]:
    """[steps]: which point each row is a repeat of, counted from 0 in order of tokens."""
    features = steps.select(alike()).to_numpy()
    return np.unique(features, axis=0, return_inverse=True)[1].reshape(-1)


def device_columns(steps: pl.DataFrame) -> dict[str, Numbers]:
    """What each of DEVICE_TERMS is multiplied by, [steps] each."""
    column = {name: steps[name].to_numpy().astype(np.float64) for name in (*COUNTS, *CONTEXTS)}
    graph = column["graph_tokens"]
    tokens = np.where(graph > 0, graph, column["decodes"] + column["prefill_tokens"])
    ones = np.ones_like(tokens)
    return {
        "step_s": ones,
        "eager_s": (graph == 0).astype(np.float64),
        "weights_s": ones,
        "token_s": tokens,
        "elementwise_token_s": tokens,
        "decode_s": column["decodes"],
        "context_s": column["decode_context_tokens"],
        "chunk_s": column["prefills"],
        "pair_s": column["prefill_pairs"],
        "prefill_context_s": column["prefill_context_tokens"],
    }


def host_columns(steps: pl.DataFrame) -> dict[str, Numbers]:
    """What each of HOST_TERMS is multiplied by, [steps] each."""
    sequences = (steps["decodes"] + steps["prefills"]).to_numpy().astype(np.float64)
    return {"host_step_s": np.ones_like(sequences), "host_sequence_s": sequences}


def refuse_unidentified(problem: Problem, without: Collection[str]) -> None:
    """Check that the steps can tell the problem's terms apart, before anything is fitted.

    Of rivals, of which one counts at a time, and of terms that may be left out, the simplest form
    is asked for; whether there is more to see is for the data to say.

    Raises:
        ConfigError: naming the terms, and what to measure.
    """
    decided_later = {"weights_s", "eager_s"}
    if "token_s" in problem.terms:
        decided_later.add("elementwise_token_s")
    problem = problem.without(frozenset(decided_later))
    absent = [
        t for t, column in zip(problem.terms, problem.columns.T, strict=True) if not column.any()
    ]
    if absent:
        raise ConfigError(
            f"steps: nothing to fit {_listed(absent)} to: measure {_advice(absent)},"
            f" or leave out: without={(*without, *absent)}"
        )
    points = int(problem.points.max()) + 1
    needed = POINTS_A_TERM * len(problem.terms)
    if points < needed:
        raise ConfigError(
            f"steps: {points} distinct steps are too few for {len(problem.terms)} terms"
            f" ({', '.join(problem.terms)}); measure {needed} or more"
        )
    near, combination = condition(problem.columns / problem.floored[:, None])
    if near > CONDITION:
        pairs = zip(problem.terms, np.abs(combination), strict=True)
        blurred = [term for term, share in pairs if share > IN_COLLINEAR]
        raise ConfigError(
            f"steps: cannot tell {_listed(blurred)} apart: measure {_advice(blurred)},"
            f" or leave all but one out (without=...)"
        )


def variants(problem: Problem) -> list[Problem]:
    """The problem, and what is left of it if the steps do not show a rivalry or a launch cost.

    Where reading the weights is never seen to take longer than computing (or never shorter), a
    step is linear in its tokens, and one slope is all there is.
    """
    terms = frozenset(problem.terms)
    linear = [frozenset[str]()]
    if {"weights_s", "token_s"} <= terms:
        linear.append(frozenset({"weights_s", "elementwise_token_s"}))
    attention = [frozenset[str]()]
    if set(CONTESTS[1]) <= terms:
        attention += [frozenset({term}) for term in CONTESTS[1]]
    launches = [frozenset[str]()]
    if "eager_s" in terms:
        launches.append(frozenset({"eager_s"}))
    return [problem.without(a | b | c) for a in linear for b in attention for c in launches]


def _refuse(steps: pl.DataFrame, name: str, wrong: pl.Expr, right: str) -> None:
    bad = steps.with_row_index("row").filter(wrong)
    if bad.height:
        row, value, source = bad.row(0, named=True)["row"], bad[name][0], bad["source"][0]
        at = f"row {row}" + (f" ({source})" if source else "")
        raise ConfigError(f"steps: {at}: {name} is {value}; expected {right}")


def _listed(terms: Collection[str]) -> str:
    *others, last = terms
    return f"{', '.join(others)} and {last}" if others else last


def _advice(terms: Collection[str]) -> str:
    specific = [MEASURE[term] for term in terms if term in MEASURE and term != "step_s"]
    return "; ".join(dict.fromkeys(specific)) or MEASURE["step_s"]
