"""A profile as a file that people read, and the measured steps beside it."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml

from calibration.fitted import FittedSettings
from calibration.profiles import Profile, shipped_profiles
from engine.atomic import replacing
from traces.errors import ConfigError

if TYPE_CHECKING:
    import polars as pl

STEPS_SUFFIX: Final = ".steps.parquet"


def save_profile(profile: Profile, path: str | Path, steps: pl.DataFrame | None = None) -> Path:
    """Write a profile as YAML; `load_profile(path)` gives its values back.

    Args:
        profile: what to write; fields without a value are left out.
        path: the YAML file, replaced whole or not at all.
        steps: step frame that the profile was fitted to, written beside it (see `steps_beside`)
            before the profile is; None leaves what is there.

    Raises:
        ConfigError: the file cannot be written.
    """
    path = Path(path)
    try:
        if steps is not None:
            with replacing(steps_beside(path)) as file:
                steps.write_parquet(file, compression="zstd")
        with replacing(path) as file:
            file.write(_yaml(profile).encode())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror or error}") from None
    return path


def steps_beside(path: str | Path) -> Path:
    """Where the steps of the profile in a file are: `<stem>.steps.parquet` in its folder."""
    path = Path(path)
    return path.with_name(path.stem + STEPS_SUFFIX)


def load_steps(name_or_path: str | Path) -> pl.DataFrame | None:
    """The step frame beside a profile, by what `load_profile` takes; None where there is none.

    Raises:
        ConfigError: the file beside the profile is no step frame.
    """
    import polars as pl

    from calibration.steps import STEP_FRAME

    name = str(name_or_path)
    if isinstance(name_or_path, str) and name.lower() in shipped_profiles():
        source = files("calibration") / "profiles" / f"{name.lower()}{STEPS_SUFFIX}"
    else:
        source = steps_beside(name)
    if not source.is_file():
        return None
    try:
        steps = pl.read_parquet(source.read_bytes())
    except (OSError, pl.exceptions.PolarsError) as error:
        raise ConfigError(f"{source}: cannot be read: {error}") from None
    if missing := [column for column in STEP_FRAME if column not in steps.columns]:
        raise ConfigError(f"{source}: column {missing[0]} is missing; it is no step frame")
    return steps


def _yaml(profile: Profile) -> str:
    """Fields in their order; small mappings and lists of numbers in lines of their own."""
    stated: dict[str, Any] = profile.model_dump(mode="json", by_alias=True, exclude_none=True)
    stated = {name: value for name, value in stated.items() if value not in ("", {})}
    if isinstance(profile.cost, FittedSettings):
        stated["cost"] = profile.cost.model_dump(mode="json", exclude_defaults=True)
    return yaml.safe_dump(
        stated, sort_keys=False, allow_unicode=True, default_flow_style=None, width=80
    )
