"""The engine's own steps.parquet (docs/engine.md) as measured steps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from calibration.steps import step_frame
from traces.errors import ConfigError

if TYPE_CHECKING:
    import polars as pl

STEPS: Final = "steps.parquet"

COLUMNS: Final = (
    "step",
    "start_s",
    "end_s",
    "device_s",
    "num_prefill_requests",
    "sum_prefill_tokens",
    "sum_prefill_kv_tokens",
    "prefill_pairs",
    "num_decode_requests",
    "sum_decode_kv_tokens",
    "graph_bucket",
    "num_queued_requests",
    "running",
    "admitted",
    "preempted",
    "moved_bytes",
)
"""Those of engine.steps that are read."""

WARMUP_STEPS: Final = 3
"""First steps of a run, in which kernels are loaded and memory is touched for the first time."""


def read_engine_steps(path: Path, *, warmup_steps: int = WARMUP_STEPS) -> pl.DataFrame:
    """Steps that an engine recorded, as calibration.steps has them.

    time_s runs from a step's start to the next step's start, which is when the next one could
    begin, as long as the engine stayed busy in between; else to the step's own end. Asynchronous,
    the next step starts with the output of this one, so this is end_s - start_s, and the host's
    work is in it only where the device waited for it. Synchronous, it adds what the host does
    between two steps: taking the output, scheduling, planning. The engine stayed busy if the next
    step computes a sequence that was there before, or if one waited.

    Steps without tokens are left out. Marked as outliers are the first `warmup_steps`, and those
    that waited for copies between tiers, which no feature describes.

    Args:
        path: steps.parquet, or the folder of a run.
        warmup_steps: how many first steps not to fit to.

    Raises:
        ConfigError: naming the file, the column or row, and what is wrong with it.
    """
    import polars as pl

    log = path / STEPS if path.is_dir() else path
    steps = _read(log)
    follows = pl.col("step").shift(-1) == pl.col("step") + 1
    next_carries = ((pl.col("running") - pl.col("admitted") > 0) | (pl.col("preempted") > 0)).shift(
        -1
    )
    stays_busy = follows & (next_carries | (pl.col("num_queued_requests") > 0))
    until_s = pl.when(stays_busy).then(pl.col("start_s").shift(-1)).otherwise(pl.col("end_s"))
    steps = steps.with_columns(time_s=until_s - pl.col("start_s"), position=pl.int_range(pl.len()))
    _refuse(steps, log)
    steps = steps.filter(pl.col("num_decode_requests") + pl.col("num_prefill_requests") > 0)
    if steps.is_empty():
        raise ConfigError(f"{log}: none of its steps computed anything")
    return step_frame(
        {
            "decodes": steps["num_decode_requests"],
            "decode_context_tokens": steps["sum_decode_kv_tokens"],
            "prefills": steps["num_prefill_requests"],
            "prefill_tokens": steps["sum_prefill_tokens"],
            "prefill_context_tokens": steps["sum_prefill_kv_tokens"] + steps["sum_prefill_tokens"],
            "prefill_pairs": steps["prefill_pairs"],
            "graph_tokens": steps["graph_bucket"],
            "time_s": steps["time_s"],
            "device_s": steps["device_s"],
            "outlier": (steps["position"] < warmup_steps) | (steps["moved_bytes"] > 0),
            "source": [log.parent.name] * len(steps),
        }
    )


def _read(log: Path) -> pl.DataFrame:
    import polars as pl

    try:
        frame = pl.read_parquet(log)
    except FileNotFoundError:
        raise ConfigError(f"{log}: no such file") from None
    except (OSError, pl.exceptions.PolarsError) as error:
        raise ConfigError(f"{log}: cannot be read: {' '.join(str(error).split())}") from None
    missing = [name for name in COLUMNS if name not in frame.columns]
    if missing:
        raise ConfigError(
            f"{log}: no column {missing[0]}; expected the steps of an engine run (docs/engine.md)"
        )
    if frame.is_empty():
        raise ConfigError(f"{log}: has no rows")
    return frame.sort("step")


def _refuse(steps: pl.DataFrame, log: Path) -> None:
    """Times go forward, numbers are numbers, and a step is there once."""
    import polars as pl

    wrong = {
        "step": pl.col("step").is_null() | (pl.col("step").diff().fill_null(1) < 1),
        "start_s": ~pl.col("start_s").is_finite().fill_null(False),
        "end_s": ~(pl.col("end_s").is_finite() & (pl.col("end_s") > pl.col("start_s"))).fill_null(
            False
        ),
        "time_s": ~(pl.col("time_s") > 0).fill_null(False),
        "device_s": ~(pl.col("device_s").is_finite() & (pl.col("device_s") >= 0)).fill_null(False),
    }
    expected = {
        "step": "each number once",
        "start_s": "a finite number",
        "end_s": "more than start_s",
        "time_s": "a next step that starts later",
        "device_s": "a finite number >= 0",
    }
    for name, condition in wrong.items():
        bad = steps.filter(condition)
        if not bad.is_empty():
            step, value = bad["step"][0], bad[name][0]
            raise ConfigError(f"{log}: step {step}: {name} is {value}; expected {expected[name]}")
