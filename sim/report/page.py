"""The frame that all pages share: one HTML file that opens anywhere, without a network."""

from collections.abc import Mapping
from html import escape
from typing import Any

from plotly.offline import get_plotlyjs

from sim.report.panels import script_literal
from sim.report.stylesheet import CSS, SCRIPT


def page_of(
    *,
    brand: str,
    name: str,
    title: str,
    answer: str,
    setting: str,
    banners: str,
    sections: Mapping[str, tuple[str, str]],
    drawn: Mapping[str, Any],
    version: str,
    style: str = "",
) -> str:
    """A whole page; the same arguments give the same bytes.

    Args:
        brand: what kind of page it is.
        name: its heading, as text.
        title: what a browser calls it, as text.
        answer: the first sentences, as HTML; so are `setting` and `banners`.
        setting: of what and how, in a line.
        banners: what stands before everything else.
        sections: anchor -> heading and content as HTML, in the order of the page.
        drawn: name of a panel -> its plotly figure.
        version: of kvcast, that made it.
        style: CSS beside that of all pages.
    """
    links = "".join(
        f'<a href="#{anchor}">{heading}</a>' for anchor, (heading, _) in sections.items()
    )
    body = "".join(
        f'<section id="{anchor}"><h2>{heading}</h2>{content}</section>\n'
        for anchor, (heading, content) in sections.items()
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)} · kvcast</title>
<style>{CSS}{style}</style>
</head>
<body>
<header class="top"><div>
<div class="brand">kvcast {brand}</div>
<h1>{escape(name)}</h1>
<p class="answer">{answer}</p>
<p class="setting">{setting}</p>
<nav aria-label="Sections">{links}</nav>
</div></header>
<main>
{banners}
{body}
<footer>kvcast {escape(version)}. This file needs no network.</footer>
</main>
<script>{get_plotlyjs()}</script>
<script>
const FIGURES = {script_literal(drawn)};
{SCRIPT}</script>
</body>
</html>
"""
