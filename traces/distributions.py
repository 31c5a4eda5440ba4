"""Random numbers of synthetic traces, stated as settings: token counts, turns, pauses."""

import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import BeforeValidator, Field, model_validator

from traces.settings import Settings

Floats = np.ndarray[tuple[int], np.dtype[np.float64]]

_BLOCK = 4096


class Fixed(Settings):
    """Always the same value; in YAML also the bare number."""

    distribution: Literal["fixed"]
    value: float = Field(ge=0)

    def sample(self, random: np.random.Generator, size: int) -> Floats:
        """`size` copies of the value."""
        del random
        return np.full(size, self.value)


class Lognormal(Settings):
    """Lognormal values, by mean and coefficient of variation or by median and sigma.

    Draws outside [min, max] become min or max, which moves the mean a little.
    """

    distribution: Literal["lognormal"]
    mean: float | None = Field(default=None, gt=0)
    cv: float | None = Field(default=None, ge=0)
    """Standard deviation / mean."""
    median: float | None = Field(default=None, gt=0)
    sigma: float | None = Field(default=None, ge=0)
    """Standard deviation of the logarithm."""
    min: float = Field(default=0.0, ge=0)
    max: float | None = None

    @model_validator(mode="after")
    def _is_determined(self) -> Self:
        by_mean = self.mean is not None and self.cv is not None
        by_median = self.median is not None and self.sigma is not None
        given = [self.mean, self.cv, self.median, self.sigma]
        if by_mean == by_median or given.count(None) != 2:
            raise ValueError("give mean and cv, or median and sigma")
        if self.max is not None and self.max < self.min:
            raise ValueError("max must be at least min")
        return self

    def sample(self, random: np.random.Generator, size: int) -> Floats:
        """`size` independent draws."""
        if self.mean is not None and self.cv is not None:
            variance = math.log1p(self.cv**2)
            mu, sigma = math.log(self.mean) - variance / 2, math.sqrt(variance)
        else:
            mu, sigma = math.log(self.median or 1.0), self.sigma or 0.0
        return np.clip(random.lognormal(mu, sigma, size), self.min, self.max)


class Uniform(Settings):
    """Values spread evenly over [min, max]; a count takes each whole number there equally often."""

    distribution: Literal["uniform"]
    min: float = Field(ge=0)
    max: float = Field(ge=0)

    @model_validator(mode="after")
    def _is_an_interval(self) -> Self:
        if self.max < self.min:
            raise ValueError("max must be at least min")
        return self

    def sample(self, random: np.random.Generator, size: int) -> Floats:
        """`size` independent draws."""
        return random.uniform(self.min, self.max, size)

    def sample_counts(self, random: np.random.Generator, size: int) -> Floats:
        """`size` independent whole numbers."""
        low, high = math.ceil(self.min), math.floor(self.max)
        return random.integers(low, max(low, high), size, endpoint=True).astype(np.float64)


class Empirical(Settings):
    """Values drawn again and again from a list, each as likely."""

    distribution: Literal["empirical"]
    values: tuple[float, ...] = Field(min_length=1)

    def sample(self, random: np.random.Generator, size: int) -> Floats:
        """`size` independent draws."""
        return random.choice(np.array(self.values), size)


class FromTrace(Settings):
    """Values drawn from those of a trace: its prompt or its output lengths, as they stand."""

    distribution: Literal["trace"]
    path: str
    column: Literal["prompt_tokens", "output_tokens"]

    def resolved(self) -> Empirical:
        """The distribution with the trace read. Raises TraceError."""
        from traces.reader import open_trace  # generating needs no readers otherwise

        lengths = tuple(getattr(request, self.column) for request in open_trace(self.path))
        return Empirical(distribution="empirical", values=lengths)


def _number_is_fixed(value: Any) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return {"distribution": "fixed", "value": value}
    return value


Distribution = Annotated[
    Annotated[
        Fixed | Lognormal | Uniform | Empirical | FromTrace, Field(discriminator="distribution")
    ],
    BeforeValidator(_number_is_fixed),
]
"""A distribution in settings: a bare number, or a mapping with `distribution: NAME`."""


def counts(
    distribution: Distribution, random: np.random.Generator, at_least: int = 1
) -> Iterator[int]:
    """Endless whole numbers, rounded to the nearest and no smaller than `at_least`."""
    if isinstance(distribution, FromTrace):
        distribution = distribution.resolved()
    draw = distribution.sample
    if isinstance(distribution, Uniform):
        draw = distribution.sample_counts
    while True:
        block = np.maximum(np.rint(draw(random, _BLOCK)), at_least)
        yield from block.astype(np.int64).tolist()


def values(distribution: Distribution, random: np.random.Generator) -> Iterator[float]:
    """Endless values."""
    if isinstance(distribution, FromTrace):
        distribution = distribution.resolved()
    while True:
        yield from distribution.sample(random, _BLOCK).tolist()
