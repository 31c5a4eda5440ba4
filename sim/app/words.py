"""What stands in controls, and what a trace holds, in words."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from engine import units
from sim.app.controls import Control, Number, Slider, controls
from sim.app.state import Page
from sim.app.stated import Choices


def control_words(page: Page, name: str, choices: Choices) -> tuple[str, str]:
    """A control's label, and what stands in it in words."""
    value: Any = choices.get(name)
    if name == "trace":
        upload = page.uploads.get(str(value))
        return "Trace", upload.name if upload else str(value)
    if name == "parameters":
        stated = [f"{p} {text}" for kind in value.values() for p, text in kind.items()]
        return "Parameters", ", ".join(stated) or "as they are"
    control = _named().get(name)
    if isinstance(control, Slider):
        return control.label, control.texts[control.start if value is None else value]
    if isinstance(control, Number):
        return control.label, control.open if value in (None, "") else f"{value:g} {control.unit}"
    if control is None:
        return name.capitalize(), str(value)
    return control.label, dict(control.options).get(value, str(value))


@cache
def _named() -> dict[str, Control]:
    return {control.name: control for control in controls()}


def trace_words(described: Mapping[str, Any] | None) -> str:
    """A trace in numbers, in a sentence; empty for one that is not known yet."""
    if described is None:
        return ""
    prompt, output = described["prompt_tokens"]["mean"], described["output_tokens"]["mean"]
    reuse = described["reuse"]["token_share"]
    return (
        f"{units.count(described['requests'])} requests in {units.seconds(described['span_s'])},"
        f" {units.significant(described['mean_rate_per_s'])}/s;"
        f" {units.count(prompt)} prompt and {units.count(output)} output tokens on average"
        + (f", {units.share(reuse)} of prompts seen before" if reuse else "")
    )
