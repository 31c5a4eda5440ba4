"""Settings that come from YAML: frozen, unknown names refused, errors in one line."""

from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from traces.errors import ConfigError

_SHOWN_CHARACTERS = 60


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
        got = _shortened(first["input"])
        said = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
        message = f"{begin}: {said[:1].lower()}{said[1:]}, got {got}"
    return ConfigError(f"{message} (and {len(others)} more)" if others else message)


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
