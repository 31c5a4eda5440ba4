"""A trace through caches of every size and policy, and Belady's bound on all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from itertools import combinations, pairwise
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from pydantic import Field, ValidationInfo, field_validator, model_validator

from engine.eviction import EVICTION
from engine.future import KnownFuture, Uses, needs_future
from engine.named import known_policy
from engine.radix.ranks import RANKS
from sim.study.caches import BlockCache, Cache, Tallies, Tally, TreeCache, tokens_left
from sim.study.spread import SPREADS
from traces.errors import ConfigError
from traces.pipeline import TraceSettings
from traces.request import Request
from traces.settings import Settings, known_name
from traces.version import installed_version

if TYPE_CHECKING:
    import plotly.graph_objects as go
    import polars as pl

BOUND: Final = "belady"
"""The policy that is the bound, in every study."""

APART: Final = 0.001
"""Two policies whose token hit ratios differ by less share a rank."""

Progress = Callable[[int], None]


class StudySettings(Settings):
    """What goes through which caches. Equal settings give equal results."""

    trace: TraceSettings = TraceSettings()
    eviction: tuple[str, ...] = Field(default=("lru",), min_length=1)
    """Policies: names in engine.eviction.EVICTION, or with `index: radix` in
    engine.radix.ranks.RANKS."""
    capacity_tokens: tuple[int | None, ...] = Field(default=(None,), min_length=1)
    """Room of each cache, in tokens; None: without limit."""
    block_tokens: int = Field(default=16, ge=1, validate_default=True)
    """Tokens of a block, or of a page of the tree."""
    index: Literal["blocks", "radix"] = "blocks"
    """blocks: vLLM's cache, the engine's own; radix: SGLang's tree."""
    replicas: int = Field(default=1, ge=1)
    """Caches, each of the room above."""
    router: str = "round-robin"
    """How requests are spread over them: a name in sim.study.spread.SPREADS."""
    answers: bool = False
    """Answers take room too where the trace does not know their content."""
    context_tokens: int = Field(default=0, ge=0)
    """So many tokens of context cost as much to attend to as everything else that a token costs;
    0: attention counts nothing."""
    seed: int = Field(default=0, ge=0)

    @field_validator("router")
    @classmethod
    def _known_router(cls, name: str) -> str:
        return known_name("router", name, SPREADS)

    @field_validator("capacity_tokens")
    @classmethod
    def _has_room(cls, capacities: tuple[int | None, ...]) -> tuple[int | None, ...]:
        for tokens in capacities:
            if tokens is not None and tokens < 1:
                raise ValueError("must be at least 1 token each")
        return tuple(sorted(set(capacities), key=_or_infinity))

    @field_validator("block_tokens")
    @classmethod
    def _fits(cls, block_tokens: int, info: ValidationInfo) -> int:
        for tokens in info.data.get("capacity_tokens", ()):
            if tokens is not None and tokens < block_tokens:
                raise ValueError(f"a capacity of {tokens} tokens holds no block of so many tokens")
        return block_tokens

    @model_validator(mode="after")
    def _check(self) -> StudySettings:
        table = EVICTION if self.index == "blocks" else RANKS
        for spec in self.eviction:
            known_policy("eviction policy" if table is EVICTION else "radix rank", spec, table)
        return self

    def policies(self) -> tuple[str, ...]:
        """What is asked for, once each, and the bound at the end."""
        asked = dict.fromkeys(spec for spec in self.eviction if spec != BOUND)
        return (*asked, BOUND)

    @property
    def limited(self) -> list[int]:
        """The capacities that are some, in ascending order."""
        return [tokens for tokens in self.capacity_tokens if tokens is not None]


@dataclass(frozen=True)
class Row:
    """One policy at one capacity."""

    eviction: str
    capacity_tokens: int | None
    tallies: Tallies
    of_bound: float | None = None
    """Share of the tokens that Belady's policy hits there; None of nothing."""

    @property
    def total(self) -> Tally:
        """Of all requests."""
        return self.tallies.total

    @property
    def token_hit_ratio(self) -> float:
        """Hit tokens by prompt tokens."""
        return self.total.ratios()["token_hit_ratio"]


@dataclass(frozen=True)
class Flip:
    """Two policies that change places between two capacities, and by how much they were ahead."""

    ahead_small: str
    ahead_large: str
    small_tokens: int
    large_tokens: int | None
    lead_small: float
    lead_large: float

    def __str__(self) -> str:
        small, large = capacity(self.small_tokens), capacity(self.large_tokens)
        return (
            f"{self.ahead_small} is ahead of {self.ahead_large} at {small} tokens"
            f" (by {100 * self.lead_small:.1f} points of token hit ratio),"
            f" behind it at {large} (by {100 * self.lead_large:.1f})"
        )


