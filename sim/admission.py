"""Who is let in at the cluster's door. A policy is a small object in a dict."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol

from calibration.costs import PICOSECONDS, CostModel
from engine.batch import Batch
from engine.named import chosen
from engine.slo import SloSettings
from sim.routing.view import FleetView
from traces.errors import ConfigError
from traces.request import Request

MICRO: Final = 1_000_000
"""Rates are kept in whole millionths of a token a second, so that sums over time are exact."""

WINDOW_PS: Final = 60 * PICOSECONDS


class Admission(Protocol):
    """Says of each arrival whether it is let in; asked last, after everything else agreed.

    It may have `done(replica, request)`, which is called when a request that was let in ends, one
    way or another.
    """

    def refuse(self, request: Request, replica: int) -> str:
        """Why `request`, which would go to `replica`, is rejected; an empty string lets it in.

        Rejections are counted by reason, so a reason should not tell requests apart.
        """
        ...


class Door:
    """What an admission policy may know: the fleet as routers see it, and what was promised."""

    def __init__(self, fleet: FleetView, cost: CostModel, slo: SloSettings) -> None:
        """A door of `fleet`, whose steps take what `cost` says (without noise).

        `fleet` has no replicas yet: what it is to keep account of must be asked for before.
        """
        self.fleet: FleetView = fleet
        self.slo: SloSettings = slo
        self._cost: CostModel = cost

    @property
    def now_ps(self) -> int:
        """The time, in picoseconds."""
        return self.fleet.now_ps

    def foresee(self) -> None:
        """Keep account of prefill work from the start, for `predicted_ttft_ps`."""
        _ = self.fleet.backlog

    def predicted_ttft_ps(self, request: Request, replica: int) -> int:
        """TTFT of `request`, which just arrived, on `replica`: see FleetView."""
        return self.fleet.predicted_ttft_ps(replica, request)

    def predicted_step_ps(self, decodes: int, context_tokens: int) -> int:
        """What a step of `decodes` sequences takes that attend to `context_tokens` in sum."""
        batch = Batch()
        batch.decoding = batch.decodes = decodes
        batch.decode_context_tokens = context_tokens
        return self._cost.progression(batch)[0]


class Open:
    """Everybody is let in: the default.

    What waits is bounded by `cluster.max_queue` alone, and by what clients put up with
    (`cluster.request_timeout_s`). Under overload the queue grows, and with it every TTFT.
    """

    def __init__(self, view: Door) -> None:
        pass

    def refuse(self, request: Request, replica: int) -> str:
        """Nobody is refused."""
        return ""


class TokenBucket:
    """Each tenant has a bucket that fills with `tokens_per_s` up to `burst_tokens`.

    A request takes its tokens out, or is rejected if there are too few: of its prompt, or with
    `count=total` those of its answer too, as a provider counts the stated maximum. In any span of t
    seconds a tenant gets at most `tokens_per_s` × t + `burst_tokens`, and a request of more than
    `burst_tokens` never passes. `token-bucket:gold=50000` gives a tenant a rate of its own. Source:
    Turner, New Directions in Communications (or Which Way to the Information Age?), 1986. Knows
    no load: it rejects while GPUs are idle and lets too much in while they are not.
    """

    def __init__(
        self,
        view: Door,
        *,
        tokens_per_s: float = 10_000.0,
        burst_tokens: int = 100_000,
        count: str = "prompt",
        **rate: float,
    ) -> None:
        for name, tokens in (("tokens_per_s", tokens_per_s), *rate.items()):
            _at_least(f"token-bucket': {name}", tokens, 0)
        _at_least("token-bucket': burst_tokens", burst_tokens, 1)
        _one_of("token-bucket': count", count, ("prompt", "total"))
        self._view: Door = view
        self._rate: int = round(tokens_per_s * MICRO)
        self._rates: dict[str, int] = {
            tenant: round(tokens * MICRO) for tenant, tokens in rate.items()
        }
        self._full: int = burst_tokens * MICRO * PICOSECONDS
        self._total: bool = count == "total"
        self._levels: dict[str, tuple[int, int]] = {}
        """By tenant: what was in the bucket, and when; full for who is not here."""
        self._reason: str = (
            f"the tenant's token bucket is too low (admission token-bucket, {count} tokens)"
        )

    def refuse(self, request: Request, replica: int) -> str:
        """Refuse what asks for more than is in its tenant's bucket; take it out otherwise."""
        now, tenant = self._view.now_ps, request.tenant
        level, since = self._levels.get(tenant, (self._full, now))
        level = min(level + self._rates.get(tenant, self._rate) * (now - since), self._full)
        tokens = request.prompt_tokens
        if self._total:
            tokens += request.output_tokens
        asked = tokens * MICRO * PICOSECONDS
        if asked > level:
            return self._reason
        self._levels[tenant] = (level - asked, now)
        return ""


