"""Hit ratios over capacity."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import plotly.graph_objects as go

from engine import units
from sim.report.theme import INK, MUTED, SERIES, figure
from sim.study.study import BOUND, Row, Study, capacity

DASHES: Final = ("solid", "dash", "dot", "dashdot")
"""Beyond the colours' number, lines differ by their dashes."""


HEIGHT_PX: Final = 380
LEGEND_PX: Final = 8
"""More height for each policy, whose names stand below."""


def pictures(study: Study) -> dict[str, go.Figure]:
    """Every picture by name; none where there is no capacity to draw them over."""
    if not study.settings.limited:
        return {}
    return {"hits": hit_curves(study), "bound": bound_curves(study)}


def hit_curves(study: Study) -> go.Figure:
    """Token hit ratio of every policy over capacity, the bound and the unbounded cache."""
    picture = figure(
        "Hits by capacity",
        "Share of prompt tokens found in the cache. Black: Belady's bound, which knows the future;"
        " no policy can lie above it. Dotted: a cache without limit.",
        finding=_finding(study),
        height=_height(study),
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
        height=_height(study),
    )
    _lines(picture, study, lambda row: row.of_bound)
    picture.update_yaxes(title_text="of the bound", tickformat=".0%", rangemode="tozero")
    return picture


def _height(study: Study) -> int:
    return HEIGHT_PX + LEGEND_PX * (len(study.alike) + 1)


def _lines(picture: go.Figure, study: Study, value: Callable[[Row], float | None]) -> None:
    """A line for each policy, or for all that hit alike: they would hide each other."""
    limited = study.settings.limited
    for number, policies in enumerate([*study.alike, [BOUND]]):
        policy, *others = policies
        rows = [study.row(policy, tokens) for tokens in limited]
        is_bound = policy == BOUND
        picture.add_trace(
            go.Scatter(
                x=limited,
                y=[value(row) for row in rows],
                name=f"{policy} and {len(others)} alike"
                if len(others) > 1
                else " = ".join(policies),
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
    picture.update_layout(
        hovermode="x unified",
        showlegend=True,
        margin={"t": 40, "b": 52},
        legend={"y": -0.18, "yanchor": "top"},
    )


def _finding(study: Study) -> str:
    """The best policy at the smallest and the largest capacity."""
    limited = study.settings.limited
    policies = [policy for policy in study.settings.policies() if policy != BOUND]
    if not limited or not policies:
        return ""
    said: list[str] = []
    for tokens in dict.fromkeys((limited[0], limited[-1])):
        rows = [study.row(policy, tokens) for policy in policies]
        best = max(rows, key=lambda row: row.token_hit_ratio)
        hits = f"({units.share(best.token_hit_ratio)}, {units.share(best.of_bound)} of the bound)"
        alike = len(rows) > 1 and all(row.total.hit_tokens == best.total.hit_tokens for row in rows)
        who = "all hit alike" if alike else f"{best.eviction} hits most"
        said.append(f"at {capacity(tokens)} tokens {who} {hits}")
    text = "; ".join(said) + "."
    return text[0].upper() + text[1:]
