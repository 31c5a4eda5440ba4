"""Which replica a request goes to: a router is a small object in a dict."""

from __future__ import annotations

from typing import Any, Final

from engine.named import chosen
from sim.routing.affinity import SessionAffinity
from sim.routing.preble import Preble
from sim.routing.predicted import KVCentric, PredictedLatency
from sim.routing.prefix import PrefixApproximate, PrefixExact
from sim.routing.protocol import Router
from sim.routing.scored import LlmdScorers
from sim.routing.sglang import SglangCacheAware
from sim.routing.spread import (
    LeastKV,
    LeastRequests,
    LeastTokens,
    PowerOfTwo,
    Random,
    RoundRobin,
    Weighted,
)
from sim.routing.view import FleetView

ROUTERS: Final[dict[str, Any]] = {
    "round-robin": RoundRobin,
    "random": Random,
    "weighted": Weighted,
    "least-requests": LeastRequests,
    "least-tokens": LeastTokens,
    "least-kv": LeastKV,
    "power-of-two": PowerOfTwo,
    "session-affinity": SessionAffinity,
    "prefix-exact": PrefixExact,
    "prefix-approximate": PrefixApproximate,
    "sglang": SglangCacheAware,
    "llm-d": LlmdScorers,
    "preble": Preble,
    "predicted-latency": PredictedLatency,
    "kv-centric": KVCentric,
}
"""By name; each is made with a FleetView, and its parameters are keyword-only arguments."""


def router_of(spec: str, view: FleetView) -> Router:
    """The router that `spec` names (see engine.named), for the replicas in `view`.

    Raises:
        ConfigError: there is none of that name, or a parameter is wrong.
    """
    return chosen("router", spec, ROUTERS)(view)
