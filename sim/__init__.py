"""The cluster simulator: the engine's own scheduler on a simulated clock."""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from sim.comparing.comparison import compare as compare
    from sim.planning.capacity import capacity as capacity
    from sim.planning.plan import plan as plan
    from sim.study.study import cache_study as cache_study

_MODULES: Final = {
    "cache_study": "sim.study.study",
    "capacity": "sim.planning.capacity",
    "compare": "sim.comparing.comparison",
    "plan": "sim.planning.plan",
}
"""Where a name comes from that is imported when it is first asked for."""


def __getattr__(name: str) -> Any:
    """`sim.compare` and its like."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
