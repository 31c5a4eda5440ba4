"""A comparison as tables, for polars and for files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import polars as pl

from sim.comparing.grid import shown

if TYPE_CHECKING:
    from sim.comparing.comparison import Comparison
    from sim.comparing.judging import Entry


def cells_frame(comparison: Comparison) -> pl.DataFrame:
    """One row a simulation: settings, replication, figures; failures with their error.

    Columns: `cell` (label), one a varied setting (text, as YAML writes it), the curve's setting (a
    number where all its values are, a whole one where all are whole), `replication` (0: the run
    itself), `error` (null: none), then every figure by its dotted name (null: this run has none).
    """
    rows: list[dict[str, Any]] = []
    names: dict[str, None] = {}
    for entry in comparison.entries:
        begin = {"cell": entry.variant.label, **_settings(comparison, entry)}
        if entry.itself is not None:
            rows.append(begin | {"replication": 0, "error": None} | entry.itself)
            names |= dict.fromkeys(entry.itself)
        if entry.error:
            rows.append(begin | {"replication": None, "error": entry.error})
        for number, figures in enumerate(entry.replications, 1):
            rows.append(begin | {"replication": number, "error": None} | figures)
            names |= dict.fromkeys(figures)
    fixed = {"cell": pl.String(), **_schema(comparison)}
    schema = {**fixed, "replication": pl.Int64(), "error": pl.String()}
    schema |= dict.fromkeys(names, pl.Float64())
    whole = [{name: row.get(name) for name in schema} for row in rows]
    return pl.DataFrame(whole, schema=schema, strict=False)


def differences_frame(comparison: Comparison) -> pl.DataFrame:
    """One row a comparison with the baseline.

    Columns: `cell`, varied settings and the curve's as in `cells_frame`; `metric`; `mean` and
    `baseline_mean` over replications; `difference` with its interval `low`, `high`; `share`, the
    difference over the baseline; `p` of its own and `p_adjusted` for all; `verdict`.
    """
    rows = [
        {
            "cell": row.entry.variant.label,
            **_settings(comparison, row.entry),
            "metric": row.metric,
            "mean": row.difference.mean,
            "baseline_mean": row.difference.baseline,
            "difference": row.difference.difference,
            "low": row.difference.low,
            "high": row.difference.high,
            "share": row.difference.share,
            "p": row.difference.p,
            "p_adjusted": row.adjusted,
            "verdict": row.verdict or None,
        }
        for row in comparison.rows
    ]
    schema: dict[str, Any] = {"cell": pl.String(), **_schema(comparison), "metric": pl.String()}
    numbers = ["mean", "baseline_mean", "difference", "low", "high", "share", "p", "p_adjusted"]
    schema |= dict.fromkeys(numbers, pl.Float64()) | {"verdict": pl.String()}
    return pl.DataFrame(rows, schema=schema, strict=False)


def _settings(comparison: Comparison, entry: Entry) -> dict[str, Any]:
    settings: dict[str, Any] = {
        name: shown_plainly(value) for name, value in entry.variant.settings.items()
    }
    if comparison.curve is not None:
        at = entry.variant.at
        settings[comparison.curve[0]] = at if _numeric(comparison) else shown_plainly(at)
    return settings


def _schema(comparison: Comparison) -> dict[str, Any]:
    schema: dict[str, Any] = dict.fromkeys(comparison.vary, pl.String())
    if comparison.curve is not None:
        kind = pl.Float64() if _numeric(comparison) else pl.String()
        if _numeric(comparison) and all(isinstance(at, int) for at in comparison.curve[1]):
            kind = pl.Int64()
        schema[comparison.curve[0]] = kind
    return schema


def _numeric(comparison: Comparison) -> bool:
    assert comparison.curve is not None
    return all(
        isinstance(value, (int, float)) and not isinstance(value, bool)
        for value in comparison.curve[1]
    )


def shown_plainly(value: Any) -> str:
    """A value as YAML writes it, without separators of thousands."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else shown(value)
