"""From a scenario's settings back to the controls: what `sim.app.stated` makes of them again.

The settings may be anybody's, so they are compared with what controls state, and never made into
a scenario themselves: a policy's name can be a file that would be run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from calibration.hardware import gpus, model_cards
from calibration.profiles import load_profile
from sim.app.bounds import GIB
from sim.app.controls import (
    CACHE,
    CPU_TIER,
    RATE,
    Control,
    Number,
    Slider,
    controls,
    parts_of,
    profile_parts,
)
from sim.app.stated import Offer, first_choices, offer, scenario_from
from sim.scenario import Scenario
from traces.errors import ConfigError

LEFT_OUT = ("name", "profile", "trace.skip_bad_rows")
"""Settings that may differ: no figure comes of them, or (`profile`) they are compared apart."""


def choices_of(settings: Mapping[str, Any], offered: Offer, what: str) -> dict[str, Any]:
    """What stands in the controls for the complete settings of a scenario, as JSON has them.

    Args:
        settings: see above; not trusted.
        offered: traces and profiles to choose from.
        what: it is called in errors.

    Raises:
        ConfigError: the page has no control, or no place on a slider, for one of the settings.
    """
    choices = first_choices(offered)
    choices["trace"] = _trace_key(settings, offered, what)
    choices |= _profile(_at(settings, "profile"), offered, what)
    for control in controls():
        if control in profile_parts():
            continue
        choices[control.name] = _standing(control, settings, choices[control.name])
    made = dict(_leaves(scenario_from(choices, offered, {}).model_dump(mode="json")))
    for name, value in _leaves(settings):
        if name not in LEFT_OUT and made.get(name) != value:
            raise ConfigError(
                f"{what}: {name} is {value!r:.80}, for which this page has no control"
            )
    return choices


def offer_of(
    scenario: Scenario, traces: tuple[str, ...], profiles: tuple[str, ...]
) -> tuple[Offer, dict[str, Any]]:
    """What to offer where a page begins with a scenario, and where its controls then stand.

    Args:
        scenario: of this machine's user.
        traces: to offer beside the scenario's own.
        profiles: the same.

    Raises:
        ConfigError: the page has no control for one of its settings.
    """
    settings = scenario.model_dump(mode="json")
    if not scenario.trace.path.startswith("sample:"):
        traces = tuple(dict.fromkeys((scenario.trace.path, *traces)))
    if not scenario.profile.startswith("analytic:"):
        profiles = tuple(dict.fromkeys((scenario.profile, *profiles)))
    offered = offer(traces, profiles)
    return offered, choices_of(settings, offered, "the scenario")


def _trace_key(settings: Mapping[str, Any], offered: Offer, what: str) -> str:
    path = _at(settings, "trace.path")
    for key, known in offered.traces.items():
        if known == path:
            return key
    raise ConfigError(
        f"{what}: its trace {path!r:.80} is not offered here; expected kvcast app --trace with it"
    )


def _profile(name: Any, offered: Offer, what: str) -> dict[str, Any]:
    """The profile's menu and its parts; the menu stays where no offered profile is meant."""
    if name in offered.profiles:
        return {"profile": name, **parts_of(load_profile(name))}
    known = isinstance(name, str) and name.startswith("analytic:")
    gpu, _, rest = str(name).removeprefix("analytic:").partition("/")
    if (
        not known
        or gpu not in {one.name for one in gpus()}
        or rest.split("/")[0] not in (model_cards())
    ):
        raise ConfigError(f"{what}: its profile {name!r:.80} is not offered here")
    return parts_of(load_profile(str(name)))


def _standing(control: Control, settings: Mapping[str, Any], rest: Any) -> Any:
    """Where a control stands; at rest where it can say nothing like it."""
    if control is CACHE:
        blocks, block_tokens = (
            _at(settings, "memory.num_blocks"),
            _at(settings, "cache.block_tokens"),
        )
        if isinstance(blocks, int) and isinstance(block_tokens, int):
            return _place(CACHE, (blocks - 1) * block_tokens)
        return rest
    if control is CPU_TIER:
        size = _at(settings, "offload.cpu_bytes")
        text = str(size // GIB) if isinstance(size, int) else ""
        return text if text in dict(CPU_TIER.options) else rest
    if control is RATE:
        operations = _at(settings, "trace.operations")
        if isinstance(operations, list) and len(operations) == 1:
            return _place(RATE, _at(operations[0], "compress_time.factor"))
        return rest
    value = _at(settings, control.setting)
    if isinstance(control, Slider):
        return _place(control, value)
    if isinstance(control, Number):
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return float(f"{value / control.per_unit:.12g}") if number else None
    text = "false" if value is False else value
    return text if text in dict(control.options) else rest


def _place(slider: Slider, value: Any) -> int:
    return slider.values.index(value) if value in slider.values else slider.start


def _at(settings: Any, name: str) -> Any:
    for part in name.split("."):
        settings = settings.get(part) if isinstance(settings, Mapping) else None
    return settings


def _leaves(settings: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value
