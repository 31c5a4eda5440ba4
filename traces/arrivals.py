"""When sessions of a synthetic trace begin: a renewal process and a rate that may change.

Gaps are drawn at rate 1 and stretched by the rate curve (time rescaling), so that a process keeps
its burstiness while its rate follows the curve.
"""

import math
from collections.abc import Iterator
from functools import cached_property
from itertools import pairwise
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import BeforeValidator, Field, model_validator

from traces.distributions import Floats
from traces.settings import Settings

_BLOCK = 4096
_CURVE_KNOTS = 4097


class ConstantRate(Settings):
    """The same rate throughout; in YAML also the bare number."""

    curve: Literal["constant"]
    per_s: float = Field(gt=0)

    def times_s(self, expected: Floats) -> Floats:
        """When so many arrivals are expected to have come; `expected` rises."""
        return expected / self.per_s


class Diurnal(Settings):
    """A rate that swings about its mean as a cosine: mean (1 + swing cos(...)), highest at peak_s.

    `swing` 0.6 means that the peak is 1.6 times the mean and the trough 0.4 times.
    """

    curve: Literal["diurnal"]
    mean_per_s: float = Field(gt=0)
    swing: float = Field(ge=0, lt=1)
    peak_s: float = 0.0
    period_s: float = Field(default=86400.0, gt=0)

    def times_s(self, expected: Floats) -> Floats:
        """When so many arrivals are expected to have come; `expected` rises."""
        times_s, arrivals = self._period
        periods, rest = np.divmod(expected, arrivals[-1])
        return periods * self.period_s + np.interp(rest, arrivals, times_s)

    @cached_property
    def _period(self) -> tuple[Floats, Floats]:
        """Times of one period and the arrivals expected until each."""
        times_s = np.linspace(0.0, self.period_s, _CURVE_KNOTS)
        turn = 2 * math.pi / self.period_s
        swung = np.sin(turn * (times_s - self.peak_s)) - math.sin(-turn * self.peak_s)
        return times_s, self.mean_per_s * (times_s + self.swing / turn * swung)


class RateFrom(Settings):
    """A rate and when it begins."""

    from_s: float = Field(ge=0)
    per_s: float = Field(ge=0)


class Piecewise(Settings):
    """Rates one after the other; the last goes on for ever, nothing arrives before the first."""

    curve: Literal["piecewise"]
    steps: tuple[RateFrom, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _is_in_order(self) -> Self:
        starts = [step.from_s for step in self.steps]
        if any(later <= earlier for earlier, later in pairwise(starts)):
            raise ValueError("steps must be in order of from_s, each once")
        if not any(step.per_s for step in self.steps):
            raise ValueError("at least one step must have a rate above 0")
        return self

    def times_s(self, expected: Floats) -> Floats:
        """When so many arrivals are expected to have come; inf if never. `expected` rises."""
        starts_s, arrivals = self._knots
        rates = np.array([step.per_s for step in self.steps])
        step = np.searchsorted(arrivals, expected, side="right") - 1
        with np.errstate(divide="ignore", invalid="ignore"):
            times_s = starts_s[step] + (expected - arrivals[step]) / rates[step]
        return np.where(np.isnan(times_s), starts_s[step], times_s)  # 0 / 0: just as silence falls

    @cached_property
    def _knots(self) -> tuple[Floats, Floats]:
        """Starts of the steps and the arrivals expected until each."""
        starts_s = np.array([step.from_s for step in self.steps])
        rates = np.array([step.per_s for step in self.steps])
        arrivals = np.concatenate(([0.0], np.cumsum(np.diff(starts_s) * rates[:-1])))
        return starts_s, arrivals


def _number_is_constant(value: Any) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return {"curve": "constant", "per_s": value}
    return value


Rate = Annotated[
    Annotated[ConstantRate | Diurnal | Piecewise, Field(discriminator="curve")],
    BeforeValidator(_number_is_constant),
]
"""A rate in settings: a bare number per second, or a mapping with `curve: NAME`."""


class Arrivals(Settings):
    """How sessions begin: gaps of a process, at a rate.

    `cv` is the gaps' coefficient of variation at a constant rate: 1 is Poisson, above burstier.
    """

    process: Literal["poisson", "gamma", "weibull", "constant"] = "poisson"
    cv: float | None = Field(default=None, ge=0.05, le=20)
    rate: Rate

    @model_validator(mode="after")
    def _has_cv_where_it_counts(self) -> Self:
        takes_cv = self.process in ("gamma", "weibull")
        if takes_cv and self.cv is None:
            raise ValueError(f"process {self.process} needs cv")
        if not takes_cv and self.cv is not None:
            raise ValueError(f"process {self.process} takes no cv; gamma and weibull do")
        return self

    def times_s(self, random: np.random.Generator) -> Iterator[float]:
        """Arrival times in order, without end unless the rate falls to 0 for good."""
        expected = 0.0
        while True:
            arrived = expected + np.cumsum(self._gaps(random, _BLOCK))
            expected = float(arrived[-1])
            times_s = self.rate.times_s(arrived)
            yield from times_s[np.isfinite(times_s)].tolist()
            if not math.isfinite(float(times_s[-1])):
                return

    def _gaps(self, random: np.random.Generator, size: int) -> Floats:
        """Gaps of mean 1."""
        if self.process == "constant":
            return np.ones(size)
        if self.process == "poisson" or self.cv is None:
            return random.exponential(1.0, size)
        if self.process == "gamma":
            return random.gamma(1 / self.cv**2, self.cv**2, size)
        shape = weibull_shape(self.cv)
        return random.weibull(shape, size) / math.gamma(1 + 1 / shape)


def weibull_shape(cv: float) -> float:
    """The Weibull shape with this coefficient of variation, between 0.05 and 20."""
    low, high = 0.05, 50.0  # cv falls from far above 20 to below 0.05
    for _ in range(60):
        shape = math.sqrt(low * high)
        second_moment = math.lgamma(1 + 2 / shape) - 2 * math.lgamma(1 + 1 / shape)
        if math.expm1(second_moment) > cv**2:
            low = shape
        else:
            high = shape
    return math.sqrt(low * high)
