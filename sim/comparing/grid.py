"""The cells of a comparison: every combination of the varied settings, as scenarios."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Final

from sim.scenario import PRESETS, Scenario, load_scenario, scenario_of
from traces.errors import ConfigError
from traces.settings import Settings, merged, read_mapping

LOAD: Final = "load"
"""Varied like a setting: the factor of the trace's rate, its compress_time operation."""

Values = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Variant:
    """A combination of values, and the scenario that it makes."""

    settings: Values
    """The varied settings and their values."""
    at: Any
    """Value of the curve's setting; None without a curve."""
    scenario: Scenario | None
    label: str
    """See label_of."""
    error: str = ""
    """Why there is no scenario: these values do not go together."""


def label_of(settings: Values, vary: Mapping[str, Sequence[Any]]) -> str:
    """The values that tell a combination from others, for a reader; the curve's apart."""
    names = several(vary) or vary
    return " · ".join(shown(settings[name]) for name in names) or "as stated"


def several(vary: Mapping[str, Sequence[Any]]) -> list[str]:
    """The settings that are varied over more than one value."""
    return [name for name, choices in vary.items() if len(choices) > 1]


def shown(value: Any) -> str:
    """A value for a reader: as YAML writes it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:,}" if isinstance(value, int) else str(value)


def parse_vary(text: str, option: str = "--vary") -> tuple[str, tuple[Any, ...]]:
    """`cache.eviction=lru,fifo`: a setting and its values, each of them YAML.

    Commas within brackets or braces part nothing. Raises ConfigError.
    """
    import yaml

    setting, equals, rest = text.partition("=")
    parts = list(_parts(rest))
    if not equals or not setting or not all(parts):
        raise ConfigError(
            f"{option} {text}: expected SETTING=VALUE,VALUE, like cache.eviction=lru,fifo"
        )
    try:
        return setting.strip(), tuple(yaml.safe_load(part) for part in parts)
    except yaml.YAMLError:
        raise ConfigError(f"{option} {text}: a value is no YAML") from None


def stated_values(
    path: Path | None, overrides: Iterable[str], options: Mapping[str, Any]
) -> Values:
    """What a scenario file, options and overrides state, without defaults and presets.

    Raises:
        ConfigError: they make no scenario.
    """
    overrides = tuple(overrides)
    load_scenario(path, overrides, options)
    values = merged(read_mapping(path) if path is not None else {}, options)
    for override in overrides:
        name, (value,) = _override(override)
        values = merged(values, _nested(name, value))
    return values


def values_of(scenario: Scenario, varied: Iterable[str]) -> Values:
    """What a Scenario states; where the preset is varied, without what its own preset did."""
    values = _without_unset(scenario)
    return _less(values, PRESETS[scenario.preset]) if "preset" in varied else values


def variants(
    values: Mapping[str, Any],
    vary: Mapping[str, Sequence[Any]],
    curve: tuple[str, Sequence[Any]] | None = None,
) -> list[Variant]:
    """Every combination, the first setting varying slowest; the curve's value before all.

    Args:
        values: what the scenario states.
        vary: values by dotted setting.
        curve: another setting and its values.

    Raises:
        ConfigError: an unknown setting, a value that no combination makes right, or a setting or a
            value stated twice.
    """
    axes = dict(vary) | ({curve[0]: curve[1]} if curve else {})
    if curve and curve[0] in vary:
        raise ConfigError(f"--curve {curve[0]}: is varied already; expected another setting")
    if not axes:
        raise ConfigError("--vary: is missing; expected one, like --vary cache.eviction=lru,fifo")
    for setting, choices in axes.items():
        _check_axis(_option(setting, curve), choices)
    made: list[Variant] = []
    for at in curve[1] if curve else (None,):
        for combination in product(*vary.values()):
            settings = dict(zip(vary, combination, strict=True))
            stated = settings | ({curve[0]: at} if curve else {})
            label = label_of(settings, vary)
            try:
                made.append(Variant(settings, at, scenario_with(values, stated), label))
            except ConfigError as error:
                made.append(Variant(settings, at, None, label, str(error)))
    for setting, choices in axes.items():
        for value in choices:
            with_it = [
                one
                for one in made
                if _same(one.at if curve and setting == curve[0] else one.settings[setting], value)
            ]
            if all(one.scenario is None for one in with_it):
                raise ConfigError(
                    f"{_option(setting, curve)}={shown(value)}: {_bare(with_it[0].error)}"
                )
    return made


def scenario_with(values: Mapping[str, Any], changes: Mapping[str, Any]) -> Scenario:
    """The scenario that `values` state, with dotted settings changed; raises ConfigError."""
    for setting, value in changes.items():
        if setting == LOAD:
            values = _loaded(values, value)
        else:
            values = merged(values, _nested(setting, value))
    return scenario_of(values, "scenario")


def _loaded(values: Mapping[str, Any], factor: Any) -> Values:
    if isinstance(factor, bool) or not isinstance(factor, (int, float)) or factor <= 0:
        raise ConfigError(f"{LOAD}: must be a number above 0, got {factor!r}")
    trace = dict(values.get("trace") or {})
    operations = [*(trace.get("operations") or ()), {"compress_time": {"factor": factor}}]
    return merged(values, {"trace": {"operations": operations}})


def _option(setting: str, curve: tuple[str, Sequence[Any]] | None) -> str:
    """The option that states a setting's values."""
    return (
        f"--curve {setting}" if curve is not None and setting == curve[0] else f"--vary {setting}"
    )


def _check_axis(option: str, choices: Sequence[Any]) -> None:
    if not choices:
        raise ConfigError(f"{option}: has no value")
    for index, value in enumerate(choices):
        if any(_same(value, other) for other in choices[:index]):
            raise ConfigError(f"{option}: {shown(value)} is stated twice")


def _same(one: Any, other: Any) -> bool:
    """They look alike, and would have one label."""
    return shown(one) == shown(other)


def _bare(error: str) -> str:
    return error.removeprefix("scenario: ")


def _override(text: str) -> tuple[str, tuple[Any]]:
    import yaml

    name, _, value = text.partition("=")
    return name, (yaml.safe_load(value),)


def _nested(name: str, value: Any) -> Values:
    for part in reversed(name.split(".")):
        value = {part: value}
    return value


def _parts(text: str) -> Iterator[str]:
    """Between the commas that stand outside of brackets and quotes."""
    depth, quote, begin = 0, "", 0
    for at, sign in enumerate(text):
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "'\"":
            quote = sign
        elif sign in "[{":
            depth += 1
        elif sign in "]}":
            depth -= 1
        elif sign == "," and depth == 0:
            yield text[begin:at].strip()
            begin = at + 1
    yield text[begin:].strip()


def _without_unset(settings: Settings) -> Values:
    return settings.model_dump(mode="json", exclude_unset=True)


def _less(values: Mapping[str, Any], preset: Mapping[str, Any]) -> Values:
    """`values` without those that are as the preset has them."""
    left: Values = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and isinstance(preset.get(name), Mapping):
            left[name] = _less(value, preset[name])
        elif name not in preset or preset[name] != value:
            left[name] = value
    return left