@dataclass(frozen=True, repr=False)
class Study:
    """What came of it: the bound is the last row of each capacity."""

    settings: StudySettings
    rows: tuple[Row, ...]

    def __repr__(self) -> str:
        policies, capacities = len(self.settings.policies()), len(self.settings.capacity_tokens)
        return f"Study({self.settings.trace.path}: policies={policies}, capacities={capacities})"

    def row(self, eviction: str, capacity_tokens: int | None) -> Row:
        """The row of a policy at a capacity; KeyError if it was not asked for."""
        for row in self.rows:
            if (row.eviction, row.capacity_tokens) == (eviction, capacity_tokens):
                return row
        raise KeyError(f"no {eviction} at {capacity(capacity_tokens)} tokens in this study")

    @cached_property
    def alike(self) -> list[list[str]]:
        """The policies, those together that hit as many tokens as each other at every capacity."""
        groups: dict[tuple[int, ...], list[str]] = {}
        for policy in self.settings.policies():
            if policy != BOUND:
                rows = [self.row(policy, tokens) for tokens in self.settings.capacity_tokens]
                groups.setdefault(tuple(row.total.hit_tokens for row in rows), []).append(policy)
        return list(groups.values())

    @cached_property
    def flips(self) -> list[Flip]:
        """Where the rank of two policies depends on the capacity."""
        found: list[Flip] = []
        policies = [spec for spec in self.settings.policies() if spec != BOUND]
        for one, other in combinations(policies, 2):
            leads = [
                (
                    tokens,
                    self.row(one, tokens).token_hit_ratio - self.row(other, tokens).token_hit_ratio,
                )
                for tokens in self.settings.capacity_tokens
            ]
            apart = [(tokens, lead) for tokens, lead in leads if abs(lead) >= APART]
            for (small, before), (large, after) in pairwise(apart):
                if before * after < 0 and small is not None:
                    first, second = (one, other) if before > 0 else (other, one)
                    found.append(Flip(first, second, small, large, abs(before), abs(after)))
        return found

    @property
    def frame(self) -> pl.DataFrame:
        """A row a policy and capacity, with counts, ratios and the share of the bound reached."""
        import polars as pl

        return pl.DataFrame([_flat(row) for row in self.rows], infer_schema_length=None)

    def as_json(self) -> dict[str, Any]:
        """Settings, rows and flips, for json.dump."""
        return {
            "kvcast": installed_version(),
            "settings": self.settings.model_dump(mode="json"),
            "rows": [
                _flat(row)
                | {"tenants": {name: _counts(tally) for name, tally in row.tallies.tenants.items()}}
                for row in self.rows
            ],
            "flips": [asdict(flip) | {"said": str(flip)} for flip in self.flips],
        }

    def plot(self, name: str | None = None) -> go.Figure | dict[str, go.Figure]:
        """The picture `name` of the page, or all of them; raises KeyError for an unknown one."""
        from sim.report.chosen import chosen
        from sim.study.pictures import pictures

        return chosen(pictures(self), name)

    def _repr_html_(self) -> str:
        from sim.study.page import hit_tables

        return hit_tables(self)


def cache_study(
    settings: StudySettings,
    requests: Iterable[Request] | None = None,
    *,
    jobs: int = 1,
    progress: Progress | None = None,
) -> Study:
    """Serve a trace from caches, one request at a time, each over before the next.

    The last policy is Belady's in any case: for one cache a bound, for several the bound on one
    cache with the room of all of them.

    Args:
        settings: which trace and which caches.
        requests: served instead of the settings' trace, in arrival order, numbered from 0.
        jobs: processes to share the policies; their number changes nothing but the time.
        progress: told after each policy how many are done.

    Raises:
        ConfigError, TraceError: settings or a trace that cannot be used.
    """
    if requests is not None:
        requests = tuple(requests)
    policies = settings.policies()
    served: list[list[Tallies]] = []
    for tallies in _served(partial(serve_policy, settings, requests), policies, jobs):
        served.append(tallies)
        if progress is not None:
            progress(len(served))
    bounds = served[-1]
    rows: list[Row] = []
    for at, tokens in enumerate(settings.capacity_tokens):
        most = bounds[at].total.hit_tokens
        for policy, tallies in zip(policies, served, strict=True):
            share = tallies[at].total.hit_tokens / most if most else None
            rows.append(Row(policy, tokens, tallies[at], share))
    return Study(settings, tuple(rows))


def serve_policy(
    settings: StudySettings, requests: Sequence[Request] | None, policy: str
) -> list[Tallies]:
    """What comes of each capacity under one policy, from one pass over the trace (two where the
    policy needs to know what is to come)."""
    trace: Iterable[Request] = settings.trace.open(settings.seed) if requests is None else requests
    fleets = list(_fleets(settings, trace, policy))
    for request in trace:
        for fleet in fleets:
            fleet.serve(request)
    return [fleet.tallies for fleet in fleets]


