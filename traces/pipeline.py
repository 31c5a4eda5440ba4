"""Operations stated as settings: in YAML, on the command line, applied one after the other.

In YAML an operation is a mapping of its name to its settings, and a pipeline a list of those:

    - window: {start_s: 0, end_s: 600}
    - thin: {factor: 0.5, seed: 1}

On the command line it is `NAME:setting=value,setting=value`: `window:start_s=0,end_s=600`.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from traces import operations
from traces.errors import ConfigError
from traces.reader import Trace, open_trace
from traces.request import Request
from traces.rows import Tally
from traces.settings import Settings, checked


class Window(Settings):
    """Settings of `operations.window`."""

    start_s: float = Field(default=0.0, ge=0)
    end_s: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _begins_before_it_ends(self) -> Self:
        if self.end_s is not None and self.end_s <= self.start_s:
            raise ValueError("end_s must be after start_s")
        return self


class Thin(Settings):
    """Settings of `operations.thin`."""

    factor: float = Field(gt=0, le=1)
    seed: int = Field(default=0, ge=0)


class Tile(Settings):
    """Settings of `operations.tile`."""

    copies: int = Field(ge=1)
    spread_s: float = Field(default=60.0, ge=0)
    seed: int = Field(default=0, ge=0)
    share_content: bool = False


class CompressTime(Settings):
    """Settings of `operations.compress_time`."""

    factor: float = Field(gt=0)


class ScaleLengths(Settings):
    """Settings of `operations.scale_lengths`."""

    prompt: float = Field(default=1.0, gt=0)
    output: float = Field(default=1.0, gt=0)


class Limit(Settings):
    """Settings of `operations.limit`."""

    count: int = Field(ge=1)


class Tag(Settings):
    """Settings of `operations.tag`."""

    tenant: str | None = None
    priority: int | None = None
    slo_class: str | None = None


class Operation(Settings):
    """One operation: exactly one of the names is given."""

    window: Window | None = None
    thin: Thin | None = None
    tile: Tile | None = None
    compress_time: CompressTime | None = None
    scale_lengths: ScaleLengths | None = None
    limit: Limit | None = None
    tag: Tag | None = None

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if len(self._given()) != 1:
            raise ValueError(f"must name one operation of {', '.join(OPERATIONS)}")
        return self

    @model_serializer(mode="wrap")
    def _without_the_others(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in dump(self).items() if value is not None}

    def _given(self) -> list[str]:
        return [name for name in OPERATIONS if getattr(self, name) is not None]

    def apply(self, requests: Iterable[Request]) -> Iterator[Request]:
        """The requests after this operation."""
        (name,) = self._given()
        return OPERATIONS[name](requests, **dict(getattr(self, name)))


OPERATIONS: dict[str, Callable[..., Iterator[Request]]] = {
    "window": operations.window,
    "thin": operations.thin,
    "tile": operations.tile,
    "compress_time": operations.compress_time,
    "scale_lengths": operations.scale_lengths,
    "limit": operations.limit,
    "tag": operations.tag,
}
"""The operations by name; each takes requests and the settings of the same name above."""


class TraceSettings(Settings):
    """Which requests are replayed."""

    path: str = Field(default="sample:chat", min_length=1)
    """A file of any known format, or sample:NAME."""
    format: str | None = None
    """Its format; none: recognised."""
    skip_bad_rows: bool = False
    """Count malformed rows instead of stopping at them."""
    rate_per_s: float | None = Field(default=None, gt=0)
    """Rate at which to draw arrivals for a trace that has none."""
    hash_tokens: int = Field(default=512, ge=1)
    """Block size of a Mooncake trace's hashes."""
    operations: tuple[Operation, ...] = ()
    """Applied in order; see docs/traces.md."""

    def open(self, seed: int = 0) -> Trace:
        """The trace, seen through its operations; `seed` draws arrivals where it has none.

        Raises TraceError when it cannot be opened.
        """
        trace = open_trace(
            self.path,
            format=self.format,
            skip_bad_rows=self.skip_bad_rows,
            seed=seed,
            rate_per_s=self.rate_per_s,
            hash_tokens=self.hash_tokens,
        )
        return transformed(trace, self.operations)


def parse_operation(text: str) -> Operation:
    """An operation from the command line: `tile:copies=8,seed=3`. Raises ConfigError."""
    name, _, settings = text.partition(":")
    if name not in OPERATIONS:
        raise ConfigError(
            f"--op {text}: unknown operation '{name}'; known: {', '.join(OPERATIONS)}"
        )
    values: dict[str, str] = {}
    for part in filter(None, settings.split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            raise ConfigError(f"--op {text}: '{part}' is no setting=value")
        values[key] = value
    return checked(Operation, {name: values}, f"--op {text}")


def apply_operations(requests: Iterable[Request], steps: Sequence[Operation]) -> Iterator[Request]:
    """The requests after every operation, in the order given."""
    for step in steps:
        requests = step.apply(requests)
    return iter(requests)


def transformed(trace: Trace, steps: Sequence[Operation]) -> Trace:
    """The trace seen through operations; as re-iterable as the trace itself."""
    if not steps:
        return trace
    return Trace(trace.name, trace.format, partial(_read_through, trace, tuple(steps)), trace.path)


def _read_through(trace: Trace, steps: Sequence[Operation], tally: Tally) -> Iterator[Request]:
    return apply_operations(trace.read(tally), steps)
