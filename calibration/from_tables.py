"""A profile from operator tables that somebody else measured."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from calibration.devices import stated_or_known
from calibration.evidence import Experiment, Validity
from calibration.imports import aiconfigurator, llmservingsim, vidur
from calibration.imports.bundle import Bundle
from calibration.operator_profile import OperatorSettings, write_tables
from calibration.profile_files import save_profile
from calibration.profiles import Profile
from engine.atomic import replacing
from traces.errors import ConfigError


class Format(NamedTuple):
    """An importer, and what it takes of what the user says."""

    recognised: Callable[[Path], bool]
    read: Callable[..., Bundle]
    takes: tuple[str, ...]


FORMATS: Final[Mapping[str, Format]] = {
    "LLMServingSim": Format(llmservingsim.recognised, llmservingsim.read, ("model_name", "tp")),
    "AIConfigurator": Format(
        aiconfigurator.recognised,
        aiconfigurator.read,
        ("model_name", "gpu", "tp", "weight_dtype", "kv_dtype", "framework", "version"),
    ),
    "Vidur": Format(vidur.recognised, vidur.read, ("model_name", "gpu", "tp", "network")),
}


def profile_from_tables(
    folder: Path,
    out: Path,
    asked: Mapping[str, Any],
    *,
    memory_bytes: int | None = None,
    settings: Mapping[str, Any] | None = None,
    command: str = "",
) -> Profile:
    """Read tables, compose them and write `out` with its times beside it.

    Args:
        folder: of a format in FORMATS, which is recognised.
        out: the profile's YAML file.
        asked: what the tables leave open; see `Format.takes`.
        memory_bytes: of a GPU that has no data sheet here.
        settings: of OperatorSettings, such as graph_sizes and host_step_s.
        command: what the user typed, for the record.

    Raises:
        ConfigError: tables that are of no known format, or wrong, or leave open what `asked` does.
    """
    bundle = _read(folder, asked)
    tables = out.with_name(f"{out.stem}.operators.parquet")
    profile = Profile.model_validate(
        {
            "name": out.stem,
            "measured": True,
            "provenance": f"step times composed from operators: {bundle.source}",
            "model": bundle.model,
            **stated_or_known(bundle.gpu, memory_bytes),
            "tp": bundle.tp,
            "weight_dtype": bundle.weight_dtype,
            "kv_dtype": bundle.kv_dtype,
            "cost": OperatorSettings.model_validate(
                {**(settings or {}), "kind": "operators", "tables": tables.name}
            ),
            "validity": Validity(
                max_tokens=bundle.max_tokens,
                max_sequences=bundle.max_sequences,
                max_context_tokens=bundle.max_context_tokens,
            ),
            "experiment": Experiment(
                date=datetime.datetime.now(datetime.UTC).date().isoformat(),
                device=bundle.gpu,
                command=command,
            ),
            "note": "; ".join(bundle.notes),
        }
    )
    try:
        with replacing(tables) as file:
            write_tables(bundle.tables, file)
    except OSError as error:
        raise ConfigError(f"{tables}: cannot be written: {error.strerror or error}") from None
    save_profile(profile, out)
    return profile.within(out.parent)


def _read(folder: Path, asked: Mapping[str, Any]) -> Bundle:
    if not folder.is_dir():
        raise ConfigError(f"{folder}: is no folder; expected one with operator tables")
    for name, one in FORMATS.items():
        if not one.recognised(folder):
            continue
        for option, value in asked.items():
            if option not in one.takes:
                raise ConfigError(f"{option}: {value}: {name}'s tables say it themselves")
        if "model_name" not in asked and one.read is not llmservingsim.read:
            raise ConfigError(f"model: is missing; {name}'s tables are of no model in particular")
        return one.read(folder, **asked)
    known = ", ".join(FORMATS)
    raise ConfigError(f"{folder}: holds no operator tables of a known format; known: {known}")
