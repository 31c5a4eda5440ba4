"""The fit: known costs come back, intervals hold, what cannot be told is refused."""

from typing import Any

import numpy as np
import polars as pl
import pytest

from calibration.fitted import fitted_cost
from calibration.fitting.fit import Fit, fit_steps
from calibration.fitting.prediction import predicted_s
from tests.calibration.steps import GPU, GRAPHS, design, timed
from traces.errors import ConfigError

SERIAL: dict[str, Any] = {
    "step_s": 5e-3,
    "token_s": 1.5e-3,
    "decode_s": 4e-4,
    "context_s": 8e-7,
    "chunk_s": 4e-3,
    "pair_s": 3e-7,
    "host_step_s": 2e-4,
    "host_sequence_s": 5e-6,
}
"""About a CPU: nothing overtakes anything."""


def measured(
    truth: dict[str, Any], noise: float, seed: int = 1, sizes: tuple[int, ...] = (), **shape: int
) -> pl.DataFrame:
    random = np.random.default_rng(seed)
    return timed(truth, design(random, sizes=sizes, **shape), noise, random, sizes)


def inside(fit: Fit, truth: dict[str, Any]) -> list[bool]:
    """Whether each fitted interval holds the truth."""
    intervals = [(fit.cost.coefficient(term), value) for term, value in truth.items()]
    return [one.low <= value <= one.high for one, value in intervals if one.high is not None]


@pytest.mark.parametrize("sizes", [(), GRAPHS])
def test_exact_steps_give_their_cost_back(sizes):
    truth = GPU | ({"eager_s": 1.5e-3} if sizes else {})
    fit = fit_steps(measured(truth, 0.0, sizes=sizes), graph_sizes=sizes)
    for term, value in truth.items():
        assert fit.cost.coefficient(term).value == pytest.approx(value, rel=1e-3), term
    assert fit.report.all.p95 < 1e-5
    assert not fit.report.curve and fit.report.outliers == 0


@pytest.mark.parametrize("factor", [1.0, 50.0])
def test_noisy_steps_give_their_cost_back_and_the_kinks(factor):
    truth = GPU | {"context_s": factor * GPU["context_s"], "pair_s": factor * GPU["pair_s"]}
    fit = fit_steps(measured(truth, 0.02, repeats=5))
    for term in ("weights_s", "token_s", "context_s", "pair_s", "host_step_s"):
        assert fit.cost.coefficient(term).value == pytest.approx(truth[term], rel=0.1), term
    assert fit.cost.kink_tokens == pytest.approx(3.6e-3 / 2.2e-5, rel=0.05)
    assert fit.report.all.median == pytest.approx(0.0135, rel=0.25)  # 0.6745 x 2 %
    assert fit.noise.quantiles[50] == pytest.approx(0.0, abs=2e-3)
    assert abs(fit.noise.autocorrelation) < 0.15


@pytest.mark.slow
def test_95_percent_intervals_hold_the_truth_about_95_percent_of_the_time():
    truth = GPU | {"eager_s": 1.5e-3}
    held = [
        hit
        for seed in range(25)
        for hit in inside(fit_steps(measured(truth, 0.02, seed, GRAPHS), graph_sizes=GRAPHS), truth)
    ]
    assert len(held) > 250
    assert 0.91 <= np.mean(held) <= 0.985


def test_a_cost_without_kinks_has_one_slope_and_says_what_it_leaves_out():
    fit = fit_steps(measured(SERIAL, 0.02))
    assert {"weights_s", "elementwise_token_s", "prefill_context_s"} <= set(fit.report.left_out)
    for term, value in SERIAL.items():
        one = fit.cost.coefficient(term)
        assert one.low * 0.98 <= value <= one.high * 1.02, term
    assert not fit.report.curve


def test_a_curve_takes_what_the_terms_cannot_say_and_nothing_falls():
    steps = measured(SERIAL, 0.01)
    tokens = (steps["decodes"] + steps["prefill_tokens"]).to_numpy()
    bump = pl.Series(0.02 * np.minimum(tokens, 40) ** 0.7)
    steps = steps.with_columns(device_s=pl.col("device_s") + bump, time_s=pl.col("time_s") + bump)
    fit = fit_steps(steps)
    assert fit.report.curve
    assert fit.report.all.median < 0.012
    assert fit.cost.context_s.low <= SERIAL["context_s"] <= fit.cost.context_s.high
    sums = [fit.cost.tokens_s(count) for count in range(4000)]
    assert sums[0] >= 0 and (np.diff(sums) >= 0).all()


