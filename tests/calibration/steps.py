"""Made-up measurements: a random design of steps, timed by a known cost with noise."""

from typing import Any

import numpy as np
import polars as pl

from calibration.fitted import FittedSettings, GraphSettings, fitted_cost
from calibration.fitting.prediction import FEATURES, predicted_s
from calibration.steps import step_frame

GPU: dict[str, Any] = {
    "step_s": 3e-4,
    "weights_s": 3.6e-3,
    "token_s": 2.2e-5,
    "elementwise_token_s": 1.5e-6,
    "decode_s": 4e-6,
    "context_s": 3.2e-8,
    "chunk_s": 6e-5,
    "pair_s": 1.1e-9,
    "prefill_context_s": 1.4e-7,
    "host_step_s": 8e-4,
    "host_sequence_s": 7e-6,
}
"""About an 8B model on a large GPU; computing overtakes reading the weights at 164 tokens, and
pairs overtake contexts in chunks of about 127 tokens."""

GRAPHS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 224, 256)


def design(
    random: np.random.Generator,
    *,
    decodes: int = 50,
    prefills: int = 40,
    mixed: int = 50,
    repeats: int = 4,
    sizes: tuple[int, ...] = (),
) -> pl.DataFrame:
    """Random steps in random order, log-uniform in sizes and contexts; nobody has timed them."""
    rows = [_step(random, True, False) for _ in range(decodes)]
    rows += [_step(random, False, True) for _ in range(prefills)]
    rows += [_step(random, True, True) for _ in range(mixed)]
    rows = random.permutation(np.repeat(np.array(rows), repeats, axis=0))
    graphs = GraphSettings(sizes=sizes)
    frame = step_frame(dict(zip(FEATURES, rows.T, strict=True)) | {"time_s": np.ones(len(rows))})
    replayed = [
        graphs.size(d + chunk, chunk == 0)
        for d, chunk in frame.select("decodes", "prefill_tokens").iter_rows()
    ]
    return frame.with_columns(graph_tokens=pl.Series(replayed, dtype=pl.Int64))


def timed(
    truth: dict[str, Any],
    frame: pl.DataFrame,
    noise: float,
    random: np.random.Generator,
    sizes: tuple[int, ...] = (),
) -> pl.DataFrame:
    """The frame with device and total times by a known cost, each with noise of its own."""
    host_too = FittedSettings(kind="fitted", graphs=GraphSettings(sizes=sizes), **truth)
    alone = {term: value for term, value in truth.items() if not term.startswith("host_")}
    device = FittedSettings(kind="fitted", graphs=GraphSettings(sizes=sizes), **alone)
    device_s, time_s = (
        predicted_s(fitted_cost(one, async_scheduling=False), frame) for one in (device, host_too)
    )

    def scatter() -> Any:
        return np.exp(noise * random.standard_normal(frame.height) - noise**2 / 2)

    measured_s = device_s * scatter()
    return frame.with_columns(
        device_s=pl.Series(measured_s),
        time_s=pl.Series(measured_s + (time_s - device_s) * scatter()),
    )


def _step(random: np.random.Generator, decode: bool, prefill: bool) -> tuple[int, ...]:
    """Features of one step."""
    decodes = _whole(random, 0, 7.9) if decode else 0
    context = decodes * _whole(random, 4, 12)
    chunks: list[int] = []
    if prefill:
        count = int(random.choice([1, 1, 2, 4]))
        chunks = [1 + _whole(random, 2, 11) // count for _ in range(count)]
    before = [int(random.choice([0, _whole(random, 5, 13)])) for _ in chunks]
    pairs = sum(c * b + c * (c + 1) // 2 for c, b in zip(chunks, before, strict=True))
    return decodes, context, len(chunks), sum(chunks), sum(chunks) + sum(before), pairs


def _whole(random: np.random.Generator, low: float, high: float) -> int:
    """A whole number, uniform in its logarithm to base 2."""
    return round(2 ** random.uniform(low, high))
