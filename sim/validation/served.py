"""What one side, real or simulated, did for its requests."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from traces.errors import ConfigError

if TYPE_CHECKING:
    import polars as pl

Floats = NDArray[np.float64]
Origin = Literal["queued", "arrival"]
"""Where TTFT and end-to-end latency are counted from."""

LATENCIES: Final = {
    "ttft": "Time to first token",
    "tpot": "Time per output token",
    "e2e": "End to end",
    "queue": "Queue wait",
}


@dataclass(frozen=True, slots=True)
class Served:
    """Answered requests, [requests] each, by request id; times in seconds from the run's start."""

    request_id: NDArray[np.int64]
    arrival_s: Floats
    queued_s: Floats
    """When the scheduler saw it first; NaN: not known."""
    admitted_s: Floats
    """When the scheduler was called that first admitted it; NaN: not known."""
    first_token_s: Floats
    finish_s: Floats
    tokens: NDArray[np.int64]
    """Of the answer."""

    def __len__(self) -> int:
        return len(self.request_id)

    def taken(self, index: NDArray[Any]) -> Served:
        """The requests at `index`: places, perhaps repeated, or a mask."""
        return replace(self, **{name: getattr(self, name)[index] for name in self.__slots__})

    def knows(self, moment: Literal["queued_s", "admitted_s"]) -> bool:
        """Whether that moment is known of every request."""
        return not bool(np.isnan(getattr(self, moment)).any())

    def latencies(self, origin: Origin) -> dict[str, Floats]:
        """Each of LATENCIES that is known, seconds, [requests].

        TTFT and end to end count from `origin`. TPOT is (finish - first token) / (tokens - 1), NaN
        for a single token. Queue wait is from being seen by the scheduler to being admitted.
        """
        begin_s = self.queued_s if origin == "queued" else self.arrival_s
        gaps = np.where(self.tokens > 1, self.tokens - 1.0, np.nan)
        found = {
            "ttft": self.first_token_s - begin_s,
            "tpot": (self.finish_s - self.first_token_s) / gaps,
            "e2e": self.finish_s - begin_s,
        }
        if self.knows("queued_s") and self.knows("admitted_s"):
            found["queue"] = self.admitted_s - self.queued_s
        return found

    def throughput(self) -> dict[str, float]:
        """Answered requests and their tokens a second, from first arrival to last finish."""
        span_s = max(float(self.finish_s.max() - self.arrival_s.min()), 1e-12)
        return {
            "requests_per_s": len(self) / span_s,
            "output_tokens_per_s": float(self.tokens.sum()) / span_s,
        }


def of_frame(frame: pl.DataFrame) -> Served:
    """The answered requests of a requests.parquet, or of an imported run's frame."""
    import polars as pl

    names = {
        "admitted_s": "admitted_s" if "admitted_s" in frame.columns else "scheduled_s",
        "tokens": "generated_tokens" if "generated_tokens" in frame.columns else "output_tokens",
    }
    if "outcome" in frame.columns:
        frame = frame.filter(pl.col("outcome").is_in(["finished", "truncated"]))
    frame = frame.sort("request_id")
    column = {name: frame[names.get(name, name)] for name in Served.__slots__}
    whole = ("request_id", "tokens")
    return Served(
        **{
            name: values.cast(pl.Int64 if name in whole else pl.Float64).to_numpy()
            for name, values in column.items()
        }
    )


def paired(simulated: Served, real: Served) -> tuple[Served, Served]:
    """The requests that both sides answered, in one order.

    Raises:
        ConfigError: there is none, or they answered with different numbers of tokens.
    """
    both, here, there = np.intersect1d(
        simulated.request_id, real.request_id, assume_unique=True, return_indices=True
    )
    if not len(both):
        raise ConfigError("no request was answered by both the engine and the simulator")
    simulated, real = simulated.taken(here), real.taken(there)
    differ = np.flatnonzero(simulated.tokens != real.tokens)
    if len(differ):
        first = int(differ[0])
        raise ConfigError(
            f"request {both[first]}: the engine answered with {real.tokens[first]} tokens, the"
            f" simulator with {simulated.tokens[first]}; expected the same limit"
            " (scheduler.max_model_len) on both"
        )
    return simulated, real
