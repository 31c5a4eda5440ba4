"""What a profile's numbers rest on: the experiment, the fit and how far it was tested."""

from collections.abc import Iterator
from typing import Any

from pydantic import Field

from traces.settings import Settings


class Validity(Settings):
    """Largest features that the numbers were fitted on; none: no such limit is known."""

    max_tokens: int | None = Field(default=None, ge=1)
    max_sequences: int | None = Field(default=None, ge=1)
    max_context_tokens: int | None = Field(default=None, ge=1)
    """Of one sequence (a step frame has sums: the mean over a step's decodes, or over its
    chunks)."""

    def exceeded(self, tokens: int, sequences: int, context_tokens: int) -> Iterator[str]:
        """What of the features is beyond the measured, and how far, in words."""
        for what, asked, limit in (
            ("tokens in a step", tokens, self.max_tokens),
            ("sequences in a step", sequences, self.max_sequences),
            ("tokens of context", context_tokens, self.max_context_tokens),
        ):
            if limit is not None and asked > limit:
                times = f" ({asked / limit:.2f} times)" if asked >= 1.01 * limit else ""
                yield f"{limit} {what}; asked for {asked}{times}"


class Experiment(Settings):
    """When, on what and how the steps were measured."""

    date: str
    """YYYY-MM-DD."""
    device: str
    """Name, as the driver or the operating system gives it."""
    command: str = ""
    engine: dict[str, Any] = Field(default_factory=dict)
    """The engine's settings."""
    versions: dict[str, str] = Field(default_factory=dict)
    """Of what took part: kvcast, torch, the driver."""
    points: int | None = Field(default=None, ge=1)
    """Distinct steps of the design."""
    repeats: int | None = Field(default=None, ge=1)
    """Of each point."""
    taken_s: float | None = Field(default=None, ge=0)
    """How long the measurement took."""
    conditions: dict[str, Any] = Field(default_factory=dict)
    """Clocks, temperatures, power limits, load: what is known of them."""


class HeldOutError(Settings):
    """Relative error |predicted / measured - 1| of steps that were not fitted to."""

    steps: int = Field(ge=0)
    median: float = Field(ge=0)
    p95: float = Field(ge=0)


class FitReport(Settings):
    """What the fit was made from and how well it predicts; errors leave outliers out."""

    steps: int = Field(ge=0)
    """Fitted to."""
    held_out: int = Field(ge=0)
    outliers: int = Field(ge=0)
    """Marked, neither fitted to nor held out."""
    left_out: tuple[str, ...] = ()
    """Terms that the caller left out, or that nothing in the data shows."""
    curve: bool = False
    """Whether a curve over tokens was added to the terms."""
    async_scheduling: bool = False
    """How the steps were scheduled: if true, their time is the longer of host and device."""
    all: HeldOutError
    decode: HeldOutError | None = None
    prefill: HeldOutError | None = None
    mixed: HeldOutError | None = None
