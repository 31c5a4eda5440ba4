"""One of several pictures, or all of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import plotly.graph_objects as go


def chosen(drawn: Mapping[str, go.Figure], name: str | None) -> go.Figure | dict[str, go.Figure]:
    """The picture `name`, or all of them; raises KeyError for one that is not there."""
    if name is None:
        return dict(drawn)
    if name not in drawn:
        raise KeyError(f"no picture {name!r}; there are {', '.join(drawn) or 'none'}")
    return drawn[name]
