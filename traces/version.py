"""Which kvcast runs."""

from importlib.metadata import PackageNotFoundError, version


def installed_version() -> str:
    """kvcast's version, or "unknown" in a tree that was not installed."""
    try:
        return version("kvcast")
    except PackageNotFoundError:
        return "unknown"