def test_odd_repeats_are_marked_and_do_not_decide():
    truth = GPU
    steps = measured(truth, 0.01, repeats=6)
    odd = np.random.default_rng(5).random(steps.height) < 0.03
    slow = pl.when(pl.Series(odd)).then(5.0).otherwise(1.0)
    fit = fit_steps(
        steps.with_columns(time_s=pl.col("time_s") * slow, device_s=pl.col("device_s") * slow)
    )
    clean = fit_steps(steps)
    assert (fit.steps["outlier"].to_numpy() == odd).all()
    assert fit.report.outliers == odd.sum()
    for term in ("weights_s", "token_s", "context_s"):
        one, other = fit.cost.coefficient(term).value, clean.cost.coefficient(term).value
        assert one == pytest.approx(other, rel=0.01)
    assert fit.steps.height == steps.height


def test_steps_whose_contexts_grow_from_one_to_the_next_are_repeats():
    steps = measured(GPU, 0.01, repeats=1)
    visits = pl.concat([steps] * 6).with_columns(
        decode_context_tokens=pl.col("decode_context_tokens")
        + pl.int_range(pl.len()) // steps.height * pl.col("decodes")
    )
    random = np.random.default_rng(2)
    odd = pl.when(pl.int_range(pl.len()) == 2 * steps.height + 7).then(3.0).otherwise(1.0)
    again = timed(GPU, visits.with_columns(device_s=None), 0.01, random)
    fit = fit_steps(again.with_columns(time_s=pl.col("time_s") * odd, device_s=None))
    assert fit.steps["outlier"].arg_true().to_list() == [2 * steps.height + 7]


def test_steps_held_out_and_marked_are_not_fitted_to():
    steps = measured(GPU, 0.01)
    marked = steps.with_columns(
        held_out=pl.int_range(pl.len()) % 7 == 0, outlier=pl.int_range(pl.len()) % 11 == 0
    )
    absurd = pl.when(pl.col("held_out") | pl.col("outlier")).then(100.0).otherwise(1.0)
    changed = marked.with_columns(time_s=pl.col("time_s") * absurd)
    fits = [fit_steps(one) for one in (marked, changed)]
    assert fits[0].cost == fits[1].cost
    assert fits[0].report.all.median < 0.02 < 0.9 < fits[1].report.all.median
    kept = fits[0].steps.filter(~pl.col("held_out") & ~pl.col("outlier"))
    assert fits[0].report.steps == kept.height


def test_every_fifth_point_is_held_out_where_none_is():
    fit = fit_steps(measured(GPU, 0.01))
    assert 0.1 < fit.steps["held_out"].mean() < 0.3
    assert fit.report.held_out == fit.steps["held_out"].sum()
    kinds = (fit.report.decode, fit.report.prefill, fit.report.mixed)
    assert sum(one.steps for one in kinds if one) == fit.report.all.steps
    held = fit.steps.group_by("decodes", "decode_context_tokens", "prefill_pairs").agg(
        pl.col("held_out").n_unique()
    )
    assert held["held_out"].max() == 1


def test_where_nobody_knows_device_time_host_time_is_part_of_the_rest():
    steps = measured(GPU, 0.01)
    fit = fit_steps(steps.with_columns(device_s=None))
    assert {"host_step_s", "host_sequence_s"} <= set(fit.report.left_out)
    assert fit.cost.step_s.value == pytest.approx(GPU["step_s"] + GPU["host_step_s"], rel=0.15)
    assert fit.report.all.median < 0.02


def test_asynchronous_steps_take_the_longer_of_host_and_device():
    truth = GPU | {"host_step_s": 4.4e-3}
    steps = measured(truth, 0.0)
    host_s = steps["time_s"] - steps["device_s"]
    overlapped = steps.with_columns(time_s=pl.max_horizontal(host_s, steps["device_s"]))
    fit = fit_steps(overlapped, async_scheduling=True)
    assert fit.cost.host_step_s.value == pytest.approx(4.4e-3, rel=0.01)
    assert fit.cost.host_sequence_s.value == pytest.approx(7e-6, rel=0.01)
    assert fit.report.all.p95 < 0.01


