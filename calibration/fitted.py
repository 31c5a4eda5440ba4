"""Step times fitted to measurements: the roofline's terms with coefficients that were measured.

In seconds, with T tokens of a step (padded to the captured size where a graph is replayed):

    device = step_s + max(weights_s, token_s T) + elementwise_token_s T + curve(T)
           + eager_s, unless a graph is replayed
           + decode_s decodes + context_s decode_context_tokens + chunk_s prefills
           + max(pair_s prefill_pairs, prefill_context_s prefill_context_tokens)
    host   = host_step_s + host_sequence_s sequences
    step   = device + host, or the longer of them where scheduling is asynchronous

A sequence is a decode or a prefill, so decode_s and chunk_s hold what a row of logits costs too.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, pairwise
from math import inf
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Final, Literal, Self, cast

from pydantic import Field, model_validator

from calibration.arithmetic import Arithmetic
from calibration.costs import PICOSECONDS, larger
from engine.batch import Batch
from traces.settings import Settings

if TYPE_CHECKING:
    import numpy as np

    from calibration.profiles import Profile

TERMS: Final = (
    "step_s",
    "eager_s",
    "weights_s",
    "token_s",
    "elementwise_token_s",
    "decode_s",
    "context_s",
    "chunk_s",
    "pair_s",
    "prefill_context_s",
    "host_step_s",
    "host_sequence_s",
)
"""Coefficients of the form above, each a field of FittedSettings."""

TABLE: Final = 16_385
"""Entries of the tables of constant parts; larger steps compute theirs each time."""

Z_95: Final = NormalDist().inv_cdf(0.975)


class Coefficient(Settings):
    """A coefficient and its 95 % interval; a plain number is one without an interval."""

    value: float = Field(ge=0)
    low: float | None = Field(default=None, ge=0)
    high: float | None = Field(default=None, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, stated: Any) -> Any:
        return stated if isinstance(stated, (dict, Coefficient)) else {"value": stated}

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if (self.low is None) != (self.high is None):
            raise ValueError("low and high: state both or neither")
        if self.low is None or self.high is None or self.low <= self.value <= self.high:
            return self
        raise ValueError(f"must lie between low and high, {self.low:g} and {self.high:g}")

    @property
    def standard_error(self) -> float:
        """Of the estimate, from the interval's upper half (the lower one may end at 0)."""
        return 0.0 if self.high is None else (self.high - self.value) / Z_95


ABSENT: Final = Coefficient(value=0.0)
"""A term that the cost does not have."""


class Correlation(Settings):
    """Correlations of the estimates: `rows[i][j]` is that of `terms[i]` and `terms[j]`."""

    terms: tuple[str, ...] = ()
    rows: tuple[tuple[float, ...], ...] = ()

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        size = len(self.terms)
        if unknown := [term for term in self.terms if term not in TERMS]:
            raise ValueError(f"terms: {unknown[0]!r} is unknown; known: {', '.join(TERMS)}")
        if len(set(self.terms)) < size:
            raise ValueError("terms: each may be there once")
        if len(self.rows) != size or any(len(row) != size for row in self.rows):
            raise ValueError(f"rows: must be {size} rows of {size} numbers, one for each term")
        for i, row in enumerate(self.rows):
            for j, value in enumerate(row):
                if not -1 <= value <= 1 or (i == j and value != 1) or value != self.rows[j][i]:
                    raise ValueError(
                        f"rows: must be symmetric, within -1 and 1 and 1 on the diagonal,"
                        f" got {value:g} for {self.terms[i]} and {self.terms[j]}"
                    )
        return self


