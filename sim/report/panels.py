"""Pictures on a page: each a panel with heading, finding and caption, drawn by one script."""

import json
from collections.abc import Mapping
from html import escape
from typing import Any

import plotly.graph_objects as go


def panel(name: str, picture: go.Figure, *, wide: bool = False) -> str:
    """A picture's place on the page: heading, finding, plot, caption."""
    layout: Any = picture.layout
    finding = layout.meta["finding"]
    return (
        f'<figure class="panel{" wide" if wide else ""}"><h3>{escape(layout.title.text)}</h3>'
        + (f'<p class="finding">{escape(finding)}</p>' if finding else "")
        + f'<div id="plot-{name}" style="height: {layout.height}px"></div>'
        f"<figcaption>{escape(layout.meta['caption'])}</figcaption></figure>"
    )


def script_literal(pictures: Mapping[str, go.Figure]) -> str:
    """Figures as a script literal; headings and captions are in the page already."""
    parts: list[str] = []
    for name, picture in pictures.items():
        content: dict[str, Any] = json.loads(picture.to_json())  # pyright: ignore[reportArgumentType] a string
        layout = content["layout"]
        del layout["title"], layout["meta"], layout["height"]
        parts.append(f"{json.dumps(name)}: {json.dumps(content, separators=(',', ':'))}")
    # "<" could close the script element, whatever string it stands in
    return "{" + ",\n".join(parts).replace("<", "\\u003c") + "}"