class RequestsPerMinute:
    """At most `requests` of each tenant are let in a minute.

    With `window=fixed` minutes are counted from the start of the run, so twice as many may come
    around the turn of a minute; with `window=sliding` no 60 seconds have more. `rpm:gold=600` gives
    a tenant a limit of its own. The baseline RPM of Sheng et al., Fairness in Serving Large
    Language Models, OSDI'24. Counts a request of 10 tokens like one of 100,000, and rejects while
    GPUs are idle.
    """

    def __init__(
        self, view: Door, *, requests: int = 60, window: str = "sliding", **limit: int
    ) -> None:
        for name, number in (("requests", requests), *limit.items()):
            _at_least(f"rpm': {name}", number, 0)
        _one_of("rpm': window", window, ("sliding", "fixed"))
        self._view: Door = view
        self._requests: int = requests
        self._limits: dict[str, int] = dict(limit)
        self._fixed: bool = window == "fixed"
        self._admitted: dict[str, deque[int]] = {}
        """When the requests of a tenant's window were let in."""
        self._reason: str = (
            f"the tenant has had its requests of this minute (admission rpm, {window} window)"
        )

    def refuse(self, request: Request, replica: int) -> str:
        """Refuse who has had as many in this window as it may."""
        now, tenant = self._view.now_ps, request.tenant
        admitted = self._admitted.setdefault(tenant, deque())
        begin = now - now % WINDOW_PS if self._fixed else now - WINDOW_PS + 1
        while admitted and admitted[0] < begin:
            admitted.popleft()
        if len(admitted) >= self._limits.get(tenant, self._requests):
            return self._reason
        admitted.append(now)
        return ""


class EarlyRejection:
    """Rejects at once what is predicted to get its first token too late.

    The prediction is the cost model's: the prefill work that waits on the chosen replica and the
    request's own, what is cached left out. It knows nothing of decodes that share the steps, of
    full pools and of other orders than first come, first served. `ttft_s` is the limit; 0: the
    scenario's `slo.ttft_s`. Source: Qin et al., Mooncake, arXiv:2407.00079 (FAST'25), early
    rejection. No work is spent on requests that are lost already; long prompts are the first to be
    rejected.
    """

    def __init__(self, view: Door, *, ttft_s: float = 0.0) -> None:
        limit_s = _limit("early-reject", "ttft_s", ttft_s, view.slo.ttft_s)
        view.foresee()
        self._view: Door = view
        self._limit_ps: int = round(limit_s * PICOSECONDS)
        self._reason: str = f"the predicted TTFT is above {limit_s:g} s (admission early-reject)"

    def refuse(self, request: Request, replica: int) -> str:
        """Refuse what would come too late."""
        late = self._view.predicted_ttft_ps(request, replica) > self._limit_ps
        return self._reason if late else ""


