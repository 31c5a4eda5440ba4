"""Where the tokens of prompts were found, in a run with tiers below the GPU."""

from collections.abc import Mapping
from typing import Any, Final

from engine import units
from engine.work import TIERS

NAMES: Final = dict(zip(TIERS, ("GPU", "CPU", "disk", "pool"), strict=True))


def found(summary: Mapping[str, Any]) -> list[tuple[str, int, float]]:
    """Name of a tier, prompt tokens that first admissions found there, and their share of all
    prompt tokens of first admissions, nearest tier first; at last those that were computed.

    Empty for a run without tiers, or that did not count this, or where nothing was admitted.
    """
    tiers = summary.get("tiers")
    if tiers is None or "computed_tokens" not in tiers:
        return []
    tokens = {
        name: tiers[f"{tier}_hit_tokens"]
        for tier, name in NAMES.items()
        if f"{tier}_hit_tokens" in tiers
    }
    tokens["computed"] = tiers["computed_tokens"]
    total = sum(tokens.values())
    return [(name, count, count / total) for name, count in tokens.items()] if total else []


def found_line(summary: Mapping[str, Any]) -> str:
    """The shares in a line, such as "GPU 12.1 %, disk 40.3 %, computed 47.6 %"; may be empty."""
    return ", ".join(f"{name} {units.share(share)}" for name, _, share in found(summary))
