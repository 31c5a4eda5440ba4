"""A study as one HTML file that opens anywhere, without a network."""

from __future__ import annotations

from html import escape
from pathlib import Path

from engine import units
from sim.report.fragments import table
from sim.report.page import page_of
from sim.report.panels import panel
from sim.study import tables
from sim.study.pictures import pictures
from sim.study.study import BOUND, Row, Study, capacity
from traces.settings import to_yaml
from traces.version import installed_version


def page(study: Study) -> str:
    """The page as text; the same study gives the same bytes."""
    drawn = pictures(study)
    sections: dict[str, tuple[str, str]] = {}
    if drawn:
        panels = "".join(panel(name, picture, wide=True) for name, picture in drawn.items())
        sections["curves"] = ("Curves", f'<div class="grid">{panels}</div>')
    alike = "".join(f"<p>{escape(text)}</p>" for text in tables.said_of_alike(study))
    sections["hits"] = ("Hits", hit_tables(study) + alike)
    if study.flips:
        sections["flips"] = ("Where ranks flip", _flips(study))
    sections["numbers"] = ("All numbers", table(tables.HEAD, tables.rows(study.rows)))
    tenants = tables.tenant_rows(study)
    if tenants:
        head = ("Tenant", "Eviction", "Capacity", "Share of prompt tokens", "Tokens hit")
        sections["tenants"] = ("Tenants", table(head, tenants))
    sections["settings"] = (
        "Settings",
        "<details><summary>The complete settings</summary>"
        f"<pre>{escape(to_yaml(study.settings))}</pre></details>",
    )
    banners = "\n".join(
        f'<div class="banner warning" role="note">{escape(text)}</div>'
        for text in tables.warnings(study)
    )
    name = Path(study.settings.trace.path).stem
    return page_of(
        brand="cache study",
        name=name,
        title=f"{name}, cached",
        answer=escape(answer(study)),
        setting=escape(tables.about(study)),
        banners=banners,
        sections=sections,
        drawn=drawn,
        version=installed_version(),
    )


def answer(study: Study) -> str:
    """The best policy where the policies are farthest apart, and how far the bound is there."""
    policies = [policy for policy in study.settings.policies() if policy != BOUND]
    limited = study.settings.limited
    if not policies or not limited:
        tokens = limited[-1] if limited else None
        most = units.share(study.row(BOUND, tokens).token_hit_ratio)
        return f"At {capacity(tokens)} tokens {most} of all prompt tokens could be found."

    def ranked(tokens: int) -> list[Row]:
        found = [study.row(policy, tokens) for policy in policies]
        return sorted(found, key=lambda row: -row.token_hit_ratio)

    def apart(tokens: int) -> tuple[float, float]:
        """By how much the best leads the worst there and, all being alike, lags the bound."""
        found, bound = ranked(tokens), study.row(BOUND, tokens)
        lead = found[0].token_hit_ratio - found[-1].token_hit_ratio
        return lead, bound.token_hit_ratio - found[0].token_hit_ratio

    tokens = max(limited, key=apart)
    best, *_, worst = [*ranked(tokens), ranked(tokens)[-1]]
    text = (
        f"At {capacity(tokens)} tokens {best.eviction} finds {units.share(best.token_hit_ratio)} of"
        " all prompt tokens in the cache"
    )
    if worst.token_hit_ratio < best.token_hit_ratio:
        text += f", {worst.eviction} {units.share(worst.token_hit_ratio)}"
    bound = units.share(study.row(BOUND, tokens).token_hit_ratio)
    return f"{text}; no eviction could find more than {bound}."


def hit_tables(study: Study) -> str:
    """What each policy hits at each capacity, and below it the share of the bound."""
    return "".join(
        f'<h3 style="margin: 16px 0 8px">{escape(grid.title)}</h3>{table(grid.head, grid.rows)}'
        for grid in tables.grids(study)
    )


def _flips(study: Study) -> str:
    telling = tables.telling_flips(study)
    others = [flip for flip in study.flips if flip not in telling]
    text = (
        "<p>Which of two policies hits more depends on the capacity; by: points of token hit"
        f" ratio.</p>{table(tables.FLIP_HEAD, tables.flip_rows(telling))}"
    )
    if others:
        text += (
            f"<details><summary>{units.count(len(others))} more, with smaller leads or of policies"
            " that hit as much as one of these</summary>"
            f"{table(tables.FLIP_HEAD, tables.flip_rows(others))}</details>"
        )
    return text
