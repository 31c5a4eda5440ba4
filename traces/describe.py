"""What is in a trace, in numbers."""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import takewhile

from traces.request import Request

PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True)
class Tokens:
    """Distribution of a token count over requests; percentiles are exact, by nearest rank."""

    total: int
    mean: float
    minimum: int
    maximum: int
    percentiles: dict[int, int]
    """By percentage, for 50, 90, 95 and 99."""


@dataclass(frozen=True)
class Reuse:
    """What a prefix cache that never forgets would find, in whole blocks of `block_tokens`."""

    block_tokens: tuple[int, ...]
    """Tokens of the trace's hashes; several if its requests differ."""
    token_share: float
    """Prompt tokens found / prompt tokens of all requests."""
    block_share: float
    """Whole prompt blocks found / whole prompt blocks of the requests that have hashes."""
    mean_request_share: float
    """Mean over requests of the share of the prompt that is found."""


@dataclass(frozen=True)
class Description:
    """A trace in numbers. Rates count from the first arrival to the last."""

    requests: int
    span_s: float
    """Last arrival - first arrival."""
    mean_rate_per_s: float
    """0 when all arrive at once."""
    peak_rate_per_s: int
    """Most arrivals in a second of the trace's clock."""
    peak_rate_per_min: int
    """Most arrivals in a minute of the trace's clock."""
    interarrival_cv: float
    """Standard deviation / mean of the gaps between arrivals: 1 for Poisson, more for bursts."""
    prompt_tokens: Tokens
    output_tokens: Tokens
    sessions: int
    requests_in_sessions: int
    tenants: dict[str, int]
    """Requests of each tenant."""
    slo_classes: dict[str, int]
    """Requests of each SLO class."""
    reuse: Reuse


def describe(requests: Iterable[Request]) -> Description:
    """Read requests once and sum them up.

    Memory grows with the distinct content hashes, sessions and token counts, not with requests.
    Raises ValueError for no requests.
    """
    prompts: Counter[int] = Counter()
    outputs: Counter[int] = Counter()
    tenants: Counter[str] = Counter()
    slo_classes: Counter[str] = Counter()
    sessions: set[int] = set()
    in_sessions = 0
    pace = _Pace()
    cache = _EndlessCache()
    for request in requests:
        pace.add(request.arrival_s)
        prompts[request.prompt_tokens] += 1
        outputs[request.output_tokens] += 1
        tenants[request.tenant] += 1
        slo_classes[request.slo_class] += 1
        if request.session_id >= 0:
            sessions.add(request.session_id)
            in_sessions += 1
        cache.serve(request)
    if not prompts:
        raise ValueError("no requests to describe")
    return Description(
        requests=pace.requests,
        span_s=pace.span_s,
        mean_rate_per_s=(pace.requests - 1) / pace.span_s if pace.span_s else 0.0,
        peak_rate_per_s=pace.second.peak,
        peak_rate_per_min=pace.minute.peak,
        interarrival_cv=pace.interarrival_cv,
        prompt_tokens=_tokens(prompts),
        output_tokens=_tokens(outputs),
        sessions=len(sessions),
        requests_in_sessions=in_sessions,
        tenants=dict(tenants.most_common()),
        slo_classes=dict(slo_classes.most_common()),
        reuse=cache.reuse(pace.requests),
    )


class _Peak:
    """Most arrivals in any one bin; arrivals come in order."""

    def __init__(self, bin_s: float):
        self._bin_s = bin_s
        self._bin = -1
        self._count = 0
        self.peak = 0

    def add(self, arrival_s: float) -> None:
        now = int(arrival_s // self._bin_s)
        self._count = self._count + 1 if now == self._bin else 1
        self._bin = now
        self.peak = max(self.peak, self._count)


class _Pace:
    """Arrivals: how many, how fast, how even (Welford's sums over the gaps)."""

    def __init__(self) -> None:
        self.requests = 0
        self.second = _Peak(1.0)
        self.minute = _Peak(60.0)
        self._first_s = self._last_s = 0.0
        self._mean_gap_s = self._squares = 0.0

    def add(self, arrival_s: float) -> None:
        if self.requests:
            gap_s = arrival_s - self._last_s
            off_s = gap_s - self._mean_gap_s
            self._mean_gap_s += off_s / self.requests
            self._squares += off_s * (gap_s - self._mean_gap_s)
        else:
            self._first_s = arrival_s
        self._last_s = arrival_s
        self.requests += 1
        self.second.add(arrival_s)
        self.minute.add(arrival_s)

    @property
    def span_s(self) -> float:
        return self._last_s - self._first_s

    @property
    def interarrival_cv(self) -> float:
        gaps = self.requests - 1
        if gaps < 1 or not self._mean_gap_s:
            return 0.0
        return math.sqrt(self._squares / gaps) / self._mean_gap_s


class _EndlessCache:
    """Every whole block ever computed; hashes are chained, so a match ends at the first miss."""

    def __init__(self) -> None:
        self._seen: set[int] = set()
        self._block_tokens: set[int] = set()
        self._tokens = self._tokens_found = 0
        self._blocks = self._blocks_found = 0
        self._shares = 0.0

    def serve(self, request: Request) -> None:
        prompt_tokens, hash_tokens = request.prompt_tokens, request.hash_tokens
        self._tokens += prompt_tokens
        if not request.hashes:
            return
        self._block_tokens.add(hash_tokens)
        whole = request.hashes[: request.hashed_tokens // hash_tokens]
        in_prompt = whole[: prompt_tokens // hash_tokens]
        found = sum(1 for _ in takewhile(self._seen.__contains__, in_prompt))
        self._seen.update(whole[found:])
        self._blocks += len(in_prompt)
        self._blocks_found += found
        self._tokens_found += found * hash_tokens
        self._shares += found * hash_tokens / prompt_tokens

    def reuse(self, requests: int) -> Reuse:
        return Reuse(
            block_tokens=tuple(sorted(self._block_tokens)),
            token_share=self._tokens_found / self._tokens,
            block_share=self._blocks_found / self._blocks if self._blocks else 0.0,
            mean_request_share=self._shares / requests,
        )


def _tokens(counted: Counter[int]) -> Tokens:
    requests = counted.total()
    total = sum(tokens * times for tokens, times in counted.items())
    ordered = sorted(counted)
    percentiles: dict[int, int] = {}
    below = 0
    ranks = iter(PERCENTILES)
    rank = next(ranks)
    for tokens in ordered:
        below += counted[tokens]
        while rank and below * 100 >= rank * requests:
            percentiles[rank] = tokens
            rank = next(ranks, 0)
    return Tokens(total, total / requests, ordered[0], ordered[-1], percentiles)
