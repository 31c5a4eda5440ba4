"""What a cost model says of measured steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from calibration.costs import PICOSECONDS, CostModel
from engine.batch import Batch
from engine.sequence import Sequence
from traces.request import Request

if TYPE_CHECKING:
    import polars as pl
    from numpy.typing import NDArray

FEATURES: Final = (
    "decodes",
    "decode_context_tokens",
    "prefills",
    "prefill_tokens",
    "prefill_context_tokens",
    "prefill_pairs",
)
"""Columns of a step frame that a cost model sees."""


def kind_of_step() -> pl.Expr:
    """`decode`, `prefill` or `mixed`, of each row of a step frame."""
    import polars as pl

    return (
        pl.when(pl.col("prefill_tokens") == 0)
        .then(pl.lit("decode"))
        .when(pl.col("decodes") == 0)
        .then(pl.lit("prefill"))
        .otherwise(pl.lit("mixed"))
    )


def step_batch(
    decodes: int,
    decode_context_tokens: int,
    prefills: int = 0,
    prefill_tokens: int = 0,
    prefill_context_tokens: int = 0,
    prefill_pairs: int = 0,
) -> Batch:
    """A batch with these features, for one step; its prefills stand for nobody."""
    batch = Batch()
    batch.decodes = decodes
    batch.decode_context_tokens = decode_context_tokens
    batch.prefill_tokens = prefill_tokens
    batch.prefill_context_tokens = prefill_context_tokens
    batch.prefill_pairs = prefill_pairs
    if prefills:
        nobody = Sequence(Request(0, 0.0, 1, 1), 0, 0)
        batch.prefills = ((nobody, 0),) * prefills
    return batch


def predicted_s(cost: CostModel, steps: pl.DataFrame) -> NDArray[np.float64]:
    """Seconds that the cost model says of each row of a step frame."""
    rows = steps.select(FEATURES).iter_rows()
    return np.array([cost.progression(step_batch(*row))[0] for row in rows]) / PICOSECONDS
