"""Options of a command line on their way to settings."""

import re
from typing import Any


def given(options: dict[str, Any]) -> dict[str, Any]:
    """The options that were given, without the empty ones."""
    kept: dict[str, Any] = {}
    for name, value in options.items():
        if isinstance(value, dict):
            value = given(value) or None
        if value is not None:
            kept[name] = value
    return kept


def number(text: str | None) -> int | str | None:
    """The number an option states; anything else as it is, for the settings to refuse by name."""
    return int(text) if text is not None and re.fullmatch(r"-?[0-9]+", text) else text
