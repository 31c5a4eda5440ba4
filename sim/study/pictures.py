"""Hit ratios over capacity."""

from __future__ import annotations

from collections.abc import Callable

import plotly.graph_objects as go

from engine import units
from sim.report.theme import INK, MUTED, SERIES, figure
from sim.study.study import BOUND, Row, Study, capacity

DASHES = ("solid", "dash", "dot", "dashdot")
"""Beyond the colours' number, lines differ by their dashes."""


def hit_curves(study: Study) -> go.Figure:
    """Token hit ratio of every policy over capacity, the bound and the unbounded cache."""
    picture = figure(
        "Hits by capacity",
        "Share of prompt tokens found in the cache. Black: Belady's bound, which knows the future;"
        " no policy can lie above it. Dotted: a cache without limit.",
        finding=_finding(study),
        height=420,
    )
    _lines(picture, study, lambda row: row.token_hit_ratio)
    unbounded = [row for row in study.rows if row.capacity_tokens is None and row.eviction == BOUND]
    if unbounded:
        picture.add_hline(y=unbounded[0].token_hit_ratio, line_dash="dot", line_color=MUTED)
    picture.update_yaxes(title_text="prompt tokens hit", tickformat=".0%", rangemode="tozero")
    return picture


def bound_curves(study: Study) -> go.Figure:
    """Share of the bound that every policy reaches, over capacity."""
    picture = figure(
        "Share of the bound reached",
        "Tokens hit, of those that Belady's policy hits at the same capacity.",
        height=420,
    )
    _lines(picture, study, lambda row: row.of_bound)
    picture.update_yaxes(title_text="of the bound", tickformat=".0%", rangemode="tozero")
    return picture


def _lines(picture: go.Figure, study: Study, value: Callable[[Row], float | None]) -> None:
    limited = [tokens for tokens in study.settings.capacity_tokens if tokens is not None]
    for number, policy in enumerate(study.settings.policies()):
        rows = [study.row(policy, tokens) for tokens in limited]
        is_bound = policy == BOUND
        picture.add_trace(
            go.Scatter(
                x=limited,
                y=[value(row) for row in rows],
                name=policy,
                mode="lines+markers",
                line={
                    "color": INK if is_bound else SERIES[number % len(SERIES)],
                    "dash": "solid" if is_bound else DASHES[number // len(SERIES) % len(DASHES)],
                    "width": 2,
                },
                text=[capacity(tokens) for tokens in limited],
                hovertemplate="%{text} tokens: %{y:.1%}",
            )
        )
    picture.update_xaxes(
        type="log",
        title_text="capacity, tokens",
        tickvals=limited,
        ticktext=[capacity(tokens) for tokens in limited],
    )
    picture.update_layout(hovermode="x unified", showlegend=True)


def _finding(study: Study) -> str:
    """The best policy at the smallest and the largest capacity."""
    limited = [tokens for tokens in study.settings.capacity_tokens if tokens is not None]
    policies = [policy for policy in study.settings.policies() if policy != BOUND]
    if not limited or not policies:
        return ""
    said: list[str] = []
    for tokens in dict.fromkeys((limited[0], limited[-1])):
        best = max(
            (study.row(policy, tokens) for policy in policies), key=lambda row: row.token_hit_ratio
        )
        said.append(
            f"at {capacity(tokens)} tokens {best.eviction} hits most"
            f" ({units.share(best.token_hit_ratio)}, {units.share(best.of_bound)} of the bound)"
        )
    text = "; ".join(said) + "."
    return text[0].upper() + text[1:]
