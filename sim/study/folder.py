"""A study in a folder: page, numbers, settings."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import Final

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from engine import units
from engine.atomic import check_replaceable, replacing_folder
from sim.report.fragments import table
from sim.report.panels import panel, script_literal
from sim.report.stylesheet import CSS, SCRIPT
from sim.study import pictures, tables
from sim.study.study import Study
from traces.settings import to_yaml
from traces.version import installed_version

PAGE: Final = "cache.html"
NUMBERS: Final = "cache.json"
SETTINGS: Final = "cache.yaml"
FILES: Final = frozenset({PAGE, NUMBERS, SETTINGS})


def check_folder(folder: Path) -> None:
    """Only an earlier study is ever replaced; raises ConfigError for anything else."""
    check_replaceable(folder, FILES, FILES)


def write_folder(study: Study, folder: Path) -> None:
    """Write everything, whole or not at all; the same study gives the same bytes."""
    check_folder(folder)
    with replacing_folder(folder) as part:
        (part / PAGE).write_text(page(study), encoding="utf-8")
        text = json.dumps(study.as_json(), indent=2, allow_nan=False)
        (part / NUMBERS).write_text(text + "\n", encoding="utf-8")
        (part / SETTINGS).write_text(to_yaml(study.settings), encoding="utf-8")


def page(study: Study) -> str:
    """The study as one HTML file that needs no network."""
    drawn: dict[str, go.Figure] = {}
    sections: dict[str, tuple[str, str]] = {}
    if any(tokens is not None for tokens in study.settings.capacity_tokens):
        drawn = {"hits": pictures.hit_curves(study), "bound": pictures.bound_curves(study)}
        panels = "".join(panel(name, picture, wide=True) for name, picture in drawn.items())
        sections["curves"] = ("Curves", f'<div class="grid">{panels}</div>')
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
    links = "".join(f'<a href="#{anchor}">{title}</a>' for anchor, (title, _) in sections.items())
    body = "".join(
        f'<section id="{anchor}"><h2>{title}</h2>{content}</section>\n'
        for anchor, (title, content) in sections.items()
    )
    banners = "\n".join(
        f'<div class="banner warning" role="note">{escape(text)}</div>'
        for text in tables.warnings(study)
    )
    name = escape(Path(study.settings.trace.path).stem)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{name}, cached · kvcast</title>
<style>{CSS}</style>
</head>
<body>
<header class="top"><div>
<div class="brand">kvcast cache study</div>
<h1>{name}</h1>
<p class="answer">{escape(_answer(study))}</p>
<p class="setting">{escape(tables.about(study))}</p>
<nav aria-label="Sections">{links}</nav>
</div></header>
<main>
{banners}
{body}
<footer>kvcast {escape(installed_version())}. This file needs no network.</footer>
</main>
<script>{get_plotlyjs()}</script>
<script>
const FIGURES = {script_literal(drawn)};
{SCRIPT}</script>
</body>
</html>
"""


def _answer(study: Study) -> str:
    """The best policy at the largest capacity, and how far the bound is."""
    *others, bound = [row for row in study.rows if row.capacity_tokens == _largest(study)]
    where = tables.capacity(_largest(study))
    most = units.share(bound.token_hit_ratio)
    if not others:
        return f"At {where} tokens {most} of all prompt tokens could be found in the cache."
    best = max(others, key=lambda row: row.token_hit_ratio)
    return (
        f"At {where} tokens {best.eviction} finds {units.share(best.token_hit_ratio)} of all prompt"
        f" tokens in the cache; {most} is the most that any eviction could."
    )


def _largest(study: Study) -> int | None:
    """The largest capacity that is one."""
    limited = [tokens for tokens in study.settings.capacity_tokens if tokens is not None]
    return limited[-1] if limited else None