class Curve(Settings):
    """What measurements add to the terms in T: straight lines between knots, flat beyond them.

    May be negative; the sum with the terms in T never falls and is never below 0 (see
    FittedSettings.tokens_s).
    """

    tokens: tuple[int, ...] = ()
    seconds: tuple[float, ...] = ()

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if len(self.tokens) != len(self.seconds):
            raise ValueError(
                f"seconds: must be one for each of {len(self.tokens)} tokens,"
                f" got {len(self.seconds)}"
            )
        if any(right <= left for left, right in pairwise((-1, *self.tokens))):
            raise ValueError("tokens: must be increasing, from 0 on")
        return self

    def __call__(self, tokens: float) -> float:
        """Seconds at so many tokens."""
        return _on_line(self.tokens, self.seconds, tokens) if self.tokens else 0.0


class GraphSettings(Settings):
    """Captured sizes, in tokens; steps of up to the largest are padded to the next one."""

    sizes: tuple[int, ...] = ()
    """Empty: no graphs."""
    steps: Literal["decodes", "all"] = "decodes"
    """Which steps replay one: those of decodes alone, or all."""

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if any(right <= left for left, right in pairwise((0, *self.sizes))):
            raise ValueError("sizes: must be increasing and above 0")
        return self

    def size(self, tokens: int, decodes_alone: bool) -> int:
        """The captured size that a step of so many tokens replays; 0: none."""
        sizes = self.sizes
        if not sizes or tokens > sizes[-1] or not (decodes_alone or self.steps == "all"):
            return 0
        return sizes[bisect_left(sizes, tokens)]


