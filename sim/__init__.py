"""The cluster simulator: the engine's own scheduler on a simulated clock."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sim.comparing.comparison import compare as compare
    from sim.study.study import cache_study as cache_study


def __getattr__(name: str) -> Any:
    """`sim.compare` and `sim.cache_study`, imported when first asked for."""
    if name == "cache_study":
        from sim.study.study import cache_study

        return cache_study
    if name != "compare":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sim.comparing.comparison import compare

    return compare