def test_the_report_is_that_of_the_cost_itself():
    fit = fit_steps(measured(GPU, 0.03))
    tested = fit.steps.filter("held_out")
    cost = fitted_cost(fit.cost, async_scheduling=False)
    errors = np.abs(predicted_s(cost, tested) / tested["time_s"].to_numpy() - 1)
    assert fit.report.all.median == pytest.approx(np.median(errors), rel=1e-5)
    assert fit.report.all.p95 == pytest.approx(np.quantile(errors, 0.95), rel=1e-5)


def test_the_same_steps_give_the_same_fit():
    steps = measured(GPU, 0.02)
    assert fit_steps(steps).cost == fit_steps(steps).cost


def test_the_range_is_that_of_the_steps_fitted_to():
    fit = fit_steps(measured(GPU, 0.01))
    used = fit.steps.filter(~pl.col("held_out"))
    assert fit.validity.max_tokens == (used["decodes"] + used["prefill_tokens"]).max()
    assert fit.validity.max_sequences == (used["decodes"] + used["prefills"]).max()
    assert 2000 < (fit.validity.max_context_tokens or 0) < 2**13 + 2**11


STEPS = measured(GPU, 0.01, repeats=2)
AT_7 = pl.int_range(pl.len()) == 7
PREFILLS = ("chunk_s", "pair_s", "prefill_context_s")


def replaced(name: str, value: Any) -> pl.DataFrame:
    return STEPS.with_columns(pl.when(AT_7).then(value).otherwise(name).alias(name))


@pytest.mark.parametrize(
    ("steps", "settings", "message"),
    [
        (replaced("time_s", float("nan")), {}, "row 7: time_s is nan; expected a positive"),
        (replaced("time_s", -1.0), {}, "row 7: time_s is -1.0; expected a positive"),
        (replaced("time_s", 0.0), {}, "row 7: time_s is 0.0; expected a positive"),
        (replaced("time_s", None), {}, "row 7: time_s is None; expected a positive"),
        (replaced("device_s", None), {}, "row 7: device_s is None; .* or null in every row"),
        (replaced("decodes", -2), {}, "row 7: decodes is -2; expected at least 0"),
        (STEPS.head(0), {}, "there is none"),
        (STEPS.drop("prefills"), {}, "column prefills is missing"),
        (STEPS, {"without": ("speed_s",)}, "without: 'speed_s' is unknown; known: step_s"),
        (STEPS, {"graph_sizes": (1, 2, 512)}, r"row \d+: .* graph_tokens 0; graph_sizes .* say"),
        (STEPS.head(9), {}, "distinct steps are too few for 7 terms .*; measure 14 or more"),
        (
            STEPS.filter(prefills=0),
            {},
            "nothing to fit chunk_s, pair_s and prefill_context_s to: measure .* without=",
        ),
        (
            STEPS.filter(prefills=0),
            {"without": PREFILLS},
            "cannot tell token_s and decode_s apart: measure steps of few and of many tokens",
        ),
        (
            STEPS.with_columns(decode_context_tokens=100 * pl.col("decodes")),
            {},
            "cannot tell decode_s and context_s apart: .*decodes at two or more contexts",
        ),
        (
            STEPS.with_columns(decodes=4 * (pl.col("decodes") > 0)).filter(pl.col("decodes") > 0),
            {},
            "step_s and decode_s",
        ),
        (
            STEPS.with_columns(device_s="time_s"),
            {},
            "device_s is all of time_s: .*without=",
        ),
    ],
)
def test_what_cannot_be_fitted_is_refused_in_one_line(steps, settings, message):
    with pytest.raises(ConfigError, match=message) as caught:
        fit_steps(steps, **settings)
    assert "\n" not in str(caught.value)


def test_terms_are_left_out_where_the_caller_asks():
    fit = fit_steps(STEPS.filter(prefills=0), without=(*PREFILLS, "decode_s"))
    assert {*PREFILLS, "decode_s"} <= set(fit.report.left_out)
    assert fit.report.all.median < 0.02
