"""Measured steps as the fit reads them: one row a step, whoever measured it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import polars as pl

STEP_FRAME: Final[dict[str, str]] = {
    "decodes": "Int64",
    "decode_context_tokens": "Int64",
    "prefills": "Int64",
    "prefill_tokens": "Int64",
    "prefill_context_tokens": "Int64",
    "prefill_pairs": "Int64",
    "graph_tokens": "Int64",
    "time_s": "Float64",
    "device_s": "Float64",
    "held_out": "Boolean",
    "outlier": "Boolean",
    "source": "String",
}
"""Columns and their polars types.

The first six are the features of engine.batch.Batch under the same names. `graph_tokens` is the
size of the captured graph that was replayed, 0 for none; `time_s` what the step took, until the
next could begin; `device_s` its part on the device, null where nobody knows; `held_out` steps test
a fit and `outlier` steps are kept, but neither is fitted to; `source` says what measured them.
"""


def step_frame(columns: dict[str, Any]) -> pl.DataFrame:
    """A step frame from columns by name; those left out are 0, null (device_s), false or empty."""
    import polars as pl

    blank: dict[str, Any] = {
        "Int64": 0,
        "Float64": None,
        "Boolean": False,
        "String": "",
    }
    frame = pl.DataFrame(columns)
    return frame.select(
        (pl.col(name) if name in columns else pl.lit(blank[kind]).alias(name)).cast(
            getattr(pl, kind)
        )
        for name, kind in STEP_FRAME.items()
    )
