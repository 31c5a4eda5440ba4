"""All kinds of policies: the engine's, and those of a cluster."""

from __future__ import annotations

from typing import Final

from engine import kinds
from engine.kinds import Kind
from sim.admission import ADMISSION
from sim.routing import ROUTERS

KINDS: Final[dict[str, Kind]] = {
    **kinds.KINDS,
    "router": Kind(
        "Which replica does a request go to?", "cluster.router", ROUTERS, ("choose", "done")
    ),
    "admission": Kind("Who is let in?", "cluster.admission", ADMISSION, ("refuse",)),
}
"""By name; a new kind is a line here, or in engine.kinds if the engine has it too."""