class FittedSettings(Settings):
    """A fitted cost as a profile states it; the module says what the terms mean."""

    kind: Literal["fitted"]
    step_s: Coefficient = ABSENT
    eager_s: Coefficient = ABSENT
    weights_s: Coefficient = ABSENT
    token_s: Coefficient = ABSENT
    elementwise_token_s: Coefficient = ABSENT
    decode_s: Coefficient = ABSENT
    context_s: Coefficient = ABSENT
    chunk_s: Coefficient = ABSENT
    pair_s: Coefficient = ABSENT
    prefill_context_s: Coefficient = ABSENT
    host_step_s: Coefficient = ABSENT
    host_sequence_s: Coefficient = ABSENT
    correlation: Correlation = Correlation()
    curve: Curve = Curve()
    graphs: GraphSettings = GraphSettings()

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.eager_s.value and not self.graphs.sizes:
            raise ValueError("eager_s: needs graphs.sizes; without graphs it is part of step_s")
        for term in self.correlation.terms:
            if self.coefficient(term).high is None:
                raise ValueError(f"correlation: {term} has no interval")
        return self

    def coefficient(self, term: str) -> Coefficient:
        """One of TERMS."""
        return getattr(self, term)

    def coefficients(self) -> Iterator[tuple[str, Coefficient]]:
        """Terms that the cost has, in the order of TERMS."""
        for term in TERMS:
            if (one := self.coefficient(term)) != ABSENT:
                yield term, one

    @cached_property
    def kink_tokens(self) -> float:
        """Tokens from which on computing takes longer than reading the weights; inf: never."""
        return self.weights_s.value / self.token_s.value if self.token_s.value else inf

    def linear_s(self, tokens: float) -> float:
        """Linear layers of a step of so many tokens: weights are read, or products computed."""
        return max(self.weights_s.value, self.token_s.value * tokens)

    def tokens_s(self, tokens: float) -> float:
        """All that depends on T alone, with step_s and the curve; never falls, never below 0."""
        corners, seconds = self._corners
        if tokens <= corners[-1]:
            return _on_line(corners, seconds, tokens)
        last = corners[-1]
        return seconds[-1] + self._terms_s(tokens) - self._terms_s(last)

    @cached_property
    def _corners(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Where the sum bends, and its seconds there, held from falling or being negative.

        It is neither as fitted; other draws of the coefficients could make it so.
        """
        kink = (self.kink_tokens,) if 0 < self.kink_tokens < inf else ()
        corners = tuple(sorted({0.0, *kink, *map(float, self.curve.tokens)}))
        sums = (self._terms_s(tokens) + self.curve(tokens) for tokens in corners)
        return corners, tuple(accumulate(sums, max, initial=0.0))[1:]

    def _terms_s(self, tokens: float) -> float:
        elementwise = self.elementwise_token_s.value * tokens
        return self.step_s.value + self.linear_s(tokens) + elementwise

    @property
    def has_intervals(self) -> bool:
        """Whether there is anything to draw from."""
        return any(one.high is not None for _, one in self.coefficients())

    def drawn(self, random: np.random.Generator) -> FittedSettings:
        """One draw of all coefficients from their joint normal distribution, cut off at 0.

        The curve stays as it is. What is drawn has no intervals of its own.
        """
        import numpy as np

        stated = self.correlation.terms
        free = [term for term, _ in self.coefficients() if term not in stated]
        terms = (*stated, *free)
        matrix = np.eye(len(terms))
        matrix[: len(stated), : len(stated)] = np.array(self.correlation.rows).reshape(
            len(stated), len(stated)
        )
        values, vectors = np.linalg.eigh(matrix)
        factors = vectors * np.sqrt(np.maximum(values, 0.0))  # rounding may leave one below 0
        moves = factors @ random.standard_normal(len(terms))
        drawn: dict[str, Coefficient] = {}
        for term, move in zip(terms, moves.tolist(), strict=True):
            one = self.coefficient(term)
            drawn[term] = Coefficient(value=max(0.0, one.value + move * one.standard_error))
        # not a copy of this one: that would keep what is cached of its coefficients
        return FittedSettings(
            kind="fitted", curve=self.curve, graphs=self.graphs, **cast(dict[str, Any], drawn)
        )

    def build(self, profile: Profile, *, async_scheduling: bool) -> FittedCost:
        """The cost model of a replica of `profile`."""
        return fitted_cost(self, async_scheduling=async_scheduling, roofline=profile.arithmetic)


@dataclass(frozen=True)
class FittedCost:
    """Cost model of one replica from fitted coefficients.

    A value: build it with `fitted_cost`. What grows along a segment, or by sequences, has whole
    picoseconds as coefficients, so that progressions are exact; the terms in T are rounded once
    and kept in tables.
    """

    settings: FittedSettings
    overlap: bool
    roofline: Arithmetic | None
    """What steps compute and move, where the device's ceilings are known."""
    decode_ps: int
    context_ps: int
    chunk_ps: int
    pair_ps: int
    prefill_context_ps: int
    host_step_ps: int
    host_sequence_ps: int
    decodes_table: list[int] = field(compare=False, repr=False)
    """By tokens of a step of decodes alone; -1: not computed yet."""
    tokens_table: list[int] = field(compare=False, repr=False)
    """By tokens of any other step."""

    def __reduce__(self) -> tuple[Callable[..., FittedCost], tuple[Any, ...]]:
        return _rebuilt, (self.settings, self.overlap, self.roofline)

    def progression(self, batch: Batch) -> tuple[int, int, int]:
        """See CostModel.progression.

        Kinks: prefill attention turning from memory- to compute-bound or back, and the device
        overtaking the host where scheduling is asynchronous.
        """
        decodes, chunk, steps = batch.decodes, batch.prefill_tokens, batch.horizon
        if decodes + chunk == 0:
            return 0, 0, steps
        prefills = len(batch.prefills)
        first = (
            self._tokens_ps(decodes + chunk, chunk == 0)
            + self.decode_ps * decodes
            + self.context_ps * batch.decode_context_tokens
            + self.chunk_ps * prefills
        )
        growth = self.context_ps * decodes
        if chunk:
            attention, attention_growth, steps = larger(
                self.pair_ps * batch.prefill_pairs,
                self.pair_ps * batch.prefill_pairs_growth,
                self.prefill_context_ps * batch.prefill_context_tokens,
                self.prefill_context_ps * chunk,
                steps,
            )
            first += attention
            growth += attention_growth
        host = self.host_step_ps + self.host_sequence_ps * (decodes + prefills)
        if not self.overlap:
            return first + host, growth, steps
        return larger(first, growth, host, 0, steps)

    def explain(self, batch: Batch) -> dict[str, float]:
        """Parts of the batch's next step in seconds; their sum is its duration.

        `host` is the CPU time that the device's work does not hide; `curve` may be negative.
        """
        tokens = batch.decodes + batch.prefill_tokens
        if tokens == 0:
            return {}
        settings, alone = self.settings, batch.prefill_tokens == 0
        graph = settings.graphs.size(tokens, alone)
        padded = graph or tokens
        parts = {
            "fixed": settings.step_s.value,
            "launches": 0.0 if graph else settings.eager_s.value,
            "linear layers": settings.linear_s(padded),
            "elementwise": settings.elementwise_token_s.value * padded,
        }
        parts["curve"] = self._tokens_ps(tokens, alone) / PICOSECONDS - sum(parts.values())
        prefill_ps = max(
            self.pair_ps * batch.prefill_pairs,
            self.prefill_context_ps * batch.prefill_context_tokens,
        )
        by_work = {
            "decodes": self.decode_ps * batch.decodes,
            "decode attention": self.context_ps * batch.decode_context_tokens,
            "chunks": self.chunk_ps * len(batch.prefills),
            "prefill attention": prefill_ps if batch.prefill_tokens else 0,
        }
        parts |= {name: part_ps / PICOSECONDS for name, part_ps in by_work.items()}
        host = (self.host_step_ps + self.host_sequence_ps * batch.sequences) / PICOSECONDS
        hidden = sum(parts.values()) if self.overlap else 0.0
        return parts | {"host": max(0.0, host - hidden)}

    def _tokens_ps(self, tokens: int, decodes_alone: bool) -> int:
        table = self.decodes_table if decodes_alone else self.tokens_table
        cost = table[tokens] if tokens < TABLE else -1
        if cost < 0:
            graph = self.settings.graphs.size(tokens, decodes_alone)
            eager_s = 0.0 if graph else self.settings.eager_s.value
            cost = round((eager_s + self.settings.tokens_s(graph or tokens)) * PICOSECONDS)
            if tokens < TABLE:
                table[tokens] = cost
        return cost


def fitted_cost(
    settings: FittedSettings, *, async_scheduling: bool, roofline: Arithmetic | None = None
) -> FittedCost:
    """Build the cost model.

    Args:
        settings: coefficients, curve and graphs.
        async_scheduling: the host prepares a step while the one before runs: the longer of host
            and device counts, otherwise their sum.
        roofline: FLOPs and bytes of the model's steps, for the picture of them.
    """

    def whole_ps(term: str) -> int:
        return round(settings.coefficient(term).value * PICOSECONDS)

    return FittedCost(
        settings=settings,
        overlap=async_scheduling,
        roofline=roofline,
        decode_ps=whole_ps("decode_s"),
        context_ps=whole_ps("context_s"),
        chunk_ps=whole_ps("chunk_s"),
        pair_ps=whole_ps("pair_s"),
        prefill_context_ps=whole_ps("prefill_context_s"),
        host_step_ps=whole_ps("host_step_s"),
        host_sequence_ps=whole_ps("host_sequence_s"),
        decodes_table=[-1] * TABLE,
        tokens_table=[-1] * TABLE,
    )


def _rebuilt(settings: FittedSettings, overlap: bool, roofline: Arithmetic | None) -> FittedCost:
    return fitted_cost(settings, async_scheduling=overlap, roofline=roofline)


def _on_line(places: tuple[float, ...], values: tuple[float, ...], at: float) -> float:
    """Straight lines through (place, value), flat before the first and beyond the last."""
    if at <= places[0]:
        return values[0]
    if at >= places[-1]:
        return values[-1]
    right = bisect_right(places, at)
    share = (at - places[right - 1]) / (places[right] - places[right - 1])
    return values[right - 1] + share * (values[right] - values[right - 1])


def rounded(value: float) -> float:
    """Six significant digits: what a profile's file holds."""
    return float(f"{value:.6g}")