class PredictedLoadRejection:
    """Early rejection by TTFT, and by the decode load that is predicted for when prefill is done.

    A request is also rejected if, once its prompt is computed, a decode step of its replica is
    predicted to take longer than `tpot_s` (0: the scenario's `slo.tpot_s`): with all that were
    let in and will not have ended by then. Every decoding is taken to last `decode_s` (0: as long
    as those that have ended took in the mean; until one has, for ever). Source: Qin et al.,
    Mooncake, arXiv:2407.00079 (FAST'25), early rejection based on prediction, of a replica that
    prefills and decodes: judging by the load of now instead lets in and rejects in waves. Costs a
    walk over the replica's requests.
    """

    def __init__(
        self, view: Door, *, ttft_s: float = 0.0, tpot_s: float = 0.0, decode_s: float = 0.0
    ) -> None:
        _at_least("early-reject-load': decode_s", decode_s, 0)
        tpot_limit_s = _limit("early-reject-load", "tpot_s", tpot_s, view.slo.tpot_s)
        ttft_limit_s = _limit("early-reject-load", "ttft_s", ttft_s, view.slo.ttft_s)
        view.foresee()
        self._view: Door = view
        self._ttft_ps: int = round(ttft_limit_s * PICOSECONDS)
        self._tpot_ps: int = round(tpot_limit_s * PICOSECONDS)
        self._decode_ps: int = round(decode_s * PICOSECONDS)
        self._open: dict[int, dict[int, tuple[int, int]]] = {}
        """By replica and request: predicted end of its prefill, and its prompt's tokens."""
        self._ended: int = 0
        self._decoded_ps: int = 0
        """How long all that ended have decoded, from the predicted end of prefill on."""
        self._late: str = f"the predicted TTFT is above {ttft_limit_s:g} s (early-reject-load)"
        self._full: str = (
            f"the predicted time between tokens is above {tpot_limit_s:g} s (early-reject-load)"
        )

    def refuse(self, request: Request, replica: int) -> str:
        """Refuse what would come too late, or make decoding too slow."""
        now = self._view.now_ps
        ttft_ps = self._view.predicted_ttft_ps(request, replica)
        if ttft_ps > self._ttft_ps:
            return self._late
        prefilled = now + ttft_ps
        lasts_ps = self._lasts_ps()
        decodes, context_tokens = 1, request.prompt_tokens
        there = self._open.setdefault(replica, {})
        for began, prompt_tokens in there.values():
            if began <= prefilled and (lasts_ps is None or began + lasts_ps > prefilled):
                decodes += 1
                context_tokens += prompt_tokens
        if self._view.predicted_step_ps(decodes, context_tokens) > self._tpot_ps:
            return self._full
        there[request.request_id] = (prefilled, request.prompt_tokens)
        return ""

    def done(self, replica: int, request: Request) -> None:
        """Learn how long decoding takes."""
        began, _ = self._open[replica].pop(request.request_id)
        self._ended += 1
        self._decoded_ps += max(self._view.now_ps - began, 0)

    def _lasts_ps(self) -> int | None:
        if self._decode_ps:
            return self._decode_ps
        return self._decoded_ps // self._ended if self._ended else None


ADMISSION: Final[dict[str, Callable[..., Admission]]] = {
    "everybody": Open,
    "token-bucket": TokenBucket,
    "rpm": RequestsPerMinute,
    "early-reject": EarlyRejection,
    "early-reject-load": PredictedLoadRejection,
}
"""By name; each is made with a Door, and its parameters are keyword-only arguments."""


def admission_policy(spec: str, view: Door) -> Admission | None:
    """The policy that `spec` names (see engine.named); None where everybody is let in.

    Raises:
        ConfigError: there is none of that name, or a parameter is wrong.
    """
    policy: Any = chosen("admission", spec, ADMISSION)
    return None if policy is Open else policy(view)


def _limit(name: str, parameter: str, stated_s: float, scenario_s: float | None) -> float:
    _at_least(f"{name}': {parameter}", stated_s, 0)
    if stated_s:
        return stated_s
    if scenario_s is None:
        raise ConfigError(
            f"admission '{name}': has no limit to keep; expected {name}:{parameter}=SECONDS, or"
            f" slo.{parameter}"
        )
    return scenario_s


def _at_least(what: str, value: float, least: float) -> None:
    if value < least:
        raise ConfigError(f"admission '{what} must be at least {least:g}, got {value:g}")


def _one_of(what: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(f"admission '{what} must be {' or '.join(known)}, got '{value}'")
