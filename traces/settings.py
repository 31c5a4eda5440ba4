"""Settings that come from YAML: frozen, unknown names refused, errors in one line."""

from collections.abc import Collection
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from traces.errors import ConfigError

_SHOWN_CHARACTERS = 60

_UNKNOWN_NAME: Final = "unknown_name"

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


def load_settings(model: type[AnySettings], path: str | Path) -> AnySettings:
    """The settings in a YAML file.

    Raises ConfigError when the file is missing, is no YAML mapping or does not fit the model.
    """
    return checked(model, read_mapping(path), str(path))


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
    if kind == _UNKNOWN_NAME:
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
            _UNKNOWN_NAME,
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


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 3] + "..."
