"""From what stands in the page's controls to a scenario: nothing in them is trusted.

A browser may send anything. Traces and profiles are therefore chosen from what is offered, policies
from kvcast's own; no value of a control ever becomes a path or a file that is run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from calibration.profiles import Profile, load_profile, shipped_profiles
from sim.app.bounds import GIB
from sim.app.controls import (
    CACHE,
    CPU_TIER,
    POLICIES,
    RATE,
    Control,
    Menu,
    Number,
    Slider,
    controls,
    parted,
    parts_of,
    profile_parts,
)
from sim.kinds import KINDS
from sim.scenario import Scenario, scenario_of
from traces.errors import ConfigError
from traces.reader import open_trace, sample_names
from traces.settings import merged

WHERE: Final = "settings"
"""What errors call the page's controls."""

LONGEST_PARAMETER: Final = 200

Choices = Mapping[str, Any]
"""What stands in each control, by its name; `trace` and `profile` beside those of `controls`, and
`parameters` of policies: kind -> name -> text."""


@dataclass(frozen=True, slots=True)
class Offer:
    """What there is to choose from."""

    traces: Mapping[str, str]
    """Key -> path, of the samples and of what the command line named."""
    profiles: tuple[str, ...]
    """Names or paths."""


def offer(traces: tuple[str, ...] = (), profiles: tuple[str, ...] = ()) -> Offer:
    """The samples and shipped profiles, and those that the command line names before them.

    Raises:
        ConfigError, TraceError: a profile or a trace that cannot be used.
    """
    for name in profiles:
        load_profile(name)
    for path in traces:
        open_trace(path)
    named = {f"file:{number}": path for number, path in enumerate(traces)}
    samples = {f"sample:{name}": f"sample:{name}" for name in sample_names()}
    return Offer(named | samples, tuple(dict.fromkeys((*profiles, *shipped_profiles()))))


def first_choices(offered: Offer) -> dict[str, Any]:
    """Where all controls stand at first: the scenario's defaults, but for what was named."""
    trace, profile = Scenario().trace.path, Scenario().profile
    named = [key for key in offered.traces if key.startswith("file:")]
    if offered.profiles[0] not in shipped_profiles():
        profile = offered.profiles[0]
    starts = {one.name: None if isinstance(one, Number) else one.start for one in controls()}
    starts |= parts_of(load_profile(profile))
    return {"trace": named[0] if named else trace, "profile": profile, "parameters": {}, **starts}


def scenario_from(choices: Choices, offered: Offer, uploads: Mapping[str, str]) -> Scenario:
    """The scenario that the controls state.

    Args:
        choices: what stands in them.
        offered: traces and profiles to choose from.
        uploads: key -> path of the traces that this page has uploaded.

    Raises:
        ConfigError: naming the control or the setting, and the value.
    """
    values: dict[str, Any] = {
        "trace": trace_settings(choices, offered, uploads),
        "profile": profile_from(choices, offered),
    }
    for control in controls():
        values = merged(values, _states(control, choices.get(control.name)))
    for menu in POLICIES:
        spec = _policy(menu, choices)
        if spec != menu.start:
            values = merged(values, nested(menu.setting, spec))
    return scenario_of(values, WHERE)


def trace_settings(choices: Choices, offered: Offer, uploads: Mapping[str, str]) -> dict[str, Any]:
    """Which trace, at which rate."""
    key = choices.get("trace")
    known = {**offered.traces, **uploads}
    if not isinstance(key, str) or key not in known:
        raise ConfigError(
            f"trace: {_shown(key)} is none that this page has; expected one of its list"
        )
    settings: dict[str, Any] = {"path": known[key]}
    factor = _placed(RATE, choices.get(RATE.name))
    if factor != 1:
        settings["operations"] = [{"compress_time": {"factor": factor}}]
    return settings


def profile_from(choices: Choices, offered: Offer) -> str:
    """The profile that was chosen, or, where its parts were changed, the one they make."""
    name = choices.get("profile")
    if name not in offered.profiles:
        raise ConfigError(f"profile: {_shown(name)} is not offered; expected one of the list")
    parts = parts_of(load_profile(str(name)))
    chosen = {menu.name: choices.get(menu.name) or parts[menu.name] for menu in profile_parts()}
    if chosen == parts:
        return str(name)
    for menu in profile_parts():
        _listed(menu, chosen[menu.name])
    return parted(**chosen)


def used_profile(choices: Choices, offered: Offer) -> Profile:
    """The profile of `profile_from`, loaded; raises ConfigError."""
    return load_profile(profile_from(choices, offered))


def _states(control: Control, value: Any) -> dict[str, Any]:
    """What a control states, as nested settings; {} where it stands at its default."""
    if isinstance(control, Slider):
        found = _placed(control, value)
        if control is CACHE and found is not None:
            block_tokens = Scenario().cache.block_tokens
            return nested("memory.num_blocks", found // block_tokens + 1)  # one is the null block
        if not control.setting or found == control.values[control.start]:
            return {}
        return nested(control.setting, found)
    if isinstance(control, Number):
        if value is None or value == "":
            return {}
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ConfigError(f"{control.label}: {_shown(value)} is no number of {control.unit}")
        return nested(control.setting, _scaled(value, control.per_unit))
    if control in POLICIES or control in profile_parts():
        return {}
    chosen = _listed(control, value)
    if chosen == control.start:
        return {}
    if control is CPU_TIER:
        return nested("offload.cpu_bytes", int(chosen) * GIB)
    return nested(control.setting, False if chosen == "false" else chosen)


def _policy(menu: Menu, choices: Choices) -> str:
    """A policy's spec: its name and the parameters that were stated."""
    name = _listed(menu, choices.get(menu.name))
    stated = choices.get("parameters", {}).get(menu.name, {})
    parts = [
        f"{parameter}={' '.join(text.split())}"
        for parameter, text in sorted(stated.items())
        if name in KINDS[menu.name].table and isinstance(text, str) and text.strip()
    ]
    for part in parts:
        if ":" in part or len(part) > LONGEST_PARAMETER:
            raise ConfigError(f"{menu.label} '{name}': {_shown(part)} is no value of a parameter")
    return ":".join([name, *parts])


def _placed(slider: Slider, value: Any) -> Any:
    """The value at a slider's place."""
    place = slider.start if value is None else value
    if (
        isinstance(place, bool)
        or not isinstance(place, int)
        or place not in range(len(slider.values))
    ):
        raise ConfigError(
            f"{slider.label}: {_shown(value)} is no place of its slider;"
            f" expected 0 to {len(slider.values) - 1}"
        )
    return slider.values[place]


def _listed(menu: Menu, value: Any) -> str:
    """The value, if it is one of a menu's."""
    chosen = menu.start if value is None else value
    known = [option for option, _ in menu.options]
    if chosen not in known:
        raise ConfigError(
            f"{menu.label}: {_shown(value)} is not on its list; expected one of"
            f" {', '.join(filter(None, known))}"
        )
    return str(chosen)


def nested(name: str, value: Any) -> dict[str, Any]:
    """A dotted setting as nested settings."""
    for part in reversed(name.split(".")):
        value = {part: value}
    return value


def _scaled(value: float, per_unit: float) -> float:
    """In the setting's unit: 50 ms is 0.05 s, not 0.05 and an error of rounding."""
    return value if per_unit == 1 else value / round(1 / per_unit)


def _shown(value: object) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else text[:57] + "..."
