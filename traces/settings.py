"""Settings that come from YAML: frozen, unknown names refused, errors in one line."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from traces.errors import ConfigError

_SHOWN_CHARACTERS = 60

UNKNOWN_NAME: Final = "unknown_name"
"""Type of a validator's error whose message says everything."""

_SAID: Final = {
    "greater_than": "must be above {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "less_than": "must be below {lt:g}",
    "less_than_equal": "must be at most {le:g}",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "int_type": "must be a whole number",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "string_too_short": "must not be empty",
    "literal_error": "must be {expected}",
    "model_type": "must be a mapping of settings",
    "tuple_type": "must be a list",
}
"""What is wrong, by pydantic's type of error; any other is said in pydantic's words."""


class Settings(BaseModel):
    """A frozen settings model that refuses unknown names, infinities and NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


AnySettings = TypeVar("AnySettings", bound=Settings)


COMMAND_LINE: Final = "command line"


def load_settings(
    model: type[AnySettings],
    path: str | Path | None,
    overrides: Iterable[str] = (),
    options: Mapping[str, Any] | None = None,
) -> AnySettings:
    """Settings from a YAML file (or the defaults), then `options`, then the overrides.

    What is wrong is said of the file, or of the command line if the file alone is right.

    Args:
        model: which settings.
        path: a YAML file; None: the defaults.
        overrides: settings as `dotted.name=value`.
        options: settings as nested mappings.

    Raises:
        ConfigError: naming the file or override and the setting.
    """
    stated = read_mapping(path) if path is not None else {}
    values = merged(stated, options or {})
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals or not name:
            raise ConfigError(
                f"--set {override}: expected NAME=VALUE, like scheduler.max_num_seqs=256"
            )
        values = merged(values, _nested(name, _parsed(text, override)))
    if path is not None and values == stated:
        return settings_of(model, stated, str(path))
    try:
        return settings_of(model, values, COMMAND_LINE)
    except ConfigError:
        if path is not None:
            settings_of(model, stated, str(path))
        raise


def settings_of(
    model: type[AnySettings], values: Mapping[str, Any], where: str = "settings"
) -> AnySettings:
    """Checked settings; raises ConfigError with the nearest name for an unknown one."""
    _refuse_unknown(model, model, values, where, "")
    return checked(model, dict(values), where)


def to_yaml(settings: Settings) -> str:
    """All settings, the defaults too; `load_settings` makes the same of them again."""
    import yaml

    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `over` on top, mapping by mapping."""
    result = dict(base)
    for key, value in over.items():
        below = result.get(key)
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            value = merged(below, value)
        result[key] = value
    return result


def setting_names(model: type[Settings], above: str = "") -> Iterator[str]:
    """The dotted name of every setting, in its order."""
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, Settings):
            yield from setting_names(inner, f"{above}{name}.")
        else:
            yield f"{above}{name}"


def checked(model: type[AnySettings], values: Any, where: str) -> AnySettings:
    """`values` as settings; raises ConfigError, its message beginning with `where`."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise config_error(error, where) from None


def config_error(error: ValidationError, where: str) -> ConfigError:
    """The gravest of pydantic's complaints: `where: setting.name: what is wrong, got value`."""
    # A misspelt name also leaves the right one missing: say the former.
    first, *others = sorted(
        error.errors(include_url=False), key=lambda one: one["type"] != "extra_forbidden"
    )
    setting = ".".join(str(part) for part in first["loc"])
    begin = f"{where}: {setting}" if setting else where
    if first["type"] == "extra_forbidden":
        message = f"{begin}: unknown setting"
    elif first["type"] == "missing":
        message = f"{begin}: is required"
    else:
        message = f"{begin}: {_said(first)}"
    return ConfigError(f"{message} (and {len(others)} more)" if others else message)


def _said(error: ErrorDetails) -> str:
    kind, msg = error["type"], error["msg"]
    if kind == UNKNOWN_NAME:
        return msg
    if kind in _SAID:
        said = _SAID[kind].format(**error.get("ctx", {}))
    else:
        said = msg.removeprefix("Value error, ").removeprefix("Input ")
        said = f"{said[:1].lower()}{said[1:]}"
    return f"{said}, got {_shortened(error['input'])}"


def known_name(what: str, name: str, known: Collection[str]) -> str:
    """`name`, for a validator; one that is not in `known` is refused with the nearest that is."""
    if name not in known:
        near = get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise PydanticCustomError(
            UNKNOWN_NAME,
            "unknown {what} '{name}'; {hint}known: {known}",
            {"what": what, "name": name, "hint": hint, "known": ", ".join(known)},
        )
    return name


def read_mapping(path: str | Path) -> dict[str, Any]:
    """The mapping a YAML file holds; raises ConfigError when it holds none."""
    import yaml

    path = Path(path)
    try:
        values: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        said = " ".join(str(error).split())
        raise ConfigError(f"{path}: is no YAML: {said}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a mapping of settings, got {_shortened(values)}")
    return values


def _nested(name: str, value: Any) -> dict[str, Any]:
    for part in reversed(name.split(".")):
        value = {part: value}
    return value


def _parsed(text: str, override: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"--set {override}: the value is no YAML") from None


def _refuse_unknown(
    root: type[Settings], model: type[Settings], values: Mapping[str, Any], where: str, above: str
) -> None:
    """Point out a misspelt setting with the nearest right one, before anything else is checked."""
    fields = model.model_fields
    for name, value in values.items():
        if name not in fields:
            hint = _nearest(str(name), root, model, above)
            raise ConfigError(f"{where}: {above}{name}: unknown setting; {hint}")
        inner = _settings_in(fields[name].annotation)
        if inner is None:
            continue
        if isinstance(value, Mapping) and get_origin(fields[name].annotation) is dict:
            for key, one in value.items():  # the names are the user's own
                if isinstance(one, Mapping):
                    _refuse_unknown(root, inner, one, where, f"{above}{name}.{key}.")
        elif isinstance(value, Mapping):
            _refuse_unknown(root, inner, value, where, f"{above}{name}.")
        elif isinstance(value, (list, tuple)):
            for number, one in enumerate(value):
                if isinstance(one, Mapping):
                    _refuse_unknown(root, inner, one, where, f"{above}{name}.{number}.")


def _nearest(name: str, root: type[Settings], model: type[Settings], above: str) -> str:
    """A setting of this name elsewhere, one spelt alike here or there, or all there are here."""
    here = {field: f"{above}{field}" for field in model.model_fields}
    everywhere = {setting.rpartition(".")[2]: setting for setting in setting_names(root)}
    if name in everywhere:
        return f"did you mean {everywhere[name]}?"
    for known in (here, everywhere):
        if near := get_close_matches(name, known, 1):
            return f"did you mean {known[near[0]]}?"
    return f"known: {', '.join(here.values())}"


def _settings_in(annotation: Any) -> type[Settings] | None:
    """The settings that a field holds: itself, none or several of them; None if of many kinds."""
    held = [
        one
        for one in (annotation, *get_args(annotation))
        if isinstance(one, type) and issubclass(one, Settings)
    ]
    return held[0] if len(held) == 1 else None


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 3] + "..."
