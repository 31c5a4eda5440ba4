"""A synthetic spec that resembles a trace."""

import random
from array import array

import numpy as np

from traces.arrivals import Arrivals, ConstantRate, Piecewise, Rate, RateFrom
from traces.distributions import Floats
from traces.errors import TraceError
from traces.reader import Trace
from traces.synthetic import SyntheticSpec

_LARGEST_CV = 20.0
_POISSON_WITHIN = 0.02


def fit_from_trace(
    trace: Trace, *, rate_step_s: float | None = None, pairs: int = 4096, seed: int = 0
) -> SyntheticSpec:
    """A spec with the trace's number of requests, rate, burstiness and token lengths.

    The rate is constant, or with `rate_step_s` the trace's own in steps so long; gaps between
    requests are gamma with the coefficient of variation that remains, Poisson where that is 1
    within 2 %. Lengths are `pairs` (prompt, output) of the trace, sampled with `seed`, or all of
    them if there are no more. Sessions and shared content are not fitted: each request stands
    alone, with a prompt as long as the trace's.

    Memory: 8 bytes a request. Raises TraceError when the trace has fewer than 3 requests, or no
    two of them at different times.
    """
    sampled = random.Random(seed)
    arrived = array("d")
    sample: list[tuple[int, int]] = []
    for seen, request in enumerate(trace):
        arrived.append(request.arrival_s)
        lengths = (request.prompt_tokens, request.output_tokens)
        if seen < pairs:
            sample.append(lengths)
        elif (place := sampled.randrange(seen + 1)) < pairs:
            sample[place] = lengths
    arrivals_s = np.array(arrived)
    if len(arrivals_s) < 3 or arrivals_s[-1] <= arrivals_s[0]:
        raise TraceError(
            f"{trace.path or trace.name}: cannot be fitted: {len(arrivals_s)} requests in "
            f"{arrivals_s[-1] - arrivals_s[0]:g} s; expected 3 or more, at different times"
        )
    rate, expected = _rate(arrivals_s, rate_step_s)
    gaps = np.diff(expected)
    cv = min(float(gaps.std() / gaps.mean()), _LARGEST_CV)
    if cv < 0.05:
        arrivals = Arrivals(process="constant", rate=rate)
    elif abs(cv - 1) <= _POISSON_WITHIN:
        arrivals = Arrivals(process="poisson", rate=rate)
    else:
        arrivals = Arrivals(process="gamma", cv=cv, rate=rate)
    return SyntheticSpec(
        name=f"{trace.name}-fitted",
        seed=seed,
        requests=len(arrivals_s),
        arrivals=arrivals,
        token_pairs=tuple(sample),
    )


def _rate(arrivals_s: Floats, step_s: float | None) -> tuple[Rate, Floats]:
    """The rate curve, and each arrival as the number of arrivals the curve expects until then."""
    begin_s, end_s = float(arrivals_s[0]), float(arrivals_s[-1])
    if step_s is None:
        per_s = (len(arrivals_s) - 1) / (end_s - begin_s)
        return ConstantRate(curve="constant", per_s=per_s), arrivals_s * per_s
    bounds_s = np.arange(int(end_s // step_s) + 2) * step_s
    counted, _ = np.histogram(arrivals_s, bounds_s)
    rates = counted / step_s
    last_step_s = end_s - float(bounds_s[-2])
    if last_step_s > 0:  # the last step ends with the trace, not with its bound
        rates[-1] = counted[-1] / last_step_s
    steps = [
        RateFrom(from_s=start_s, per_s=per_s)
        for start_s, per_s in zip(bounds_s[:-1].tolist(), rates.tolist(), strict=True)
    ]
    expected = np.interp(arrivals_s, bounds_s, np.concatenate(([0.0], np.cumsum(counted))))
    return Piecewise(curve="piecewise", steps=tuple(steps)), expected
