import numpy as np
import pytest

from calibration.fitted import fitted_cost
from calibration.fitting.prediction import step_batch
from calibration.measuring.design import Limits, space_filling
from calibration.measuring.surrogate import fit_surrogate
from tests.calibration.engines import PS, TRUTH

LIMITS = Limits(
    max_sequences=64, max_tokens=1024, max_context_tokens=4096, pool_blocks=1999, block_tokens=16
)


def truly(features):
    cost = fitted_cost(TRUTH, async_scheduling=False)
    return [cost.progression(step_batch(*one[:6]))[0] / PS for one in features]


def drawn(count, seed):
    points = space_filling(LIMITS, count, np.random.default_rng(seed))
    return [point.features(LIMITS) for point in points]


def test_it_foretells_steps_it_has_not_seen():
    seen, unseen = drawn(80, 1), drawn(40, 2)
    known = fit_surrogate(seen, truly(seen))
    errors = known.seconds(unseen) / np.array(truly(unseen)) - 1
    assert np.median(np.abs(errors)) < 0.03


def test_a_larger_step_is_never_foretold_to_take_less():
    seen = drawn(30, 1)
    noise = np.exp(0.5 * np.random.default_rng(0).standard_normal(len(seen)))
    known = fit_surrogate(seen, (np.array(truly(seen)) * noise).tolist())
    for one in drawn(20, 3):
        larger = one._replace(
            decodes=2 * one.decodes + 1,
            decode_context_tokens=2 * one.decode_context_tokens,
            prefill_tokens=2 * one.prefill_tokens,
            prefill_pairs=4 * one.prefill_pairs,
        )
        low, high = known.seconds([one, larger])
        assert 0 < low <= high * (1 + 1e-9)


def test_measuring_what_promises_most_helps_most():
    seen, candidates = drawn(30, 1), drawn(60, 2)
    before = fit_surrogate(seen, truly(seen))
    gains = before.gains(candidates)
    assert (gains >= 0).all()

    def left(one):
        after = fit_surrogate([*seen, one], truly([*seen, one]))
        return float((after.variances(candidates) / after.noise**2).mean())

    start = float((before.variances(candidates) / before.noise**2).mean())
    best, worst = candidates[int(np.argmax(gains))], candidates[int(np.argmin(gains))]
    assert left(best) < left(worst) < start * 1.01


def test_of_one_step_the_next_is_like_it():
    (one, *_) = drawn(3, 1)
    known = fit_surrogate([one], [0.02])
    assert known.seconds([one])[0] == pytest.approx(0.02, rel=0.01)