class Fleet:
    """Caches of one size, and what came of the requests that were spread over them."""

    def __init__(self, caches: Sequence[Cache], settings: StudySettings) -> None:
        self._caches = caches
        self._spread = SPREADS[settings.router](caches, np.random.default_rng(settings.seed))
        self._block_tokens = settings.block_tokens
        self._context_tokens = settings.context_tokens
        self.tallies = Tallies()

    def serve(self, request: Request) -> None:
        """Serve a request from one of the caches and count it."""
        cache = self._caches[self._spread(request) if len(self._caches) > 1 else 0]
        hit_tokens = cache.serve(request)
        self.tallies.add(request, hit_tokens, self._block_tokens, self._context_tokens)


def _fleets(settings: StudySettings, trace: Iterable[Request], policy: str) -> Iterator[Fleet]:
    """Empty caches, for each capacity."""
    if settings.index == "radix" and policy != BOUND:
        for tokens in settings.capacity_tokens:
            tree = partial(
                TreeCache, tokens, settings.block_tokens, policy, answers=settings.answers
            )
            yield Fleet([tree() for _ in range(settings.replicas)], settings)
        return
    ahead = needs_future(policy)
    if ahead and policy != BOUND and settings.replicas > 1:
        raise ConfigError(
            f"eviction: {policy} needs to know what each cache will be asked for, which depends on"
            " the router; expected replicas: 1"
        )
    known: dict[int | None, Uses] = {}
    largest = _largest_tokens(trace, settings) if ahead else 0
    for tokens in settings.capacity_tokens:
        room, limit = tokens, tokens
        if ahead:
            if tokens is not None:
                room = tokens * settings.replicas
            limit = None if tokens is None or largest <= _whole(tokens, settings) else tokens
            if limit not in known:
                known[limit] = _uses(trace, settings, limit)
        caches = [
            BlockCache(
                room,
                settings.block_tokens,
                policy,
                context_tokens=settings.context_tokens,
                future=KnownFuture(known[limit]) if ahead else None,
                answers=settings.answers,
                largest_tokens=tokens,
            )
            for _ in range(1 if ahead else settings.replicas)
        ]
        yield Fleet(caches, settings)


def _whole(tokens: int, settings: StudySettings) -> int:
    """Tokens of whole blocks."""
    return tokens - tokens % settings.block_tokens


def _largest_tokens(trace: Iterable[Request], settings: StudySettings) -> int:
    return max((tokens_left(request, settings.answers) for request in trace), default=0)


def _uses(trace: Iterable[Request], settings: StudySettings, limit: int | None) -> Uses:
    """What will be asked of a cache that serves requests of at most `limit` tokens."""
    if limit is None:
        return Uses(trace, settings.block_tokens)
    room = _whole(limit, settings)
    return Uses(
        trace,
        settings.block_tokens,
        admitted=lambda request: tokens_left(request, settings.answers) <= room,
    )


def _served(
    serve: Callable[[str], list[Tallies]], policies: Sequence[str], jobs: int
) -> Iterator[list[Tallies]]:
    if jobs == 1:
        yield from map(serve, policies)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        yield from pool.map(serve, policies)


def capacity(tokens: int | None) -> str:
    """A capacity as people write it: 3M, 512k, 5000, inf; see parse_capacity."""
    if tokens is None:
        return "inf"
    for size, suffix in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if tokens >= size and tokens * 1000 % size == 0:
            return f"{tokens / size:g}{suffix}"
    return str(tokens)


def parse_capacity(text: str) -> int | None:
    """`3M`, `512k`, `1.5G`, `5000` in tokens; None for `inf`. Raises ConfigError."""
    asked = text.strip()
    if asked in ("inf", "infinite"):
        return None
    size = {"k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9}.get(asked[-1:], 1)
    number = asked if size == 1 else asked[:-1]
    try:
        tokens = float(number) * size
        whole = int(tokens)
    except (ValueError, OverflowError):
        tokens, whole = 0.5, 0
    if tokens != whole or whole < 1:
        raise ConfigError(
            f"--capacity {text or repr(text)}: is no number of tokens; expected one like 3M, 512k,"
            " 5000 or inf"
        )
    return whole


def _or_infinity(tokens: int | None) -> float:
    return float("inf") if tokens is None else tokens


def _counts(tally: Tally) -> dict[str, Any]:
    return {
        "requests": tally.requests,
        "requests_with_hit": tally.with_hit,
        "bypassed": tally.bypassed,
        "prompt_tokens": tally.prompt_tokens,
        "hit_tokens": tally.hit_tokens,
        "prompt_blocks": tally.prompt_blocks,
        "hit_blocks": tally.hit_blocks,
    } | tally.ratios()


def _flat(row: Row) -> dict[str, Any]:
    return {
        "eviction": row.eviction,
        "capacity_tokens": row.capacity_tokens,
        **_counts(row.total),
        "of_bound": row.of_bound,
    }
